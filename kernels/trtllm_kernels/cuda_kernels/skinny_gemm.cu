// Skinny GEMM (1 to 128 tokens) on Hopper: `triton_kernels/skinny_gemm.py`, but with weights in flight before x is available.
//
// Nearly all of its time is that of reading the weight. 64 rows of the weight are the tall side of the tensor core's tile, and the tokens,
// padded to TOKENS, the narrow one. One warp loads weights into a ring of its own and does not wait for any kernel; another loads x once
// the kernel before has ended; a warpgroup multiplies. So as much as the blocks have room for, 10 MB and more in all, comes from memory
// while the kernel before runs.
// A block has ROWS rows, so many that the SMs have equal shares: 6,144 rows are 128 blocks of 48. Then a warpgroup multiplies fewer rows
// than the tensor core's 64; the rest is what lies behind them, and is dropped. Above 64 rows two warpgroups have half of them each, and x
// is read less often.
// Where SPLITS is 2, two blocks of a cluster share rows and split K. Each sends the other its sums of every other token, which complete on
// a barrier there. Meeting at the cluster's barrier instead, where every thread waits for all its loads and stores, was slower.
//
// Tried on an H100 and slower: blocks of a cluster with different rows that load x for each
// other (multicast), although with 128 tokens all blocks together read twice the weight's size from L2; a ring for x no deeper than that
// for weights: x comes from L2 only once the wait is over, and the weights already there would wait for it.
//
// x: [tokens, K], boxes of TOKENS rows; w: [N, K], boxes of ROWS rows; y: [num_tokens, N], or [num_tokens, N / 2] where ACT is SWIGLU, whose
// even rows of w are gates and whose odd rows are what they gate. Rows of x from num_tokens on are arbitrary: no stored row depends on
// them. Past N and K TMA reads zeros; N is a multiple of 16.
// NORMED: x is the RMS norm of `rows`, of as many columns, by `norm_weight`, divided by norm_scale if FP8. No kernel has made it: those that
// multiply do, each block all that it reads of it, while its weights come. What is loaded at x itself is then not read.
// best, sampling_words: of tokens, where y are logits and SAMPLED.
// y = act(x @ w.T * scales + bias + residual), with one scale each (SCALED) or one per row of each (SCALED_ROWS), divided by out_scale if
// QUANTIZE. Sums of INT8 are int32 and exact, whatever K is split into.
#include "normed.cuh"
#include "skinny.cuh"

constexpr int ELEMENT = FP8 || INT8 ? 1 : 2, COLUMNS = 128 / ELEMENT;  // per panel
constexpr int STEPS = (K * ELEMENT + PANELS * 128 - 1) / (PANELS * 128), SHARE = (STEPS + SPLITS - 1) / SPLITS;
constexpr int IN_SENT = TOKENS == 8 ? 2 : 4;  // sums sent at once
#if INT8 && TOKENS == 8
typedef int2 Sent;
#elif INT8
typedef int4 Sent;
#elif TOKENS == 8
typedef float2 Sent;
#else
typedef float4 Sent;
#endif
constexpr int ROWS = TILE_ROWS, GROUPS = ROWS > 64 ? 2 : 1, OWN_ROWS = ROWS / GROUPS;  // a warpgroup's rows
constexpr int CONSUMERS = 128 * GROUPS, THREADS = CONSUMERS + 64;
constexpr int BEHIND = (64 - OWN_ROWS) * 128;  // bytes that a product reads after the last row
constexpr int W_BYTES = PANELS * ROWS * 128, X_BYTES = PANELS * TOKENS * 128;
constexpr int X_RING = NORMED ? 1 : X_STAGES;
constexpr int OWN_COLUMNS = SHARE * PANELS * COLUMNS;  // of x, of a block
#if NORMED
constexpr int NORMED_AT_ONCE = rows_at_once(OWN_COLUMNS, SPLITS, CONSUMERS, BLOCKS * THREADS / 32);
static_assert(X_STAGES == SHARE, "a block keeps all of its x");
static_assert(!ADDED && !SCALED_ROWS, "what else it takes are constants");
#endif
constexpr int PITCH = ROWS + 4;  // of a token's sums: a warp's stores go to different banks, and rows are aligned to 16 bytes

