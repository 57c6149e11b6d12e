// What the two forms of decode attention have in common: how a page's keys and values lie in shared memory and feed a warp's products, the
// queries, and this step's row.
//
// Keys are rows of the left operand, and the group's heads, padded to 8, are columns of the right one: scores are [tokens, heads], results
// [dimensions, heads]. Which column of a product is which dimension, and which row which token, is free as long as both operands agree. So a
// thread reads 16 bytes at a time, in whose order the query is loaded. Values of four tokens are transposed on the way from shared memory by
// byte permutes. A row's 16-byte chunks are swizzled by the token, as TMA does it, and rows and chunks are dealt to lanes (`dealt`) such that
// reads of both kinds hit every bank once.
#pragma once
#include "hopper.cuh"

#define NO_CODES 0
#define FP8_CODES 1   // one scale for keys, one for values
#define INT8_CODES 2  // a scale for each row

constexpr int ELEMENT = CODES ? 1 : 2, ROW_BYTES = D * ELEMENT, CHUNKS = ROW_BYTES / 16, OF_CHUNK = 16 / ELEMENT;
#ifndef STEP
#define STEP PAGE  // tokens that a stage holds
#endif
constexpr int TILE = STEP * ROW_BYTES;  // bytes of a stage's keys, or values
constexpr int OF_LANE = OF_CHUNK < D / 8 ? OF_CHUNK : D / 8, UNITS = D / 8 / OF_LANE;  // consecutive dimensions of a thread's values
constexpr int TOKENS = STEP / 16, COLUMNS = D / 16;      // steps of a product over a stage's tokens, and over dimensions
constexpr int PAIRS = (G + 1) / 2;  // of heads
constexpr float NONE = -1e30f;
constexpr int OWN = D / 32;  // dimensions of this step's key, or value, that a lane holds
static_assert(!ROTATES || (INTERLEAVED ? ROTARY % 64 == 0 : ROTARY == D && D == 128), "a lane's dimensions rotate in pairs within the lane");
static_assert(G <= 8 && PAGE % STEP == 0 && STEP % 16 == 0 && D % 64 == 0, "what the tiles hold");

// Steps of a sequence of so many tokens, of STEP each. One of none has one, too, whose result is zero.
INLINE int steps_of(int length) { return max(1, (length + STEP - 1) / STEP); }

// The token of row g of a tile of scores, and the chunk of lanes 4 g to 4 g + 3.
INLINE int dealt(int g) { return g / 2 + g % 2 * 4; }

// Byte of a chunk of a token's row. Where TMA loads a stage (BY_BOXES), it is in panels of 128 bytes of each row.
INLINE int place(int token, int chunk) {
#ifdef BY_BOXES
    return chunk / 8 * (STEP * 128) + token * 128 + 16 * (chunk % 8 ^ token % 8);
#else
    return token * ROW_BYTES + 16 * (CHUNKS >= 8 ? chunk ^ token % 8 : chunk ^ token / 2 % CHUNKS);
#endif
}

// Four codes as two pairs of 2-byte numbers.
INLINE void widen(u32& low, u32& high, u32 codes) {
    if (CODES == FP8_CODES) {
        unpack_fp8(low, high, codes);
    } else {  // behind the exponent of 1024 a byte is an integer
        u32 biased = codes ^ 0x80808080;
        low = subtract(chosen_bytes<0x4140>(biased, 0x64646464), 0x64806480);
        high = subtract(chosen_bytes<0x4342>(biased, 0x64646464), 0x64806480);
    }
}

// The queries of the group's heads as right operands: head lane / 4, the dimensions of chunk lane % 4 and of every fourth after it.
struct Queries {
    u32 words[COLUMNS][2];

    // First of the four dimensions of words[i].
    INLINE static int dimension(int i) { return OF_CHUNK * ((int)threadIdx.x % 4 + i * 4 / OF_CHUNK * 4) + i * 4 % OF_CHUNK; }

