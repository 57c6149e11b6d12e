// Stands for `cuda_kernels/hopper.cuh` where a kernel is compiled for the host: each CUDA thread is a fiber, and each of that header's
// functions does at once what the GPU does in its own time; but loads by the copy engine, which complete in no order, do so as late as they
// may, the last first. So what a kernel computes is checked, with its barriers' phases and counts and every address, and not what it does to
// registers in flight. A kernel that waits for ever is found out: no fiber moves.
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <deque>
#include <functional>
#include <vector>

typedef unsigned int u32;
typedef unsigned long long u64;
#ifndef FP8
#define FP8 0
#endif
#ifndef INT8
#define INT8 0
#endif
#if INT8
typedef int Sum;
#else
typedef float Sum;
#endif
#define INLINE inline
#define __device__
#define __global__
#define __shared__
#define __align__(n)
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
inline int max(int a, int b) { return a > b ? a : b; }
inline int min(int a, int b) { return a < b ? a : b; }

struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
struct int2 { int x, y; };
struct int4 { int x, y, z, w; };
struct uint2 { u32 x, y; };
struct uint4 { u32 x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(u32 x, u32 y) { return {x, y}; }
inline uint4 make_uint4(u32 x, u32 y, u32 z, u32 w) { return {x, y, z, w}; }
inline float __int_as_float(u32 x) { float y; memcpy(&y, &x, 4); return y; }
inline u32 __float_as_int(float x) { u32 y; memcpy(&y, &x, 4); return y; }
template <typename T>
T __ldg(const T* from) { T x; memcpy(&x, from, sizeof(T)); return x; }

// ---- Fibers

struct Barrier { long arrivals = 0, pending = 0, bytes = 0; u32 phase = 0; };
struct Meeting { u32 arrived = 0, round = 0; };
struct Block {
    char* shared;
    u32 x, y;
    Barrier* barriers;  // of each 8 bytes of `shared`
    Meeting meetings[3000];
    u32* operands;      // A of each thread of the block
    u32 (*exchange)[8];  // what each thread shows the others of its warp
};
struct Copy { u32 group; char* to; const char* from; u32 size, bytes; };
struct Fiber {
    std::deque<Copy> copies;
    u32 groups = 0;  // committed
    ucontext_t context;
    char* stack;
    Block* block;
    u32 thread;
    bool done;
};
struct Machine {
    Block* blocks[8];
    Fiber* fibers;
    u32 num_blocks = 0, num_fibers = 0, threads = 0, grid = 0;
    Meeting cluster;
    ucontext_t scheduler;
    Fiber* now = nullptr;
    bool moved = false, failed = false;
    std::vector<std::function<void()>> loads;  // that are under way

