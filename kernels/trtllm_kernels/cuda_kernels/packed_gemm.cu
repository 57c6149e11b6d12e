// Skinny GEMM with packed weights (1 to 128 tokens) on Hopper: `skinny_gemm.cu`, but with codes of 4 or 8 bits, decoded in registers.
//
// Memory has the codes in the order of wgmma's A fragments (`formats/tiles.py`), so a bulk copy brings a step of a row of tiles, one wide
// load a thread's codes of several wgmma, and what masks make of them is the A operand. x is the B operand, from shared memory, as ever.
// Where scales are of groups of columns, sums are scaled in fp32 as each group ends, but fp4's, which are exact as factors of its numbers
// (FOLDED). A warp of its own makes scales and zero points, whatever their format, into what threads want, as far ahead as the weights are.
//
// At 4 bits the issue of instructions is nearly as scarce as memory's bandwidth, and all blocks together read x from L2 N / ROWS times:
// with 64 rows and 16 tokens that is as many bytes as the weight has. Hence ROW_GROUPS warpgroups of 64 rows each, which share x, and
// K_GROUPS that take every other step, where rows are few: two or more warps a scheduler hide each other's latencies. SPLITS blocks of a
// cluster divide K, and send each other their sums of tokens as `skinny_gemm.cu` does.
//
// x fp8 and weight int4: a mask makes E4M3 of a code, 2^-9 times it, and zero points are one more product, with a constant A.
//
// x: [tokens, K], boxes of TOKENS rows x 128 bytes; w: tiles; group_scale, weight_zero: [K / GROUP, N]; y as in `skinny_gemm.cu`. N and K
// are multiples of 64. What lies behind K in x is zero; of codes there any value is a finite number.
#define BY_SUMS (GROUP > 0 && !FOLDED)
#define FACTOR (FP8 ? 512.0f : !FOLDED ? 1.0f : HALF ? 128.0f : 67108864.0f)
#include "decode.cuh"
#include "skinny.cuh"

constexpr int TILE = 64, IN_STEP = COLUMNS / TILE, TILE_BYTES = CODES == CODES_INT8 ? 4096 : 2048, TILES = K / TILE;
constexpr int STEPS = (K + COLUMNS - 1) / COLUMNS, SHARE = (STEPS + SPLITS - 1) / SPLITS;
constexpr int ROWS = TILE * ROW_GROUPS, OWNERS = 128 * ROW_GROUPS, CONSUMERS = OWNERS * K_GROUPS;
constexpr bool GROUPED = GROUP > 0;
constexpr int THREADS = CONSUMERS + (GROUPED ? 96 : 64);
constexpr int PANEL_COLUMNS = FP8 ? 128 : 64, PANELS = COLUMNS / PANEL_COLUMNS;
constexpr int W_BYTES = ROW_GROUPS * IN_STEP * TILE_BYTES, X_BYTES = PANELS * TOKENS * 128;
constexpr int GROUPS = !GROUPED || GROUP >= COLUMNS ? 1 : COLUMNS / GROUP;  // per step
constexpr int PRODUCTS = 4 * PANELS, IN_GROUP = PRODUCTS / GROUPS;         // per step; per group of it
constexpr int PITCH = ROWS + 4;
constexpr int SENT = TOKENS / 2 / SPLITS;  // sums of a thread to another block
static_assert(SPLITS == 1 || SENT >= 2, "a thread sends whole tokens");
static_assert(IN_GROUP >= 1, "a group is at least as long as a product");
static_assert(K_GROUPS <= W_STAGES && K_GROUPS <= X_STAGES, "each takes a step of its own");

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

