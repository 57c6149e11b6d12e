// Skinny GEMM with packed weights (1 to 8 tokens) on Hopper: `skinny_gemm.cu`, but with codes of 4 or 8 bits, decoded in registers.
//
// Memory has the codes in the order of wgmma's A fragments (`formats/tiles.py`), so a bulk copy brings a step of a row of tiles, one wide
// load a thread's codes of several wgmma, and what masks make of them is the A operand. x is the B operand, from shared memory, as ever.
// Where scales are of groups of columns, sums are scaled in fp32 as each group ends. Those of fp4 are exact as factors of its numbers (FOLDED).
//
// The copy engine loads the weight, in few pieces, and the threads of a warp copy scales and zero points, as memory has them, and wide x: warps
// then multiply 16 rows each (`mma.sync`), since wgmma does not see what threads have copied without a fence.
//
// At 4 bits the issue of instructions is nearly as scarce as memory's bandwidth. Hence ROW_GROUPS warpgroups of 64 rows each, which share x, and
// K_GROUPS that take every other step, where rows are few: two or more warps a scheduler hide each other's latencies. SPLITS blocks of a
// cluster divide K, and send each other their sums of tokens as `skinny_gemm.cu` does.
//
// WHOLE_X: the threads that multiply place x as soon as it is there, as a whole, in so many rows: a step at a time, the copy of x took longer
// than that of codes which had come before it. Of one token there is one row: `mma.sync` reads it as if it were all 8, and wgmma what lies 16
// bytes further on as each next one. That row comes by one copy of the copy engine if it is fp8 and no norm makes it.
// NORMED, a number of tokens at most: x_rows are rows of which x is the RMS norm, by `norm_weight`, and divided by norm_scale if FP8. Those
// threads make it, each block all that it reads of it, while its weights come.
// SUBNORMAL: int4 codes are numbers as they are, without an operation, and 8 times the sum of x is taken off each group's sums. x is 2^48
// times what it is: its products with numbers so small are not lost, and none is too large.
//
// x fp8 and weight int4: masks make E4M3 of a code less 8, 2^-8 times it, and other zero points are one more product, with a constant A.
//
// x: [tokens, K], boxes of TOKENS rows x 128 bytes; w: tiles; group_scale, weight_zero: [K / GROUP, N]; y as in `skinny_gemm.cu`. N and K
// are multiples of 64. What lies behind K in x is zero; of codes there any value is a finite number.
#include "normed.cuh"
#include "packed_sums.cuh"

constexpr int SHARE = (STEPS + SPLITS - 1) / SPLITS;
constexpr int THREADS = CONSUMERS + 64 + (GROUPED ? 32 : 0);
// Warps multiply 16 rows each, and x comes by threads' copies.
#define BY_WARPS (!FP8)
// A barrier tells its phases apart by their parity alone. Where two warpgroups share a stage in turns, the faster one takes its last phase for the
// next if the other's load between them is still under way.
static_assert(W_STAGES % K_GROUPS == 0 && (WHOLE_X || X_STAGES % K_GROUPS == 0), "a stage is one warpgroup's");
static_assert(WHOLE_X == 0 || WHOLE_X == 1 || WHOLE_X == TOKENS, "of one token, or of all");
#define BY_ONE_COPY (WHOLE_X && !BY_WARPS && !NORMED)
static_assert(!BY_ONE_COPY || (WHOLE_X == 1 && SPLITS * SHARE * COLUMNS == K), "a row's bytes, in their order, and no columns past them");
constexpr int ROWS_OF_X = WHOLE_X ? WHOLE_X : TOKENS;
static_assert(!SUBNORMAL || (WHOLE_X && BY_SUMS && !ZEROS && GROUP <= COLUMNS), "each step has whole sums of x");

