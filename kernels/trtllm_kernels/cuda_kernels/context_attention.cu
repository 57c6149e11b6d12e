// Causal attention of continued prompts: `triton_kernels/context_attention.py` scheduled by hand (`attention.cuh`). Keys and values, the
// step's own too, are read from the paged cache, queries from qkv.
//
// Blocks of 128 keys begin at multiples of 128, so a page lies in one block, or a block in one page. Where the cache has the type of the
// operands, one warp loads boxes of PAGE rows by TMA. Where it is fp8 (CODES), pages are copied unchanged, and four warps convert them to
// fp16 in the layout that TMA would produce. Queries become fp16 in shared memory. Where operands are fp8, too (FP8), those warps transpose
// the values.
//
// qkv: [tokens, (G * HKV + 2 * HKV) * D], boxes of 128 rows and 64 columns, or in FP8 queries [tokens, G * HKV * D], boxes of 128 rows and
// D columns; cache: [pages, 2, HKV, PAGE, D], as a matrix of rows of D in boxes of PAGE rows and 64 columns, or D in FP8, or codes. Sequences [num_decodes, num_seqs); those without a past are skipped. Rows behind a
// sequence's end are arbitrary as keys, and are set to zero as values.
#define PAST 1
#define LOADERS (CODES ? 4 : 1)
#define LOADERS_OF_KEYS (FP8 ? 1 : LOADERS)
#include "attention.cuh"

constexpr int PAGES = TILE / PAGE;  // per block

// The pages of one sequence's blocks.
struct Pages {
    const int* table;
    int count;

    // Lane i gets the i-th page of the block.
    INLINE int of_block(int block) const {
        int index = block * PAGES + (int)(threadIdx.x % 32);
        return threadIdx.x % 32 < PAGES && index < count ? __ldg(table + index) : 0;
    }
};

struct Source {
    const int *block_table, *slots;
    int table_stride;

    INLINE Pages of(const Tile& tile) const {
        const int* table = block_table + (long long)__ldg(slots + tile.seq) * table_stride;
        return {table, (tile.length + PAGE - 1) / PAGE};
    }
};

#if FP8
// Transposes 32 of a block's tokens by a warp. Of 16 tokens the order becomes that of an operand's columns: token 8 h + 2 q + i in column
// 4 q + 2 h + i.
INLINE void transpose_values(char* to, const char* codes) {
    int lane = threadIdx.x % 32, part = lane / 8, row = lane % 8, first = 32 * (threadIdx.x / 32);
    u32 from = shared_address(codes), into = shared_address(to);
    int token = first + 8 * part + row, column = first / 16 + part / 2;
    constexpr int AT_ONCE = 2;
#pragma unroll 2
    for (int begin = 0; begin < D / 16; begin += AT_ONCE) {
        u32 x[AT_ONCE][4];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int swizzled = begin + i ^ (D == 128 ? token % 8 : token / 2 % 4);
            load_matrices_transposed(x[i], from + token * D + swizzled * 16);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            u32 y[4];
#pragma unroll
            for (int h = 0; h < 4; h += 2) {
                y[h] = chosen_bytes<0x6420>(x[i][h], x[i][h + 1]);
                y[h + 1] = chosen_bytes<0x7531>(x[i][h], x[i][h + 1]);
            }
            int d = 16 * (begin + i) + 2 * row + part % 2;
            store_matrices(into + d * 128 + (column ^ d % 8) * 16, y);
        }
    }
}

