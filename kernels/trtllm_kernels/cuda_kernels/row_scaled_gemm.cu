// GEMM of many tokens in 8 bits on Hopper: int8 (W8A8) or fp8, with one scale per row of each operand (BY_ROW) or one for each.
//
//     y[t, n] = act(x_scale[t] * w_scale[n] * sum over k of x[t, k] * w[n, k] + bias[n] + residual[t, n])
//
// divided by out_scale and stored as fp8 if QUANTIZE.
//
// Persistent, one block per SM. A tile is 128 tokens by COLUMNS rows of the weight. One thread loads both operands, 128 bytes of K per step,
// into a ring of STAGES; two warpgroups multiply 64 tokens each. What the sums are scaled by and added to is loaded while they are made,
// and the next tile's operands are on their way during this tile's epilogue. A tile's weights do not depend on the step, so the first stages
// of them are loaded before x is there.
// A thread's sums lie in pairs of columns, four threads to 8 columns. They are exchanged within these four, so that each stores 16 bytes of
// one row (8 with SwiGLU, half of that where codes are stored) and four neighbours whole sectors.
//
// Why not Triton: its int8 products have at most 128 columns, and none is in flight while the next is prepared (Triton 3.6 waits for each
// group of int8 products; of fp8 products it keeps one in flight). A persistent kernel with TMA took 5 to 55% longer.
//
// x: [tokens, K], boxes of 128 rows; w: [N, K], boxes of COLUMNS rows; y: [num_tokens, N], or [num_tokens, N / 2] where ACT is SWIGLU, whose
// even rows of w are gates and whose odd rows are what they gate. Rows of x from num_tokens on are arbitrary: no stored row depends on
// them. Past N and K TMA reads zeros; N is a multiple of 16 and K of 16.
#include "activations.cuh"

constexpr int ROWS = 128, STEP = 128;                   // tokens of a tile; bytes, which are elements, of K per step
constexpr int GROUPS = 2, CONSUMERS = GROUPS * 128;     // warpgroups that multiply, and their threads
constexpr int STEPS = (K + STEP - 1) / STEP, TILES_N = (N + COLUMNS - 1) / COLUMNS;
constexpr int X_BYTES = ROWS * STEP, W_BYTES = COLUMNS * STEP;
constexpr int CONSTANTS_BYTES = (BY_ROW ? 4 : 0) + (BIASED ? 2 : 0);  // of a row of w, beside its elements

struct Shared {
    char x[STAGES][X_BYTES];
    char w[STAGES][W_BYTES];
    float scales[2][BY_ROW ? COLUMNS : 4];  // of a tile's rows of w; its neighbour's are in the other half
    char biases[2][BIASED ? COLUMNS * 2 : 16];
    u64 full[STAGES], empty[STAGES];
    u64 scales_full[2], scales_empty[2];
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "SHARED_BYTES is what a launch asks for");

extern __shared__ __align__(1024) char memory[];

struct Tile {
    int row, column;  // of y as if it were [tokens, N]

    // Goes down groups of GROUP row blocks, so that a weight tile is reused from L2 (triton_kernels/tiling.py).
    INLINE Tile(int tile, int tiles_m) {
        int group = tile / (GROUP * TILES_N), rows = min(tiles_m - group * GROUP, GROUP), within = tile % (GROUP * TILES_N);
        row = (group * GROUP + within % rows) * ROWS;
        column = within / rows * COLUMNS;
    }
};

// A position in the ring, and the parity of the phase that fills it.
struct Place {
    u32 stage = 0, parity = 0;

    INLINE void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

// Transposes a 4 x 4 matrix of words whose row i is in the i-th of four neighbouring lanes.
INLINE void transpose(u32 (&x)[4], u32 lane) {
    bool odd = lane & 1, high = lane & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        u32 other = __shfl_xor_sync(~0u, odd ? x[i] : x[i + 1], 1);
        if (odd) x[i] = other;
        else x[i + 1] = other;
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u32 other = __shfl_xor_sync(~0u, high ? x[i] : x[i + 2], 2);
        if (high) x[i] = other;
        else x[i + 2] = other;
    }
}