struct Shared {
    union {
        struct {
            char x[X_STAGES][WHOLE_X ? WHOLE_X * PANELS * 128 : X_BYTES];
            char w[W_STAGES][W_BYTES];
        };
        Sums all;  // after the last product
    };
    Tables tables[GROUPED ? W_STAGES : 1];
    Received received;
    float row_scales[W_SCALES == 2 ? ROWS : 4];
#if SUBNORMAL
    float x_sums[SHARE * GROUPS][WHOLE_X];  // 2^-126 times those of x in memory: 2^-81 times 8 times those of x
#endif
#if NORMED
    float squares[2 * NORMED][CONSUMERS / 32];
#endif
    u64 all_received;
    u64 w_full[W_STAGES], w_empty[W_STAGES];
    u64 x_full[X_STAGES], x_empty[X_STAGES];
};
static_assert(sizeof(Shared) + TABLE_BYTES <= SHARED_BYTES, "SHARED_BYTES is what a launch asks for");

#if BY_WARPS
// Copies a step's columns, from `column` on, of the rows of x that there are, in the order of a tensor map's boxes. Called by a warp.
INLINE void copy_rows(char* to, const char* x, int column, int num_tokens, u32 lane) {
    constexpr int CHUNKS = COLUMNS / 8;  // of 16 bytes, of a row
#pragma unroll
    for (int i = 0; i < TOKENS * CHUNKS / 32; i++) {
        u32 row = i * 32 / CHUNKS + lane / CHUNKS, chunk = (i * 32 + lane) % CHUNKS;
        if (row < num_tokens) {
            copy_16(to + chunk / 8 * TOKENS * 128 + row * 128 + (chunk % 8 ^ row) * 16, x + ((long long)row * K + column) * 2 + chunk * 16,
                    column + 8 * chunk < K ? 16 : 0);
        }
    }
}

// Adds a warp's products of a step, of 16 rows of the weight and x, at `x` in shared memory. Those with tokens that are none are of what was
// in memory. `x_sums`: of the step's groups, if SUBNORMAL.
INLINE void multiply_rows(float (&total)[4], const Codes& codes, const u32 (&scales)[GROUPS][2], const u32 (&zeros)[GROUPS][2], u32 x,
                          const float (*x_sums)[ROWS_OF_X], const char* table) {
    constexpr int SUMMED = BY_SUMS ? GROUPS : 1, EACH = PRODUCTS / SUMMED, CHAINS = EACH > 1 ? 2 : 1;  // chains do not wait for each other
    u32 lane = threadIdx.x % 32, own = WHOLE_X == 1 ? lane / 8 * 16 : lane % 8 * 128 + (lane / 8 ^ lane % 8) * 16;
    u32 b[4];
#pragma unroll
    for (int g = 0; g < SUMMED; g++) {
        float sums[CHAINS][4] = {};
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            int product = g * EACH + i;
            if (product % 2 == 0) load_matrices(b, x + product / 4 * ROWS_OF_X * 128 + (own ^ product / 2 % 2 * 64));
            u32 a[4];
            codes.decode(a, product, scales[product / IN_GROUP], zeros[product / IN_GROUP], table);
            multiply_add_warp(sums[i % CHAINS], a, b[product % 2 * 2], b[product % 2 * 2 + 1]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float sum = CHAINS > 1 ? sums[0][i] + sums[CHAINS - 1][i] : sums[0][i];
#if SUBNORMAL
            float eights = x_sums[g][ROWS_OF_X > 1 ? lane % 4 * 2 + i % 2 : 0];
            sum = i < 2 ? sum * 16.0f - eights : sum - eights;
#endif
            total[i] += BY_SUMS ? sum * __int_as_float(scales[g][i / 2]) : sum;
        }
    }
}
#endif

#if WHOLE_X
// Where a block has 8 columns of a row of x, from `column` of its own on, in the order of a tensor map's boxes of WHOLE_X rows.
INLINE char* place_of(Shared& shared, int row, int column) {
    u32 byte = column * (FP8 ? 1 : 2);
    return shared.x[0] + (byte / 128 * WHOLE_X + row) * 128 + ((byte / 16 ^ row) % 8) * 16 + byte % 16;
}

// Places 8 columns of a row of x. Called by whole warps, whose lanes have columns in order.
INLINE void place(Shared& shared, int row, int column, uint4 words) {
#if SUBNORMAL
    u32 each[4] = {words.x, words.y, words.z, words.w};
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        each[i] = multiplied(each[i], 0x57805780);  // 2^48
        sum += __int_as_float(each[i] << 16) + __int_as_float(each[i] & 0xFFFF0000);
    }