    INLINE void load(const char* row) {
        int head = threadIdx.x % 32 / 4;
#pragma unroll
        for (int i = 0; i < COLUMNS; i += 2) {
            uint4 eight = head < G ? *(const uint4*)(row + 2 * (head * D + dimension(i))) : make_uint4(0, 0, 0, 0);
            words[i][0] = eight.x, words[i][1] = eight.y, words[i + 1][0] = eight.z, words[i + 1][1] = eight.w;
        }
    }

    // To the type of products.
    INLINE void convert() {
        if (CODES && !IN_HALF) {
#pragma unroll
            for (int i = 0; i < 2 * COLUMNS; i++) words[i / 2][i % 2] = half_of(words[i / 2][i % 2]);
        }
    }
};

INLINE void rotate(float& first, float& second, float cosine, float sine) {
    float x = first, y = second;
    first = x * cosine - y * sine, second = y * cosine + x * sine;
}

// Cosines and sines for this lane's query dimensions that rotate, two angles per entry. `row`: the position's cosines, then its sines.
struct Angles {
    static constexpr int COUNT = ROTARY / 16;
    float2 cosines[COUNT], sines[COUNT];

    INLINE void load(const float* row) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            int angle = INTERLEAVED ? Queries::dimension(i) / 2 : Queries::dimension(i / 2) + i % 2 * 2;
            cosines[i] = *(const float2*)(row + angle), sines[i] = *(const float2*)(row + ROTARY / 2 + angle);
        }
    }

    INLINE void rotate(Queries& q) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            u32& low = INTERLEAVED ? q.words[i][0] : q.words[i / 2][i % 2];
            u32& high = INTERLEAVED ? q.words[i][1] : q.words[i / 2 + COLUMNS / 2][i % 2];
            float2 x = unpack_out(low), y = unpack_out(high);
            if (INTERLEAVED) {
                ::rotate(x.x, x.y, cosines[i].x, sines[i].x);
                ::rotate(y.x, y.y, cosines[i].y, sines[i].y);
            } else {
                ::rotate(x.x, y.x, cosines[i].x, sines[i].x);
                ::rotate(x.y, y.y, cosines[i].y, sines[i].y);
            }
            low = pack_out(x.x, x.y), high = pack_out(y.x, y.y);
        }
    }
};

// A lane holds OWN dimensions of this step's key, or value: half of them in each half of the row or, if INTERLEAVED, consecutive ones.
constexpr int RUNS = INTERLEAVED ? 1 : 2, RUN_OF_ROW = OWN / RUNS;

struct OwnAngles {
    float cosines[OWN / 2], sines[OWN / 2];

    INLINE void load(const float* row) {
#pragma unroll
        for (int i = 0; i < OWN / 2; i++) {
            int angle = (int)threadIdx.x % 32 * (OWN / 2) + i;
            bool rotates = angle < ROTARY / 2;
            cosines[i] = rotates ? row[angle] : 1.0f, sines[i] = rotates ? row[ROTARY / 2 + angle] : 0.0f;
        }
    }

    INLINE void rotate(float (&x)[OWN]) const {
#pragma unroll
        for (int i = 0; i < OWN / 2; i++) {
            ::rotate(x[INTERLEAVED ? 2 * i : i], x[INTERLEAVED ? 2 * i + 1 : i + OWN / 2], cosines[i], sines[i]);
        }
    }
};

INLINE void load_own(float (&x)[OWN], const char* row) {
#pragma unroll
    for (int run = 0; run < RUNS; run++) {
#pragma unroll
        for (int i = 0; i < RUN_OF_ROW; i += 2) {
            float2 two = unpack_out(*(const u32*)(row + run * D + ((int)threadIdx.x % 32 * RUN_OF_ROW + i) * 2));
            x[run * RUN_OF_ROW + i] = two.x, x[run * RUN_OF_ROW + i + 1] = two.y;
        }
    }
}

// What scores, keys and values are multiplied by on their way, and results at last: scales of the cache and of the output that an engine stores.
struct Factors {
    float of_scores, of_keys = 1.0f, of_values = 1.0f, over = 1.0f;  // of_keys and over: inverses of scales

