// What the all-reduce kernels share: a group of ranks as one of them sees it, words of 16 bytes, and the end of a row (residual addition,
// RMS norm, fp8).
//
// Macros: WORLD ranks; H elements a row; THREADS; NORM 1: residual + RMS norm, 0: the sum alone, or with ADD 1 the residual too; QUANTIZE: to fp8;
// HALF and OUT_HALF: elements are fp16, else bf16.
#pragma once
#include "group.cuh"
#include "hopper.cuh"

#ifndef ADD
#define ADD 0
#endif

constexpr u32 ABSENT = 0x80000000u;  // as a pair of floats of 16 bits: -0 above +0
constexpr int EACH = H / 8 / THREADS;
static_assert(EACH * THREADS * 8 == H, "a row is whole vectors of 16 bytes a thread");

struct alignas(16) Words {
    u32 word[4];
};

INLINE Words load_words(const void* from) {
    Words w;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w.word[0]), "=r"(w.word[1]), "=r"(w.word[2]), "=r"(w.word[3]) : "l"(from) : "memory");
    return w;
}

INLINE void store_words(void* to, const Words& w) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(w.word[0]), "r"(w.word[1]), "r"(w.word[2]), "r"(w.word[3]) : "memory");
}

// To another GPU's memory, each word whole.
INLINE void send_words(void* to, const Words& w) {
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(w.word[0]), "r"(w.word[1]), "r"(w.word[2]), "r"(w.word[3]) : "memory");
}

INLINE Words poll_words(const void* from) {
    Words w;
    do {
        asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w.word[0]), "=r"(w.word[1]), "=r"(w.word[2]), "=r"(w.word[3])
                     : "l"(from)
                     : "memory");
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
        asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(w.word[0]), "r"(w.word[1]) : "memory");
    } else {
        store_words(to, w);
    }
}
