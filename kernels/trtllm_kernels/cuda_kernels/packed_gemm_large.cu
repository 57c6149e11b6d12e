// GEMM with packed weights for many tokens on Hopper: codes become the tensor core's A operand in registers, as in `packed_gemm.cu`, and x
// is B, so that a wide weight is never in memory.
//
// Persistent, one block per SM. A tile is ROWS rows of the weight by TOKENS tokens. Two warpgroups multiply, of M_TILES x 64 rows each;
// what is decoded is multiplied by TOKENS tokens, whose products take longer than the decoding of the next codes. Three warps and more of
// a third warpgroup load the weight, x, and scales, in a ring of RING; they are a tile ahead while sums are stored.
//
// Scales of groups are factors of the codes in x's format (FOLDED), rounded as in a weight that is made wide: one multiplication of two codes
// a register and no sums of groups. x fp8 takes int4 as E4M3, exactly, so sums of PART tokens and a group are scaled in fp32; the two
// warpgroups then multiply in turns, so that one's products run while the other scales.
//
// Tiles go through TOKEN_GROUP blocks of tokens first and then to the next rows: x of these stays in L2, and the weight is read once for them.
//
// x, w, group_scale, weight_zero and y as in `packed_gemm.cu`.
#define ROW_GROUPS (2 * M_TILES)
#define SPLITS 1
#define SCALES_AHEAD (GROUPS > 2 ? 1 : 2)
#include "packed.cuh"

constexpr int CONSUMERS = 256, THREADS = 384, ROWS_OF_GROUP = ROWS / 2, ROW_BLOCKS = (N + ROWS - 1) / ROWS;
constexpr int STORED = 32, PITCH = ROWS_OF_GROUP + 4;  // tokens that are stored at a time
constexpr int PART = BY_SUMS && TOKENS > 64 ? 64 : TOKENS, PARTS = TOKENS / PART;
static_assert(TOKENS % STORED == 0, "tokens are stored in whole parts");

struct Shared {
    char x[RING][X_BYTES];
    char w[RING][W_BYTES];
    float sums[2][STORED][PITCH];
    u32 scales[GROUPED ? RING : 1][ROW_GROUPS][GROUPS][32][2];
    u32 zeros[GROUPED && ZEROS ? RING : 1][ROW_GROUPS][GROUPS][32][2];
    u64 full[RING], empty[RING];
};
static_assert(sizeof(Shared) + TABLE_BYTES <= SHARED_BYTES, "SHARED_BYTES is what a launch asks for");

struct Tile {
    int row, token;

    INLINE Tile(int index, int token_blocks) {
        int group = index / (TOKEN_GROUP * ROW_BLOCKS), blocks = min(token_blocks - group * TOKEN_GROUP, TOKEN_GROUP);
        int within = index % (TOKEN_GROUP * ROW_BLOCKS);
        token = (group * TOKEN_GROUP + within % blocks) * TOKENS;
        row = within / blocks * ROWS;
    }
};

// The step of each tile of this block, one after another.
struct Steps {
    int index, tiles, token_blocks, step = 0;
    Place<RING> at;

    INLINE Steps(int tiles, int token_blocks) : index(blockIdx.x), tiles(tiles), token_blocks(token_blocks) {}

    INLINE bool left() const { return index < tiles; }

    INLINE Tile tile() const { return Tile(index, token_blocks); }

    INLINE void next() {
        at.next();
        if (++step == STEPS) step = 0, index += gridDim.x;
    }
};

