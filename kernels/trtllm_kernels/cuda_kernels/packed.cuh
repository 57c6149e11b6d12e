// What kernels of GEMMs with packed weights share: scales and codes of a step of COLUMNS, and how they become the tensor core's A operand.
#pragma once
#define GROUPS (GROUP == 0 || GROUP >= COLUMNS ? 1 : COLUMNS / GROUP)  // per step
#define BY_SUMS (GROUP > 0 && !FOLDED)
#define FACTOR (FP8 ? 512.0f : !FOLDED || CODES != CODES_FP4 ? 1.0f : HALF ? 128.0f : 67108864.0f)
#include "decode.cuh"
#include "skinny.cuh"

constexpr int TILE = 64, IN_STEP = COLUMNS / TILE, TILES = K / TILE;
constexpr int TILE_BYTES = CODES == CODES_INT8 || CODES == CODES_FP8 ? 4096 : 2048;
constexpr int STEPS = (K + COLUMNS - 1) / COLUMNS, ROWS = TILE * ROW_GROUPS;
constexpr bool GROUPED = GROUP > 0;
constexpr int PANEL_COLUMNS = FP8 ? 128 : 64, PANELS = COLUMNS / PANEL_COLUMNS;
constexpr int W_BYTES = ROW_GROUPS * IN_STEP * TILE_BYTES, X_BYTES = PANELS * TOKENS * 128;
constexpr int PRODUCTS = 4 * PANELS, IN_GROUP = PRODUCTS / GROUPS;  // per step; per group of it
static_assert(IN_GROUP >= 1, "a group is at least as long as a product");
#if CODES == CODES_NF4
constexpr int TABLE_BYTES = 256 * 32 * 4;
#else
constexpr int TABLE_BYTES = 0;
#endif

extern __shared__ __align__(1024) char memory[];

// Called by `threads` threads, of index `thread`, before nf4 is decoded; a barrier must follow.
INLINE void make_table(u32 thread, u32 threads) {
#if CODES == CODES_NF4
    for (int i = thread; i < 256 * 8; i += threads) {
        float low = 0.0f, high = 0.0f;
#pragma unroll
        for (int code = 0; code < 16; code++) {
            if ((i / 8 & 15) == code) low = NF4_VALUES[code];
            if (i / 128 == code) high = NF4_VALUES[code];
        }
        u32 both = pack(low, high);
        *(uint4*)(memory + SHARED_BYTES - TABLE_BYTES + 16 * i) = make_uint4(both, both, both, both);
    }
#endif
}

// What a thread that multiplies wants of a row's scale: the number in fp32, or FOLDED, two of x's format.
INLINE u32 made_of_scale(float one) {
    float factor = CODES != CODES_FP4 ? one : one * (HALF ? 128.0f : 1.2676506002282294e30f);  // 2^7, 2^100
    return FOLDED ? pack(factor, factor) : __float_as_int(one);
}

INLINE u32 made_of_zero(float one) { return FP8 ? zeros_fp8(one) : pack(one, one); }

// Used by one warp: scales and zeros of each step, a register's word a load, read AHEAD steps before they are wanted.
struct Scales {
    static constexpr int BYTES = SCALE_BYTES<SCALE_TYPE>, EACH = 4 / BYTES;       // scales in a word
    static constexpr int WORDS = ROW_GROUPS * GROUPS * TILE / EACH, COUNT = (WORDS + 31) / 32;
    static constexpr int ZERO_WORDS = ROW_GROUPS * GROUPS * TILE / 2, ZERO_COUNT = ZEROS ? (ZERO_WORDS + 31) / 32 : 0;
    static constexpr int AHEAD = COUNT + ZERO_COUNT <= 4 ? 8 : 4;

    const char *scale, *zero;
    u32 lane;
    u32 raw[AHEAD][COUNT], raw_zeros[AHEAD][ZERO_COUNT ? ZERO_COUNT : 1];

