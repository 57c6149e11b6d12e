// Causal attention of uncached prefill on Hopper: `triton_kernels/uncached_prefill_attention.py`, scheduled by hand (`attention.cuh`).
//
// qkv: [tokens, (G * HKV + 2 * HKV) * D], boxes of 128 rows and 64 columns. Sequences [num_decodes, num_seqs); those with more keys than
// queries are skipped. Rows of a tile behind its sequence's end are arbitrary: as keys and queries they affect no stored row, as values
// they are set to zero.
#define PAST 0
#define OUT_HALF HALF
#define CODES 0
#define LOADERS 1
#include "attention.cuh"

// Run by one warp; its first lane waits and loads.
INLINE void produce(Shared& shared, const TensorMap& qkv, Walk walk) {
    bool leads = threadIdx.x % 32 == 0;
    Tile tile = walk.next();
    u32 step = 0;  // blocks of keys before this tile's
    for (u32 count = 0;; count++) {
        int column = (G * HKV + tile.head / G) * D;
        auto load_keys = [&](u32 block) {
            u32 stage = (step + block) % STAGES;
            wait(shared.keys_empty[stage], ((step + block) / STAGES + 1) % 2);
            load_tile(shared.keys[stage], qkv, tile.row - block * TILE, column, shared.keys_full[stage]);
        };
        auto load_values = [&](u32 block) {
            u32 stage = (step + block) % STAGES;
            wait(shared.values_empty[stage], ((step + block) / STAGES + 1) % 2);
            load_tile(shared.values[stage], qkv, tile.row - block * TILE, column + HKV * D, shared.values_full[stage]);
        };
        if (leads) {
            announce(shared, qkv, tile, count);
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
    uncached_prefill_attention(const __grid_constant__ TensorMap qkv, int, int, long long, long long, const int* query_start, const int* kv_lens,
                    const float* out_scale, char* out, float scale_log2, int num_decodes, int num_seqs) {
    let_next_start();
    Shared& shared = *(Shared*)memory;
    float of_out = QUANTIZE ? load_constant(out_scale) : 1.0f;
    run(shared, qkv, out, scale_log2, 1.0f, 1.0f, of_out,
        [&] { produce(shared, qkv, Walk(query_start, kv_lens, num_decodes, num_seqs)); });
}
