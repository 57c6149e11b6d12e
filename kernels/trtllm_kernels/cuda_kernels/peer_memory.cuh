// Loads and stores that GPUs of one host see of each other, one instruction a function: `relaxed` reaches memory whole and in no order,
// `release` after everything before it, `acquire` before everything after it, over the whole system (PTX ISA, memory consistency model).
#pragma once
#include "hopper.cuh"

struct alignas(16) Words {
    u32 word[4];
};

INLINE Words load_words(const void* from) {
    Words w;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(w.word[0]), "=r"(w.word[1]), "=r"(w.word[2]), "=r"(w.word[3]) : "l"(from) : "memory");
    return w;
}

INLINE void store_words(void* to, const Words& w) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(w.word[0]), "r"(w.word[1]), "r"(w.word[2]), "r"(w.word[3]) : "memory");
}

INLINE void store_pair(void* to, u32 first, u32 second) {
    asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(first), "r"(second) : "memory");
}

// To another GPU's memory, each word whole.
INLINE void send_words(void* to, const Words& w) {
    asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(w.word[0]), "r"(w.word[1]), "r"(w.word[2]), "r"(w.word[3]) : "memory");
}

// What another GPU may have sent.
INLINE Words receive_words(const void* from) {
    Words w;
    asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.word[0]), "=r"(w.word[1]), "=r"(w.word[2]), "=r"(w.word[3])
                 : "l"(from)
                 : "memory");
    return w;
}

INLINE void send_long(long long* to, long long x) { asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to), "l"(x) : "memory"); }

INLINE long long receive_long(const long long* from) {
    long long x;
    asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(x) : "l"(from) : "memory");
    return x;
}

INLINE void raise_counter(u32* counter, u32 to) { asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(counter), "r"(to) : "memory"); }

// Returns once the counter is at least `least`.
INLINE void await_counter(const u32* counter, u32 least) {
    u32 seen;
    do {
        asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    } while ((int)(seen - least) < 0);
}