struct Shared {
    union {
        struct {
            char w[W_STAGES][W_BYTES];
            char x[X_STAGES][X_BYTES];
        };
        char read[W_STAGES * W_BYTES + BEHIND];
        float sums[TOKENS / SPLITS][PITCH];  // those of INT8 rounded to fp32; after the last wgmma
    };
    Sent received[TOKENS / 4 / IN_SENT][SPLITS > 1 ? CONSUMERS : 1];  // sums of a thread's own tokens, from the other block
    u64 all_received;
    u64 w_full[W_STAGES], w_empty[W_STAGES];
    u64 x_full[X_RING], x_empty[X_RING];
#if NORMED
    float squares[TOKENS + NORMED_AT_ONCE - 1][CONSUMERS / 32];
#endif
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "SHARED_BYTES is what a launch asks for");
static_assert(SPLITS <= 2, "a block sends to one other block");
static_assert(OWN_ROWS % 8 == 0 && OWN_ROWS <= 64, "rows come in groups of 8");

extern __shared__ __align__(1024) char memory[];

// Used by one thread: loads this block's part of a matrix, PANELS panels of HEIGHT rows per step.
template <int BYTES, int HEIGHT, int STAGES>
struct Loader {
    char (&to)[STAGES][BYTES];
    u64 (&full)[STAGES], (&empty)[STAGES];
    int row, column;
    Place<STAGES> at;

    template <typename Load>
    INLINE void load(const Load& box, int steps) {
        for (int step = 0; step < steps; step++) {
            wait(empty[at.stage], at.parity ^ 1);
            arrive_expecting(full[at.stage], BYTES);
#pragma unroll
            for (int panel = 0; panel < PANELS; panel++, column += COLUMNS) {
                box(to[at.stage] + panel * HEIGHT * 128, row, column, full[at.stage]);
            }
            at.next();
        }
    }
};

// Sends the other block its tokens' sums, and adds what it sends to our own.
template <int LENGTH>
INLINE void exchange_sums(Shared& shared, Sum (&own)[LENGTH], const Sum (&other)[TOKENS / 4], u32 part) {
#pragma unroll
    for (int i = 0; i < TOKENS / 4; i += IN_SENT) {
#if TOKENS == 8
        Sent sums = {other[i], other[i + 1]};
#else
        Sent sums = {other[i], other[i + 1], other[i + 2], other[i + 3]};
#endif
        send(&shared.received[i / IN_SENT][threadIdx.x], sums, shared.all_received, 1 - part);
    }
    wait(shared.all_received, 0);
#pragma unroll
    for (int i = 0; i < TOKENS / 4; i += IN_SENT) {
        Sent sums = shared.received[i / IN_SENT][threadIdx.x];
        own[i] += sums.x, own[i + 1] += sums.y;
#if TOKENS != 8
        own[i + 2] += sums.z, own[i + 3] += sums.w;
#endif
    }
}

