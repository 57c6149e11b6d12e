// Skinny GEMM (2 to 128 tokens) on Hopper: `triton_kernels/skinny_gemm.py`, but with weights in flight before x is available.
//
// Nearly all of its time is that of reading the weight. 64 rows of the weight are the tall side of the tensor core's tile, and the tokens,
// padded to TOKENS, the narrow one. One warp loads weights into a ring of its own and does not wait for any kernel; another loads x once
// the kernel before has ended; a warpgroup multiplies. So as much as the blocks have room for, 10 MB and more in all, comes from memory
// while the kernel before runs.
// Where SPLITS is 2, two blocks of a cluster share rows and split K. Each sends the other its sums of every other token, which complete on
// a barrier there. Meeting at the cluster's barrier instead, where every thread waits for all its loads and stores, was slower.
//
// Tried on an H100 and slower: 128 rows per block, which read x half as often; blocks of a cluster with different rows that load x for each
// other (multicast), although with 128 tokens all blocks together read twice the weight's size from L2; a ring for x no deeper than that
// for weights: x comes from L2 only once the wait is over, and the weights already there would wait for it.
//
// x: [tokens, K], boxes of TOKENS rows; w: [N, K], boxes of 64 rows; y: [num_tokens, N], or [num_tokens, N / 2] where ACT is SWIGLU, whose
// even rows of w are gates and whose odd rows are what they gate. Rows of x from num_tokens on are arbitrary: no stored row depends on
// them. Past N and K TMA reads zeros; N is a multiple of 16.
// y = act(x @ w.T * scales + bias + residual), with one scale each (SCALED) or one per row of each (SCALED_ROWS), divided by out_scale if
// QUANTIZE. Sums of INT8 are int32 and exact, whatever K is split into.
#include "hopper.cuh"

#define SWIGLU 1
#define GELU 2

constexpr int ELEMENT = FP8 || INT8 ? 1 : 2, COLUMNS = 128 / ELEMENT;  // per panel
constexpr int STEPS = (K * ELEMENT + PANELS * 128 - 1) / (PANELS * 128), SHARE = (STEPS + SPLITS - 1) / SPLITS;
#if INT8
typedef int4 Four;
#else
typedef float4 Four;
#endif
constexpr int ROWS = 64, CONSUMERS = 128, THREADS = CONSUMERS + 64;
constexpr int W_BYTES = PANELS * ROWS * 128, X_BYTES = PANELS * TOKENS * 128;
constexpr int PITCH = ROWS + 4;  // of a token's sums: a warp's stores go to different banks, and rows are aligned to 16 bytes

struct Shared {
    union {
        struct {
            char w[W_STAGES][W_BYTES];
            char x[X_STAGES][X_BYTES];
        };
        float sums[TOKENS / SPLITS][PITCH];  // those of INT8 rounded to fp32; after the last wgmma
    };
    Four received[TOKENS / 16][SPLITS > 1 ? CONSUMERS : 1];  // sums of a thread's own tokens, from the other block
    u64 all_received;
    u64 w_full[W_STAGES], w_empty[W_STAGES];
    u64 x_full[X_STAGES], x_empty[X_STAGES];
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "SHARED_BYTES is what a launch asks for");
static_assert(SPLITS <= 2, "a block sends to one other block");

extern __shared__ __align__(1024) char memory[];

// A position in a ring of STAGES, and the parity of the phase that fills it.
template <int STAGES>
struct Place {
    u32 stage = 0, parity = 0;

    INLINE void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

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

// Stores 8 results of a token, from column `column` of y on.
INLINE void store(char* y, int token, int column, const float (&x)[8]) {
    constexpr int WIDTH = ACT == SWIGLU ? N / 2 : N;
    long long at = (long long)token * WIDTH + column;
#if QUANTIZE
    *(uint2*)(y + at) = make_uint2(pack_fp8(x[0], x[1], x[2], x[3]), pack_fp8(x[4], x[5], x[6], x[7]));
#else
    uint4 words = make_uint4(pack_out(x[0], x[1]), pack_out(x[2], x[3]), pack_out(x[4], x[5]), pack_out(x[6], x[7]));
    *(uint4*)(y + 2 * at) = words;
#endif
}

// Adds 8 elements of 2 bytes to x.
INLINE void add(float (&x)[8], uint4 words) {
    u32 each[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        float2 pair = unpack_out(each[i]);
        x[2 * i] += pair.x;
        x[2 * i + 1] += pair.y;
    }
}

// A thread's part of the results: EACH rows of every AT_ONCE-th token.
struct Epilogue {
    static constexpr int EACH = ACT == SWIGLU ? 16 : 8, OF_TOKEN = ROWS / EACH;  // threads per token
    static constexpr int AT_ONCE = CONSUMERS / OF_TOKEN * SPLITS, COUNT = (TOKENS + AT_ONCE - 1) / AT_ONCE;

    int own, row, first, num_tokens;  // row of the weight; tokens
    float factor = 1.0f, over = 1.0f;
    uint4 addends[ADDED ? COUNT : 1], biases;

    // Loads what the sums are scaled by and added to while the weight is still coming.
    INLINE Epilogue(int block_row, u32 part, int num_tokens, const char* bias, const char* residual, const float* x_scale,
                    const float* w_scale, const float* out_scale)
        : own(threadIdx.x % OF_TOKEN * EACH), row(block_row + own), first(threadIdx.x / OF_TOKEN * SPLITS + part),
          num_tokens(row < N ? num_tokens : 0) {
        if (SCALED) factor = *w_scale * *x_scale;
        if (QUANTIZE) over = 1.0f / *out_scale;
        if (BIASED && row < N) biases = *(const uint4*)(bias + 2 * row);
#pragma unroll
        for (int i = 0; i < (ADDED ? COUNT : 0); i++) {
            long long token = first + i * AT_ONCE;
            if (token < this->num_tokens) addends[i] = *(const uint4*)(residual + 2 * (token * N + row));
        }
    }