// Stores a thread's part of a tile: rows `first` and `first + 8`, of each 8 columns the pair 2 * (lane % 4).
INLINE void store(const Sum (&acc)[COLUMNS / 2], const Tile& tile, int first, u32 lane, const float* scales, const char* biases,
                  const char* residual, const float* x_scale, float dequantize, float inverse, char* y, int num_tokens) {
    u32 of_four = lane % 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        long long token = first + 8 * h;
        bool stored = token < num_tokens;
        float own = !BY_ROW ? dequantize : stored ? x_scale[token] : 0.0f;
        u32 addends[ADDED ? COLUMNS / 32 : 1][4];
#pragma unroll
        for (int i = 0; i < (ADDED ? COLUMNS / 32 : 0); i++) {
            int column = tile.column + 32 * i + 8 * of_four;
            uint4 words = make_uint4(0, 0, 0, 0);
            if (stored && column < N) words = *(const uint4*)(residual + 2 * (token * N + column));
            addends[i][0] = words.x, addends[i][1] = words.y, addends[i][2] = words.z, addends[i][3] = words.w;
        }
#pragma unroll
        for (int i = 0; i < COLUMNS / 32; i++) {
            if (ADDED) transpose(addends[i], lane);
            u32 words[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                int pair = 8 * (4 * i + j) + 2 * of_four;
                float2 scale = BY_ROW ? *(const float2*)(scales + pair) : make_float2(1.0f, 1.0f);
                float a = (float)acc[4 * (4 * i + j) + 2 * h] * (scale.x * own);
                float b = (float)acc[4 * (4 * i + j) + 2 * h + 1] * (scale.y * own);
                if (BIASED) {
                    float2 bias = unpack_out(*(const u32*)(biases + 2 * pair));
                    a += bias.x, b += bias.y;
                }
                if (ADDED) {
                    float2 addend = unpack_out(addends[i][j]);
                    a += addend.x, b += addend.y;
                }
#if ACT == SWIGLU
                words[j] = __float_as_int(swiglu(a, b));
#else
                if (ACT == GELU) a = gelu_tanh(a), b = gelu_tanh(b);
                words[j] = QUANTIZE ? pack_fp8(a * inverse, b * inverse, 0, 0) : pack_out(a, b);
#endif
            }
            transpose(words, lane);
#if ACT == SWIGLU
            int column = tile.column / 2 + 16 * i + 4 * of_four;
            float a = __int_as_float(words[0]), b = __int_as_float(words[1]), c = __int_as_float(words[2]), d = __int_as_float(words[3]);
            if (stored && column < N / 2) {
                long long at = token * (N / 2) + column;
                if (QUANTIZE) *(u32*)(y + at) = pack_fp8(a * inverse, b * inverse, c * inverse, d * inverse);
                else *(uint2*)(y + 2 * at) = make_uint2(pack_out(a, b), pack_out(c, d));
            }
#else
            int column = tile.column + 32 * i + 8 * of_four;
            if (stored && column < N) {
                long long at = token * N + column;
                if (QUANTIZE) *(uint2*)(y + at) = make_uint2(words[0] | words[1] << 16, words[2] | words[3] << 16);
                else *(uint4*)(y + 2 * at) = make_uint4(words[0], words[1], words[2], words[3]);
            }
#endif
        }
    }
}

