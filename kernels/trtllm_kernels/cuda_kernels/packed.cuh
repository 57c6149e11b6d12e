// What kernels of GEMMs with packed weights share: scales and codes of a step of COLUMNS, and how they become the tensor core's A operand.
#pragma once
#define GROUPS (GROUP == 0 || GROUP >= COLUMNS ? 1 : COLUMNS / GROUP)  // per step
#define BY_SUMS (GROUP > 0 && !FOLDED)
#define INT4_BF16 (CODES == CODES_INT4 && !FP8 && !HALF)
#define TIMES_SCALE (FOLDED && (CODES == CODES_FP4 || (INT4_BF16 && !ZEROS)))  // what makes numbers of codes multiplies by scales at once
#ifndef SUBNORMAL  // masks alone make bf16 of int4: 2^-133 (rows g) and 2^-129 (rows g + 8) times the code
#define SUBNORMAL 0
#endif
#define FACTOR_INT4_BF16 (SUBNORMAL ? 2417851639229258349412352.0f : TIMES_SCALE ? 8589934592.0f : 128.0f)  // 2^81, 2^33, 2^7
#define FACTOR (FP8 ? 256.0f : INT4_BF16 ? FACTOR_INT4_BF16 : !TIMES_SCALE ? 1.0f : HALF ? 128.0f : 67108864.0f)
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

// What a thread that multiplies wants of a row's scale: the number in fp32, or FOLDED, two of x's format. `low`: of the 8 rows below.
INLINE u32 made_of_scale(float one, bool low) {
    if (TIMES_SCALE) one *= HALF ? 128.0f : INT4_BF16 && low ? 7.922816251426434e28f : 1.2676506002282294e30f;  // 2^7, 2^96, 2^100
    return FOLDED ? pack(one, one) : __float_as_int(one);
}

INLINE u32 made_of_zero(float one) {
    if (INT4_BF16) one *= -0.0078125f;
    return FP8 ? zeros_fp8(one) : pack(one, one);
}

// Of a table in shared memory with an entry of BYTES per row.
template <int BYTES>
INLINE u32 of_row(const char* table, u32 row) {
    if (BYTES == 4) return ((const u32*)table)[row];
    if (BYTES == 2) return ((const unsigned short*)table)[row];
    return ((const unsigned char*)table)[row];
}

constexpr int SCALE = SCALE_BYTES<SCALE_TYPE>;

// Scales, and zero points if ZEROS, of a step's groups, as memory has them.
struct Tables {
    alignas(16) char scales[GROUPS][ROWS * SCALE];
    alignas(16) char zeros[ZEROS ? GROUPS : 1][ROWS * (ZEROS ? 2 : 1)];

    // What multiplies codes of `row` and `row + 8`.
    INLINE void read(u32 (&scale)[2], u32 (&zero)[2], int g, u32 row) const {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            scale[h] = made_of_scale(scale_in<SCALE_TYPE>(of_row<SCALE>(scales[g], row + 8 * h), 0), h == 1);
            if (ZEROS) zero[h] = made_of_zero(scale_in<BF16_SCALE>(of_row<2>(zeros[ZEROS ? g : 0], row + 8 * h), 0));
        }
    }

    // Loads those of the rows of a block from `row` on, of a step from column `column` on. Called by a warp, each of whose lanes arrives.
    INLINE void load(const char* scale, const char* zero, int row, int column, u64& full, u32 lane) {
        copy<SCALE>(scales, scale, row, column, lane);
        if (ZEROS) copy<2>(zeros, zero, row, column, lane);
        arrive_when_copied(full);
    }

    template <int BYTES, int COUNT, int LENGTH>
    INLINE static void copy(char (&to)[COUNT][LENGTH], const char* from, int row, int column, u32 lane) {
        constexpr int PIECES = ROWS * BYTES / 16;  // of a group
#pragma unroll
        for (int i = 0; i < (COUNT * PIECES + 31) / 32; i++) {
            int piece = lane + 32 * i, g = piece / PIECES, first = piece % PIECES * 16;
            if (piece < COUNT * PIECES) {
                long long at = (long long)(min(column + g * GROUP, K - 1) / (GROUPED ? GROUP : 1)) * N + row;
                copy_16(to[g] + first, from + at * BYTES + first, row * BYTES + first < N * BYTES ? 16 : 0);
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
#elif SUBNORMAL
        u32 shifted = word(i) >> 8;
        a[0] = word(i) & 0x000F000F, a[1] = word(i) & 0x00F000F0;
        a[2] = shifted & 0x000F000F, a[3] = shifted & 0x00F000F0;
#elif CODES == CODES_INT4
        decode_int4(a, word(i), scales, zeros, TIMES_SCALE);
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
#pragma unroll
        for (int j = 0; j < (FOLDED && !TIMES_SCALE ? 4 : 0); j++) a[j] = multiplied(a[j], scales[j % 2]);
    }
};
