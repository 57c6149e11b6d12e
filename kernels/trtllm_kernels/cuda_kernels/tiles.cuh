// Which tiles of a ragged batch of prompts a block computes. It needs only the lengths, no list and no counter in memory. Continued
// sequences, with tokens in the cache from earlier steps, belong to one kernel (PAST), the others to the other.
//
// Tile t of a sequence has t + 1 blocks of keys plus those of its past. So going through levels from the highest t down orders tiles from
// the longest down, and "the r-th of the sequences with more than t tiles" is a tile. Blocks take tiles of this order in alternating
// direction, 0..n-1, then n-1..0, and so on, so that all end at about the same time. Heads of one group are neighbours in it, so that keys
// and values come from L2.
#pragma once
#include "hopper.cuh"

constexpr int TILE = 128;

struct Tile {
    int row;     // of qkv: that of the tile's first query
    int rows;    // of the sequence, from there on
    int blocks;  // of keys; 0: there are no more tiles
    int head;
#if PAST
    int begin, length, seq;  // position of the first query; keys of the sequence

    // In the last block of keys: the last key that the first query sees, and the number of keys.
    INLINE int diagonal() const { return begin - (blocks - 1) * TILE; }
    INLINE int keys() const { return min(TILE, length - (blocks - 1) * TILE); }
#else
#if FP8
    int column;  // of transposed values: that of the tile's first token
#endif

    INLINE int diagonal() const { return 0; }
    INLINE int keys() const { return min(TILE, rows); }
#endif
};

// Yields the tiles of this block, one after another. Called by a whole warp.
struct Walk {
    const int *query_start, *kv_lens;
    int num_decodes, num_seqs, lane;
    int level, above, here, turn;  // `here`: sequences with a tile of this level; `above`: tiles of the levels before, each for all heads

    INLINE Walk(const int* query_start, const int* kv_lens, int num_decodes, int num_seqs)
        : query_start(query_start), kv_lens(kv_lens), num_decodes(num_decodes), num_seqs(num_seqs), lane(threadIdx.x % 32), turn(0) {
        int most = 0;
        for (int seq = num_decodes + lane; seq < num_seqs; seq += 32) most = max(most, tiles_of(seq));
        level = __reduce_max_sync(~0u, most);
        above = here = 0;
    }

    INLINE int tiles_of(int seq) const {
        if (seq >= num_seqs) return 0;
        int rows = __ldg(query_start + seq + 1) - __ldg(query_start + seq);
        return (__ldg(kv_lens + seq) > rows) == PAST ? (rows + TILE - 1) / TILE : 0;
    }

    INLINE u32 reach(int first) const { return __ballot_sync(~0u, tiles_of(first + lane) > level); }

    INLINE Tile next() {
        int index = turn * gridDim.x + (turn % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
        turn++;
        int entry = index / (HKV * G);
        while (entry >= above + here) {
            if (--level < 0) return {};
            above += here;
            here = 0;
            for (int first = num_decodes; first < num_seqs; first += 32) here += __popc(reach(first));
        }
        int rank = entry - above, first = num_decodes;
        u32 some = reach(first);
        for (int count; rank >= (count = __popc(some)); some = reach(first)) {
            rank -= count;
            first += 32;
        }
        bool found = (some >> lane & 1) && __popc(some & ((1u << lane) - 1)) == rank;
        int seq = first + __ffs(__ballot_sync(~0u, found)) - 1;
        int begin = __ldg(query_start + seq), rows = __ldg(query_start + seq + 1) - begin;
        Tile tile = {begin + level * TILE, rows - level * TILE, level + 1, index % (HKV * G)};
#if PAST
        tile.length = __ldg(kv_lens + seq), tile.seq = seq;
        tile.begin = tile.length - tile.rows;
        tile.blocks = (tile.begin + min(TILE, tile.rows) + TILE - 1) / TILE;
#elif FP8
        tile.column = 16 * (begin / 16 + seq) + level * TILE;  // TMA begins at multiples of 16 bytes
#endif
        return tile;
    }
};