#pragma unroll
    for (int bits = 1; bits < GROUP / 8; bits *= 2) sum += from_lane_xor(sum, bits);
    if (column % GROUP == 0) shared.x_sums[column / GROUP][row] = sum * 1.1754943508222875e-38f;
    words = make_uint4(each[0], each[1], each[2], each[3]);
#endif
    *(uint4*)place_of(shared, row, column) = words;
}

// Called by those that multiply when x is placed.
INLINE void x_is_placed() {
    if (!BY_WARPS) publish_to_async();
    sync_warps(1, CONSUMERS);
}
#endif

#if BY_WARPS && WHOLE_X && !NORMED
// Copies a block's columns of the one row of x.
INLINE void place_x(Shared& shared, const char* x, int first_column, int steps) {
    constexpr int AT_ONCE = 4;  // chunks of 8 columns of a thread
    int count = steps * COLUMNS / 8;
    for (int from = 0; from < count; from += AT_ONCE * CONSUMERS) {
        uint4 words[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            int chunk = from + j * CONSUMERS + threadIdx.x, column = first_column + chunk * 8;
            words[j] = make_uint4(0, 0, 0, 0);
            if (chunk < count && column < K) words[j] = *(const uint4*)(x + 2ll * column);
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            int chunk = from + j * CONSUMERS + threadIdx.x;
            if (chunk < count) place(shared, 0, chunk * 8, words[j]);
        }
    }
    x_is_placed();
}
#endif

#if NORMED
constexpr int OWN_COLUMNS = SHARE * COLUMNS, FITTING = rows_at_once(OWN_COLUMNS, SPLITS, CONSUMERS, THREADS / 32 * BLOCKS);
typedef RowNorm<K, OWN_COLUMNS, CONSUMERS, FITTING < NORMED ? FITTING : NORMED> Norm;

// Places a block's columns of the norm of rows.
INLINE void place_norm(Shared& shared, Norm& norm, const char* rows, int num_tokens, float eps) {
    norm.normalize(rows, num_tokens, eps, shared.squares, [&](int token, int column, const float(&x)[8]) {
#if FP8
        *(uint2*)place_of(shared, token, column) = make_uint2(pack_fp8(x[0], x[1], x[2], x[3]), pack_fp8(x[4], x[5], x[6], x[7]));
#else
        place(shared, token, column, make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7])));
#endif
    });
    x_is_placed();
}
#endif

