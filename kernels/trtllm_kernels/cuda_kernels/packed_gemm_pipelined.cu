// GEMM with packed weights for 9 to 128 tokens on Hopper: `packed_gemm.cu`, but a warpgroup decodes its next codes while the tensor core
// multiplies the last.
//
// A step's codes, scales and x come together, in one ring, each from a warp of their own, and complete on one barrier. Where a step of x is many
// times that of the weight it has a ring of its own (X_RING is not RING), or little of the weight would be there before it. A warpgroup begins the
// products of a unit, decodes the next into other registers, and only then waits. Even so, on an H200 steps take nearly as long as their products
// and all other instructions one after the other, so that what counts is how few these are: steps are as long as fits.
//
// All blocks together read x from L2 N / ROWS times, so ROW_GROUPS warpgroups of 64 rows each share x. K_GROUPS warpgroups take every other step
// of the same rows. SPLITS blocks of a cluster divide K, and send each other their sums of tokens as `skinny_gemm.cu` does. Or two blocks have a
// tile of 64 rows in common (PAIRED), the last of one and the first of the other, of which each takes every other step: SMs get equal shares of
// rows that are not whole tiles.
//
// x fp8 and weight int4: masks make E4M3 of a code less 8, 2^-8 times it, and other zero points are one more product, with a constant A.
//
// x: [tokens, K], boxes of TOKENS rows x 128 bytes; w: tiles; group_scale, weight_zero: [K / GROUP, N]; y as in `skinny_gemm.cu`. N and K
// are multiples of 64. What lies behind K in x is zero; of codes there any value is a finite number.
#include "packed_sums.cuh"

constexpr int CLUSTER = PAIRED ? 2 : SPLITS;  // blocks
constexpr int SHARE = (STEPS + SPLITS - 1) / SPLITS;
constexpr int THREADS = CONSUMERS + 128;
// Products that begin together, while the next ones' operands are decoded, and groups of columns that they have sums of. With more the assembler
// would make products wait for each other.
constexpr int MOST_SUMS = FP8 && ZEROS ? 32 : 64;
constexpr int UNIT = BY_SUMS && IN_GROUP < 4 && 4 / IN_GROUP * TOKENS > MOST_SUMS ? IN_GROUP : 4, UNITS = PRODUCTS / UNIT;
constexpr int IN_UNIT = UNIT > IN_GROUP ? UNIT / IN_GROUP : 1;
// Registers of a thread: by the launch, of those that multiply, and of those that load. All are those of the launch.
constexpr int WARPGROUPS = ROW_GROUPS * K_GROUPS, LAUNCHED = 65536 / BLOCKS / THREADS / 8 * 8, POOL = (WARPGROUPS + 1) * LAUNCHED;
constexpr int MOST = (POOL - 24) / WARPGROUPS / 8 * 8, TAKEN = MOST < 240 ? MOST : 240, GIVEN = POOL - WARPGROUPS * TAKEN;
constexpr bool MOVED = WARPGROUPS > 1 && TAKEN > LAUNCHED;
static_assert(!PAIRED || (SPLITS == 1 && K_GROUPS == 1 && RING % 2 == 0 && X_RING % 2 == 0), "a stage has even or odd steps");
// A barrier tells its phases apart by their parity alone, so a stage is always the same warpgroup's. One has two at a time.
static_assert(RING % K_GROUPS == 0 && RING >= 2 * K_GROUPS && X_RING % K_GROUPS == 0, "a stage is one warpgroup's");

constexpr bool ONE_RING = X_RING == RING;

struct Shared {
    union {
        struct {
            char x[X_RING][X_BYTES];
            char w[RING][W_BYTES];
        };
        Sums all;  // after the last product
    };
    Tables tables[GROUPED ? RING : 1];
    Received received;
    float row_scales[W_SCALES == 2 ? ROWS : 4];
    float4 of_pair[PAIRED ? TOKENS / 8 : 1][PAIRED ? 128 : 1];
    u64 all_received;
    u64 full[RING], empty[RING];
    u64 x_full[ONE_RING ? 1 : X_RING], x_empty[ONE_RING ? 1 : X_RING];
};
static_assert(sizeof(Shared) + TABLE_BYTES <= SHARED_BYTES, "SHARED_BYTES is what a launch asks for");