    INLINE Factors(float scale_log2, const float* k_scale, const float* v_scale, const float* out_scale) : of_scores(scale_log2) {
        if (CODES == FP8_CODES) {
            float scale = load_constant(k_scale);
            of_scores *= scale, of_keys = 1.0f / scale;
            of_values = load_constant(v_scale);
        }
        if (QUANTIZE) over = 1.0f / load_constant(out_scale);
    }
};

// This step's key, or value, as the cache stores it: a lane's OWN dimensions.
struct Row {
    static constexpr int BYTES = RUN_OF_ROW * ELEMENT;  // of a run: 2, 4, 8 or 16
    u32 words[RUNS][(BYTES + 3) / 4];
    float scale;

    // `factor`: inverse of the cache's scale.
    INLINE void code(const float (&x)[OWN], float factor) {
        if (CODES == INT8_CODES) {
            float largest = 0.0f;
#pragma unroll
            for (int i = 0; i < OWN; i++) largest = fmaxf(largest, fabsf(x[i]));
#pragma unroll
            for (u32 bits = 1; bits < 32; bits *= 2) largest = fmaxf(largest, from_lane_xor(largest, bits));
            scale = fmaxf(largest / 127.0f, 1e-12f);
        }
#pragma unroll
        for (int run = 0; run < RUNS; run++) {
            const float* from = x + run * RUN_OF_ROW;
            auto at = [&](int i) { return i < RUN_OF_ROW ? from[i] : 0.0f; };
#pragma unroll
            for (int i = 0; i < (BYTES + 3) / 4; i++) {
                if (CODES == NO_CODES) {
                    words[run][i] = pack_out(at(2 * i), at(2 * i + 1));
                } else if (CODES == FP8_CODES) {
                    words[run][i] = pack_fp8(at(4 * i) * factor, at(4 * i + 1) * factor, at(4 * i + 2) * factor, at(4 * i + 3) * factor);
                } else {
                    words[run][i] = int8_of(at(4 * i)) | int8_of(at(4 * i + 1)) << 8 | int8_of(at(4 * i + 2)) << 16 | int8_of(at(4 * i + 3)) << 24;
                }
            }
        }
    }

    // The sum with 1.5 * 2^23 has no bits for a fraction.
    INLINE u32 int8_of(float x) const { return __float_as_int(x / scale + 12582912.0f) & 0xFF; }

    // `place(chunk)`: where that chunk of the row is.
    template <typename Place>
    INLINE void store(const Place& place) const {
        int byte = (int)threadIdx.x % 32 * BYTES;
#pragma unroll
        for (int run = 0; run < RUNS; run++) {
            char* to = place(byte / 16 + run * CHUNKS / 2) + byte % 16;
            const u32* from = words[run];
            if (BYTES == 2) {
                *(unsigned short*)to = (unsigned short)from[0];
            } else if (BYTES == 4) {
                *(u32*)to = from[0];
            } else if (BYTES == 8) {
                *(uint2*)to = make_uint2(from[0], from[1]);
            } else {
                *(uint4*)to = make_uint4(from[0], from[1], from[2], from[3]);
            }
        }
    }
};

// Reads this step's key and value of a KV head, rotates the key, and codes both as the cache stores them. `projected`: the sequence's row of
// queries, keys and values. `key_factor`: inverse of the keys' scale.
INLINE void code_own(Row& key, Row& value, const char* projected, int kv_head, const OwnAngles& angles, float key_factor, float value_scale) {
    const char* own_key = projected + 2 * (G * HKV + kv_head) * D;
    float own[2][OWN];
    load_own(own[0], own_key);
    load_own(own[1], own_key + 2 * HKV * D);
    angles.rotate(own[0]);
    key.code(own[0], key_factor);
    value.code(own[1], CODES == FP8_CODES ? 1.0f / value_scale : 1.0f);
}