    // Word `at` of a step's rows from `row` on: (row group and group, row in it).
    INLINE static long long element(int row, int first_column, int at, int each) {
        int in_group = TILE / each, group = at / in_group % GROUPS, tile = at / in_group / GROUPS;
        int column = min(first_column + group * GROUP, K - 1);
        int from = min(row + tile * TILE, N - TILE);
        return (long long)(column / GROUP) * N + from + at % in_group * each;
    }

    INLINE void load(int slot, int row, int first_column) {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            int at = lane + 32 * i;
            if (WORDS % 32 == 0 || at < WORDS) raw[slot][i] = __ldg((const u32*)(scale + element(row, first_column, at, EACH) * BYTES));
        }
#pragma unroll
        for (int i = 0; i < ZERO_COUNT; i++) {
            int at = lane + 32 * i;
            if (ZERO_WORDS % 32 == 0 || at < ZERO_WORDS) raw_zeros[slot][i] = __ldg((const u32*)(zero + element(row, first_column, at, 2) * 2));
        }
    }

    // Where that of a row goes: rows 16 w + g and 16 w + g + 8 are a pair.
    INLINE static u32& place(u32 (&to)[ROW_GROUPS][GROUPS][32][2], int at, int each, int j) {
        int in_group = TILE / each, in_tile = at % in_group * each + j;
        return to[at / in_group / GROUPS][at / in_group % GROUPS][in_tile / 16 * 8 + in_tile % 8][in_tile / 8 % 2];
    }

    INLINE void store(int slot, u32 (&scales)[ROW_GROUPS][GROUPS][32][2], u32 (&zeros)[ROW_GROUPS][GROUPS][32][2]) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            int at = lane + 32 * i;
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                u32 made = made_of_scale(scale_in<SCALE_TYPE>(raw[slot][i], j));
                if (WORDS % 32 == 0 || at < WORDS) place(scales, at, EACH, j) = made;
            }
        }
#pragma unroll
        for (int i = 0; i < ZERO_COUNT; i++) {
            int at = lane + 32 * i;
#pragma unroll
            for (int j = 0; j < 2; j++) {
                u32 made = made_of_zero(scale_in<BF16_SCALE>(raw_zeros[slot][i], j));
                if (ZERO_WORDS % 32 == 0 || at < ZERO_WORDS) place(zeros, at, 2, j) = made;
            }
        }
    }
};

// A thread's codes of a step, and their decoding.
struct Codes {
    static constexpr int LOADS = IN_STEP * TILE_BYTES / 2048;
    uint4 words[LOADS];

    INLINE void load(const char* tiles, u32 thread) {
#pragma unroll
        for (int i = 0; i < LOADS; i++) words[i] = *(const uint4*)(tiles + 2048 * i + 16 * thread);
    }

    INLINE u32 word(int i) const {
        uint4 four = words[i / 4];
        return i % 4 == 0 ? four.x : i % 4 == 1 ? four.y : i % 4 == 2 ? four.z : four.w;
    }

    // A operand of the step's product `i`.
    INLINE void decode(u32 (&a)[4], int i, const u32 (&scales)[2], const u32 (&zeros)[2], const char* table) const {
#if FP8
        decode_int4_fp8(a, word(2 * i), word(2 * i + 1));
#elif CODES == CODES_INT4
        decode_int4(a, word(i), zeros);
#elif CODES == CODES_INT8
        decode_int8(a, word(2 * i), word(2 * i + 1), zeros);
#elif CODES == CODES_FP8
        decode_fp8(a, word(2 * i), word(2 * i + 1));
#elif CODES == CODES_FP4
        u32 factors[2] = {FOLDED ? scales[0] : FP4_ONE, FOLDED ? scales[1] : FP4_ONE};
        decode_fp4(a, word(i), factors);
#else
        decode_nf4(a, word(i), table);
#endif
#if FOLDED && CODES != CODES_FP4
#pragma unroll
        for (int j = 0; j < 4; j++) a[j] = multiplied(a[j], scales[j % 2]);
#endif
    }
};
