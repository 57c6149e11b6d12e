// Codes of packed weights (`formats/`) to the tensor core's A operand: four registers a step of 16 columns (32 of an fp8 operand).
// Numbers are made in the format of x by masks and one exact operation, never by a conversion.
#pragma once
#include "hopper.cuh"

#define CODES_INT4 0
#define CODES_INT8 1
#define CODES_FP4 2
#define CODES_NF4 3
#define CODES_FP8 4

// int4 of a step, wide. In bf16 a code in place of a number's low bits is 2^-133 times it, and four bits higher 2^-129; one addition of a
// product makes it 2^-7 times the code less its zero, or, if `scaled`, 2^-33 times the code less 8 and the scale, of which `scales` are 2^100
// times of row g and 2^96 times of row g + 8, and rounds once. In fp16 0x6400 | code is 1024 + code, and a code four bits higher 16 times it.
// `zeros` (if ZEROS) of rows g and g + 8, two of each in a register, in bf16 -2^-7 times; the code 8 without.
INLINE void decode_int4(u32 (&a)[4], u32 word, const u32 (&scales)[2], const u32 (&zeros)[2], bool scaled) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        u32 shifted = word >> 4 * i;
        if (HALF) {
            u32 low = masked(shifted, 0x000F000F, 0x64006400), high = masked(shifted, 0x00F000F0, 0x64006400);
            a[i] = subtract(low, ZEROS ? 0x64006400 : 0x64086408);
            a[i + 1] = multiplied_and_added(high, 0x2C002C00, ZEROS ? 0xD400D400 : 0xD480D480);  // 1 / 16; -64, -72
        } else if (scaled) {
            a[i] = multiplied_and_added(shifted & 0x000F000F, scales[0], multiplied(scales[0], 0x80088008));          // -2^-130
            a[i + 1] = multiplied_and_added(shifted & 0x00F000F0, scales[1], multiplied(scales[1], 0x80808080));  // -2^-126
        } else {
            a[i] = multiplied_and_added(shifted & 0x000F000F, 0x7E807E80, ZEROS ? zeros[0] : 0xBD80BD80);  // 2^126, -2^-4
            a[i + 1] = multiplied_and_added(shifted & 0x00F000F0, 0x7C807C80, ZEROS ? zeros[1] : 0xBD80BD80);
        }
    }
    if (HALF && ZEROS) {
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = subtract(a[i], zeros[i % 2]);
    }
}

// int8 of a step, wide. bf16: 128 + the low seven bits, less 128, or 256 where the sign is set. fp16: 1024 + code + 128.
INLINE void decode_int8(u32 (&a)[4], u32 first, u32 last, const u32 (&zeros)[2]) {
    u32 words[4] = {first, first >> 8, last, last >> 8};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (HALF) {
            a[i] = subtract(masked_xor(words[i], 0x00FF00FF, 0x64806480), 0x64806480);
        } else {
            a[i] = subtract(masked(words[i], 0x007F007F, 0x43004300), masked(words[i], 0x00800080, 0x43004300));
        }
        if (ZEROS) a[i] = subtract(a[i], zeros[i % 2]);
    }
}

// E4M3 of a step, wide. What the bits make is 2^-120 (fp16: 2^-8) times the number.
INLINE void decode_fp8(u32 (&a)[4], u32 first, u32 last) {
    u32 words[4] = {first, first >> 8, last, last >> 8};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 sign = words[i] << 8 & 0x80008000;
        a[i] = HALF ? masked(words[i] << 7, 0x3F803F80, sign) : masked(words[i] << 4, 0x07F007F0, sign);
        a[i] = multiplied(a[i], HALF ? 0x5C005C00 : 0x7B807B80);
    }
}

// fp4 of a step, wide, times `factors` of rows g and g + 8. What the bits make is 2^-126 (fp16: 2^-14) times the number.
INLINE void decode_fp4(u32 (&a)[4], u32 word, const u32 (&factors)[2]) {
    if (HALF) {
        a[0] = word & 0x8E008E00;
        a[1] = word << 3 & 0x8E008E00;
        a[2] = masked(word << 6, 0x0E000E00, word << 1 & 0x80008000);
        a[3] = masked(word << 9, 0x0E000E00, word << 2 & 0x80008000);
    } else {
        a[0] = word & 0x81C081C0;
        a[1] = word << 3 & 0x81C081C0;
        a[2] = word << 6 & 0x81C081C0;
        a[3] = masked(word >> 4, 0x00C000C0, masked(word >> 5, 0x01000100, word << 1 & 0x80008000));
    }
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = multiplied(a[i], factors[i % 2]);
}

// What `decode_fp4` multiplies by where scales come later: 2^126 or 2^14.
constexpr u32 FP4_ONE = HALF ? 0x74007400 : 0x7E807E80;

// int4 of a step of 32 columns as E4M3: 2^-8 times the code less 8. A nibble is a magnitude, less 1 where negative, and a sign, the lowest bit: by
// one multiplication it becomes E4M3's sign and that 1. Masks, shifts and additions have a pipe of half the usual rate; multiplications another.
INLINE void decode_int4_fp8(u32 (&a)[4], u32 first, u32 last) {
    u32 words[2] = {first, last};
#pragma unroll
    for (int i = 0; i < 2; i++) {
        u32 high = words[i] >> 4;
        a[2 * i] = (words[i] & 0x01010101) * 0x82 + (words[i] & 0x0E0E0E0E);
        a[2 * i + 1] = (high & 0x01010101) * 0x82 + (high & 0x0E0E0E0E);
    }
}

// 8 less a zero point, four times, as E4M3 as above: what a product of its own adds.
INLINE u32 zeros_fp8(float zero) {
    int left = 16 - 2 * (int)zero;
    return (left < 0 ? 0x80 - left : left) * 0x01010101;
}

// nf4: quantiles of a normal distribution.
constexpr float NF4_VALUES[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f, -0.18477343022823334f,
    -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};

// nf4 of a step, wide, by a table of what each byte, two codes, stands for; each lane has a copy in a bank of its own.
INLINE void decode_nf4(u32 (&a)[4], u32 word, const char* lane_table) {
    a[0] = *(const u32*)(lane_table + (word << 7 & 0x7F80));
    a[1] = *(const u32*)(lane_table + (word >> 1 & 0x7F80));
    a[2] = *(const u32*)(lane_table + (word >> 9 & 0x7F80));
    a[3] = *(const u32*)(lane_table + (word >> 17 & 0x7F80));
}

// ---- Scales, of which a thread makes few

#define FP32_SCALE 0
#define FP16_SCALE 1
#define BF16_SCALE 2
#define E4M3_SCALE 3
#define E8M0_SCALE 4

template <int TYPE>
constexpr int SCALE_BYTES = TYPE == FP32_SCALE ? 4 : TYPE <= BF16_SCALE ? 2 : 1;

// The i-th scale in a word.
template <int TYPE>
INLINE float scale_in(u32 word, int i) {
    if (TYPE == FP32_SCALE) return __int_as_float(word);
    if (TYPE == BF16_SCALE) return __int_as_float(i ? word & 0xFFFF0000 : word << 16);
    if (TYPE == FP16_SCALE) return unpack_fp16(word >> 16 * i).x;
    u32 code = word >> 8 * i & 0xFF;
    if (TYPE == E8M0_SCALE) return __int_as_float(code ? code << 23 : 0x00400000);  // 2^(code - 127)
    // E4M3, in place of a float's bits, is 2^-120 times its value.
    return __int_as_float(code << 24 & 0x80000000 | (code & 0x7F) << 20) * __int_as_float(247 << 23);
}