struct Shared {
    union {
        struct {
            char x[X_STAGES][X_BYTES];
            char w[W_STAGES][W_BYTES];
        };
        struct {
            float sums[TOKENS / SPLITS][PITCH];                     // after the last wgmma
            float of_others[K_GROUPS > 1 ? K_GROUPS - 1 : 1][K_GROUPS > 1 ? TOKENS / 2 : 1][OWNERS];  // before sums
        };
    };
    // Of rows g and g + 8 of each warp; zeros as `decode.cuh` wants them.
    u32 scales[GROUPED ? W_STAGES : 1][ROW_GROUPS][GROUPS][32][2];
    u32 zeros[GROUPED && ZEROS ? W_STAGES : 1][ROW_GROUPS][GROUPS][32][2];
    Piece received[SPLITS > 1 ? SPLITS - 1 : 1][SPLITS > 1 ? PIECES : 1][SPLITS > 1 ? OWNERS : 1];
    float row_scales[W_SCALES == 2 ? ROWS : 4];
    u64 all_received;
    u64 w_full[W_STAGES], w_empty[W_STAGES];
    u64 x_full[X_STAGES], x_empty[X_STAGES];
};
#if CODES == CODES_NF4
constexpr int TABLE_BYTES = 256 * 32 * 4;
#else
constexpr int TABLE_BYTES = 0;
#endif
static_assert(sizeof(Shared) + TABLE_BYTES <= SHARED_BYTES, "SHARED_BYTES is what a launch asks for");

extern __shared__ __align__(1024) char memory[];

// Used by one warp: scales and zeros of each step, a register's word a load, read AHEAD steps before they are wanted.
struct Scales {
    static constexpr int BYTES = SCALE_BYTES<SCALE_TYPE>, EACH = 4 / BYTES;       // scales in a word
    static constexpr int WORDS = ROW_GROUPS * GROUPS * TILE / EACH, COUNT = (WORDS + 31) / 32;
    static constexpr int ZERO_WORDS = ROW_GROUPS * GROUPS * TILE / 2, ZERO_COUNT = ZEROS ? (ZERO_WORDS + 31) / 32 : 0;
    static constexpr int AHEAD = COUNT + ZERO_COUNT <= 4 ? 8 : 4;

    const char *scale, *zero;
    int row, first_column;
    u32 lane;
    u32 raw[AHEAD][COUNT], raw_zeros[AHEAD][ZERO_COUNT ? ZERO_COUNT : 1];

    // Word `at` of a step's rows: (row group and group, row in it).
    INLINE long long element(int step, int at, int each) const {
        int in_group = TILE / each, group = at / in_group % GROUPS, tile = at / in_group / GROUPS;
        int column = min(first_column + step * COLUMNS + group * GROUP, K - 1);
        int from = min(row + tile * TILE, N - TILE);
        return (long long)(column / GROUP) * N + from + at % in_group * each;
    }

    INLINE void load(int slot, int step) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            int at = lane + 32 * i;
            if (WORDS % 32 == 0 || at < WORDS) raw[slot][i] = __ldg((const u32*)(scale + element(step, at, EACH) * BYTES));
        }
#pragma unroll
        for (int i = 0; i < ZERO_COUNT; i++) {
            int at = lane + 32 * i;
            if (ZERO_WORDS % 32 == 0 || at < ZERO_WORDS) raw_zeros[slot][i] = __ldg((const u32*)(zero + element(step, at, 2) * 2));
        }
    }

    // Where that of a row goes: rows 16 w + g and 16 w + g + 8 are a pair.
    INLINE static u32& place(u32 (&to)[ROW_GROUPS][GROUPS][32][2], int at, int each, int j) {
        int in_group = TILE / each, in_tile = at % in_group * each + j;
        return to[at / in_group / GROUPS][at / in_group % GROUPS][in_tile / 16 * 8 + in_tile % 8][in_tile / 8 % 2];
    }

    INLINE void store(int slot, u32 (&scales)[ROW_GROUPS][GROUPS][32][2], u32 (&zeros)[ROW_GROUPS][GROUPS][32][2]) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            int at = lane + 32 * i;
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                float one = scale_in<SCALE_TYPE>(raw[slot][i], j);
                float factor = one * (HALF ? 128.0f : 1.2676506002282294e30f);  // 2^7, 2^100
                if (WORDS % 32 == 0 || at < WORDS) place(scales, at, EACH, j) = FOLDED ? pack(factor, factor) : __float_as_int(one);
            }
        }
#pragma unroll
        for (int i = 0; i < ZERO_COUNT; i++) {
            int at = lane + 32 * i;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float one = scale_in<BF16_SCALE>(raw_zeros[slot][i], j);
                u32 made = FP8 ? 0x80808080 | (u32)one * 0x01010101 : pack(one, one);
                if (ZERO_WORDS % 32 == 0 || at < ZERO_WORDS) place(zeros, at, 2, j) = made;
            }
        }
    }
};

