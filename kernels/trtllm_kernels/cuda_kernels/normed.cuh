// The RMS norm of a product's rows, by the threads that multiply them: what `rms_norm` (`triton_kernels/norm.py`) computes, with the same
// roundings, but for the order in which squares are added.
// NORM_HALF: rows and the norm's weight are fp16, else bf16.
#pragma once
#include "hopper.cuh"

#ifndef NORM_HALF
#define NORM_HALF 0
#endif

INLINE float2 unpack_norm(u32 x) {
    return NORM_HALF ? unpack_fp16(x) : make_float2(__int_as_float(x << 16), __int_as_float(x & 0xFFFF0000));
}

// How many rows, 4 at most, THREADS threads hold at once without spilling, each of them `width` columns of each part of a row. A chunk of
// weights takes three times its registers, since it is unpacked once for all rows. `warps`: of an SM, which share its registers.
__device__ constexpr int rows_at_once(int width, int parts, int threads, int warps) {
    int each = 4 * ((width / 8 + threads - 1) / threads), registers = 2048 / ((warps + 3) / 4 * 4) / 2 + 4;
    int rows = (registers - 3 * each) / (parts * each);
    return rows < 1 ? 1 : rows > 4 ? 4 : rows;
}

// Of the first THREADS threads of a block. The block normalizes OWN_WIDTH columns of rows of WIDTH, from its first on, and reads all of them;
// what it has of columns past a row become zeros. A thread has the same columns of all rows, chunks of 8, and holds those of AT_ONCE rows.
//
//     RowNorm<..> norm(weight, out_scale, first_column);  // loads constants, before the kernel before has ended
//     wait_for_previous();
//     norm.load(rows, 0, num_rows);
//     ..                                                  // what may be done meanwhile
//     norm.normalize(rows, num_rows, eps, squares, store);
template <int WIDTH, int OWN_WIDTH, int THREADS, int AT_ONCE>
struct RowNorm {
    static constexpr int CHUNKS = WIDTH / 8, OWN = OWN_WIDTH / 8, EACH = (OWN + THREADS - 1) / THREADS, WARPS = THREADS / 32;
    static constexpr int PARTS = OWN < CHUNKS ? 2 : 1, EACH_OF_OTHER = PARTS == 2 ? EACH : 0;  // the other block's
    static constexpr bool EVEN_THREADS = OWN % THREADS == 0, EVEN_PARTS = PARTS * OWN == CHUNKS;
    static_assert(WIDTH % 8 == 0 && OWN_WIDTH % 8 == 0 && PARTS * OWN >= CHUNKS, "whole chunks, and one other block at most");

    int first;  // chunk
    float over = 1.0f;
    uint4 weights[EACH], own[AT_ONCE][EACH], other[AT_ONCE][EACH_OF_OTHER ? EACH_OF_OTHER : 1];

    // `out_scale`: what results are divided by, or null.
    INLINE RowNorm(const char* weight, const float* out_scale, int first_column) : first(first_column / 8) {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            weights[i] = make_uint4(0, 0, 0, 0);
            if (is_own(i)) weights[i] = load_early((const uint4*)weight + first + chunk(i));
        }
        if (out_scale) over = quotient(1.0f, load_early(out_scale));
    }

    // The thread's i-th chunk, of a block's.
    INLINE static int chunk(int i) { return threadIdx.x + i * THREADS; }

    INLINE static bool is_blocks(int i) { return EVEN_THREADS || chunk(i) < OWN; }

    INLINE bool is_own(int i) const { return is_blocks(i) && (EVEN_PARTS || first + chunk(i) < CHUNKS); }

    INLINE int chunk_of_other(int i) const { return first ? chunk(i) : OWN + chunk(i); }

    INLINE bool is_other(int i) const { return is_blocks(i) && (EVEN_PARTS || chunk_of_other(i) < CHUNKS); }

    // Rows from `row` on.
    INLINE void load(const char* rows, int row, int num_rows) {
#pragma unroll
        for (int r = 0; r < AT_ONCE; r++) {
            const uint4* from = (const uint4*)rows + (long long)CHUNKS * (row + r);
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                own[r][i] = make_uint4(0, 0, 0, 0);
                if (row + r < num_rows && is_own(i)) own[r][i] = from[first + chunk(i)];
            }
#pragma unroll
            for (int i = 0; i < EACH_OF_OTHER; i++) {
                other[r][i] = make_uint4(0, 0, 0, 0);
                if (row + r < num_rows && is_other(i)) other[r][i] = from[chunk_of_other(i)];
            }
        }
    }

    // `squares`: scratch. `store(row, column, values)`: 8 results, from `column` of the block's on.
    template <int ROWS_AND_MORE, typename Store>
    INLINE void normalize(const char* rows, int num_rows, float eps, float (&squares)[ROWS_AND_MORE][WARPS], const Store& store) {
        if (num_rows == 1) return normalize_loaded<1>(0, 1, eps, squares, store);  // the others' squares would take as long
        for (int row = 0; row < num_rows; row += AT_ONCE) {
            if (row > 0) load(rows, row, num_rows);
            normalize_loaded<AT_ONCE>(row, num_rows, eps, squares, store);
        }
    }

    template <int COUNT, int ROWS_AND_MORE, typename Store>
    INLINE void normalize_loaded(int row, int num_rows, float eps, float (&squares)[ROWS_AND_MORE][WARPS], const Store& store) const {
        float sums[COUNT];
#pragma unroll
        for (int r = 0; r < COUNT; r++) {
            sums[r] = 0.0f;
#pragma unroll
            for (int i = 0; i < EACH; i++) sums[r] += squares_of(own[r][i]);
#pragma unroll
            for (int i = 0; i < EACH_OF_OTHER; i++) sums[r] += squares_of(other[r][i]);
        }
#pragma unroll
        for (int bits = 16; bits; bits /= 2) {
#pragma unroll
            for (int r = 0; r < COUNT; r++) sums[r] += from_lane_xor(sums[r], bits);
        }
        if (threadIdx.x % 32 == 0) {
#pragma unroll
            for (int r = 0; r < COUNT; r++) squares[row + r][threadIdx.x / 32] = sums[r];
        }
        sync_warps(1, THREADS);
#pragma unroll
        for (int r = 0; r < COUNT; r++) {
            if (row + r >= num_rows) break;
            float sum = 0.0f;
#pragma unroll
            for (int i = 0; i < WARPS; i++) sum += squares[row + r][i];
            float scale = inverse_root(quotient(sum, WIDTH) + eps);
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                if (!is_blocks(i)) break;
                float values[8];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    float2 x = unpack_norm(word(own[r][i], j)), w = unpack_norm(word(weights[i], j));
                    values[2 * j] = x.x * scale * w.x * over, values[2 * j + 1] = x.y * scale * w.y * over;
                }
                store(row + r, 8 * chunk(i), values);
            }
        }
    }

    INLINE static u32 word(const uint4& x, int i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; }

    INLINE static float squares_of(const uint4& chunk) {
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            float2 x = unpack_norm(word(chunk, j));
            sum.x += x.x * x.x, sum.y += x.y * x.y;
        }
        return sum.x + sum.y;
    }
};
