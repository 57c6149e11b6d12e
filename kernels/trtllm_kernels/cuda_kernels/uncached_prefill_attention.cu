// Causal attention of uncached prefill on Hopper: `triton_kernels/uncached_prefill_attention.py`, scheduled by hand (`attention.cuh`).
//
// qkv: [tokens, (G * HKV + 2 * HKV) * D], boxes of 128 rows and 64 columns. Sequences [num_decodes, num_seqs); those with more keys than
// queries are skipped. Rows of a tile behind its sequence's end are arbitrary: as keys and queries they affect no stored row, as values
// they are set to zero.
//
// FP8: queries [tokens, G * HKV * D], keys [tokens + 128, HKV * D] and values, transposed, [HKV * D, columns] are codes, boxes of 128 rows
// and D columns, or D rows and 128 columns. A sequence's values begin at a column of their own (`Tile::column`).
#define PAST 0
#define OUT_HALF HALF
#define CODES 0
#define LOADERS 1
#define LOADERS_OF_KEYS 1
#include "attention.cuh"

// Where blocks of tokens come from. `column`: where the head's keys begin.
#if FP8
struct Operands {
    const TensorMap &queries, &keys, &values;
    static constexpr int KEYS = 0;

    INLINE void load_keys(char* to, int row, int column, u64& full) const {
        arrive_expecting(full, TILE_BYTES);
        load_interleaved_box(to, keys, row, column, full);
    }
    INLINE void load_values(char* to, const Tile& tile, u32 block, int column, u64& full) const {
        arrive_expecting(full, TILE_BYTES);
        load_box(to, values, column, tile.column - block * TILE, full);
    }
};
#else
struct Operands {
    const TensorMap& queries;  // with keys and values
    static constexpr int KEYS = G * HKV * D;

    INLINE void load_keys(char* to, int row, int column, u64& full) const { load_tile(to, queries, row, column, full); }
    INLINE void load_values(char* to, const Tile& tile, u32 block, int column, u64& full) const {
        load_tile(to, queries, tile.row - block * TILE, column + HKV * D, full);
    }
};
#endif

// Run by one warp; its first lane waits and loads.
INLINE void produce(Shared& shared, Operands operands, Walk walk) {
    bool leads = threadIdx.x % 32 == 0;
    Tile tile = walk.next();
    u32 step = 0;  // blocks of keys before this tile's
    for (u32 count = 0;; count++) {
        int column = Operands::KEYS + tile.head / G * D;
        auto load_keys = [&](u32 block) {
            u32 stage = (step + block) % STAGES;
            wait(shared.keys_empty[stage], ((step + block) / STAGES + 1) % 2);
            operands.load_keys(shared.keys[stage], tile.row - block * TILE, column, shared.keys_full[stage]);
        };
        auto load_values = [&](u32 block) {
            u32 stage = (step + block) % STAGES;
            wait(shared.values_empty[stage], ((step + block) / STAGES + 1) % 2);
            operands.load_values(shared.values[stage], tile, block, column, shared.values_full[stage]);
        };
        if (leads) {
            announce(shared, operands.queries, tile, count);
            if (tile.blocks > 0) load_keys(0);
        }
        __syncwarp();
        if (tile.blocks == 0) return;
        Tile after = walk.next();  // while these are in flight
        if (leads) {
            for (u32 block = 0; block < tile.blocks; block++) {  // keys are needed one step before the values of the same tokens
                if (block + 1 < tile.blocks) load_keys(block + 1);
                load_values(block);
            }
        }
        __syncwarp();
        step += tile.blocks;
        tile = after;
    }
}

// The 2 i32 and 2 i64 after a map are its sizes and strides in the launch ABI (`driver.py`).
extern "C" __global__ void __launch_bounds__(THREADS, 1)
#if FP8
    uncached_prefill_attention(const __grid_constant__ TensorMap queries, int, int, long long, long long,
                               const __grid_constant__ TensorMap keys, int, int, long long, long long,
                               const __grid_constant__ TensorMap values, int, int, long long, long long, const float* k_scale,
                               const float* v_scale,
#else
    uncached_prefill_attention(const __grid_constant__ TensorMap qkv, int, int, long long, long long,
#endif
                               const int* query_start, const int* kv_lens, const float* out_scale, char* out, float scale_log2,
                               int num_decodes, int num_seqs) {
    let_next_start();
    Shared& shared = *(Shared*)memory;
    float of_out = QUANTIZE ? load_constant(out_scale) : 1.0f;
#if FP8
    float of_keys = load_constant(k_scale), of_values = load_constant(v_scale);
    if (threadIdx.x == 0) prefetch(keys), prefetch(values);
    Operands operands = {queries, keys, values};
#else
    float of_keys = 1.0f, of_values = 1.0f;
    Operands operands = {qkv};
#endif
    run(shared, operands.queries, out, scale_log2, of_keys, of_values, of_out,
        [&] { produce(shared, operands, Walk(query_start, kv_lens, num_decodes, num_seqs)); });
}