// A operands of the products of a unit.
struct Operands {
    u32 a[UNIT][4];
    u32 zeros[IN_UNIT][2];

    // From a stage, of which `unit` is one.
    INLINE void make(const Shared& shared, u32 stage, int unit, u32 row_group, u32 thread, u32 row, const char* table) {
        Codes codes;
        codes.load(shared.w[stage] + row_group * IN_STEP * TILE_BYTES, thread);
        u32 scales[IN_UNIT][2];
#pragma unroll
        for (int g = 0; g < (GROUPED ? IN_UNIT : 0); g++) shared.tables[stage].read(scales[g], zeros[g], unit * UNIT / IN_GROUP + g, row);
#pragma unroll
        for (int i = 0; i < UNIT; i++) {
            codes.decode(a[i], unit * UNIT + i, scales[i / IN_GROUP], zeros[i / IN_GROUP], table);
            hold(a[i]);
        }
    }
};

// The 2 i32 and 2 i64 after a map are its sizes and strides in the launch ABI (`driver.py`).
extern "C" __global__ void __cluster_dims__(1, CLUSTER, 1) __launch_bounds__(THREADS, BLOCKS)
    packed_gemm_pipelined(const __grid_constant__ TensorMap x, int, int, long long, long long, const char* w, const char* group_scale,
                          const char* weight_zero, const char* bias, const char* residual, const float* x_scale, const float* w_scale,
                          const float* out_scale, char* y, int num_tokens) {
    let_next_start();
    Shared& shared = *(Shared*)memory;
    u32 warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32, part = PAIRED ? 0 : blockIdx.y;
    u32 member = PAIRED ? blockIdx.y : 0, shared_group = PAIRED && member == 0 ? ROW_GROUPS - 1 : 0;
    int row = PAIRED ? blockIdx.x * (2 * ROWS - TILE) + member * (ROWS - TILE) : blockIdx.x * ROWS;
    int first_step = part * SHARE, steps = max(0, min(SHARE, STEPS - first_step));
    constexpr u32 LOADS_W = CONSUMERS / 32, LOADS_X = LOADS_W + 1, LOADS_SCALES = LOADS_X + 1;
    if (lane == 0) {  // of each warp: one thread would take long for all
#pragma unroll 1
        for (int i = warp; i < RING; i += THREADS / 32) {
            barrier_init(shared.full[i], (GROUPED ? 33 : 1) + ONE_RING);
            barrier_init(shared.empty[i], OWNERS / 32 - (PAIRED && i % 2 != member ? 4 : 0));
        }
#pragma unroll 1
        for (int i = warp; i < (ONE_RING ? 0 : X_RING); i += THREADS / 32) {
            barrier_init(shared.x_full[i], 1);
            barrier_init(shared.x_empty[i], OWNERS / 32 - (PAIRED && i % 2 != member ? 4 : 0));
        }
        if (warp == 0) barrier_init(shared.all_received, 1);
        barriers_are_made();
        if (CLUSTER > 1 && warp == 0) arrive_expecting(shared.all_received, PAIRED ? sizeof(shared.of_pair) : sizeof(shared.received));
    }
    __syncthreads();
    if (CLUSTER > 1) cluster_arrive();  // until all have arrived, none may use the others' barriers
    // Whole warps that load go through the steps, so that addresses are in uniform registers; one lane loads what is in wholes.
    if (warp >= LOADS_W) {
        if (MOVED) give_registers_down_to<GIVEN>();
        Place<RING> at;
        if (warp == LOADS_W) {
            u64 policy = evict_first();
            const char* from = w + ((long long)(row / TILE) * TILES + IN_STEP * first_step) * TILE_BYTES;
            for (int step = 0; step < steps; step++) {
                if (CLUSTER > 1 && step == RING) cluster_wait();
                wait(shared.empty[at.stage], at.parity ^ 1);
                int tile = IN_STEP * (first_step + step), count = TILES % IN_STEP ? min(IN_STEP, TILES - tile) : IN_STEP;
                if (lane == 0) {
                    bool not_shared = PAIRED && step % 2 != member;
                    arrive_expecting(shared.full[at.stage], (ROW_GROUPS - not_shared) * count * TILE_BYTES);
#pragma unroll
                    for (int i = 0; i < ROW_GROUPS; i++) {
                        if (not_shared && i == shared_group) continue;
                        int below = min(i, N / TILE - 1 - row / TILE);
                        load_bytes(shared.w[at.stage] + i * IN_STEP * TILE_BYTES, from + (long long)below * TILES * TILE_BYTES, count * TILE_BYTES,
                                   shared.full[at.stage], policy);
                    }
                }
                from += IN_STEP * TILE_BYTES;
                at.next();
            }
        } else if (warp == LOADS_X) {
            prefetch(x);
            wait_for_previous();
            u64 *full = ONE_RING ? shared.full : shared.x_full, *empty = ONE_RING ? shared.empty : shared.x_empty;
            Place<X_RING> at_x;
            for (int step = 0; step < steps; step++) {
                if (CLUSTER > 1 && step == X_RING) cluster_wait();
                wait(empty[at_x.stage], at_x.parity ^ 1);
                if (lane == 0) {
                    arrive_expecting(full[at_x.stage], X_BYTES);
#pragma unroll
                    for (int panel = 0; panel < PANELS; panel++) {
                        load_box(shared.x[at_x.stage] + panel * TOKENS * 128, x, 0, (first_step + step) * COLUMNS + panel * PANEL_COLUMNS,
                                 full[at_x.stage]);
                    }
                }
                at_x.next();
            }
        } else if (GROUPED && warp == LOADS_SCALES) {
            for (int step = 0; step < steps; step++) {
                if (CLUSTER > 1 && step == RING) cluster_wait();
                wait(shared.empty[at.stage], at.parity ^ 1);
                shared.tables[at.stage].load(group_scale, weight_zero, row, (first_step + step) * COLUMNS, shared.full[at.stage], lane);
                at.next();
            }
        }
        if (CLUSTER > 1 && (steps <= (warp == LOADS_X ? X_RING : RING) || warp > (GROUPED ? LOADS_SCALES : LOADS_X))) cluster_wait();
    } else {
        if (MOVED) take_registers_up_to<TAKEN>();
        u32 thread = threadIdx.x % 128, row_group = warp / 4 % ROW_GROUPS, k_group = warp / 4 / ROW_GROUPS;
        if (W_SCALES == 2) {
            for (int i = threadIdx.x; i < ROWS; i += CONSUMERS) shared.row_scales[i] = row + i < N ? w_scale[row + i] : 0.0f;
        }
        const char* table = memory + SHARED_BYTES - TABLE_BYTES + 4 * lane;
#if CODES == CODES_NF4
        make_table(threadIdx.x, CONSUMERS);
        sync_warps(1, CONSUMERS);
#endif
        if (CLUSTER > 1) cluster_wait();
        wait_for_previous();
        typedef Epilogue<ROWS, CONSUMERS> Results;
        Results epilogue(row, part, member && Results::own_row() < TILE ? 0 : num_tokens, bias, residual, x_scale, w_scale, out_scale);
        float total[TOKENS / 2] = {};
        Place<RING> at;
        Place<X_RING> at_x;
        bool shares = PAIRED && row_group == shared_group;
        u32 start = shares ? member : k_group;  // its first step
        const int stride = shares ? 2 : K_GROUPS;
        at.next(start), at_x.next(start);
        u32 first = 64 * row_group + thread / 32 * 16 + lane / 4;
        int left = steps - (int)start;
        bool more = left > 0;
        auto make = [&](Operands& of_unit, int unit) { of_unit.make(shared, at.stage, unit, row_group, thread, first, table); };
#if BY_SUMS
        float sums[IN_UNIT][TOKENS / 2] = {};
#endif
        // Multiplies a unit and meanwhile makes the operands of the next one.
        auto multiply_unit = [&](const Operands& now, Operands& next, int unit) {
            u32 stage = at.stage, x_stage = ONE_RING ? stage : at_x.stage;
            if (!ONE_RING && unit == 0) wait(shared.x_full[x_stage], at_x.parity);
            u64 b = by_rows(shared_address(shared.x[x_stage]));
#if BY_SUMS
#pragma unroll
            for (int g = 0; g < IN_UNIT; g++) hold(sums[g]);
#else
            hold(total);
#endif
            wgmma_begin();
#pragma unroll
            for (int i = 0; i < UNIT; i++) {
                int product = unit * UNIT + i;
                u64 columns = b + (product / 4 * TOKENS * 128 + product % 4 * 32) / 16;
#if BY_SUMS
                auto& to = sums[i / IN_GROUP];
                if (product % IN_GROUP == 0) {
                    multiply_skinny<false>(to, now.a[i], columns);
                } else {
                    multiply_skinny<true>(to, now.a[i], columns);
                }
#else
                auto& to = total;
                multiply_skinny<true>(to, now.a[i], columns);
#endif
#if FP8 && ZEROS
                const u32 (&zero)[2] = now.zeros[i / IN_GROUP];
                u32 both[4] = {zero[0], zero[1], zero[0], zero[1]};
                multiply_skinny<true>(to, both, columns);
#endif
            }
            wgmma_commit();
            if (unit < UNITS - 1) {
                make(next, unit + 1);
            } else {
                at.next(stride);
                if (!ONE_RING) at_x.next(stride);
                left -= stride;
                more = left > 0;
                if (more) {
                    wait(shared.full[at.stage], at.parity);
                    make(next, 0);
                }
            }
#if BY_SUMS
            u32 scales[IN_UNIT][2], zeros[2];
#pragma unroll
            for (int g = 0; g < IN_UNIT; g++) shared.tables[stage].read(scales[g], zeros, unit * UNIT / IN_GROUP + g, first);
#endif
            wait_for_wgmma<0>();
#if BY_SUMS
#pragma unroll
            for (int g = 0; g < IN_UNIT; g++) {
                hold(sums[g]);
#pragma unroll
                for (int i = 0; i < ((unit + 1) * UNIT % IN_GROUP ? 0 : TOKENS / 2); i++) {
                    total[i] += sums[g][i] * __int_as_float(scales[g][i / 2 % 2]);
                }
            }
#else
            hold(total);
#endif
            if (lane == 0 && unit == UNITS - 1) {
                arrive(shared.empty[stage]);
                if (!ONE_RING) arrive(shared.x_empty[x_stage]);
            }
        };
        if (more) {
            Operands even, odd;
            wait(shared.full[at.stage], at.parity);
            make(even, 0);
            while (more) {
#pragma unroll
                for (int unit = 0; unit < UNITS; unit++) {
                    if (unit % 2 == 0) {
                        multiply_unit(even, odd, unit);
                    } else {
                        multiply_unit(odd, even, unit);
                    }
                }
                if (UNITS == 1 && more) multiply_unit(odd, even, 0);
            }
        }
#if PAIRED
        if (row_group == shared_group) {
            if (member) {
#pragma unroll
                for (int i = 0; i < TOKENS / 8; i++) send(&shared.of_pair[i][thread], *(float4*)&total[4 * i], shared.all_received, 0);
            } else {
                wait(shared.all_received, 0);
#pragma unroll
                for (int i = 0; i < TOKENS / 8; i++) {
                    float4 sums = shared.of_pair[i][thread];
                    total[4 * i] += sums.x, total[4 * i + 1] += sums.y, total[4 * i + 2] += sums.z, total[4 * i + 3] += sums.w;
                }
            }
        }
#endif
        add_up(shared.all, shared.received, shared.all_received, total, k_group, part, first, lane);
        epilogue.finish(shared.all.sums, x_scale, [&](int j) { return shared.row_scales[epilogue.own + j]; }, y);
    }
}
