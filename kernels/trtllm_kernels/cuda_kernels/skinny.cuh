// What kernels of skinny GEMMs share: places in rings, and the epilogue, y = act(sums * scales + bias + residual) / out_scale.
// SAMPLED: y are logits, of which candidates for tokens are kept.
#pragma once
#include "activations.cuh"
#include "sampling.cuh"

#ifndef SAMPLED
#define SAMPLED 0
#endif

// Scales of x and of the weight: 0 none, 1 one of all, 2 one per row. FACTOR: what else sums are multiplied by.
#ifndef X_SCALES
#define X_SCALES (SCALED_ROWS ? 2 : SCALED)
#define W_SCALES X_SCALES
#define FACTOR 1.0f
#endif

// A position in a ring of STAGES, and the parity of the phase that fills it.
template <int STAGES>
struct Place {
    u32 stage = 0, parity = 0;

    INLINE void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }

    // By `count` places, STAGES at most.
    INLINE void next(u32 count) {
        stage += count;
        if (stage >= STAGES) stage -= STAGES, parity ^= 1;
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

// A thread's part of the results: EACH of the block's ROWS, of every so many tokens. SHARES blocks share the tokens: two have every other
// token, and of four each has two tokens, 8 lines apart, less the other two, of 16.
template <int ROWS, int THREADS, int OF_TOKENS = TOKENS, int SHARES = SPLITS>
struct Epilogue {
    static constexpr int EACH = ACT == SWIGLU ? 16 : 8, OF_TOKEN = ROWS / EACH;  // threads per token
    static constexpr int AT_ONCE = THREADS / OF_TOKEN * SHARES, COUNT = (OF_TOKENS + AT_ONCE - 1) / AT_ONCE;
    static_assert(ROWS % EACH == 0, "a thread's rows are whole ones of the block");

    int own, row, first, num_tokens;  // row of the weight; tokens
    u32 part;
    float factor = 1.0f, over = 1.0f;
    uint4 addends[ADDED ? COUNT : 1], biases;

    // Loads what the sums are scaled by and added to while the weight is still coming.
    INLINE Epilogue(int block_row, u32 part, int num_tokens, const char* bias, const char* residual, const float* x_scale,
                    const float* w_scale, const float* out_scale)
        : own(own_row()), row(block_row + own), first(index() / OF_TOKEN * SHARES + (SHARES > 2 ? 0 : part)),
          num_tokens(row < N && index() / OF_TOKEN < THREADS / OF_TOKEN ? num_tokens : 0), part(part) {
        if (W_SCALES == 1) factor = *w_scale;
        if (X_SCALES == 1) factor *= *x_scale;
        factor *= FACTOR;
        if (QUANTIZE) over = 1.0f / *out_scale;
        if (BIASED && row < N) biases = *(const uint4*)(bias + 2 * row);
#pragma unroll
        for (int i = 0; i < (ADDED ? COUNT : 0); i++) {
            long long token = this->token(i);
            addends[i] = make_uint4(0, 0, 0, 0);  // else registers are kept for it all along
            if (token < this->num_tokens) addends[i] = *(const uint4*)(residual + 2 * (token * N + row));
        }
    }

    // Of a thread among those that share the results.
    INLINE static int index() { return OF_TOKENS == TOKENS ? threadIdx.x : threadIdx.x % THREADS; }

    INLINE static int own_row() { return index() % OF_TOKEN * EACH; }

    INLINE int token(int i) const {
        int at = first + i * AT_ONCE;
        return SHARES <= 2 ? at : at / 16 * 16 + part / 2 * 8 + at / SHARES % 4 * 2 + part % 2;
    }

    // `sums`: [OF_TOKENS / SHARES][..] of the block's rows. `row_scale`: scale of the j-th of the thread's rows. `best`: words of tokens'
    // candidates, by `sampling_words`, if SAMPLED.
    template <int PITCH, typename RowScale>
    INLINE void finish(const float (&sums_of)[OF_TOKENS / SHARES][PITCH], const float* x_scale, RowScale row_scale, char* y,
                       long long* best = nullptr, const int4* sampling_words = nullptr) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            int token = this->token(i);
            if (SAMPLED) {
                sample(sums_of, token, y, best, sampling_words);
                continue;
            }
            if (token >= num_tokens) return;
            float sums[EACH];
#pragma unroll
            for (int j = 0; j < EACH; j += 4) *(float4*)&sums[j] = *(const float4*)&sums_of[(SHARES <= 2 ? token : first + i * AT_ONCE) / SHARES][own + j];
            float scale = X_SCALES == 2 ? x_scale[token] * factor : factor;
#pragma unroll
            for (int j = 0; j < EACH; j++) sums[j] *= W_SCALES == 2 ? row_scale(j) * scale : scale;
            float out[8];
#if ACT == SWIGLU
#pragma unroll
            for (int j = 0; j < 8; j++) out[j] = swiglu(sums[2 * j], sums[2 * j + 1]);
#else
#pragma unroll
            for (int j = 0; j < 8; j++) out[j] = sums[j];
            if (BIASED) add(out, biases);
            if (ADDED) add(out, addends[i]);
#if ACT == GELU
#pragma unroll
            for (int j = 0; j < 8; j++) out[j] = gelu_tanh(out[j]);
#endif
#endif
#pragma unroll
            for (int j = 0; j < 8; j++) out[j] *= over;
            store(y, token, row / (EACH / 8), out);
        }
    }

    // Stores a token's logits and offers the best of them. Called by whole warps, whose lanes exchange what they have of a token.
    template <int PITCH>
    INLINE void sample(const float (&sums_of)[OF_TOKENS / SHARES][PITCH], int token, char* y, long long* best, const int4* sampling_words) const {
        static_assert(!SAMPLED || (!X_SCALES && !W_SCALES && !ADDED && !QUANTIZE && !ACT && 32 % OF_TOKEN == 0), "logits are bare products");
        long long word = 1ll << 63;
        if (token < num_tokens) {
            float out[8];
#pragma unroll
            for (int j = 0; j < 8; j++) out[j] = sums_of[token / SHARES][own + j];
            if (BIASED) add(out, biases);
            store(y, token, row, out);
#pragma unroll
            for (int j = 0; j < 8; j += 2) {
                float2 stored = unpack_out(pack_out(out[j], out[j + 1]));
                out[j] = stored.x, out[j + 1] = stored.y;
            }
            word = best_of(out, row, sampling_words[token]);
        }
        word = best_of_lanes(word, OF_TOKEN);
        if (own == 0 && token < num_tokens) atomicMax(best + token, word);
    }
};