// The 2 i32 and 2 i64 after a map are its sizes and strides in the launch ABI (`driver.py`).
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    packed_gemm_large(const __grid_constant__ TensorMap x, int, int, long long, long long, const char* w, const char* group_scale,
                      const char* weight_zero, const char* bias, const char* residual, const float* x_scale, const float* w_scale,
                      const float* out_scale, char* y, int num_tokens) {
    let_next_start();
    Shared& shared = *(Shared*)memory;
    u32 warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    int token_blocks = (num_tokens + TOKENS - 1) / TOKENS, tiles = token_blocks * ROW_BLOCKS;
    constexpr u32 LOADS_W = CONSUMERS / 32, LOADS_X = LOADS_W + 1;
    if (warp == LOADS_W && lane == 0) {
        for (int i = 0; i < RING; i++) {
            barrier_init(shared.full[i], GROUPED ? 3 : 2);
            barrier_init(shared.empty[i], CONSUMERS / 32);
        }
        barriers_are_made();
    }
    make_table(threadIdx.x, THREADS);
    __syncthreads();
    if (warp >= LOADS_W) {
        give_registers_down_to<56>();
        if (warp == LOADS_W && lane == 0) {
            for (Steps steps(tiles, token_blocks); steps.left(); steps.next()) {
                u64& full = shared.full[steps.at.stage];
                int row = steps.tile().row, first = IN_STEP * steps.step, count = TILES % IN_STEP ? min(IN_STEP, TILES - first) : IN_STEP;
                wait(shared.empty[steps.at.stage], steps.at.parity ^ 1);
                arrive_expecting(full, ROW_GROUPS * count * TILE_BYTES);
#pragma unroll
                for (int i = 0; i < ROW_GROUPS; i++) {
                    long long of_row = min(row / TILE + i, N / TILE - 1);
                    load_bytes(shared.w[steps.at.stage] + i * IN_STEP * TILE_BYTES, w + (of_row * TILES + first) * TILE_BYTES,
                               count * TILE_BYTES, full);
                }
            }
        }
        if (warp == LOADS_X && lane == 0) {
            prefetch(x);
            wait_for_previous();
            for (Steps steps(tiles, token_blocks); steps.left(); steps.next()) {
                u64& full = shared.full[steps.at.stage];
                wait(shared.empty[steps.at.stage], steps.at.parity ^ 1);
                arrive_expecting(full, X_BYTES);
#pragma unroll
                for (int panel = 0; panel < PANELS; panel++) {
                    load_box(shared.x[steps.at.stage] + panel * TOKENS * 128, x, steps.tile().token,
                             steps.step * COLUMNS + panel * PANEL_COLUMNS, full);
                }
            }
        }
        if (GROUPED && warp == LOADS_X + 1) {
            Scales scales{group_scale, weight_zero, lane};
            Steps ahead(tiles, token_blocks);
            auto load = [&](int slot) {
                if (ahead.left()) scales.load(slot, ahead.tile().row, ahead.step * COLUMNS);
                ahead.next();
            };
#pragma unroll
            for (int i = 0; i < Scales::AHEAD; i++) load(i);
            Steps steps(tiles, token_blocks);
            while (steps.left()) {
#pragma unroll
                for (int i = 0; i < Scales::AHEAD; i++) {
                    if (steps.left()) {
                        wait(shared.empty[steps.at.stage], steps.at.parity ^ 1);
                        scales.store(i, shared.scales[steps.at.stage], shared.zeros[ZEROS ? steps.at.stage : 0]);
                        __syncwarp();
                        if (lane == 0) arrive(shared.full[steps.at.stage]);
                        load(i);
                        steps.next();
                    }
                }
            }
        }
    } else {
        take_registers_up_to<224>();
        wait_for_previous();
        u32 thread = threadIdx.x % 128, group = warp / 4, pair = thread / 32 * 8 + lane / 4;
        const char* table = memory + SHARED_BYTES - TABLE_BYTES + 4 * lane;
        auto& stored = shared.sums[group];
#if BY_SUMS
        if (group == 1) signal_warps(2, CONSUMERS);  // the first begins
#endif
        Place<RING> at;
        for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
            Tile tile(index, token_blocks);
            float total[M_TILES][PARTS][PART / 2] = {};
#if !BY_SUMS
            u32 before = 0;  // the stage whose products may still be in flight
#endif
            for (int step = 0; step < STEPS; step++) {
                wait(shared.full[at.stage], at.parity);
                Codes codes[M_TILES];
                u32 scales[M_TILES][GROUPS][2] = {}, zeros[M_TILES][GROUPS][2] = {};
#pragma unroll
                for (int m = 0; m < M_TILES; m++) {
                    u32 row_group = group * M_TILES + m;
                    codes[m].load(shared.w[at.stage] + row_group * IN_STEP * TILE_BYTES, thread);
#pragma unroll
                    for (int g = 0; g < (GROUPED ? GROUPS : 0); g++) {
                        uint2 both = *(const uint2*)shared.scales[at.stage][row_group][g][pair];
                        scales[m][g][0] = both.x, scales[m][g][1] = both.y;
                        if (ZEROS) {
                            uint2 both = *(const uint2*)shared.zeros[at.stage][row_group][g][pair];
                            zeros[m][g][0] = both.x, zeros[m][g][1] = both.y;
                        }
                    }
                }
                u64 b = by_rows(shared_address(shared.x[at.stage]));
                auto columns = [&](int i, int part) { return b + (i / 4 * TOKENS * 128 + part * PART * 128 + i % 4 * 32) / 16; };
#if BY_SUMS
#pragma unroll
                for (int g = 0; g < GROUPS; g++) {
#pragma unroll
                    for (int m = 0; m < M_TILES; m++) {
                        u32 a[IN_GROUP][4];
#pragma unroll
                        for (int i = 0; i < IN_GROUP; i++) codes[m].decode(a[i], g * IN_GROUP + i, scales[m][g], zeros[m][g], table);
#pragma unroll
                        for (int part = 0; part < PARTS; part++) {
                            float sums[PART / 2];
                            sync_warps(2 + group, CONSUMERS);
                            hold(sums);
                            wgmma_begin();
#pragma unroll
                            for (int i = 0; i < IN_GROUP; i++) {
                                u64 of_x = columns(g * IN_GROUP + i, part);
                                if (i == 0) {
                                    multiply_skinny<false>(sums, a[i], of_x);
                                } else {
                                    multiply_skinny<true>(sums, a[i], of_x);
                                }
#if ZEROS
                                u32 both[4] = {zeros[m][g][0], zeros[m][g][1], zeros[m][g][0], zeros[m][g][1]};
                                multiply_skinny<true>(sums, both, of_x);
#endif
                            }
                            wgmma_commit();
                            signal_warps(2 + (group ^ 1), CONSUMERS);
                            wait_for_wgmma<0>();
                            hold(sums);
#pragma unroll
                            for (int i = 0; i < PART / 2; i++) total[m][part][i] += sums[i] * __int_as_float(scales[m][g][i / 2 % 2]);
                        }
                    }
                }
                if (lane == 0) arrive(shared.empty[at.stage]);
#else
                u32 a[PRODUCTS][M_TILES][4];
#pragma unroll
                for (int i = 0; i < PRODUCTS; i++) {
#pragma unroll
                    for (int m = 0; m < M_TILES; m++) {
                        codes[m].decode(a[i][m], i, scales[m][i / IN_GROUP], zeros[m][i / IN_GROUP], table);
                        hold(total[m][0]);
                        wgmma_begin();
                        multiply_skinny<true>(total[m][0], a[i][m], columns(i, 0));
#if FP8 && ZEROS
                        u32 (&zero)[2] = zeros[m][i / IN_GROUP];
                        u32 both[4] = {zero[0], zero[1], zero[0], zero[1]};
                        multiply_skinny<true>(total[m][0], both, columns(i, 0));
#endif
                        wgmma_commit();
                    }
                    if (i == 0 && step > 0) {
                        wait_for_wgmma<M_TILES>();
                        if (lane == 0) arrive(shared.empty[before]);
                    }
                }
                before = at.stage;
#endif
                at.next();
            }
#if !BY_SUMS
            wait_for_wgmma<0>();
            if (lane == 0) arrive(shared.empty[before]);
#endif
            int row = tile.row + group * ROWS_OF_GROUP;
            float row_scales[W_SCALES == 2 ? 16 : 1] = {};
            u32 own = Epilogue<ROWS_OF_GROUP, 128, STORED>::own_row();
#pragma unroll
            for (int j = 0; j < (W_SCALES == 2 ? 16 : 0); j++) row_scales[j] = __ldg(w_scale + min(row + (int)own + j, N - 1));
#pragma unroll
            for (int m = 0; m < M_TILES; m++) {
#pragma unroll
                for (int part = 0; part < PARTS; part++) hold(total[m][part]);
            }
#pragma unroll
            for (int first = 0; first < TOKENS; first += STORED) {
                int token = tile.token + first;
                long long wide = token;
                Epilogue<ROWS_OF_GROUP, 128, STORED> epilogue(row, 0, num_tokens - token, bias, residual + wide * N * 2, x_scale, w_scale,
                                                              out_scale);
                sync_warps(4 + group, 128);  // the sums before are read
#pragma unroll
                for (int m = 0; m < M_TILES; m++) {
#pragma unroll
                    for (int i = 0; i < STORED / 2; i++) {
                        stored[i / 4 * 8 + lane % 4 * 2 + i % 2][64 * m + thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8] =
                            total[m][first / PART][first % PART / 2 + i];
                    }
                }
                sync_warps(4 + group, 128);
                constexpr int BYTES = QUANTIZE ? 1 : 2, WIDTH = ACT == SWIGLU ? N / 2 : N;
                epilogue.finish(stored, x_scale + (X_SCALES == 2 ? token : 0), [&](int j) { return row_scales[W_SCALES == 2 ? j : 0]; },
                                y + wide * WIDTH * BYTES);
            }
        }
#if BY_SUMS
        if (group == 0) sync_warps(2, CONSUMERS);  // the last turn's signal
#endif
    }
}