// The 2 i32 and 2 i64 after a map are its sizes and strides in the launch ABI (`driver.py`).
extern "C" __global__ void __launch_bounds__(CONSUMERS + 128, 1)
    row_scaled_gemm(const __grid_constant__ TensorMap x, int, int, long long, long long, const __grid_constant__ TensorMap w, int, int,
                    long long, long long, const char* bias, const char* residual, const float* x_scale, const float* w_scale,
                    const float* out_scale, char* y, int num_tokens) {
    let_next_start();
    Shared& shared = *(Shared*)memory;
    u32 warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    int tiles_m = (num_tokens + ROWS - 1) / ROWS, tiles = tiles_m * TILES_N;
    if (threadIdx.x == 0) {
#pragma unroll
        for (int i = 0; i < STAGES; i++) {
            barrier_init(shared.full[i], 1);
            barrier_init(shared.empty[i], CONSUMERS / 32);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            barrier_init(shared.scales_full[i], 1);
            barrier_init(shared.scales_empty[i], CONSUMERS / 32);
        }
        barriers_are_made();
    }
    __syncthreads();
    if (warp >= CONSUMERS / 32) {
        give_registers_down_to<40>();
        if (warp == CONSUMERS / 32 && lane == 0) {
            prefetch(x);
            prefetch(w);
            Place at;
            int count = 0;
            for (int index = blockIdx.x; index < tiles; index += gridDim.x, count++) {
                Tile tile(index, tiles_m);
                u32 half = count % 2;
                int left = min(COLUMNS, N - tile.column);
                if (CONSTANTS_BYTES) {
                    wait(shared.scales_empty[half], count / 2 % 2 ^ 1);
                    arrive_expecting(shared.scales_full[half], left * CONSTANTS_BYTES);
                }
                if (BY_ROW) load_bytes(shared.scales[half], w_scale + tile.column, left * 4, shared.scales_full[half]);
                if (BIASED) load_bytes(shared.biases[half], bias + 2 * tile.column, left * 2, shared.scales_full[half]);
                int step = 0;
                if (count == 0) {  // weights first, which are there before x
                    constexpr int AHEAD = STEPS < STAGES ? STEPS : STAGES;
                    for (int i = 0; i < AHEAD; i++) {
                        arrive_expecting(shared.full[i], X_BYTES + W_BYTES);
                        load_box(shared.w[i], w, tile.column, i * STEP, shared.full[i]);
                    }
                    wait_for_previous();
                    for (; step < AHEAD; step++) {
                        load_box(shared.x[step], x, tile.row, step * STEP, shared.full[step]);
                        at.next();
                    }
                }
                for (; step < STEPS; step++) {
                    wait(shared.empty[at.stage], at.parity ^ 1);
                    arrive_expecting(shared.full[at.stage], X_BYTES + W_BYTES);
                    load_box(shared.w[at.stage], w, tile.column, step * STEP, shared.full[at.stage]);
                    load_box(shared.x[at.stage], x, tile.row, step * STEP, shared.full[at.stage]);
                    at.next();
                }
            }
        }
    } else {
        take_registers_up_to<232>();
        float inverse = QUANTIZE ? 1.0f / load_constant(out_scale) : 1.0f;
        float dequantize = BY_ROW ? 1.0f : load_constant(w_scale);
        wait_for_previous();
        if (!BY_ROW) dequantize *= *x_scale;
        u32 group = warp / 4;
        Place at;
        int count = 0;
        for (int index = blockIdx.x; index < tiles; index += gridDim.x, count++) {
            Tile tile(index, tiles_m);
            Sum acc[COLUMNS / 2] = {};
            u32 before = 0;
            for (int step = 0; step < STEPS; step++) {
                wait(shared.full[at.stage], at.parity);
                u64 a = by_rows(shared_address(shared.x[at.stage] + group * 64 * STEP)), b = by_rows(shared_address(shared.w[at.stage]));
                hold(acc);
                wgmma_begin();
#pragma unroll
                for (int i = 0; i < 4; i++) multiply_add(acc, a + 2 * i, b + 2 * i);
                wgmma_commit();
                wait_for_wgmma<1>();
                if (step > 0 && lane == 0) arrive(shared.empty[before]);
                before = at.stage;
                at.next();
            }
            wait_for_wgmma<0>();
            hold(acc);
            if (lane == 0) arrive(shared.empty[before]);
            u32 half = count % 2;
            if (CONSTANTS_BYTES) wait(shared.scales_full[half], count / 2 % 2);
            int first = tile.row + 64 * group + 16 * (warp % 4) + lane / 4;
            store(acc, tile, first, lane, shared.scales[half], shared.biases[half], residual, x_scale, dequantize, inverse, y, num_tokens);
            __syncwarp();
            if (CONSTANTS_BYTES && lane == 0) arrive(shared.scales_empty[half]);
        }
    }
}
