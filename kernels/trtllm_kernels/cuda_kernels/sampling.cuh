// Candidates for a row's token among its logits, as `triton_kernels/sampling.py` finds them: the best becomes one 64-bit word, the value in the
// high half and the column in the low half, and words are combined by an atomic maximum.
#pragma once
#include "hopper.cuh"

// Philox4x32-10 keyed by a seed's halves and counted by a block of four columns and a position.
INLINE void random_words(u32 (&words)[4], u32 block, u32 position, u32 low, u32 high) {
    u32 c0 = block, c1 = position, c2 = 0, c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 first = (u64)c0 * 0xD2511F53u, second = (u64)c2 * 0xCD9E8D57u;
        c0 = (u32)(second >> 32) ^ c1 ^ low, c1 = (u32)second;
        c2 = (u32)(first >> 32) ^ c3 ^ high, c3 = (u32)first;
        low += 0x9E3779B9u, high += 0xBB67AE85u;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// -log(-log(1 - u)) of a uniform word. Small u, which decide, use the series of log(1 - u).
INLINE float gumbel(u32 word) {
    float u = ((float)word + 0.5f) * 2.3283064365386963e-10f;
    u = u < 0.99999994f ? u : 0.99999994f;
    float series = u * (1.0f + u * (0.5f + u * (0.3333333333f + u * (0.25f + u * (0.2f + u * 0.1666666667f)))));
    return -0.6931471805599453f * log2_of(u < 0.0625f ? series : -0.6931471805599453f * log2_of(1.0f - u));
}

// A word whose order is by z, then by the lower column.
INLINE long long ranked(float z, int column) {
    int bits = __float_as_int(z + 0.0f), ordered = bits ^ (bits >> 31 & 0x7FFFFFFF);
    return (long long)((u64)(u32)ordered << 32 | (u32)(0x7FFFFFFF - column));
}

// The best of 8 logits from `column` on, a multiple of 8. `words`: the row's (temperature, seed low and high, position).
INLINE long long best_of(const float (&logits)[8], int column, int4 words) {
    float temperature = __int_as_float(words.x);
    long long best = ranked(logits[0], column);
    if (temperature > 0.0f) {
#pragma unroll
        for (int i = 0; i < 8; i += 4) {
            u32 random[4];
            random_words(random, (column + i) / 4, words.w, words.y, words.z);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                long long word = ranked(logits[i + j] / temperature + gumbel(random[j]), column + i + j);
                best = i + j == 0 || word > best ? word : best;
            }
        }
    } else {
#pragma unroll
        for (int i = 1; i < 8; i++) {
            long long word = ranked(logits[i], column + i);
            best = word > best ? word : best;
        }
    }
    return best;
}

// The best of `lanes` lanes next to each other, a power of two, in each of them.
INLINE long long best_of_lanes(long long word, int lanes) {
#pragma unroll
    for (int bits = 1; bits < lanes; bits *= 2) {
        u32 low = from_lane_xor((u32)word, bits), high = from_lane_xor((u32)((u64)word >> 32), bits);
        long long other = (long long)((u64)high << 32 | low);
        word = other > word ? other : word;
    }
    return word;
}