// The 2 i32 and 2 i64 after a map are its sizes and strides in the launch ABI (`driver.py`).
extern "C" __global__ void __cluster_dims__(1, SPLITS, 1) __launch_bounds__(THREADS, BLOCKS)
    packed_gemm(const __grid_constant__ TensorMap x, int, int, long long, long long, const char* x_rows, const char* w,
                const char* group_scale, const char* weight_zero, const char* bias, const char* residual, const float* x_scale, const float* w_scale,
                const float* out_scale, char* y, const char* norm_weight, const float* norm_scale, float eps, int num_tokens) {
    let_next_start();
    Shared& shared = *(Shared*)memory;
    u32 warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32, part = blockIdx.y;
    int row = blockIdx.x * ROWS, first_step = part * SHARE, steps = max(0, min(SHARE, STEPS - first_step));
    constexpr u32 LOADS_W = CONSUMERS / 32, LOADS_X = LOADS_W + 1;
    if (lane == 0) {  // of each warp: one thread would take long for all
        for (int i = warp; i < W_STAGES; i += THREADS / 32) {
            barrier_init(shared.w_full[i], GROUPED ? 33 : 1);
            barrier_init(shared.w_empty[i], OWNERS / 32);
        }
        for (int i = warp; i < (BY_ONE_COPY ? 1 : WHOLE_X ? 0 : X_STAGES); i += THREADS / 32) {
            barrier_init(shared.x_full[i], BY_WARPS ? 32 : 1);
            barrier_init(shared.x_empty[i], OWNERS / 32);
        }
        if (warp == 0) barrier_init(shared.all_received, 1);
        barriers_are_made();
        if (SPLITS > 1 && warp == 0) arrive_expecting(shared.all_received, sizeof(shared.received));
    }
    __syncthreads();
    if (SPLITS > 1) cluster_arrive();  // until all have arrived, none may use the others' barriers
    // Whole warps that load go through the steps, so that addresses are in uniform registers; one lane loads.
    if (warp == LOADS_W) {
        u64 policy = evict_first();
        Place<W_STAGES> at;
        const char* from = w + ((long long)(row / TILE) * TILES + IN_STEP * first_step) * TILE_BYTES;
        for (int step = 0; step < steps; step++) {
            wait(shared.w_empty[at.stage], at.parity ^ 1);
            int tile = IN_STEP * (first_step + step), count = TILES % IN_STEP ? min(IN_STEP, TILES - tile) : IN_STEP;
            if (lane == 0) {
                arrive_expecting(shared.w_full[at.stage], ROW_GROUPS * count * TILE_BYTES);
#pragma unroll
                for (int i = 0; i < ROW_GROUPS; i++) {
                    int below = min(i, N / TILE - 1 - row / TILE);
                    load_bytes(shared.w[at.stage] + i * IN_STEP * TILE_BYTES, from + (long long)below * TILES * TILE_BYTES,
                               count * TILE_BYTES, shared.w_full[at.stage], policy);
                }
            }
            from += IN_STEP * TILE_BYTES;
            at.next();
        }
        if (SPLITS > 1) cluster_wait();
    } else if (warp == LOADS_X) {
        if (SPLITS > 1) cluster_wait();
#if BY_ONE_COPY
        wait_for_previous();
        if (lane == 0) {
            arrive_expecting(shared.x_full[0], SHARE * COLUMNS);
            load_bytes(shared.x[0], x_rows + first_step * COLUMNS, SHARE * COLUMNS, shared.x_full[0]);
        }
#elif !WHOLE_X
        if (!BY_WARPS) prefetch(x);
        wait_for_previous();
        Place<X_STAGES> at;
        for (int step = 0; step < steps; step++) {
            wait(shared.x_empty[at.stage], at.parity ^ 1);
            int column = (first_step + step) * COLUMNS;
#if BY_WARPS
            copy_rows(shared.x[at.stage], x_rows, column, num_tokens, lane);
            arrive_when_copied(shared.x_full[at.stage]);
#else
            if (lane == 0) {
                arrive_expecting(shared.x_full[at.stage], X_BYTES);
#pragma unroll
                for (int panel = 0; panel < PANELS; panel++) {
                    load_box(shared.x[at.stage] + panel * TOKENS * 128, x, 0, column + panel * PANEL_COLUMNS, shared.x_full[at.stage]);
                }
            }
#endif
            at.next();
        }
#endif
    } else if (GROUPED && warp == LOADS_X + 1) {
        Place<W_STAGES> at;
        for (int step = 0; step < steps; step++) {
            wait(shared.w_empty[at.stage], at.parity ^ 1);
            shared.tables[at.stage].load(group_scale, weight_zero, row, (first_step + step) * COLUMNS, shared.w_full[at.stage], lane);
            at.next();
        }
        if (SPLITS > 1) cluster_wait();
    } else {
        u32 thread = threadIdx.x % 128, row_group = warp / 4 % ROW_GROUPS, k_group = warp / 4 / ROW_GROUPS;
        if (W_SCALES == 2) {
            for (int i = threadIdx.x; i < ROWS; i += CONSUMERS) shared.row_scales[i] = row + i < N ? w_scale[row + i] : 0.0f;
        }
        const char* table = memory + SHARED_BYTES - TABLE_BYTES + 4 * lane;
#if CODES == CODES_NF4
        make_table(threadIdx.x, CONSUMERS);
        sync_warps(1, CONSUMERS);
#endif
        if (SPLITS > 1) cluster_wait();
        float total[TOKENS / 2] = {};
        Place<W_STAGES> at_w;
        Place<X_STAGES> at_x;
        at_w.next(k_group), at_x.next(k_group);
        u32 own_row = 64 * row_group + thread / 32 * 16 + lane / 4;
#if NORMED
        Norm norm(norm_weight, FP8 ? norm_scale : nullptr, first_step * COLUMNS);
#endif
        wait_for_previous();
#if NORMED
        norm.load(x_rows, 0, num_tokens);
#elif WHOLE_X && BY_WARPS
        place_x(shared, x_rows, first_step * COLUMNS, steps);
#endif
        Epilogue<ROWS, CONSUMERS> epilogue(row, part, num_tokens, bias, residual, x_scale, w_scale, out_scale);
#if NORMED
        place_norm(shared, norm, x_rows, num_tokens, eps);
#endif
        if (BY_ONE_COPY) wait(shared.x_full[0], 0);
        for (int step = k_group; step < steps; step += K_GROUPS) {
            int x_stage = WHOLE_X ? step : at_x.stage;
            Codes codes;
            u32 scales[GROUPS][2] = {}, zeros[GROUPS][2] = {};
            wait(shared.w_full[at_w.stage], at_w.parity);
            codes.load(shared.w[at_w.stage] + row_group * IN_STEP * TILE_BYTES, thread);
            if (GROUPED) {
#pragma unroll
                for (int g = 0; g < GROUPS; g++) {
                    shared.tables[at_w.stage].read(scales[g], zeros[g], g, own_row);
                }
            }
#if BY_WARPS
            if (!WHOLE_X) wait(shared.x_full[x_stage], at_x.parity);
#if SUBNORMAL
            const float (*x_sums)[ROWS_OF_X] = shared.x_sums + x_stage * GROUPS;
#else
            const float (*x_sums)[ROWS_OF_X] = nullptr;
#endif
            multiply_rows(total, codes, scales, zeros, shared_address(shared.x[x_stage]), x_sums, table);
            if (lane == 0) {
                arrive(shared.w_empty[at_w.stage]);
                if (!WHOLE_X) arrive(shared.x_empty[x_stage]);
            }
#else
            u32 a[PRODUCTS][4];
            u64 b = by_rows<WHOLE_X == 1 ? 16 : 128>(shared_address(shared.x[x_stage]));
#if BY_SUMS
            float sums[GROUPS > 1 ? 2 : 1][TOKENS / 2];
            auto scale_sums = [&](int g) {
                auto& of_group = sums[g % 2];
                hold(of_group);
#pragma unroll
                for (int i = 0; i < TOKENS / 2; i += WHOLE_X == 1 ? 2 : 1) total[i] += of_group[i] * __int_as_float(scales[g][i / 2 % 2]);
            };
#endif
            auto decode = [&](int i) { codes.decode(a[i], i, scales[i / IN_GROUP], zeros[i / IN_GROUP], table); };
            auto multiply = [&](int i) {
                u64 columns = b + (i / 4 * ROWS_OF_X * 128 + i % 4 * 32) / 16;
#if BY_SUMS
                auto& to = sums[i / IN_GROUP % 2];
                if (i % IN_GROUP == 0) {
                    multiply_skinny<false>(to, a[i], columns);
                } else {
                    multiply_skinny<true>(to, a[i], columns);
                }
#else
                auto& to = total;
                multiply_skinny<true>(to, a[i], columns);
#endif
#if FP8 && ZEROS
                u32 (&zero)[2] = zeros[i / IN_GROUP];
                u32 both[4] = {zero[0], zero[1], zero[0], zero[1]};
                multiply_skinny<true>(to, both, columns);
#endif
            };
            constexpr int AT_ONCE = IN_GROUP < 4 ? IN_GROUP : 4;  // decoded before the next products begin
#pragma unroll
            for (int from = 0; from < PRODUCTS; from += AT_ONCE) {
#pragma unroll
                for (int i = from; i < from + AT_ONCE; i++) decode(i);
                if (from == 0 && !WHOLE_X) wait(shared.x_full[x_stage], at_x.parity);
#if BY_SUMS
                hold(sums[from / IN_GROUP % 2]);
#else
                hold(total);
#endif
                wgmma_begin();
#pragma unroll
                for (int i = from; i < from + AT_ONCE; i++) multiply(i);
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
            if (lane == 0 && !WHOLE_X) arrive(shared.x_empty[x_stage]);
#endif
            at_w.next(K_GROUPS);
            if (!WHOLE_X) at_x.next(K_GROUPS);
        }
        add_up(shared.all, shared.received, shared.all_received, total, k_group, part, own_row, lane);
        epilogue.finish(shared.all.sums, x_scale, [&](int j) { return shared.row_scales[epilogue.own + j]; }, y);
    }
}
