// What the all-reduce kernels share: words that were not sent yet, and the end of a row (residual addition, RMS norm, fp8).
//
// Macros: WORLD ranks; H elements a row; THREADS; NORM 1: residual + RMS norm, 0: the sum alone, or with ADD 1 the residual too; QUANTIZE: to fp8;
// HALF and OUT_HALF: elements are fp16, else bf16.
#pragma once
#include "group.cuh"

#ifndef ADD
#define ADD 0
#endif

constexpr u32 ABSENT = 0x80000000u;  // as a pair of floats of 16 bits: -0 above +0
constexpr int EACH = H / 8 / THREADS;
static_assert(EACH * THREADS * 8 == H, "a row is whole vectors of 16 bytes a thread");

INLINE Words poll_words(const void* from) {
    Words w;
    do {
        w = receive_words(from);
    } while (w.word[0] == ABSENT || w.word[1] == ABSENT || w.word[2] == ABSENT || w.word[3] == ABSENT);
    return w;
}

INLINE float block_sum(float x) {
    __shared__ float sums[THREADS / 32];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = x;
    __syncthreads();
    x = 0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) x += sums[i];
    return x;
}

// What becomes of a row whose partial sums are known, EACH vectors of 8 elements a thread. Each sum is rounded before the next is made of it.
struct Row {
    float value[EACH][8];
    float squares = 0;

    // (sum + kept), rounded twice, with NORM to be normalised; returns its words.
    INLINE Words add(int i, const float (&sum)[8], const Words& kept) {
        Words out;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            out.word[j] = pack_out(sum[2 * j], sum[2 * j + 1]);
            if (NORM || ADD) {
                float2 reduced = unpack_out(out.word[j]), before = unpack_out(kept.word[j]);
                out.word[j] = pack_out(reduced.x + before.x, reduced.y + before.y);
            }
            if (NORM) {
                float2 reduced = unpack_out(out.word[j]);
                value[i][2 * j] = reduced.x, value[i][2 * j + 1] = reduced.y;
                squares += reduced.x * reduced.x + reduced.y * reduced.y;
            }
        }
        return out;
    }

    // Normalised: vector i as codes in the first two words (QUANTIZE), or as 8 elements.
    INLINE Words normed(int i, const Words& weight, float scale, float over) const {
        float out[8];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float2 w = unpack_out(weight.word[j]);
            out[2 * j] = value[i][2 * j] * scale * w.x, out[2 * j + 1] = value[i][2 * j + 1] * scale * w.y;
        }
        Words words;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            if (QUANTIZE) {
                int k = 4 * (j % 2);
                words.word[j] = pack_fp8(out[k] * over, out[k + 1] * over, out[k + 2] * over, out[k + 3] * over);
            } else {
                words.word[j] = pack_out(out[2 * j], out[2 * j + 1]);
            }
        }
        return words;
    }
};

constexpr int RESULT_BYTES = NORM && QUANTIZE ? 1 : 2;  // of an element of y

INLINE void store_result(char* to, const Words& w) {
    if (RESULT_BYTES == 1) {
        store_pair(to, w.word[0], w.word[1]);
    } else {
        store_words(to, w);
    }
}
