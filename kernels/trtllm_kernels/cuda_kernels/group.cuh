// A group of ranks as one of them sees it (`dialect/group.py`).
//
// Macros: WORLD ranks.
#pragma once
#include "peer_memory.cuh"

// In this rank's device memory; `launch/peers.py` writes it. Counters are of kernels that have ended, one for each kind of kernel.
struct Group {
    u32 rank;
    u32 ended;            // blocks of the kernel that runs which have ended
    u32 rounds;           // two-shot reductions
    u32 one_shot_rounds;  // one-shot reductions
    u32 used[3];          // rows that lie in each of their buffers since its last use
    u32 most_rows;        // that a buffer holds of each rank
    u32 word_rounds;      // exchanges of words
    u32 padding[3];
    char* arena[WORLD];   // memory of values, at the same offsets on every rank
    char* buffer[WORLD];  // three buffers of [WORLD, most_rows, H] elements of 16 bits
    u32* flags[WORLD];    // [2, blocks, WORLD], counting rounds
    long long* words[WORLD];  // three buffers of [WORLD, rows]
};

// The last block of a kernel to end ends the round. Only then does the next kernel that waits begin.
template <class End>
INLINE void end_round(Group* group, End end) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        if (atomicAdd(&group->ended, 1) == gridDim.x - 1) {
            group->ended = 0;
            end();
        }
    }
}

