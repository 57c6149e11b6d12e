// Stands for `cuda_kernels/peer_memory.cuh`: all ranks share the host's memory. A thread that looks at what another rank may have sent lets
// others run first, and so does, one time in four, a thread that stores; one time in 256 it naps. What the GPU's memory model allows beyond
// such orders is not tried.
#pragma once
#include "hopper.cuh"

struct Words { u32 word[4]; };

inline long long max(long long a, long long b) { return a > b ? a : b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline void __threadfence() {}
inline u32 atomicAdd(u32* to, u32 x) { return (*to += x) - x; }
inline float __shfl_xor_sync(u32, float x, int lane) {
    Fiber* me = machine.now;
    u32* exchanged = me->block->operands;
    exchanged[me->thread] = __float_as_int(x);
    __syncwarp();
    float theirs = __int_as_float(exchanged[me->thread ^ lane]);
    __syncwarp();
    return theirs;
}

inline Words load_words(const void* from) { Words w; memcpy(&w, from, 16); return w; }
inline bool naps = false;
inline void pause_at_times() {
    static u32 state = 1;
    state = state * 1664525 + 1013904223;  // Numerical Recipes' generator
    naps = state >> 24 == 0;
    if (state >> 30 == 0) pause_fiber();
}
inline void store_words(void* to, const Words& w) { pause_at_times(), memcpy(to, &w, 16); }
inline void store_pair(void* to, u32 first, u32 second) { u32 both[] = {first, second}; memcpy(to, both, 8); }
inline void send_words(void* to, const Words& w) { pause_at_times(), memcpy(to, &w, 16); }
inline Words receive_words(const void* from) { pause_fiber(); return load_words(from); }
inline void send_long(long long* to, long long x) { pause_at_times(), *to = x; }
inline long long receive_long(const long long* from) { pause_fiber(); return *from; }
inline void raise_counter(u32* counter, u32 to) { *counter = to; }
inline void await_counter(const u32* counter, u32 least) {
    do pause_fiber();
    while ((int)(*(volatile u32*)counter - least) < 0);
}