// The 2 i32 and 2 i64 after a map are its sizes and strides in the launch ABI (`driver.py`).
extern "C" __global__ void __cluster_dims__(1, SPLITS, 1) __launch_bounds__(THREADS, BLOCKS)
    skinny_gemm(const __grid_constant__ TensorMap x, int, int, long long, long long, const __grid_constant__ TensorMap w, int, int,
               long long, long long, const char* bias, const char* residual, const float* x_scale, const float* w_scale,
               const float* out_scale, char* y, long long* best, const int4* sampling_words, const char* rows, const char* norm_weight,
               const float* norm_scale, float eps, int num_tokens) {
    let_next_start();
    Shared& shared = *(Shared*)memory;
    u32 warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32, part = blockIdx.y;
    int row = blockIdx.x * ROWS, column = part * OWN_COLUMNS, steps = max(0, min(SHARE, STEPS - (int)part * SHARE));
    constexpr u32 LOADS_W = CONSUMERS / 32, LOADS_X = LOADS_W + 1;
    if (warp == LOADS_W && lane == 0) {
#pragma unroll
        for (int i = 0; i < W_STAGES; i++) {
            barrier_init(shared.w_full[i], 1);
            barrier_init(shared.w_empty[i], CONSUMERS / 32);
        }
#pragma unroll
        for (int i = 0; i < X_RING; i++) {
            barrier_init(shared.x_full[i], 1);
            barrier_init(shared.x_empty[i], CONSUMERS / 32);
        }
        barrier_init(shared.all_received, 1);
        barriers_are_made();
        if (SPLITS > 1) arrive_expecting(shared.all_received, sizeof(shared.received));
    }
    __syncthreads();
    if (SPLITS > 1) cluster_arrive();  // until both have arrived, neither may use the other's barriers
    if (warp == LOADS_W) {
        u64 policy = evict_first();
        Loader<W_BYTES, ROWS, W_STAGES> loader{shared.w, shared.w_full, shared.w_empty, row, column};
        auto box = [&](void* to, int row, int column, u64& full) { load_box(to, w, row, column, full, policy); };
        if (SPLITS > 1) {
            int at_once = min(steps, W_STAGES);
            if (lane == 0) loader.load(box, at_once);
            steps -= at_once;
            __syncwarp();
            cluster_wait();
        }
        if (lane == 0) loader.load(box, steps);
    } else if (warp == LOADS_X) {
        if (SPLITS > 1) cluster_wait();
#if !NORMED
        if (lane == 0) {
            prefetch(x);
            wait_for_previous();
            Loader<X_BYTES, TOKENS, X_STAGES>{shared.x, shared.x_full, shared.x_empty, 0, column}.load(
                [&](void* to, int row, int column, u64& full) { load_box(to, x, row, column, full); }, steps);
        }
#endif
    } else {
        if (SPLITS > 1) cluster_wait();
#if NORMED
        RowNorm<K, OWN_COLUMNS, CONSUMERS, NORMED_AT_ONCE> norm(norm_weight, FP8 ? norm_scale : nullptr, column);
        Epilogue<ROWS, CONSUMERS> epilogue(row, part, num_tokens, bias, residual, x_scale, w_scale, out_scale);  // constants alone
        wait_for_previous();
        norm.load(rows, 0, num_tokens);
        norm.normalize(rows, num_tokens, eps, shared.squares, [&](int token, int column, const float(&values)[8]) {
            int byte = column * ELEMENT;
            char* to = shared.x[0] + byte / 128 * TOKENS * 128 + token * 128 + (byte % 128 / 16 ^ token % 8) * 16 + byte % 16;
#if FP8
            *(uint2*)to = make_uint2(pack_fp8(values[0], values[1], values[2], values[3]), pack_fp8(values[4], values[5], values[6], values[7]));
#else
            *(uint4*)to = make_uint4(pack(values[0], values[1]), pack(values[2], values[3]), pack(values[4], values[5]), pack(values[6], values[7]));
#endif
        });
        publish_to_async();
        sync_warps(1, CONSUMERS);
#else
        wait_for_previous();
        Epilogue<ROWS, CONSUMERS> epilogue(row, part, num_tokens, bias, residual, x_scale, w_scale, out_scale);
#endif
        Sum acc[TOKENS / 2] = {};
        Place<W_STAGES> at_w, before_w;
        Place<X_STAGES> at_x, before_x;
        auto release = [&]() {
            if (lane == 0) {
                arrive(shared.w_empty[before_w.stage]);
                if (!NORMED) arrive(shared.x_empty[before_x.stage]);
            }
            before_w.next();
            before_x.next();
        };
        u32 own_part = warp / 4 * OWN_ROWS * 128;
        for (int step = 0; step < steps; step++) {
            wait(shared.w_full[at_w.stage], at_w.parity);
            if (!NORMED) wait(shared.x_full[at_x.stage], at_x.parity);
            u64 a = by_rows(shared_address(shared.w[at_w.stage]) + own_part), b = by_rows(shared_address(shared.x[at_x.stage]));
            hold(acc);
            wgmma_begin();
#pragma unroll
            for (int i = 0; i < PANELS * 4; i++) {
                multiply_add(acc, a + (i / 4 * ROWS * 128 + i % 4 * 32) / 16, b + (i / 4 * TOKENS * 128 + i % 4 * 32) / 16);
            }
            wgmma_commit();
            wait_for_wgmma<1>();
            if (step > 0) release();
            at_w.next();
            at_x.next();
        }
        wait_for_wgmma<0>();
        hold(acc);
        u32 first = 16 * (warp % 4) + lane / 4;  // of the warpgroup's rows
        Sum own[TOKENS / 2 / SPLITS];
        if (SPLITS == 1) {
#pragma unroll
            for (int i = 0; i < TOKENS / 2; i++) own[i] = acc[i];
        } else {
            Sum other[TOKENS / 4];
#pragma unroll
            for (int i = 0; i < TOKENS / 4; i++) {
                own[i] = part == 0 ? acc[2 * i] : acc[2 * i + 1];
                other[i] = part == 0 ? acc[2 * i + 1] : acc[2 * i];
            }
            exchange_sums(shared, own, other, part);
        }
        sync_warps(1, CONSUMERS);  // all have read w and x, whose memory the sums take
#pragma unroll
        for (int i = 0; i < TOKENS / 2 / SPLITS; i++) {
            u32 row_of = first + (SPLITS == 1 ? i / 2 : i) % 2 * 8, token = SPLITS == 1 ? i / 4 * 8 + lane % 4 * 2 + i % 2 : i / 2 * 4 + lane % 4;
            if (row_of < OWN_ROWS) shared.sums[token][warp / 4 * OWN_ROWS + row_of] = (float)own[i];
        }
        sync_warps(1, CONSUMERS);
        epilogue.finish(shared.sums, x_scale, [&](int j) { return w_scale[epilogue.row + j]; }, y, best, sampling_words);
    }
}