// A thread's codes of a step, and their decoding.
struct Codes {
    static constexpr int LOADS = IN_STEP * TILE_BYTES / 2048;
    uint4 words[LOADS];

    INLINE void load(const char* tiles, u32 thread) {
#pragma unroll
        for (int i = 0; i < LOADS; i++) words[i] = *(const uint4*)(tiles + 2048 * i + 16 * thread);
    }

    INLINE u32 word(int i) const {
        uint4 four = words[i / 4];
        return i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w;
    }

    // A operand of the step's product `i`.
    INLINE void decode(u32 (&a)[4], int i, const u32 (&scales)[2], const u32 (&zeros)[2], const char* table) const {
#if FP8
        decode_int4_fp8(a, word(2 * i), word(2 * i + 1));
#elif CODES == CODES_INT4
        decode_int4(a, word(i), zeros);
#elif CODES == CODES_INT8
        decode_int8(a, word(2 * i), word(2 * i + 1), zeros);
#elif CODES == CODES_FP4
        u32 factors[2] = {FOLDED ? scales[0] : FP4_ONE, FOLDED ? scales[1] : FP4_ONE};
        decode_fp4(a, word(i), factors);
#else
        decode_nf4(a, word(i), table);
#endif
    }
};

// The 2 i32 and 2 i64 after a map are its sizes and strides in the launch ABI (`driver.py`).
extern "C" __global__ void __cluster_dims__(1, SPLITS, 1) __launch_bounds__(THREADS, BLOCKS)
    packed_gemm(const __grid_constant__ TensorMap x, int, int, long long, long long, const char* w, const char* group_scale,
                const char* weight_zero, const char* bias, const char* residual, const float* x_scale, const float* w_scale,
                const float* out_scale, char* y, int num_tokens) {
    let_next_start();
    Shared& shared = *(Shared*)memory;
    u32 warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32, part = blockIdx.y;
    int row = blockIdx.x * ROWS, first_step = part * SHARE, steps = max(0, min(SHARE, STEPS - first_step));
    constexpr u32 LOADS_W = CONSUMERS / 32, LOADS_X = LOADS_W + 1;
    if (warp == LOADS_W && lane == 0) {
        for (int i = 0; i < W_STAGES; i++) {
            barrier_init(shared.w_full[i], GROUPED ? 2 : 1);
            barrier_init(shared.w_empty[i], OWNERS / 32);
        }
        for (int i = 0; i < X_STAGES; i++) {
            barrier_init(shared.x_full[i], 1);
            barrier_init(shared.x_empty[i], OWNERS / 32);
        }
        barrier_init(shared.all_received, 1);
        barriers_are_made();
        if (SPLITS > 1) arrive_expecting(shared.all_received, sizeof(shared.received));
    }
    __syncthreads();
    if (SPLITS > 1) cluster_arrive();  // until all have arrived, none may use the others' barriers
    if (warp == LOADS_W) {
        if (lane == 0) {
            u64 policy = evict_first();
            Place<W_STAGES> at;
            for (int step = 0; step < steps; step++) {
                wait(shared.w_empty[at.stage], at.parity ^ 1);
                int tile = IN_STEP * (first_step + step), count = TILES % IN_STEP ? min(IN_STEP, TILES - tile) : IN_STEP;
                arrive_expecting(shared.w_full[at.stage], ROW_GROUPS * count * TILE_BYTES);
#pragma unroll
                for (int i = 0; i < ROW_GROUPS; i++) {
                    long long of_row = min(row / TILE + i, N / TILE - 1);
                    load_bytes(shared.w[at.stage] + i * IN_STEP * TILE_BYTES, w + (of_row * TILES + tile) * TILE_BYTES, count * TILE_BYTES,
                               shared.w_full[at.stage], policy);
                }
                at.next();
            }
        }
        __syncwarp();
        if (SPLITS > 1) cluster_wait();
    } else if (warp == LOADS_X) {
        if (SPLITS > 1) cluster_wait();
        if (lane == 0) {
            prefetch(x);
            wait_for_previous();
            Place<X_STAGES> at;
            for (int step = 0; step < steps; step++) {
                wait(shared.x_empty[at.stage], at.parity ^ 1);
                arrive_expecting(shared.x_full[at.stage], X_BYTES);
#pragma unroll
                for (int panel = 0; panel < PANELS; panel++) {
                    load_box(shared.x[at.stage] + panel * TOKENS * 128, x, 0, (first_step + step) * COLUMNS + panel * PANEL_COLUMNS,
                             shared.x_full[at.stage]);
                }
                at.next();
            }
        }
    } else if (warp > LOADS_X) {
        Scales scales{group_scale, weight_zero, row, first_step * COLUMNS, lane};
#pragma unroll
        for (int i = 0; i < Scales::AHEAD; i++) scales.load(i, i);
        Place<W_STAGES> at;
        for (int step = 0; step < steps; step += Scales::AHEAD) {
#pragma unroll
            for (int i = 0; i < Scales::AHEAD; i++) {
                if (step + i < steps) {
                    wait(shared.w_empty[at.stage], at.parity ^ 1);
                    scales.store(i, shared.scales[at.stage], shared.zeros[ZEROS ? at.stage : 0]);
                    __syncwarp();
                    if (lane == 0) arrive(shared.w_full[at.stage]);
                    scales.load(i, step + i + Scales::AHEAD);
                    at.next();
                }
            }
        }
        if (SPLITS > 1) cluster_wait();
    } else {
        u32 thread = threadIdx.x % 128, row_group = warp / 4 % ROW_GROUPS, k_group = warp / 4 / ROW_GROUPS;
        if (W_SCALES == 2) {
            for (int i = threadIdx.x; i < ROWS; i += CONSUMERS) shared.row_scales[i] = row + i < N ? w_scale[row + i] : 0.0f;
        }
        const char* table = memory + SHARED_BYTES - TABLE_BYTES + 4 * lane;
#if CODES == CODES_NF4
        for (int i = threadIdx.x; i < 256 * 8; i += CONSUMERS) {
            float low = 0.0f, high = 0.0f;
#pragma unroll
            for (int code = 0; code < 16; code++) {
                if ((i / 8 & 15) == code) low = NF4_VALUES[code];
                if (i / 128 == code) high = NF4_VALUES[code];
            }
            u32 both = pack(low, high);
            *(uint4*)(memory + SHARED_BYTES - TABLE_BYTES + 16 * i) = make_uint4(both, both, both, both);
        }
        sync_warps(1, CONSUMERS);
#endif
        if (SPLITS > 1) cluster_wait();
        wait_for_previous();
        Epilogue<ROWS, CONSUMERS> epilogue(row, part, num_tokens, bias, residual, x_scale, w_scale, out_scale);
        float total[TOKENS / 2] = {};
        Place<W_STAGES> at_w;
        Place<X_STAGES> at_x;
        for (u32 i = 0; i < k_group; i++) at_w.next(), at_x.next();
        u32 pair = thread / 32 * 8 + lane / 4;
        for (int step = k_group; step < steps; step += K_GROUPS) {
            wait(shared.w_full[at_w.stage], at_w.parity);
            Codes codes;
            codes.load(shared.w[at_w.stage] + row_group * IN_STEP * TILE_BYTES, thread);
            u32 scales[GROUPS][2] = {}, zeros[GROUPS][2] = {};
            if (GROUPED) {
#pragma unroll
                for (int g = 0; g < GROUPS; g++) {
                    uint2 both = *(const uint2*)shared.scales[at_w.stage][row_group][g][pair];
                    scales[g][0] = both.x, scales[g][1] = both.y;
                    if (ZEROS) {
                        uint2 both = *(const uint2*)shared.zeros[at_w.stage][row_group][g][pair];
                        zeros[g][0] = both.x, zeros[g][1] = both.y;
                    }
                }
            }
            u32 a[PRODUCTS][4];
            constexpr int AT_ONCE = IN_GROUP < 4 ? IN_GROUP : 4;  // decoded before the next products begin
#if BY_SUMS
            float sums[GROUPS > 1 ? 2 : 1][TOKENS / 2];
            auto scale_sums = [&](int g) {
                hold(sums[g % 2]);
#pragma unroll
                for (int i = 0; i < TOKENS / 2; i++) total[i] += sums[g % 2][i] * __int_as_float(scales[g][i / 2 % 2]);
            };
#endif
            u64 b = by_rows(shared_address(shared.x[at_x.stage]));
#pragma unroll
            for (int from = 0; from < PRODUCTS; from += AT_ONCE) {
#pragma unroll
                for (int i = from; i < from + AT_ONCE; i++) codes.decode(a[i], i, scales[i / IN_GROUP], zeros[i / IN_GROUP], table);
                if (from == 0) wait(shared.x_full[at_x.stage], at_x.parity);
#if BY_SUMS
                hold(sums[from / IN_GROUP % 2]);
#else
                hold(total);
#endif
                wgmma_begin();
#pragma unroll
                for (int i = from; i < from + AT_ONCE; i++) {
                    u64 columns = b + (i / 4 * TOKENS * 128 + i % 4 * 32) / 16;
#if BY_SUMS
                    if (i % IN_GROUP == 0) {
                        multiply_skinny<false>(sums[i / IN_GROUP % 2], a[i], columns);
                    } else {
                        multiply_skinny<true>(sums[i / IN_GROUP % 2], a[i], columns);
                    }
#else
                    multiply_skinny<true>(total, a[i], columns);
#endif
#if FP8
                    u32 zero[4] = {0x88888888, 0x88888888, 0x88888888, 0x88888888};  // the code 8, negative
                    if (ZEROS) {
#pragma unroll
                        for (int j = 0; j < 4; j++) zero[j] = zeros[i / IN_GROUP][j % 2];
                    }
#if BY_SUMS
                    multiply_skinny<true>(sums[i / IN_GROUP % 2], zero, columns);
#else
                    multiply_skinny<true>(total, zero, columns);
#endif
#endif
                }
                wgmma_commit();
#if BY_SUMS
                if (from > 0 && from % IN_GROUP == 0) {
                    wait_for_wgmma<1>();
                    scale_sums(from / IN_GROUP - 1);
                }
#endif
            }
            if (lane == 0) arrive(shared.w_empty[at_w.stage]);
            wait_for_wgmma<0>();
#if BY_SUMS
            scale_sums(GROUPS - 1);
#else
            hold(total);
#endif
            if (lane == 0) arrive(shared.x_empty[at_x.stage]);
#pragma unroll
            for (int i = 0; i < K_GROUPS; i++) at_w.next(), at_x.next();
        }
        sync_warps(1, CONSUMERS);  // all have read w and x, whose memory the sums take
        if (K_GROUPS > 1) {
            if (k_group > 0) {
#pragma unroll
                for (int i = 0; i < TOKENS / 2; i++) shared.of_others[k_group - 1][i][threadIdx.x % OWNERS] = total[i];
            }
            sync_warps(1, CONSUMERS);
            if (k_group == 0) {
#pragma unroll
                for (int i = 0; i < TOKENS / 2; i++) {
#pragma unroll
                    for (int k = 1; k < K_GROUPS; k++) total[i] += shared.of_others[k - 1][i][threadIdx.x];
                }
            }
        }
        u32 first = 64 * row_group + thread / 32 * 16 + lane / 4;
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
                        send(&shared.received[slot][i][threadIdx.x], piece_of(of_q + i * PIECE), shared.all_received, q);
                    }
                }
            }
            if (SPLITS > 1) {
                wait(shared.all_received, 0);
#pragma unroll
                for (int slot = 0; slot < SPLITS - 1; slot++) {
#pragma unroll
                    for (int i = 0; i < PIECES; i++) add_piece(own + i * PIECE, shared.received[slot][i][threadIdx.x]);
                }
            }
#pragma unroll
            for (int i = 0; i < SENT; i++) {
                if (SPLITS == 1) {
                    shared.sums[i / 4 * 8 + lane % 4 * 2 + i % 2][first + i / 2 % 2 * 8] = own[i];
                } else {
                    shared.sums[i / 2 * 4 + lane % 4][first + i % 2 * 8] = own[i];
                }
            }
        }
        sync_warps(1, CONSUMERS);
        epilogue.finish(shared.sums, x_scale, [&](int j) { return shared.row_scales[epilogue.own + j]; }, y);
    }
}
