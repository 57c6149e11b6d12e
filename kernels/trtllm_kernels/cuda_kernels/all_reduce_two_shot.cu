// All-reduce of large messages among GPUs of one host, fused with the residual addition, RMS norm and fp8 that follow it in a layer.
//
// Two-shot: each rank owns a share of the rows. It reads the partial rows of all ranks where they lie (values have the same offset in every
// rank's arena), adds them in rank order, adds the residual, normalises, and writes the result into every rank's memory. So over the link
// go a row once in 16 bits and once as it is used, in fp8: for two ranks three quarters of what exchanging rows whole takes.
// The residual is kept by the owner alone: `total` holds a rank's own rows and nothing of the others, and the next reduction of the same
// step, which has as many rows and so the same owners, is all that reads it.
//
// Blocks of one number meet at the beginning (partial rows are written) and at the end (results are written, partial rows are read), by
// counters in each other's memory. All ranks launch the same grid, which is at most as many blocks as run at once.
//
// Macros: `all_reduce.cuh`.
#include "all_reduce.cuh"

INLINE void meet(Group* group, u32 phase, u32 rank, u32 round) {
    __syncthreads();
    if (threadIdx.x < WORLD && threadIdx.x != rank) {
        u32 peer = threadIdx.x;
        u32* theirs = group->flags[peer] + (phase * gridDim.x + blockIdx.x) * WORLD + rank;
        u32* ours = group->flags[rank] + (phase * gridDim.x + blockIdx.x) * WORLD + peer;
        raise_counter(theirs, round + 1);
        await_counter(ours, round + 1);
    }
    __syncthreads();
}

extern "C" __global__ void __launch_bounds__(THREADS)
    all_reduce_two_shot(const char* x, const char* residual, const char* weight, const float* out_scale, Group* group, char* y, char* total,
                        float eps, int num_rows) {
    let_next_start();
    constexpr long long ROW = H * 2, STRIDE = THREADS * 16;
    Words weights[EACH];
    float over = 1.0f;
    if (NORM) {
#pragma unroll
        for (int i = 0; i < EACH; i++) weights[i] = load_words(weight + threadIdx.x * 16 + i * STRIDE);
        if (QUANTIZE) over = 1.0f / load_constant(out_scale);
    }
    u32 rank = group->rank;
    int share = (num_rows + WORLD - 1) / WORLD, first = share * rank, end = min(num_rows, first + share);
    char* arena[WORLD];
#pragma unroll
    for (int i = 0; i < WORLD; i++) arena[i] = group->arena[i];
    long long x_offset = x - group->arena[rank], y_offset = y - group->arena[rank];
    wait_for_previous();
    u32 round = *(volatile u32*)&group->rounds;
    meet(group, 0, rank, round);
    Words parts[WORLD][EACH];
    auto load = [&](int row) {
#pragma unroll
        for (int from = 0; from < WORLD; from++) {
#pragma unroll
            for (int i = 0; i < EACH; i++) parts[from][i] = load_words(arena[from] + x_offset + row * ROW + threadIdx.x * 16 + i * STRIDE);
        }
    };
    if (first + (int)blockIdx.x < end) load(first + blockIdx.x);
    for (int row = first + blockIdx.x; row < end; row += gridDim.x) {
        long long at = row * ROW + threadIdx.x * 16;
        Row result;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            Words kept;
            if (NORM || ADD) kept = load_words(residual + at + i * STRIDE);
            float sum[8] = {};
#pragma unroll
            for (int from = 0; from < WORLD; from++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float2 pair = unpack_out(parts[from][i].word[j]);
                    sum[2 * j] += pair.x, sum[2 * j + 1] += pair.y;
                }
            }
            Words out = result.add(i, sum, kept);
            if (NORM) {
                store_words(total + at + i * STRIDE, out);
            } else {
#pragma unroll
                for (int to = 0; to < WORLD; to++) store_words(arena[to] + y_offset + at + i * STRIDE, out);
            }
        }
        if (row + (int)gridDim.x < end) load(row + gridDim.x);  // on the way while this row is normalised
        if (NORM) {
            float scale = rsqrtf(block_sum(result.squares) / H + eps);
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                Words out = result.normed(i, weights[i], scale, over);
#pragma unroll
                for (int to = 0; to < WORLD; to++) store_result(arena[to] + y_offset + (at + i * STRIDE) * RESULT_BYTES / 2, out);
            }
            __syncthreads();  // before block_sum's memory is used again
        }
    }
    meet(group, 1, rank, round);
    end_round(group, [&]() { *(volatile u32*)&group->rounds = round + 1; });
}