    // Ends the load that began last. Returns whether there was one.
    bool end_load() {
        if (loads.empty()) return false;
        auto load = loads.back();
        loads.pop_back();
        load();
        return true;
    }
};
inline Machine machine;
struct Index { u32 x, y; };
#define threadIdx (Index{machine.now->thread, 0})
#define blockIdx (Index{machine.now->block->x, machine.now->block->y})
#define gridDim (Index{machine.grid, 0})
#define memory (machine.now->block->shared)

inline void pause_fiber() { swapcontext(&machine.now->context, &machine.scheduler); }
inline void progress() { machine.moved = true; }
[[noreturn]] inline void fail(const char* what) {
    printf("%s\n", what);
    machine.failed = true;
    while (true) pause_fiber();
}

inline void meet(Meeting& at, u32 count) {
    u32 round = at.round;
    if (++at.arrived == count) at.arrived = 0, at.round++, progress();
    while (at.round == round) pause_fiber();
}
inline void sync_warps(u32 number, u32 threads) { meet(machine.now->block->meetings[number], threads); }
// Takes part in a meeting without waiting for it.
inline void signal_warps(u32 number, u32 threads) {
    Meeting& at = machine.now->block->meetings[number];
    if (++at.arrived == threads) at.arrived = 0, at.round++, progress();
}
inline void __syncthreads() { sync_warps(0, machine.threads); }
inline void __syncwarp() { meet(machine.now->block->meetings[1000 + machine.now->thread / 32], 32); }
inline u32 __byte_perm(u32 a, u32 b, u32 selector) {
    u64 both = (u64)b << 32 | a;
    u32 y = 0;
    for (u32 i = 0; i < 4; i++) y |= (u32)(both >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
    return y;
}
inline int __popc(u32 x) { return __builtin_popcount(x); }
inline int __ffs(u32 x) { return __builtin_ffs(x); }
inline float __fdividef(float x, float y) { return x / y; }
// Shows words to the warp; `read(words)` sees those of a lane.
template <typename Read>
void exchange(const u32* own, u32 count, const Read& read) {
    Fiber* me = machine.now;
    u32(*warp)[8] = me->block->exchange + me->thread / 32 * 32;
    memcpy(warp[me->thread % 32], own, 4 * count);
    __syncwarp();
    read(warp);
    __syncwarp();
}
template <typename T>
T exchanged(T x, u32 from) {
    u32 own;
    memcpy(&own, &x, 4);
    exchange(&own, 1, [&](u32(*warp)[8]) { memcpy(&x, warp[from], 4); });
    return x;
}
inline float from_lane_xor(float x, u32 bits) { return exchanged(x, machine.now->thread % 32 ^ bits); }
inline u32 from_lane_xor(u32 x, u32 bits) { return exchanged(x, machine.now->thread % 32 ^ bits); }
inline u32 from_lane(u32 x, u32 lane) { return exchanged(x, lane); }
inline u32 __shfl_sync(u32, u32 x, u32 lane) { return exchanged(x, lane); }
inline float __shfl_xor_sync(u32, float x, u32 bits) { return from_lane_xor(x, bits); }
inline u32 __shfl_xor_sync(u32, u32 x, u32 bits) { return from_lane_xor(x, bits); }
inline int __reduce_max_sync(u32, int x) {
    u32 own = x;
    exchange(&own, 1, [&](u32(*warp)[8]) { for (u32 lane = 0; lane < 32; lane++) x = max(x, (int)warp[lane][0]); });
    return x;
}
inline u32 __ballot_sync(u32, bool x) {
    u32 own = x, all = 0;
    exchange(&own, 1, [&](u32(*warp)[8]) { for (u32 lane = 0; lane < 32; lane++) all |= warp[lane][0] << lane; });
    return all;
}
inline bool any_of_warp(bool x) {
    u32 own = x;
    exchange(&own, 1, [&](u32(*warp)[8]) { for (u32 lane = 0; lane < 32; lane++) x |= warp[lane][0] != 0; });
    return x;
}
inline u32 count_up(u32& number) { return number++; }
inline void cluster_arrive() {}
inline void cluster_wait() { meet(machine.cluster, machine.threads * machine.num_blocks); }
inline void let_next_start() {}
inline void wait_for_previous() {}

inline u32 shared_address(const void* pointer) { return (u32)((const char*)pointer - memory); }
inline Barrier& barrier_in(Block& block, u64& barrier) {
    Barrier& at = block.barriers[shared_address(&barrier) / 8];
    if (at.arrivals == 0) fail("a barrier that was not made");
    return at;
}
inline Barrier& barrier_at(u64& barrier) { return barrier_in(*machine.now->block, barrier); }
inline void settle(Barrier& barrier) {
    if (barrier.pending == 0 && barrier.bytes == 0) barrier.phase ^= 1, barrier.pending = barrier.arrivals, progress();
}
inline void barrier_init(u64& barrier, u32 arrivals) {
    Barrier& made = machine.now->block->barriers[shared_address(&barrier) / 8];
    made.arrivals = made.pending = arrivals;
}
inline void barriers_are_made() {}
inline void arrive_at(Barrier& barrier) {
    if (barrier.pending-- == 0) fail("more arrivals than a barrier expects");
    settle(barrier);
}
inline void arrive(u64& barrier) { arrive_at(barrier_at(barrier)); }
inline void arrive_expecting(u64& barrier, u32 bytes) { barrier_at(barrier).bytes += bytes, arrive_at(barrier_at(barrier)); }
inline void complete(Barrier& barrier, u32 bytes) { barrier.bytes -= bytes, settle(barrier); }
inline void wait(u64& barrier, u32 parity) {
    while (barrier_at(barrier).phase == parity) pause_fiber();
}

// ---- Copies

struct TensorMap { const char* from; long rows, columns, element, box_rows, row_bytes = 128; };  // of a box
inline u32 swizzled(u32 linear, u32 row_bytes) { return linear ^ (linear >> 7 & (row_bytes / 16 - 1)) << 4; }
inline void prefetch(const TensorMap&) {}
inline u64 evict_first() { return 0; }
// Row `r` of a box of rows of 128 bytes, or 64, with the swizzle of as many, zero outside the matrix. `to`: in `shared`.
inline void load_row(char* shared, u32 to, const TensorMap& map, long r, long row, long column, bool inside) {
    for (long byte = 0; byte < map.row_bytes; byte++) {
        long at = column * map.element + byte, pitch = map.columns * map.element;
        shared[swizzled(to + r * map.row_bytes + byte, map.row_bytes)] = inside && at < pitch ? map.from[row * pitch + at] : 0;
    }
}
inline void check_aligned(const TensorMap& map, int column) {
    if (column * map.element % 16) printf("TMA begins at multiples of 16 bytes\n"), exit(4);
}
inline void load_box(void* to, const TensorMap& map, int row, int column, u64& barrier, u64 = 0) {
    check_aligned(map, column);
    char* shared = memory;
    u32 first = shared_address(to);
    Barrier& at = barrier_at(barrier);
    machine.loads.push_back([=, &map, &at] {
        for (long r = 0; r < map.box_rows; r++) load_row(shared, first, map, r, row + r, column, row + r < map.rows);
        complete(at, map.box_rows * map.row_bytes);
    });
}
// TMA compares the first of the four coordinates that make up a row with the matrix's size, less the rest (`driver.py`).
inline void load_interleaved_box(void* to, const TensorMap& map, int row, int column, u64& barrier) {
    check_aligned(map, column);
    char* shared = memory;
    u32 first = shared_address(to);
    Barrier& at = barrier_at(barrier);
    machine.loads.push_back([=, &map, &at] {
        for (long r = 0; r < map.box_rows; r++) {
            long i = r % 2, q = r / 2 % 4, h = r / 8 % 2, b = r / 16;
            load_row(shared, first, map, r, row + i + 4 * q + 2 * h + 16 * b, column, row + i < map.rows - (map.box_rows - 2));
        }
        complete(at, map.box_rows * map.row_bytes);
    });
}
inline void load_bytes(void* to, const void* from, u32 bytes, u64& barrier, u64 = 0) {
    Barrier& at = barrier_at(barrier);
    machine.loads.push_back([=, &at] { memcpy(to, from, bytes), complete(at, bytes); });
}
// Threads' copies are made as late as they may be: when their group is waited for.
inline void copy_bytes(void* to, const void* from, u32 size, u32 bytes) {
    Fiber& me = *machine.now;
    me.copies.push_back({me.groups, (char*)to, (const char*)from, size, bytes});
}
inline void copy_16(void* to, const void* from, u32 bytes) { copy_bytes(to, from, 16, bytes); }
inline void copy_4(void* to, const void* from, u32 bytes) { copy_bytes(to, from, 4, bytes); }
inline void commit_copies() { machine.now->groups++; }
template <int PENDING>
void wait_for_copies() {
    Fiber& me = *machine.now;
    while (!me.copies.empty() && me.copies.front().group + PENDING < me.groups) {
        Copy copy = me.copies.front();
        memset(copy.to, 0, copy.size), memcpy(copy.to, copy.from, copy.bytes);
        me.copies.pop_front();
    }
}
inline void arrive_when_copied(u64& barrier) {
    machine.now->groups++;
    wait_for_copies<0>();
    arrive(barrier);
}
template <typename T>
void send(T* to, T x, u64& barrier, u32 rank) {
    Block& there = *machine.blocks[rank];
    memcpy(there.shared + shared_address(to), &x, sizeof(T));
    complete(barrier_in(there, barrier), sizeof(T));
}
inline void publish_to_async() {}
template <int COUNT>
void give_registers_down_to() {}
template <int COUNT>
void take_registers_up_to() {}

// ---- Numbers

inline u32 bf16_of(float x) {
    u32 bits = __float_as_int(x);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return bits >> 16 | 0x40;
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
}
inline float of_bf16(u32 x) { return __int_as_float(x << 16); }
inline u32 fp16_of(float x) { _Float16 y = x; unsigned short bits; memcpy(&bits, &y, 2); return bits; }
inline float of_fp16(u32 x) { unsigned short bits = x; _Float16 y; memcpy(&y, &bits, 2); return y; }
inline float decoded_fp8(u32 x) {
    int exponent = x >> 3 & 15, mantissa = x & 7;
    if ((x & 0x7F) == 0x7F) return NAN;
    float y = exponent ? ldexpf(8.0f + mantissa, exponent - 10) : ldexpf(mantissa, -9);
    return x & 0x80 ? -y : y;
}
struct Decoded {
    float values[256];
    Decoded() { for (u32 x = 0; x < 256; x++) values[x] = decoded_fp8(x); }
};
inline float of_fp8(u32 x) {
    static const Decoded codes;
    return codes.values[x & 0xFF];
}
inline u32 fp8_of(float x) {
    float clamped = fminf(fabsf(x), 448.0f);
    u32 best = 0;  // largest number that is no larger
    for (u32 step = 64; step; step /= 2) best += best + step < 127 && of_fp8(best + step) <= clamped ? step : 0;
    float below = clamped - of_fp8(best), above = best < 126 ? of_fp8(best + 1) - clamped : INFINITY;
    if (above < below || (above == below && best % 2)) best++;
    return best | (signbit(x) ? 0x80 : 0);
}
inline u32 pack_fp16(float a, float b) { return fp16_of(a) | fp16_of(b) << 16; }
inline u32 pack_bf16(float a, float b) { return bf16_of(a) | bf16_of(b) << 16; }
inline u32 pack(float a, float b) { return HALF ? pack_fp16(a, b) : pack_bf16(a, b); }
inline u32 pack_out(float a, float b) { return OUT_HALF ? pack_fp16(a, b) : pack_bf16(a, b); }
inline u32 pack_fp8(float a, float b, float c, float d) { return fp8_of(a) | fp8_of(b) << 8 | fp8_of(c) << 16 | fp8_of(d) << 24; }
inline float2 unpack_fp16(u32 x) { return {of_fp16(x & 0xFFFF), of_fp16(x >> 16)}; }
inline float2 unpack_x(u32 x) { return HALF ? unpack_fp16(x) : float2{of_bf16(x & 0xFFFF), of_bf16(x >> 16)}; }
inline float2 unpack_out(u32 x) { return OUT_HALF ? unpack_fp16(x) : float2{of_bf16(x & 0xFFFF), of_bf16(x >> 16)}; }
inline float exp2_of(float x) { return exp2f(x); }
inline float quotient(float x, float y) { return x / y; }
inline float inverse_root(float x) { return 1.0f / sqrtf(x); }
inline float log2_of(float x) { return log2f(x); }
inline void atomicMax(long long* to, long long x) { *to = *to > x ? *to : x; }
inline u32 masked(u32 x, u32 mask, u32 with) { return (x & mask) | with; }
inline u32 masked_xor(u32 x, u32 mask, u32 with) { return (x & mask) ^ with; }
inline u32 subtract(u32 a, u32 b) { return pack(unpack_x(a).x - unpack_x(b).x, unpack_x(a).y - unpack_x(b).y); }
inline u32 multiplied(u32 a, u32 b) { return pack(unpack_x(a).x * unpack_x(b).x, unpack_x(a).y * unpack_x(b).y); }
inline u32 multiplied_and_added(u32 a, u32 b, u32 c) {
    float2 x = unpack_x(a), y = unpack_x(b), z = unpack_x(c);
    return pack(x.x * y.x + z.x, x.y * y.y + z.y);
}

// ---- wgmma, by the fragments that the PTX ISA draws

// A descriptor: the address in units of 16 bytes; above it, bytes of a row.
template <int ROW_BYTES = 128>
u64 by_rows(u32 address) { return (u64)ROW_BYTES << 32 | address / 16; }
inline u32 byte_of(u64 matrix, u32 row, u32 byte) {
    return swizzled(16 * (u32)matrix + row * (matrix >> 32) + byte, matrix >> 32);
}
inline void wgmma_begin() {}
inline void wgmma_commit() {}
template <int PENDING>
void wait_for_wgmma() {}
template <typename T, int LENGTH>
void hold(T (&)[LENGTH]) {}
inline void meet_group() {
    Fiber* me = machine.now;
    meet(me->block->meetings[2000 + me->thread / 128], 128);
}
// Both operands in shared memory.
template <int LENGTH>
void multiply_add(Sum (&d)[LENGTH], u64 a, u64 b) {
    u32 thread = machine.now->thread, lane = thread % 32;
    auto word = [&](u64 matrix, u32 row, u32 byte) {
        u32 x = 0;
        memcpy(&x, memory + byte_of(matrix, row, byte), FP8 || INT8 ? 1 : 2);
        return x;
    };
    auto number = [](u32 x) { return INT8 ? (float)(signed char)x : FP8 ? of_fp8(x) : HALF ? of_fp16(x) : of_bf16(x); };
    constexpr u32 BYTES = FP8 || INT8 ? 1 : 2;
    for (u32 byte = 0; byte < 32; byte += BYTES) {
        for (int i = 0; i < LENGTH; i++) {
            u32 row = thread / 32 % 4 * 16 + lane / 4 + i / 2 % 2 * 8, token = i / 4 * 8 + lane % 4 * 2 + i % 2;
            d[i] += number(word(a, row, byte)) * number(word(b, token, byte));
        }
    }
    meet_group();  // none releases what others still read
}
template <int LENGTH>
void multiply(float (&d)[LENGTH], u64 a, u64 b, bool add) {
    for (int i = 0; i < LENGTH && !add; i++) d[i] = 0.0f;
    multiply_add(d, a, b);
}
template <bool ADD, int LENGTH>
void multiply_skinny(float (&d)[LENGTH], const u32 (&a)[4], u64 b) {
    Fiber* me = machine.now;
    Block& block = *me->block;
    memcpy(&block.operands[4 * me->thread], a, 16);
    meet_group();
    u32 lane = me->thread % 32;
    constexpr int BYTES = FP8 ? 1 : 2;
    for (int i = 0; i < LENGTH; i++) {
        u32 token = i / 4 * 8 + lane % 4 * 2 + i % 2, low = i / 2 % 2;
        float sum = ADD ? d[i] : 0.0f;
        for (u32 k = 0; k < 32 / BYTES; k++) {
            u32 byte = k * BYTES, owner = me->thread / 4 * 4 + byte / 4 % 4;
            u32 word = block.operands[4 * owner + byte / 16 * 2 + low] >> 8 * (byte % 4);
            u32 other = 0;
            memcpy(&other, block.shared + byte_of(b, token, byte), BYTES);
            auto number = [](u32 x) { return FP8 ? of_fp8(x & 0xFF) : HALF ? of_fp16(x & 0xFFFF) : of_bf16(x & 0xFFFF); };
            sum += number(word) * number(other);
        }
        d[i] = sum;
    }
    meet_group();
}

// ---- Products by a warp
inline float number_of(u32 word, u32 half) { return half ? unpack_x(word).y : unpack_x(word).x; }
inline void multiply_add_warp(float (&d)[4], const u32 (&a)[4], u32 b_low, u32 b_high) {
    u32 lane = machine.now->thread % 32, own[6] = {a[0], a[1], a[2], a[3], b_low, b_high};
    exchange(own, 6, [&](u32(*warp)[8]) {
        for (u32 i = 0; i < 4; i++) {
            for (u32 k = 0; k < 16; k++) {
                u32 row = warp[lane / 4 * 4 + k % 8 / 2][k / 8 * 2 + i / 2], column = warp[(lane % 4 * 2 + i % 2) * 4 + k % 8 / 2][4 + k / 8];
                d[i] += number_of(row, k % 2) * number_of(column, k % 2);
            }
        }
    });
}
inline void load_matrices(u32 (&x)[4], u32 address) {
    exchange(&address, 1, [&](u32(*warp)[8]) {
        u32 lane = machine.now->thread % 32;
        for (u32 i = 0; i < 4; i++) memcpy(&x[i], memory + warp[8 * i + lane / 4][0] + lane % 4 * 4, 4);
    });
}
inline void store_matrices(u32 address, const u32 (&x)[4]) {
    exchange(&address, 1, [&](u32(*warp)[8]) {
        u32 lane = machine.now->thread % 32;
        for (u32 i = 0; i < 4; i++) memcpy(memory + warp[8 * i + lane / 4][0] + lane % 4 * 4, &x[i], 4);
    });
}
inline u32 transposed(u32 x) {
    u32 lane = machine.now->thread % 32, y = 0;
    exchange(&x, 1, [&](u32(*warp)[8]) {
        for (u32 i = 0; i < 2; i++) y |= (warp[(lane % 4 * 2 + i) * 4 + lane / 8][0] >> 16 * (lane / 4 % 2) & 0xFFFF) << 16 * i;
    });
    return y;
}
inline void load_matrices_transposed(u32 (&x)[4], u32 address) {
    load_matrices(x, address);
    for (u32& one : x) one = transposed(one);
}
template <int SELECTOR>
u32 chosen_bytes(u32 a, u32 b) {
    return __byte_perm(a, b, SELECTOR);
}
inline void unpack_fp8(u32& low, u32& high, u32 codes) {
    low = pack_fp16(of_fp8(codes & 0xFF), of_fp8(codes >> 8 & 0xFF));
    high = pack_fp16(of_fp8(codes >> 16 & 0xFF), of_fp8(codes >> 24));
}
inline u32 half_of(u32 x) { return pack_fp16(of_bf16(x & 0xFFFF), of_bf16(x >> 16)); }
inline float load_constant(const float* from) { return *from; }
template <typename T>
T load_early(const T* from) { return *from; }
