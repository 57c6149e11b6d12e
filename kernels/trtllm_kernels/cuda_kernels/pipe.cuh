// A rank's place in a pipeline, as `send.cu` and `receive.cu` see it (`dialect/group.py`, PIPE_WORDS).
//
// Rows of a step lie in the receiver's memory, in one of two inboxes that take turns: round r, which both ends count, uses inbox r % 2. The
// sender writes it once the receiver has taken round r - 2, and then raises `arrived` there; the receiver copies the rows out, and then raises
// `taken` at the sender. All counters live in device memory and are advanced by the last block of a kernel to end, so both kernels can be
// captured in graphs; each polls its own GPU's memory only. Rows flow one way, so nobody waits in a circle.
//
// Macros: THREADS; ROW_BYTES, a multiple of 16.
#pragma once
#include "peer_memory.cuh"

// In this rank's device memory; `launch/peers.py` writes it.
struct Pipe {
    u32 ended;      // blocks of the kernel that runs which have ended
    u32 sent;       // rounds sent to the next stage
    u32 received;   // rounds taken from the stage before
    u32 most_rows;  // of an inbox
    char* inbox;    // two inboxes here
    char* next_inbox;
    u32* arrived;   // here: rounds that the stage before has sent
    u32* next_arrived;
    u32* taken;     // here: rounds that the next stage has taken
    u32* before_taken;
};

constexpr int VECTORS = ROW_BYTES / 16;  // of a row
static_assert(VECTORS * 16 == ROW_BYTES, "a row is whole vectors of 16 bytes");

// All threads of the block return once `counter`, in this GPU's memory, is at least `rounds`.
INLINE void await(const u32* counter, u32 rounds) {
    if (threadIdx.x == 0) await_counter(counter, rounds);
    __syncthreads();
}

// `num_rows` rows, by all blocks of the grid.
INLINE void copy_rows(char* to, const char* from, int num_rows) {
    constexpr int AT_ONCE = 4;
    long long count = (long long)num_rows * VECTORS, stride = (long long)gridDim.x * THREADS;
    for (long long i = (long long)blockIdx.x * THREADS + threadIdx.x; i < count; i += AT_ONCE * stride) {
        Words v[AT_ONCE];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            if (i + k * stride < count) v[k] = receive_words(from + (i + k * stride) * 16);
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            if (i + k * stride < count) send_words(to + (i + k * stride) * 16, v[k]);
        }
    }
}

// The last block to end counts the round here and raises `counter`, in the other GPU's memory: every block's loads and stores come before.
INLINE void end_round(Pipe* pipe, u32* own, u32* counter, u32 rounds) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence_system();
        if (atomicAdd(&pipe->ended, 1) == gridDim.x - 1) {
            pipe->ended = 0;
            *(volatile u32*)own = rounds;
            __threadfence_system();
            raise_counter(counter, rounds);
        }
    }
}
