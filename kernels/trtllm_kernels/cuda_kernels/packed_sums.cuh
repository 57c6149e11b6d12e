// What kernels of GEMMs with packed weights and up to 128 tokens do with sums before the epilogue: those of ROW_GROUPS x K_GROUPS warpgroups and
// of SPLITS blocks of a cluster, which divide K, meet.
#pragma once
#include "packed.cuh"

constexpr int OWNERS = 128 * ROW_GROUPS, CONSUMERS = OWNERS * K_GROUPS;
constexpr int PITCH = ROWS + 4;
constexpr int SENT = TOKENS / 2 / SPLITS;  // sums of a thread to another block
static_assert(SPLITS == 1 || SENT >= 2, "a thread sends whole tokens");

// What one instruction sends.
#if TOKENS / 2 / SPLITS % 4
typedef float2 Piece;
INLINE Piece piece_of(const float* x) { return make_float2(x[0], x[1]); }
INLINE void add_piece(float* x, Piece piece) { x[0] += piece.x, x[1] += piece.y; }
#else
typedef float4 Piece;
INLINE Piece piece_of(const float* x) { return make_float4(x[0], x[1], x[2], x[3]); }
INLINE void add_piece(float* x, Piece piece) { x[0] += piece.x, x[1] += piece.y, x[2] += piece.z, x[3] += piece.w; }
#endif
constexpr int PIECE = sizeof(Piece) / 4, PIECES = (SENT + PIECE - 1) / PIECE;

// Where a block's sums meet. It may lie where w and x were; `received` and `all_received` may not.
struct Sums {
    float sums[TOKENS / SPLITS][PITCH];
    float of_others[K_GROUPS > 1 ? K_GROUPS - 1 : 1][K_GROUPS > 1 ? TOKENS / 2 : 1][K_GROUPS > 1 ? OWNERS : 4];
};
typedef Piece Received[SPLITS > 1 ? SPLITS - 1 : 1][SPLITS > 1 ? PIECES : 1][SPLITS > 1 ? OWNERS : 1];

// Leaves the sums of this block's tokens, of all warpgroups and blocks, in `to.sums`. Called by all CONSUMERS; `first`: of the rows whose sums a
// thread has in `total`.
INLINE void add_up(Sums& to, Received& received, u64& all_received, float (&total)[TOKENS / 2], u32 k_group, u32 part, u32 first, u32 lane) {
    sync_warps(1, CONSUMERS);  // all have read w and x, whose memory the sums take
    if (K_GROUPS > 1) {
        if (k_group > 0) {
#pragma unroll
            for (int i = 0; i < TOKENS / 2; i++) to.of_others[k_group - 1][i][threadIdx.x % OWNERS] = total[i];
        }
        sync_warps(1, CONSUMERS);
        if (k_group == 0) {
#pragma unroll
            for (int i = 0; i < TOKENS / 2; i++) {
#pragma unroll
                for (int k = 1; k < K_GROUPS; k++) total[i] += to.of_others[k - 1][i][threadIdx.x];
            }
        }
    }
    if (k_group == 0) {
        float own[SENT];
        // Token octet v and its even or odd tokens: unit u = 2 v + (0 or 1). Block q has units u with u % SPLITS == q.
#pragma unroll
        for (int q = 0; q < SPLITS; q++) {
            float of_q[SENT];
#pragma unroll
            for (int i = 0; i < SENT; i++) {
                int unit = i / 2 * SPLITS + q;
                of_q[i] = SPLITS == 1 ? total[i] : total[unit / 2 * 4 + i % 2 * 2 + unit % 2];
            }
            if (SPLITS == 1 || q == part) {
#pragma unroll
                for (int i = 0; i < SENT; i++) own[i] = of_q[i];
            } else {
                u32 slot = (part + SPLITS - q) % SPLITS - 1;
#pragma unroll
                for (int i = 0; i < PIECES; i++) {
                    send(&received[slot][i][threadIdx.x], piece_of(of_q + i * PIECE), all_received, q);
                }
            }
        }
        if (SPLITS > 1) {
            wait(all_received, 0);
#pragma unroll
            for (int slot = 0; slot < SPLITS - 1; slot++) {
#pragma unroll
                for (int i = 0; i < PIECES; i++) add_piece(own + i * PIECE, received[slot][i][threadIdx.x]);
            }
        }
#pragma unroll
        for (int i = 0; i < SENT; i++) {
            if (SPLITS == 1) {
                to.sums[i / 4 * 8 + lane % 4 * 2 + i % 2][first + i / 2 % 2 * 8] = own[i];
            } else {
                to.sums[i / 2 * 4 + lane % 4][first + i % 2 * 8] = own[i];
            }
        }
    }
    sync_warps(1, CONSUMERS);
}
