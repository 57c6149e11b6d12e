// GEMM with packed weights for many tokens on Hopper: codes become the tensor core's A operand in registers, as in `packed_gemm.cu`, and x
// is B, so that a wide weight is never in memory.
//
// A tile is ROWS rows of the weight by TOKENS tokens. Two warpgroups multiply, of M_TILES x 64 rows each; what is decoded is multiplied by
// TOKENS tokens, whose products take longer than the decoding of the next codes. A warpgroup that multiplies cannot do much else, since A is in
// its registers; so the two take turns, a step each, and decode the next step, into other registers, in the turn of the other. In step with
// each other they would both decode, and then both multiply: on an H200, steps took 600 cycles more than their products. Three
// warps of a third warpgroup load the weight, x, and scales, in a ring of RING.
//
// Where there are fewer tiles than SMs, SPLITS blocks of a cluster divide K; each sends the others its sums of their tokens. Otherwise blocks
// are persistent, one per SM, and loads are a tile ahead while sums are stored.
//
// Scales of groups are factors of the codes in x's format (FOLDED), rounded as in a weight that is made wide: one multiplication of two codes
// a register and no sums of groups. x fp8 takes int4 as E4M3, exactly, so sums of PART tokens and a group are scaled in fp32, as soon as the
// products of the next part are under way.
//
// Tiles go through TOKEN_GROUP blocks of tokens first and then to the next rows: x of these stays in L2, and the weight is read once for them.
//
// x, w, group_scale, weight_zero and y as in `packed_gemm.cu`.
#define ROW_GROUPS (2 * M_TILES)
#define FULL (BY_SUMS && M_TILES * TOKENS == 256)  // sums take nearly all registers
#include "packed.cuh"

constexpr int CONSUMERS = 256, THREADS = 384, ROWS_OF_GROUP = ROWS / 2, ROW_BLOCKS = (N + ROWS - 1) / ROWS;
constexpr int SHARE = (STEPS + SPLITS - 1) / SPLITS;  // steps of a block
constexpr int OWN = TOKENS / SPLITS;                  // tokens whose results a block stores
constexpr int STORED = M_TILES == 1 && OWN >= 64 && TOKENS > 64 ? 64 : OWN < 32 ? OWN : 32;  // at a time
constexpr int PITCH = ROWS_OF_GROUP + 4;
// Registers of a thread that multiplies, and of others: in all those of a launch, 168 of each, or a warpgroup would wait for more for ever.
constexpr int TAKEN = FULL ? 240 : M_TILES * TOKENS == 256 ? 232 : 224, GIVEN = 3 * 168 - 2 * TAKEN;
constexpr bool AHEAD = M_TILES * OWN <= 128;  // there are registers for the next part's residual
typedef Epilogue<ROWS_OF_GROUP, 128, STORED, 1> Results;
static_assert(OWN % STORED == 0 && STORED % Results::AT_ONCE == 0, "tokens are stored in whole parts, by all threads at once");

struct Shared {
    union {
        struct {
            char x[RING][X_BYTES];
            char w[RING][W_BYTES];
        };
        float4 received[SPLITS > 1 ? SPLITS - 1 : 1][M_TILES * OWN / 8][CONSUMERS];  // when all blocks have read x and w
    };
    float sums[2][STORED][PITCH];
    Tables tables[GROUPED ? RING : 1];
    u64 full[RING], empty[RING], all_received;
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

// What a block's warps load: steps of K of each of its tiles, one after another. Whole warps go through them, so that addresses are in uniform
// registers, and one lane loads: a step's instructions, which wait for each other, must take less time than its products.
struct Range {
    int tiles, token_blocks, first, count;

    // Calls `load(tile, step, stage)` when the stage is empty.
    template <class Load>
    INLINE void load(Shared& shared, Load load) const {
        Place<RING> at;
        for (int index = blockIdx.x; index < (count ? tiles : 0); index += gridDim.x) {
            Tile tile(index, token_blocks);
            for (int step = first; step < first + count; step++) {
                wait(shared.empty[at.stage], at.parity ^ 1);
                load(tile, step, at.stage);
                at.next();
            }
        }
    }
};

// A warpgroup's operands of a step.
struct Operands {
    u32 a[M_TILES][PRODUCTS][4];
    u32 scales[M_TILES][GROUPS][2], zeros[M_TILES][GROUPS][2];

