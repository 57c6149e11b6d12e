// All-reduce of small messages among GPUs of one host, fused with what follows it in a layer: the residual addition, RMS norm and fp8.
//
// One-shot: every rank writes its partial rows into every peer's memory and adds up what it was sent, in rank order, so all ranks hold the
// same bits. There is no barrier: a buffer is full of a word that no row contains (minus zero above plus zero, which the sender replaces by
// plus zeros), and a receiver polls its own memory until the word is gone (Lamport's register, as in TensorRT-LLM's one-shot kernels).
// So a reduction takes one flight over the link. Rejected: reading the peer's memory after a flag (two flights; the naive one took 3.4 us at
// 16 KiB without a norm), and NVLink multicast (not used in this project).
//
// Three buffers take turns. Round e uses buffer e % 3 and empties the one of round e - 1. A peer writes that buffer again in round e + 2, which
// it begins after it has our rows of round e + 1, which we send after this kernel has ended: so it is empty by then, whoever is ahead.
// The round lives in device memory and is advanced by the last block to end, so the kernel can be captured in a graph.
//
// Macros: `all_reduce.cuh`.
#include "all_reduce.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    all_reduce_one_shot(const char* x, const char* residual, const char* weight, const float* out_scale, Group* group, char* y, char* total,
                        float eps, int num_rows) {
    let_next_start();
    u32 row = blockIdx.x;
    constexpr long long ROW = H * 2, STRIDE = THREADS * 16;
    long long at = row * ROW + threadIdx.x * 16;  // of this thread's first vector; the others are STRIDE apart
    Words weights[EACH];
    float over = 1.0f;
    if (NORM) {
#pragma unroll
        for (int i = 0; i < EACH; i++) weights[i] = load_words(weight + threadIdx.x * 16 + i * STRIDE);
        if (QUANTIZE) over = 1.0f / load_constant(out_scale);
    }
    u32 rank = group->rank, most_rows = group->most_rows;
    char* buffers[WORLD];
#pragma unroll
    for (int i = 0; i < WORLD; i++) buffers[i] = group->buffer[i];
    wait_for_previous();
    u32 round = *(volatile u32*)&group->one_shot_rounds;
    // Rows of rank `from` in buffer `turn` of a rank, at this thread's first vector of row `row`.
    auto place = [&](u32 turn, u32 from, u32 row) { return ((turn * WORLD + from) * (long long)most_rows + row) * ROW + threadIdx.x * 16; };
    Words mine[EACH], kept[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        mine[i] = load_words(x + at + i * STRIDE);
#pragma unroll
        for (int j = 0; j < 4; j++) mine[i].word[j] = mine[i].word[j] == ABSENT ? 0 : mine[i].word[j];
#pragma unroll
        for (int other = 1; other < WORLD; other++) {
            u32 to = (rank + other) % WORLD;
#pragma unroll
            for (int peer = 0; peer < WORLD; peer++) {
                if (peer == to) send_words(buffers[peer] + place(round % 3, rank, row) + i * STRIDE, mine[i]);
            }
        }
    }
    if (NORM || ADD) {
#pragma unroll
        for (int i = 0; i < EACH; i++) kept[i] = load_words(residual + at + i * STRIDE);
    }
    char* own = group->buffer[rank];
    u32 last = (round + 2) % 3, used = *(volatile u32*)&group->used[last];
    Words absent = {{ABSENT, ABSENT, ABSENT, ABSENT}};
    for (u32 old = row; old < used; old += gridDim.x) {
#pragma unroll
        for (int from = 0; from < WORLD; from++) {
#pragma unroll
            for (int i = 0; i < EACH; i++) store_words(own + place(last, from, old) + i * STRIDE, absent);
        }
    }
    Row result;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        float sum[8] = {};
#pragma unroll
        for (int from = 0; from < WORLD; from++) {
            Words part = mine[i];
            if (from != rank) part = poll_words(own + place(round % 3, from, row) + i * STRIDE);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float2 pair = unpack_out(part.word[j]);
                sum[2 * j] += pair.x, sum[2 * j + 1] += pair.y;
            }
        }
        store_words((NORM ? total : y) + at + i * STRIDE, result.add(i, sum, kept[i]));
    }
    if (NORM) {
        float scale = rsqrtf(block_sum(result.squares) / H + eps);
#pragma unroll
        for (int i = 0; i < EACH; i++) store_result(y + (at + i * STRIDE) * RESULT_BYTES / 2, result.normed(i, weights[i], scale, over));
    }
    end_round(group, [&]() {
        group->used[round % 3] = gridDim.x;
        *(volatile u32*)&group->one_shot_rounds = round + 1;
    });
}