// Run by four warps. The first loads keys and, two blocks ahead of the one that all four transpose, values.
INLINE void produce(Shared& shared, const TensorMap& queries, const TensorMap& cache, Source source, Walk walk) {
    bool first = threadIdx.x < 32;
    Tile tile = walk.next();
    u32 step = 0;  // blocks of keys before this tile's
    for (u32 count = 0;; count++) {
        if (threadIdx.x == 0) announce(shared, queries, tile, count);
        __syncwarp();
        if (tile.blocks == 0) return;
        Pages pages = source.of(tile);
        int last = tile.blocks - 1;
        auto load = [&](char* to, u64& full, int ids, int of) {
            if (threadIdx.x == 0) arrive_expecting(full, TILE_BYTES);
#pragma unroll
            for (int i = 0; i < PAGES; i++) {
                int row = (__shfl_sync(~0u, ids, i) * (2 * HKV) + of + tile.head / G) * PAGE;
                if (threadIdx.x == 0) load_box(to + i * PAGE * ROW_BYTES, cache, row, 0, full);
            }
        };
        auto load_keys = [&](u32 block, int ids) {
            u32 at = step + block, stage = at % STAGES;
            wait(shared.keys_empty[stage], (at / STAGES + 1) % 2);
            load(shared.keys[stage], shared.keys_full[stage], ids, 0);
        };
        auto load_values = [&](u32 block, int ids) {
            u32 slot = (step + block) % SLOTS;
            load(shared.codes[slot], shared.codes_full[slot], ids, HKV);
        };
        int next = 0, after = 0;  // pages of the blocks one and two after that which is transposed
        if (first) {
            int ids = pages.of_block(last);
            next = pages.of_block(max(0, last - 1)), after = pages.of_block(max(0, last - 2));
            load_keys(0, ids);
            load_values(0, ids);
            if (last > 0) load_values(1, next);
        }
        for (int block = 0; block <= last; block++) {
            int third = 0;
            if (first) {
                if (block < last) load_keys(block + 1, next);
                third = pages.of_block(max(0, last - block - 3));
            }
            u32 at = step + block, stage = at % STAGES, slot = at % SLOTS;
            wait(shared.values_empty[stage], (at / STAGES + 1) % 2);
            wait(shared.codes_full[slot], at / SLOTS % 2);
            transpose_values(shared.values[stage], shared.codes[slot]);
            publish_to_async();
            __syncwarp();
            if (threadIdx.x % 32 == 0) arrive(shared.values_full[stage]);
            sync_warps(CODES_READ, 128);
            if (first && block + 2 <= last) load_values(block + 2, after);
            next = after, after = third;
        }
        step += tile.blocks;
        tile = walk.next();
    }
}
#elif CODES
// Converts a block of codes to fp16, shared by 128 threads, into panels of 64 columns with the 128-byte swizzle: the 16-byte piece n of row
// r is stored at position n ^ r % 8. A thread's pieces are in rows 8 or 16 apart, so at the same position of each, and those of eight
// neighbours are at eight positions of one row, so in all banks. Unless WHOLE, rows from `rows` on become zero.
template <bool WHOLE>
INLINE void convert(char* to, const char* codes, int rows) {
    constexpr int PIECES = D / 8, ROWS = 128 / PIECES;  // pieces per row, 8 codes each; rows at once
    int row = threadIdx.x / PIECES, piece = threadIdx.x % PIECES;
    to += piece / 8 * PANEL_BYTES + row * 128 + (piece % 8 ^ row % 8) * 16;
    constexpr int AT_ONCE = 4;  // loads issued before their stores; the compiler cannot tell that they do not alias
#pragma unroll
    for (int first = 0; first < TILE / ROWS; first += AT_ONCE) {
        uint2 x[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) x[i] = *(const uint2*)(codes + ((first + i) * 128 + threadIdx.x) * 8);
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            uint4 y;
            unpack_fp8(y.x, y.y, x[i].x);
            unpack_fp8(y.z, y.w, x[i].y);
            if (!WHOLE && (first + i) * ROWS + row >= rows) y = make_uint4(0, 0, 0, 0);
            *(uint4*)(to + (first + i) * ROWS * 128) = y;
        }
    }
}