    INLINE void load(const Shared& shared, u32 stage, u32 group, u32 thread, const char* table) {
        Codes codes[M_TILES];
#pragma unroll
        for (int m = 0; m < M_TILES; m++) {
            u32 row_group = group * M_TILES + m;
            codes[m].load(shared.w[stage] + row_group * IN_STEP * TILE_BYTES, thread);
#pragma unroll
            for (int g = 0; g < GROUPS; g++) {
                scales[m][g][0] = scales[m][g][1] = zeros[m][g][0] = zeros[m][g][1] = 0;
                if (GROUPED) shared.tables[stage].read(scales[m][g], zeros[m][g], g, 64 * row_group + thread / 32 * 16 + thread % 32 / 4);
            }
        }
#pragma unroll
        for (int m = 0; m < M_TILES; m++) {
#pragma unroll
            for (int i = 0; i < PRODUCTS; i++) {
                codes[m].decode(a[m][i], i, scales[m][i / IN_GROUP], zeros[m][i / IN_GROUP], table);
                hold(a[m][i]);
            }
        }
    }

    // Starts the products of a group of columns and `LENGTH * 2` tokens, at `b`.
    template <bool ADDED_TO, int LENGTH>
    INLINE void multiply(float (&to)[LENGTH], int m, int g, u64 b) const {
        hold(to);
        wgmma_begin();
#pragma unroll
        for (int i = g * IN_GROUP; i < (g + 1) * IN_GROUP; i++) {
            u64 columns = b + (i / 4 * TOKENS * 128 + i % 4 * 32) / 16;
            if (i == g * IN_GROUP) {
                multiply_skinny<ADDED_TO>(to, a[m][i], columns);
            } else {
                multiply_skinny<true>(to, a[m][i], columns);
            }
#if FP8 && ZEROS
            u32 both[4] = {zeros[m][g][0], zeros[m][g][1], zeros[m][g][0], zeros[m][g][1]};
            multiply_skinny<true>(to, both, columns);
#endif
        }
        wgmma_commit();
    }
};

// The 2 i32 and 2 i64 after a map are its sizes and strides in the launch ABI (`driver.py`).
extern "C" __global__ void __cluster_dims__(1, SPLITS, 1) __launch_bounds__(THREADS, 1)
    packed_gemm_large(const __grid_constant__ TensorMap x, int, int, long long, long long, const char* w, const char* group_scale,
                      const char* weight_zero, const char* bias, const char* residual, const float* x_scale, const float* w_scale,
                      const float* out_scale, char* y, int num_tokens) {
    let_next_start();
    Shared& shared = *(Shared*)memory;
    u32 warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32, part = blockIdx.y;
    int token_blocks = (num_tokens + TOKENS - 1) / TOKENS, tiles = token_blocks * ROW_BLOCKS;
    int first_step = part * SHARE, steps = max(0, min(SHARE, STEPS - first_step));
    constexpr u32 LOADS_W = CONSUMERS / 32, LOADS_X = LOADS_W + 1;
    if (lane == 0) {
        for (int i = warp; i < RING; i += THREADS / 32) {
            barrier_init(shared.full[i], GROUPED ? 34 : 2);
            barrier_init(shared.empty[i], CONSUMERS / 32);
        }
        if (warp == 0) barrier_init(shared.all_received, 1);
        barriers_are_made();
        if (SPLITS > 1 && warp == 0) arrive_expecting(shared.all_received, sizeof(shared.received));
    }
    make_table(threadIdx.x, THREADS);
    __syncthreads();
    if (SPLITS > 1) {
        cluster_arrive();
        cluster_wait();  // until all have arrived, none may use the others' barriers
    }
    if (warp >= LOADS_W) {
        give_registers_down_to<GIVEN>();
        Range range{tiles, token_blocks, first_step, steps};
        if (warp == LOADS_W) {
            range.load(shared, [&](const Tile& tile, int step, u32 stage) {
                int first = IN_STEP * step, count = TILES % IN_STEP ? min(IN_STEP, TILES - first) : IN_STEP;
                const char* from = w + (long long)first * TILE_BYTES;
                u32 of_row[ROW_GROUPS];  // below 2^32: rows of tiles times tiles of a row
#pragma unroll
                for (int i = 0; i < ROW_GROUPS; i++) of_row[i] = min(tile.row / TILE + i, N / TILE - 1) * TILES;
                if (lane == 0) {
                    arrive_expecting(shared.full[stage], ROW_GROUPS * count * TILE_BYTES);
#pragma unroll
                    for (int i = 0; i < ROW_GROUPS; i++) {
                        load_bytes(shared.w[stage] + i * IN_STEP * TILE_BYTES, from + (long long)of_row[i] * TILE_BYTES, count * TILE_BYTES,
                                   shared.full[stage]);
                    }
                }
            });
        } else if (warp == LOADS_X) {
            prefetch(x);
            wait_for_previous();
            range.load(shared, [&](const Tile& tile, int step, u32 stage) {
                if (lane == 0) {
                    arrive_expecting(shared.full[stage], X_BYTES);
#pragma unroll
                    for (int panel = 0; panel < PANELS; panel++) {
                        load_box(shared.x[stage] + panel * TOKENS * 128, x, tile.token, step * COLUMNS + panel * PANEL_COLUMNS,
                                 shared.full[stage]);
                    }
                }
            });
        } else if (GROUPED && warp == LOADS_X + 1) {
            range.load(shared, [&](const Tile& tile, int step, u32 stage) {
                shared.tables[stage].load(group_scale, weight_zero, tile.row, step * COLUMNS, shared.full[stage], lane);
            });
        }
        if (SPLITS > 1) {
            cluster_arrive();
            cluster_wait();
        }
    } else {
        take_registers_up_to<TAKEN>();
        wait_for_previous();
        u32 thread = threadIdx.x % 128, group = warp / 4;
        const char* table = memory + SHARED_BYTES - TABLE_BYTES + 4 * lane;
        auto& stored = shared.sums[group];
        if (group == 1) signal_warps(2, CONSUMERS);  // the first begins
        Place<RING> at;
        for (int index = blockIdx.x; index < tiles; index += gridDim.x) {
            Tile tile(index, token_blocks);
            float total[M_TILES][TOKENS / 2] = {};
            auto b_of = [&](u32 stage) { return by_rows(shared_address(shared.x[stage])); };
            Operands even, odd;
            if (steps > 0) {
                wait(shared.full[at.stage], at.parity);
                even.load(shared, at.stage, group, thread, table);
            }
#if BY_SUMS
            constexpr int PART = TOKENS > 64 ? 64 : TOKENS, PARTS = TOKENS / PART, UNITS = GROUPS * M_TILES * PARTS;  // units of a step
            auto multiply_step = [&](Operands& now, Operands& next, bool more) {
                float sums[UNITS > 1 ? 2 : 1][PART / 2];
                u64 b = b_of(at.stage);
                sync_warps(2 + group, CONSUMERS);
                auto scale_sums = [&](int unit) {
                    int part = unit % PARTS, m = unit / PARTS % M_TILES, g = unit / PARTS / M_TILES;
                    auto& of_unit = sums[unit % 2];
                    hold(of_unit);
#pragma unroll
                    for (int i = 0; i < PART / 2; i++) total[m][part * PART / 2 + i] += of_unit[i] * __int_as_float(now.scales[m][g][i / 2 % 2]);
                };
#pragma unroll
                for (int unit = 0; unit < UNITS; unit++) {
                    int part = unit % PARTS, m = unit / PARTS % M_TILES, g = unit / PARTS / M_TILES;
                    now.multiply<false>(sums[unit % 2], m, g, b + part * PART * 128 / 16);
                    if (unit == UNITS - 1) signal_warps(2 + (group ^ 1), CONSUMERS);
                    if (unit > 0) {
                        wait_for_wgmma<1>();
                        scale_sums(unit - 1);
                    }
                }
                u32 stage = at.stage;
                at.next();
                if (more) {
                    wait(shared.full[at.stage], at.parity);
                    next.load(shared, at.stage, group, thread, table);
                }
                wait_for_wgmma<0>();
                scale_sums(UNITS - 1);
                if (lane == 0) arrive(shared.empty[stage]);
            };
#else
            u32 before = 0;  // the stage whose products may still be in flight
            auto multiply_step = [&](Operands& now, Operands& next, bool more, bool first) {
                u64 b = b_of(at.stage);
                sync_warps(2 + group, CONSUMERS);
#pragma unroll
                for (int g = 0; g < GROUPS; g++) {
#pragma unroll
                    for (int m = 0; m < M_TILES; m++) now.multiply<true>(total[m], m, g, b);
                }
                signal_warps(2 + (group ^ 1), CONSUMERS);
                if (!first) {
                    wait_for_wgmma<GROUPS * M_TILES>();
                    if (lane == 0) arrive(shared.empty[before]);
                }
                before = at.stage;
                at.next();
                if (more) {
                    wait(shared.full[at.stage], at.parity);
                    next.load(shared, at.stage, group, thread, table);
                }
            };
#endif
            for (int step = 0; step < steps; step += 2) {
#if BY_SUMS
                multiply_step(even, odd, step + 1 < steps);
                if (step + 1 < steps) multiply_step(odd, even, step + 2 < steps);
#else
                multiply_step(even, odd, step + 1 < steps, step == 0);
                if (step + 1 < steps) multiply_step(odd, even, step + 2 < steps, false);
#endif
            }
#if !BY_SUMS
            wait_for_wgmma<0>();
            if (steps > 0 && lane == 0) arrive(shared.empty[before]);
#endif
#pragma unroll
            for (int m = 0; m < M_TILES; m++) hold(total[m]);
            int row = tile.row + group * ROWS_OF_GROUP, token = tile.token + (int)part * OWN;
            auto results_of = [&](int first) {
                long long wide = token + first;
                return Results(row, 0, num_tokens - token - first, bias, residual + wide * N * 2, x_scale, w_scale, out_scale);
            };
            Results results = results_of(0);
            float row_scales[W_SCALES == 2 ? 16 : 1] = {};
#pragma unroll
            for (int j = 0; j < (W_SCALES == 2 ? 16 : 0); j++) row_scales[j] = __ldg(w_scale + min(row + Results::own_row() + j, N - 1));
#if SPLITS > 1
            cluster_arrive();
            cluster_wait();  // others' x and w are read, where the sums go
            float own[M_TILES][OWN / 2];
#pragma unroll
            for (int q = 0; q < SPLITS; q++) {
#pragma unroll
                for (int m = 0; m < M_TILES; m++) {
#pragma unroll
                    for (int i = 0; i < OWN / 2; i += 4) {
                        const float* sums = total[m] + q * OWN / 2 + i;
#pragma unroll
                        for (int j = 0; j < 4; j++) own[m][i + j] = q == 0 || q == (int)part ? sums[j] : own[m][i + j];
                        if (q != (int)part) {
                            u32 slot = (part + SPLITS - q) % SPLITS - 1;
                            send(&shared.received[slot][(m * OWN / 2 + i) / 4][threadIdx.x], make_float4(sums[0], sums[1], sums[2], sums[3]),
                                 shared.all_received, q);
                        }
                    }
                }
            }
            wait(shared.all_received, 0);
#pragma unroll
            for (int slot = 0; slot < SPLITS - 1; slot++) {
#pragma unroll
                for (int m = 0; m < M_TILES; m++) {
#pragma unroll
                    for (int i = 0; i < OWN / 2; i += 4) {
                        float4 more = shared.received[slot][(m * OWN / 2 + i) / 4][threadIdx.x];
                        own[m][i] += more.x, own[m][i + 1] += more.y, own[m][i + 2] += more.z, own[m][i + 3] += more.w;
                    }
                }
            }
#else
            auto& own = total;
#endif
#pragma unroll
            for (int first = 0; first < OWN; first += STORED) {
                long long wide = token + first;
                if (!AHEAD && first > 0) results = results_of(first);
                sync_warps(4 + group, 128);  // the sums before are read
#pragma unroll
                for (int m = 0; m < M_TILES; m++) {
#pragma unroll
                    for (int i = 0; i < STORED / 2; i++) {
                        stored[i / 4 * 8 + lane % 4 * 2 + i % 2][64 * m + thread / 32 * 16 + lane / 4 + i / 2 % 2 * 8] = own[m][first / 2 + i];
                    }
                }
                sync_warps(4 + group, 128);
                Results here = results;
                if (AHEAD && first + STORED < OWN) results = results_of(first + STORED);
                constexpr int BYTES = QUANTIZE ? 1 : 2, WIDTH = ACT == SWIGLU ? N / 2 : N;
                here.finish(stored, x_scale + (X_SCALES == 2 ? wide : 0), [&](int j) { return row_scales[W_SCALES == 2 ? j : 0]; },
                            y + wide * WIDTH * BYTES);
            }
        }
        if (group == 0) sync_warps(2, CONSUMERS);  // the last turn's signal
    }
}