    INLINE void finish(const Shared& shared, const float* x_scale, const float* w_scale, char* y) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            int token = first + i * AT_ONCE;
            if (token >= num_tokens) return;
            float sums[EACH];
#pragma unroll
            for (int j = 0; j < EACH; j += 4) *(float4*)&sums[j] = *(const float4*)&shared.sums[token / SPLITS][own + j];
            float scale = SCALED_ROWS ? x_scale[token] : factor;
#pragma unroll
            for (int j = 0; j < EACH; j++) sums[j] *= SCALED_ROWS ? w_scale[row + j] * scale : scale;
            float out[8];
#if ACT == SWIGLU
#pragma unroll
            for (int j = 0; j < 8; j++) out[j] = sums[2 * j] / (1.0f + exp2_of(sums[2 * j] * -1.4426950408889634f)) * sums[2 * j + 1];
#else
#pragma unroll
            for (int j = 0; j < 8; j++) out[j] = sums[j];
            if (BIASED) add(out, biases);
            if (ADDED) add(out, addends[i]);
#if ACT == GELU
#pragma unroll
            for (int j = 0; j < 8; j++) {
                float u = 0.7978845608028654f * (out[j] + 0.044715f * out[j] * out[j] * out[j]);
                out[j] = out[j] / (1.0f + exp2_of(u * -2.8853900817779268f));
            }
#endif
#endif
#pragma unroll
            for (int j = 0; j < 8; j++) out[j] *= over;
            store(y, token, row / (EACH / 8), out);
        }
    }
};

// The 2 i32 and 2 i64 after a map are its sizes and strides in the launch ABI (`driver.py`).
extern "C" __global__ void __cluster_dims__(1, SPLITS, 1) __launch_bounds__(THREADS)
    skinny_gemm(const __grid_constant__ TensorMap x, int, int, long long, long long, const __grid_constant__ TensorMap w, int, int,
               long long, long long, const char* bias, const char* residual, const float* x_scale, const float* w_scale,
               const float* out_scale, char* y, int num_tokens) {
    let_next_start();
    Shared& shared = *(Shared*)memory;
    u32 warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32, part = blockIdx.y;
    int row = blockIdx.x * ROWS, column = part * SHARE * PANELS * COLUMNS, steps = max(0, min(SHARE, STEPS - (int)part * SHARE));
    constexpr u32 LOADS_W = CONSUMERS / 32, LOADS_X = LOADS_W + 1;
    if (warp == LOADS_W && lane == 0) {
#pragma unroll
        for (int i = 0; i < W_STAGES; i++) {
            barrier_init(shared.w_full[i], 1);
            barrier_init(shared.w_empty[i], CONSUMERS / 32);
        }
#pragma unroll
        for (int i = 0; i < X_STAGES; i++) {
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
        if (lane == 0) {
            prefetch(x);
            wait_for_previous();
            Loader<X_BYTES, TOKENS, X_STAGES>{shared.x, shared.x_full, shared.x_empty, 0, column}.load(
                [&](void* to, int row, int column, u64& full) { load_box(to, x, row, column, full); }, steps);
        }
    } else {
        if (SPLITS > 1) cluster_wait();
        wait_for_previous();
        Epilogue epilogue(row, part, num_tokens, bias, residual, x_scale, w_scale, out_scale);
        Sum acc[TOKENS / 2] = {};
        Place<W_STAGES> at_w, before_w;
        Place<X_STAGES> at_x, before_x;
        auto release = [&]() {
            if (lane == 0) {
                arrive(shared.w_empty[before_w.stage]);
                arrive(shared.x_empty[before_x.stage]);
            }
            before_w.next();
            before_x.next();
        };
        for (int step = 0; step < steps; step++) {
            wait(shared.w_full[at_w.stage], at_w.parity);
            wait(shared.x_full[at_x.stage], at_x.parity);
            u64 a = by_rows(shared_address(shared.w[at_w.stage])), b = by_rows(shared_address(shared.x[at_x.stage]));
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
        u32 first = 16 * warp + lane / 4;
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
#pragma unroll
            for (int i = 0; i < TOKENS / 16; i++) {
                Four sums = {other[4 * i], other[4 * i + 1], other[4 * i + 2], other[4 * i + 3]};
                send(&shared.received[i][threadIdx.x], sums, shared.all_received, 1 - part);
            }
            wait(shared.all_received, 0);
#pragma unroll
            for (int i = 0; i < TOKENS / 16; i++) {
                Four sums = shared.received[i][threadIdx.x];
                own[4 * i] += sums.x, own[4 * i + 1] += sums.y, own[4 * i + 2] += sums.z, own[4 * i + 3] += sums.w;
            }
        }
        sync_warps(1, CONSUMERS);  // all have read w and x, whose memory the sums take
#pragma unroll
        for (int i = 0; i < TOKENS / 2 / SPLITS; i++) {
            if (SPLITS == 1) {
                shared.sums[i / 4 * 8 + lane % 4 * 2 + i % 2][first + i / 2 % 2 * 8] = (float)own[i];
            } else {
                shared.sums[i / 2 * 4 + lane % 4][first + i % 2 * 8] = (float)own[i];
            }
        }
        sync_warps(1, CONSUMERS);
        epilogue.finish(shared, x_scale, w_scale, y);
    }
}