INLINE void four_words(u32 (&to)[4], const char* from) {
    uint4 words = *(const uint4*)from;
    to[0] = words.x, to[1] = words.y, to[2] = words.z, to[3] = words.w;
}

// Scores of tokens 16 t.. and all heads.
INLINE void score(float (&scores)[4], const char* keys, int t, const Queries& q) {
    int first = 16 * t + dealt(threadIdx.x % 32 / 4), column = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; i++) scores[i] = 0.0f;
#pragma unroll
    for (int chunk = 0; chunk < CHUNKS; chunk += 4) {
        u32 low[4], high[4];
        four_words(low, keys + place(first, chunk + column));
        four_words(high, keys + place(first + 8, chunk + column));
#pragma unroll
        for (int i = 0; i < OF_CHUNK / 4; i++) {
            u32 a[4];
            if (CODES) {
                widen(a[0], a[2], low[i]);
                widen(a[1], a[3], high[i]);
            } else {
                a[0] = low[2 * i], a[1] = high[2 * i], a[2] = low[2 * i + 1], a[3] = high[2 * i + 1];
            }
            const u32(&b)[2] = q.words[chunk / 4 * (OF_CHUNK / 4) + i];
            multiply_add_warp(scores, a, b[0], b[1]);
        }
    }
}

// A lane's consecutive values of a token, at most 16 bytes.
INLINE void unit_words(u32 (&to)[OF_LANE * ELEMENT / 4], const char* values, int token, int unit) {
    int byte = unit * OF_LANE * ELEMENT;
    const char* from = values + place(token, byte / 16) + byte % 16;
    if (OF_LANE * ELEMENT == 16) {
        four_words((u32(&)[4])to, from);
    } else {
        uint2 words = *(const uint2*)from;
        to[0] = words.x, to[1] = words.y;
    }
}

// Adds values' [dimensions, 16 tokens] @ p's [16 tokens, heads].
INLINE void add_values(float (&sums)[COLUMNS][4], const char* values, int t, u32 p_low, u32 p_high) {
    int lane = threadIdx.x % 32, first = 16 * t + lane % 4;
#pragma unroll
    for (int unit = 0; unit < UNITS; unit++) {
        u32 v[4][OF_LANE * ELEMENT / 4];
#pragma unroll
        for (int i = 0; i < 4; i++) unit_words(v[i], values, first + 4 * i, dealt(lane / 4) + 8 * unit);
#pragma unroll
        for (int word = 0; word < OF_LANE * ELEMENT / 4; word++) {
            int tile = unit * (OF_LANE / 2) + word * 2 / ELEMENT;
            if (CODES) {
                u32 a[4], b[4];
                widen(a[0], a[1], chosen_bytes<0x5140>(v[0][word], v[1][word]));
                widen(a[2], a[3], chosen_bytes<0x5140>(v[2][word], v[3][word]));
                multiply_add_warp(sums[tile], a, p_low, p_high);
                widen(b[0], b[1], chosen_bytes<0x7362>(v[0][word], v[1][word]));
                widen(b[2], b[3], chosen_bytes<0x7362>(v[2][word], v[3][word]));
                multiply_add_warp(sums[tile + 1], b, p_low, p_high);
            } else {
                u32 a[4] = {chosen_bytes<0x5410>(v[0][word], v[1][word]), chosen_bytes<0x7632>(v[0][word], v[1][word]),
                            chosen_bytes<0x5410>(v[2][word], v[3][word]), chosen_bytes<0x7632>(v[2][word], v[3][word])};
                multiply_add_warp(sums[tile], a, p_low, p_high);
            }
        }
    }
}

// Over the rows of a tile of scores.
INLINE float largest_of_column(float x) {
#pragma unroll
    for (u32 bits = 4; bits < 32; bits *= 2) x = fmaxf(x, from_lane_xor(x, bits));
    return x;
}

INLINE float sum_of_column(float x) {
#pragma unroll
    for (u32 bits = 4; bits < 32; bits *= 2) x += from_lane_xor(x, bits);
    return x;
}