// Run by four warps. The first loads codes, two blocks ahead of the one that all four convert.
INLINE void produce(Shared& shared, const TensorMap& qkv, const unsigned char* cache, Source source, Walk walk) {
    bool first = threadIdx.x < 32;
    Tile tile = walk.next();
    u32 step = 0, done = 0;  // blocks of keys before this tile's; blocks of keys and of values loaded
    for (u32 count = 0;; count++) {
        if (threadIdx.x == 0) announce(shared, qkv, tile, count);
        __syncwarp();
        if (tile.blocks == 0) return;
        Pages pages = source.of(tile);
        int last = tile.blocks - 1, items = 2 * tile.blocks;
        // Pages of the keys loaded last, of the keys to load next, and of the values to load next.
        int ids = 0, next = first ? pages.of_block(last) : 0, before = next;
        // Keys are needed one step before the values of the same tokens: keys 0, keys 1, values 0, keys 2, values 1, and so on.
        auto is_keys = [&](int item) { return item == 0 || (item % 2 && item < items - 1); };
        auto block_of = [&](int item) { return is_keys(item) ? (item + 1) / 2 : (item - 1) / 2; };
        auto load = [&](int item) {
            if (item >= items) return;
            bool keys = is_keys(item);
            if (keys) ids = next;
            int of = keys ? ids : before;
            u32 slot = (done + item) % SLOTS;
            if (threadIdx.x == 0) arrive_expecting(shared.codes_full[slot], TILE * D);
            constexpr int BYTES = PAGE * D;
#pragma unroll
            for (int i = 0; i < PAGES; i++) {
                long long row = (long long)__shfl_sync(~0u, of, i) * (2 * HKV) + (keys ? 0 : HKV) + tile.head / G;
                if (threadIdx.x == 0) load_bytes(shared.codes[slot] + i * BYTES, cache + row * BYTES, BYTES, shared.codes_full[slot]);
            }
            if (keys) {
                next = pages.of_block(max(0, last - block_of(item) - 1));
            } else {
                before = ids;
            }
        };
        if (first) {
            load(0);
            load(1);
        }
        for (int item = 0; item < items; item++) {
            bool keys = is_keys(item);
            int block = block_of(item);
            u32 at = step + block, stage = at % STAGES, slot = (done + item) % SLOTS;
            wait(keys ? shared.keys_empty[stage] : shared.values_empty[stage], (at / STAGES + 1) % 2);
            wait(shared.codes_full[slot], (done + item) / SLOTS % 2);
            char* to = keys ? shared.keys[stage] : shared.values[stage];
            if (block > 0 || tile.keys() == TILE) {
                convert<true>(to, shared.codes[slot], TILE);
            } else {
                convert<false>(to, shared.codes[slot], tile.keys());
            }
            publish_to_async();
            __syncwarp();
            if (threadIdx.x % 32 == 0) arrive(keys ? shared.keys_full[stage] : shared.values_full[stage]);
            sync_warps(CODES_READ, 128);
            if (first) load(item + 2);
        }
        step += tile.blocks;
        done += items;
        tile = walk.next();
    }
}
#else
// Run by one warp; its first lane waits and loads.
INLINE void produce(Shared& shared, const TensorMap& qkv, const TensorMap& cache, Source source, Walk walk) {
    bool leads = threadIdx.x % 32 == 0;
    Tile tile = walk.next();
    u32 step = 0;  // blocks of keys before this tile's
    for (u32 count = 0;; count++) {
        if (leads) announce(shared, qkv, tile, count);
        __syncwarp();
        if (tile.blocks == 0) return;
        Pages pages = source.of(tile);
        int last = tile.blocks - 1;
        auto load = [&](char* to, u64& empty, u64& full, u32 at, int ids, int row) {
            if (leads) {
                wait(empty, (at / STAGES + 1) % 2);
                arrive_expecting(full, TILE_BYTES);
            }
#pragma unroll
            for (int i = 0; i < PAGES; i++) {
                int first = __shfl_sync(~0u, ids, i) * (2 * HKV * PAGE) + row;
                if (leads) {
#pragma unroll
                    for (int panel = 0; panel < PANELS; panel++) {
                        load_box(to + panel * PANEL_BYTES + i * PAGE * 128, cache, first, 64 * panel, full);
                    }
                }
            }
        };
        auto load_keys = [&](u32 block, int ids) {
            u32 at = step + block, stage = at % STAGES;
            load(shared.keys[stage], shared.keys_empty[stage], shared.keys_full[stage], at, ids, tile.head / G * PAGE);
        };
        auto load_values = [&](u32 block, int ids) {
            u32 at = step + block, stage = at % STAGES;
            load(shared.values[stage], shared.values_empty[stage], shared.values_full[stage], at, ids, (HKV + tile.head / G) * PAGE);
        };
        int ids = pages.of_block(last);
        load_keys(0, ids);
        for (int block = 0; block <= last; block++) {  // keys are needed one step before the values of the same tokens
            int next = pages.of_block(max(0, last - block - 1));
            if (block < last) load_keys(block + 1, next);
            load_values(block, ids);
            ids = next;
        }
        step += tile.blocks;
        tile = walk.next();
    }
}
#endif

// The 2 i32 and 2 i64 after a map are its sizes and strides in the launch ABI (`driver.py`).
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    context_attention(const __grid_constant__ TensorMap qkv, int, int, long long, long long,
#if CODES && !FP8
                      const unsigned char* cache,
#else
                      const __grid_constant__ TensorMap cache, int, int, long long, long long,
#endif
                      const int* block_table, const int* slots, const float* k_scale, const float* v_scale, const int* query_start,
                      const int* kv_lens, const float* out_scale, char* out, float scale_log2, int num_decodes, int num_seqs,
                      int table_stride) {
    let_next_start();
    Shared& shared = *(Shared*)memory;
    float of_out = QUANTIZE ? load_constant(out_scale) : 1.0f;
    float of_keys = CODES ? load_constant(k_scale) : 1.0f, of_values = CODES ? load_constant(v_scale) : 1.0f;
    run(shared, qkv, out, scale_log2, of_keys, of_values, of_out, [&] {
        produce(shared, qkv, cache, {block_table, slots, table_stride}, Walk(query_start, kv_lens, num_decodes, num_seqs));
    });
}
