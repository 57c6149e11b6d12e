// Hopper's additions to a kernel, one instruction per function: asynchronous copies of tiles (TMA) that complete on barriers in shared
// memory, matrix multiplication by a warpgroup (wgmma), registers moved between warpgroups, and programmatic dependent launch.
// Everything is used as the PTX ISA describes it (sections on mbarrier, cp.async.bulk.tensor, wgmma, setmaxnreg, griddepcontrol).
// No CUDA header is needed, so NVRTC compiles this as it is.
#pragma once

typedef unsigned int u32;
typedef unsigned long long u64;

// A TMA descriptor made by the host (cuTensorMapEncodeTiled). As a kernel parameter it must be __grid_constant__.
struct alignas(128) TensorMap {
    char opaque[128];
};

#define INLINE __device__ __forceinline__

INLINE u32 shared_address(const void* pointer) { return (u32)__cvta_generic_to_shared(pointer); }

// ---- Programmatic dependent launch (triton_kernels/pdl.py)

INLINE void let_next_start() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

INLINE void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// A load that the compiler does not move.
INLINE float load_constant(const float* from) {
    float x;
    asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(x) : "l"(from) : "memory");
    return x;
}

// Loads that stay before a wait, as those by the path of constants (nc) do not: the assembler moves them.
INLINE float load_early(const float* from) {
    float x;
    asm volatile("ld.global.f32 %0, [%1];" : "=f"(x) : "l"(from) : "memory");
    return x;
}

INLINE uint4 load_early(const uint4* from) {
    uint4 x;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "l"(from) : "memory");
    return x;
}

// ---- Barriers in shared memory: a phase ends when all arrivals and all expected bytes are in

INLINE void barrier_init(u64& barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
}

// Called after the last barrier_init, so that the copy engine sees the barriers.
INLINE void barriers_are_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

INLINE void arrive(u64& barrier) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory"); }

INLINE void arrive_expecting(u64& barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes) : "memory");
}

// Waits until the phase of this parity has ended. For a new barrier the phase before its first (parity 1) counts as ended.
INLINE void wait(u64& barrier, u32 parity) {
    u32 address = shared_address(&barrier), done = 0;
    while (!done) {
        asm volatile(
            "{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
            : "=r"(done)
            : "r"(address), "r"(parity)
            : "memory");
    }
}

// Numbered barriers among warps; 0 is that of __syncthreads.
INLINE void sync_warps(u32 number, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory"); }

INLINE void signal_warps(u32 number, u32 threads) { asm volatile("bar.arrive %0, %1;" ::"r"(number), "r"(threads) : "memory"); }

// ---- TMA

INLINE void prefetch(const TensorMap& map) { asm volatile("prefetch.tensormap [%0];" ::"l"((u64)&map) : "memory"); }

// Loads the box whose first element is at (row, column). Elements outside the matrix are zero and count as bytes, too.
INLINE void load_box(void* to, const TensorMap& map, int row, int column, u64& barrier) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
                     shared_address(to)),
                 "l"((u64)&map), "r"(column), "r"(row), "r"(shared_address(&barrier))
                 : "memory");
}

// Loads a box of 128 rows in another order: row 16 b + 8 h + 2 q + i of it is row 16 b + 4 q + 2 h + i of the matrix, from `row` on. The map
// has a dimension for each of i, q, h and b (`driver.py`).
INLINE void load_interleaved_box(void* to, const TensorMap& map, int row, int column, u64& barrier) {
    asm volatile(
        "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %4, %4}], [%5];" ::"r"(
            shared_address(to)),
        "l"((u64)&map), "r"(column), "r"(row), "r"(0), "r"(shared_address(&barrier))
        : "memory");
}

// The policy for data that is read once: it is evicted from L2 first.
INLINE u64 evict_first() {
    u64 policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

INLINE void load_box(void* to, const TensorMap& map, int row, int column, u64& barrier, u64 policy) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(
            shared_address(to)),
        "l"((u64)&map), "r"(column), "r"(row), "r"(shared_address(&barrier)), "l"(policy)
        : "memory");
}

// Loads contiguous bytes, a multiple of 16.
INLINE void load_bytes(void* to, const void* from, u32 bytes, u64& barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(shared_address(to)),
                 "l"((u64)from), "r"(bytes), "r"(shared_address(&barrier))
                 : "memory");
}

INLINE void load_bytes(void* to, const void* from, u32 bytes, u64& barrier, u64 policy) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
                     shared_address(to)),
                 "l"((u64)from), "r"(bytes), "r"(shared_address(&barrier)), "l"(policy)
                 : "memory");
}

// Makes this thread's writes to shared memory visible to later TMA and wgmma.
INLINE void publish_to_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// ---- Copies by threads: each completes with the group that its thread commits it to, or before an arrival at a barrier

// Copies 16 bytes past L1, of which those from `bytes` on become zero.
INLINE void copy_16(void* to, const void* from, u32 bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"((u64)from), "r"(bytes) : "memory");
}

// Copies 4 bytes, or zeros if `bytes` is 0.
INLINE void copy_4(void* to, const void* from, u32 bytes) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(to)), "l"((u64)from), "r"(bytes) : "memory");
}

INLINE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of this thread's groups are incomplete.
template <int PENDING>
INLINE void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Arrives at a barrier when all copies that this thread has begun are complete. The barrier counts this thread.
INLINE void arrive_when_copied(u64& barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&barrier)) : "memory");
}

// ---- Clusters of blocks

// Called by all threads that have not ended. It does not order memory, since then every thread would wait for all its loads and stores:
// barriers are made before it (`barriers_are_made`), and blocks communicate through those.
INLINE void cluster_arrive() { asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory"); }

INLINE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }

// Address of the same location in the shared memory of block `rank` of the cluster.
INLINE u32 address_in_block(const void* pointer, u32 rank) {
    u32 there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(pointer)), "r"(rank));
    return there;
}

// Sends 16 bytes to the same location in block `rank`; they complete on its barrier.
INLINE void send(float4* to, float4 x, u64& barrier, u32 rank) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address_in_block(to, rank)),
                 "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w), "r"(address_in_block(&barrier, rank))
                 : "memory");
}

INLINE void send(int4* to, int4 x, u64& barrier, u32 rank) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.s32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(address_in_block(to, rank)),
                 "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w), "r"(address_in_block(&barrier, rank))
                 : "memory");
}

INLINE void send(int2* to, int2 x, u64& barrier, u32 rank) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.s32 [%0], {%1, %2}, [%3];" ::"r"(address_in_block(to, rank)),
                 "r"(x.x), "r"(x.y), "r"(address_in_block(&barrier, rank))
                 : "memory");
}

INLINE void send(float2* to, float2 x, u64& barrier, u32 rank) {
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(address_in_block(to, rank)),
                 "f"(x.x), "f"(x.y), "r"(address_in_block(&barrier, rank))
                 : "memory");
}

// ---- Registers: all warps together never have more than the launch gave, or the one that takes waits forever

template <int COUNT>
INLINE void give_registers_down_to() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

template <int COUNT>
INLINE void take_registers_up_to() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// ---- wgmma. Matrices in shared memory are in panels of rows of 128 bytes, or 64, with the swizzle of as many, at addresses divisible by
// 1,024.

// Descriptor: address, leading and stride offsets in units of 16 bytes (14 bits each at 0, 16 and 32), swizzle (1: 128 bytes, 2: 64) at 62.
INLINE u64 matrix(u32 address, u32 leading_bytes, u32 stride_bytes, u64 swizzle) {
    return (u64)((address & 0x3FFFF) >> 4) | (u64)(leading_bytes >> 4) << 16 | (u64)(stride_bytes >> 4) << 32 | swizzle << 62;
}

// The matrix's rows are the operand's rows ("K-major"): groups of 8 rows follow each other; steps of 32 bytes lie next to each other. Rows that
// are 16 bytes apart, without a swizzle, overlap: of those only the first means anything.
template <int BYTES_OF_ROW = 128>
INLINE u64 by_rows(u32 address) {
    return matrix(address, 16, 8 * BYTES_OF_ROW, BYTES_OF_ROW == 128 ? 1 : BYTES_OF_ROW == 64 ? 2 : 0);
}

// The matrix's columns are the operand's rows ("MN-major"): the panels lie `panel_bytes` apart; a step of 16 rows is 2,048 bytes.
INLINE u64 by_columns(u32 address, u32 panel_bytes) { return matrix(address, panel_bytes, 1024, 1); }

// Makes registers written before visible to the wgmma after.
INLINE void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

INLINE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING groups of wgmma are in flight.
template <int PENDING>
INLINE void wait_for_wgmma() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving uses of these registers across this point: an asynchronous wgmma uses them.
template <int LENGTH>
INLINE void hold(float (&x)[LENGTH]) {
#pragma unroll
    for (int i = 0; i < LENGTH; i++) asm volatile("" : "+f"(x[i])::"memory");
}

template <int LENGTH>
INLINE void hold(u32 (&x)[LENGTH]) {
#pragma unroll
    for (int i = 0; i < LENGTH; i++) asm volatile("" : "+r"(x[i])::"memory");
}

template <int LENGTH>
INLINE void hold(int (&x)[LENGTH]) {
#pragma unroll
    for (int i = 0; i < LENGTH; i++) asm volatile("" : "+r"(x[i])::"memory");
}

#ifndef FP8
#define FP8 0
#endif
#ifndef INT8
#define INT8 0
#endif
#if FP8
#define ELEMENTS "e4m3.e4m3"
#elif HALF
#define ELEMENTS "f16.f16"
#else
#define ELEMENTS "bf16.bf16"
#endif
#if FP8
#define STEP_COLUMNS "k32"
#define BOTH_BY_ROWS "1, 1;"
#else
#define STEP_COLUMNS "k16"
#define BOTH_BY_ROWS "1, 1, 0, 0;"
#endif
#define REGISTERS_8(how, x, i) \
    how(x[i]), how(x[i + 1]), how(x[i + 2]), how(x[i + 3]), how(x[i + 4]), how(x[i + 5]), how(x[i + 6]), how(x[i + 7])
#define REGISTERS_16(how, x, i) REGISTERS_8(how, x, i), REGISTERS_8(how, x, i + 8)
#define REGISTERS_32(how, x, i) REGISTERS_8(how, x, i), REGISTERS_8(how, x, i + 8), REGISTERS_8(how, x, i + 16), REGISTERS_8(how, x, i + 24)
#define REGISTERS_48(how, x) REGISTERS_32(how, x, 0), REGISTERS_16(how, x, 32)
#define REGISTERS_64(how, x) REGISTERS_32(how, x, 0), REGISTERS_32(how, x, 32)
#define NAMES_8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define NAMES_16 NAMES_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_32 NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_48 NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define NAMES_64 \
    NAMES_48 \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_80(how, x) REGISTERS_64(how, x), REGISTERS_16(how, x, 64)
#define REGISTERS_96(how, x) REGISTERS_64(how, x), REGISTERS_32(how, x, 64)
#define REGISTERS_112(how, x) REGISTERS_96(how, x), REGISTERS_16(how, x, 96)
#define REGISTERS_128(how, x) REGISTERS_96(how, x), REGISTERS_32(how, x, 96)
#define NAMES_80 NAMES_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define NAMES_96 NAMES_80 ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_112 NAMES_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define NAMES_128 NAMES_112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"

#define MULTIPLY(SHAPE, NAMES) "wgmma.mma_async.sync.aligned." SHAPE ".f32." ELEMENTS " {" NAMES "}, "

// d = a @ b.T, or += if `add`: [64, 128] from [64, 32 bytes] @ [128, 32 bytes].T, a and b in shared memory by rows. Register 4 j + 2 h + i of a thread
// holds row 16 * (warp % 4) + lane / 4 + 8 h and column 8 j + 2 * (lane % 4) + i.
INLINE void multiply(float (&d)[64], u64 a, u64 b, bool add) {
    if (add) {
        asm volatile(MULTIPLY("m64n128" STEP_COLUMNS, NAMES_64) "%64, %65, 1, " BOTH_BY_ROWS : REGISTERS_64("+f", d) : "l"(a), "l"(b));
    } else {
        asm volatile(MULTIPLY("m64n128" STEP_COLUMNS, NAMES_64) "%64, %65, 0, " BOTH_BY_ROWS : REGISTERS_64("=f", d) : "l"(a), "l"(b));
    }
}

// d += a @ b, [64, 64 or 128] from [64, 16] @ [16, ..], a in registers, b in shared memory by columns. Registers of a, two elements each,
// hold the same rows and columns as d's: (row, first 8), (row + 8, first 8), (row, last 8), (row + 8, last 8).
INLINE void multiply_add(float (&d)[64], const u32* a, u64 b) {
    asm volatile(MULTIPLY("m64n128k16", NAMES_64) "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
                 : REGISTERS_64("+f", d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

INLINE void multiply_add(float (&d)[32], const u32* a, u64 b) {
    asm volatile(MULTIPLY("m64n64k16", NAMES_32) "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : REGISTERS_32("+f", d, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// What products of rows sum: int32, exactly, for INT8; fp32 for the others.
#if INT8
typedef int Sum;
#define SUMS "+r"
#define MULTIPLY_ROWS(COUNT, NAMES) "wgmma.mma_async.sync.aligned.m64n" COUNT "k32.s32.s8.s8 {" NAMES "}, "
#define AS_THEY_ARE "1;"
#elif FP8
typedef float Sum;
#define SUMS "+f"
#define MULTIPLY_ROWS(COUNT, NAMES) MULTIPLY("m64n" COUNT "k32", NAMES)
#define AS_THEY_ARE "1, 1, 1;"
#else
typedef float Sum;
#define SUMS "+f"
#define MULTIPLY_ROWS(COUNT, NAMES) MULTIPLY("m64n" COUNT "k16", NAMES)
#define AS_THEY_ARE "1, 1, 1, 0, 0;"
#endif

// d += a @ b.T: [64, 8, 16, 32, 64, 96, 128, 160, 192, 224 or 256] from [64, 32 bytes] @ [.., 32 bytes].T, both in shared memory by rows.
INLINE void multiply_add(Sum (&d)[4], u64 a, u64 b) {
    asm volatile(MULTIPLY_ROWS("8", "%0, %1, %2, %3") "%4, %5, " AS_THEY_ARE
                 : SUMS(d[0]), SUMS(d[1]), SUMS(d[2]), SUMS(d[3])
                 : "l"(a), "l"(b));
}

INLINE void multiply_add(Sum (&d)[8], u64 a, u64 b) {
    asm volatile(MULTIPLY_ROWS("16", NAMES_8) "%8, %9, " AS_THEY_ARE : REGISTERS_8(SUMS, d, 0) : "l"(a), "l"(b));
}

INLINE void multiply_add(Sum (&d)[16], u64 a, u64 b) {
    asm volatile(MULTIPLY_ROWS("32", NAMES_16) "%16, %17, " AS_THEY_ARE : REGISTERS_16(SUMS, d, 0) : "l"(a), "l"(b));
}

INLINE void multiply_add(Sum (&d)[32], u64 a, u64 b) {
    asm volatile(MULTIPLY_ROWS("64", NAMES_32) "%32, %33, " AS_THEY_ARE : REGISTERS_32(SUMS, d, 0) : "l"(a), "l"(b));
}

INLINE void multiply_add(Sum (&d)[48], u64 a, u64 b) {
    asm volatile(MULTIPLY_ROWS("96", NAMES_48) "%48, %49, " AS_THEY_ARE : REGISTERS_48(SUMS, d) : "l"(a), "l"(b));
}

INLINE void multiply_add(Sum (&d)[64], u64 a, u64 b) {
    asm volatile(MULTIPLY_ROWS("128", NAMES_64) "%64, %65, " AS_THEY_ARE : REGISTERS_64(SUMS, d) : "l"(a), "l"(b));
}

INLINE void multiply_add(Sum (&d)[80], u64 a, u64 b) {
    asm volatile(MULTIPLY_ROWS("160", NAMES_80) "%80, %81, " AS_THEY_ARE : REGISTERS_80(SUMS, d) : "l"(a), "l"(b));
}

INLINE void multiply_add(Sum (&d)[96], u64 a, u64 b) {
    asm volatile(MULTIPLY_ROWS("192", NAMES_96) "%96, %97, " AS_THEY_ARE : REGISTERS_96(SUMS, d) : "l"(a), "l"(b));
}

INLINE void multiply_add(Sum (&d)[112], u64 a, u64 b) {
    asm volatile(MULTIPLY_ROWS("224", NAMES_112) "%112, %113, " AS_THEY_ARE : REGISTERS_112(SUMS, d) : "l"(a), "l"(b));
}

INLINE void multiply_add(Sum (&d)[128], u64 a, u64 b) {
    asm volatile(MULTIPLY_ROWS("256", NAMES_128) "%128, %129, " AS_THEY_ARE : REGISTERS_128(SUMS, d) : "l"(a), "l"(b));
}

// d = a @ b.T, or += if ADDED_TO: [64, 8, 16, 32, 64, 72, 96, 128, 136 or 256] from [64, 32 bytes], in registers, and [.., 32 bytes], in shared memory by
// rows. A register of a holds 4 bytes of a row, columns in order: (row, first 16 bytes), (row + 8, first), (row, last), (row + 8, last).
#if FP8
#define B_BY_ROWS "1, 1;"
#else
#define B_BY_ROWS "1, 1, 0;"
#endif
#define A_IN_REGISTERS(a, b, add) "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(int(add))

template <bool ADDED_TO>
INLINE void multiply_skinny(float (&d)[4], const u32 (&a)[4], u64 b) {
    asm volatile(MULTIPLY_ROWS("8", "%0, %1, %2, %3") "{%4, %5, %6, %7}, %8, %9, " B_BY_ROWS
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : A_IN_REGISTERS(a, b, ADDED_TO));
}

template <bool ADDED_TO>
INLINE void multiply_skinny(float (&d)[8], const u32 (&a)[4], u64 b) {
    asm volatile(MULTIPLY_ROWS("16", NAMES_8) "{%8, %9, %10, %11}, %12, %13, " B_BY_ROWS
                 : REGISTERS_8("+f", d, 0)
                 : A_IN_REGISTERS(a, b, ADDED_TO));
}

template <bool ADDED_TO>
INLINE void multiply_skinny(float (&d)[16], const u32 (&a)[4], u64 b) {
    asm volatile(MULTIPLY_ROWS("32", NAMES_16) "{%16, %17, %18, %19}, %20, %21, " B_BY_ROWS
                 : REGISTERS_16("+f", d, 0)
                 : A_IN_REGISTERS(a, b, ADDED_TO));
}

template <bool ADDED_TO>
INLINE void multiply_skinny(float (&d)[32], const u32 (&a)[4], u64 b) {
    asm volatile(MULTIPLY_ROWS("64", NAMES_32) "{%32, %33, %34, %35}, %36, %37, " B_BY_ROWS
                 : REGISTERS_32("+f", d, 0)
                 : A_IN_REGISTERS(a, b, ADDED_TO));
}

template <bool ADDED_TO>
INLINE void multiply_skinny(float (&d)[36], const u32 (&a)[4], u64 b) {
    asm volatile(MULTIPLY_ROWS("72", NAMES_32 ", %32, %33, %34, %35") "{%36, %37, %38, %39}, %40, %41, " B_BY_ROWS
                 : REGISTERS_32("+f", d, 0), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35])
                 : A_IN_REGISTERS(a, b, ADDED_TO));
}

template <bool ADDED_TO>
INLINE void multiply_skinny(float (&d)[48], const u32 (&a)[4], u64 b) {
    asm volatile(MULTIPLY_ROWS("96", NAMES_48) "{%48, %49, %50, %51}, %52, %53, " B_BY_ROWS
                 : REGISTERS_48("+f", d)
                 : A_IN_REGISTERS(a, b, ADDED_TO));
}

template <bool ADDED_TO>
INLINE void multiply_skinny(float (&d)[64], const u32 (&a)[4], u64 b) {
    asm volatile(MULTIPLY_ROWS("128", NAMES_64) "{%64, %65, %66, %67}, %68, %69, " B_BY_ROWS
                 : REGISTERS_64("+f", d)
                 : A_IN_REGISTERS(a, b, ADDED_TO));
}

template <bool ADDED_TO>
INLINE void multiply_skinny(float (&d)[68], const u32 (&a)[4], u64 b) {
    asm volatile(MULTIPLY_ROWS("136", NAMES_64 ", %64, %65, %66, %67") "{%68, %69, %70, %71}, %72, %73, " B_BY_ROWS
                 : REGISTERS_64("+f", d), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67])
                 : A_IN_REGISTERS(a, b, ADDED_TO));
}

template <bool ADDED_TO>
INLINE void multiply_skinny(float (&d)[128], const u32 (&a)[4], u64 b) {
    asm volatile(MULTIPLY_ROWS("256", NAMES_128) "{%128, %129, %130, %131}, %132, %133, " B_BY_ROWS
                 : REGISTERS_128("+f", d)
                 : A_IN_REGISTERS(a, b, ADDED_TO));
}

// ---- Products by a warp

// d += a @ b: [16, 8] from [16, 16] @ [16, 8], all in registers. A thread holds elements of d in row lane / 4 and columns 2 * (lane % 4) and
// the next, then of row + 8; of a the same and with columns + 8; of b with rows and columns exchanged.
INLINE void multiply_add_warp(float (&d)[4], const u32 (&a)[4], u32 b_low, u32 b_high) {
    if (HALF) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
    } else {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b_low), "r"(b_high));
    }
}

// Four matrices of 8 x 8 elements of 2 bytes, of which a thread gets row lane / 4 and columns 2 * (lane % 4) and the next. `address`: in shared
// memory, of row lane % 8 of matrix lane / 8.
INLINE void load_matrices(u32 (&x)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}

// As `load_matrices`, but transposed: a thread gets rows 2 * (lane % 4) and the next of column lane / 4.
INLINE void load_matrices_transposed(u32 (&x)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}

// The inverse of `load_matrices`.
INLINE void store_matrices(u32 address, const u32 (&x)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3])
                 : "memory");
}

// Transposes a matrix of 8 x 8 elements of 2 bytes, of which a thread holds row lane / 4 and columns 2 * (lane % 4) and the next.
INLINE u32 transposed(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// Of the thread of this warp whose lane differs by `bits`.
INLINE float from_lane_xor(float x, u32 bits) { return __shfl_xor_sync(~0u, x, bits); }

INLINE u32 from_lane_xor(u32 x, u32 bits) { return __shfl_xor_sync(~0u, x, bits); }

INLINE u32 from_lane(u32 x, u32 lane) { return __shfl_sync(~0u, x, lane); }

INLINE bool any_of_warp(bool x) { return __any_sync(~0u, x); }

// Adds one to a number in shared memory. Returns what it was.
INLINE u32 count_up(u32& number) { return atomicAdd(&number, 1); }

// ---- Numbers

INLINE float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// x / y within 2 units in the last place; 0 where |y| exceeds 2^126. Correctly rounded division takes about ten instructions.
INLINE float quotient(float x, float y) { return __fdividef(x, y); }

// 1 / sqrt(x), within 2 units in the last place.
INLINE float inverse_root(float x) {
    float y;
    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

INLINE float log2_of(float x) {
    float y;
    asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Packs two elements of 2 bytes, the first in the low half.
INLINE u32 pack_fp16(float first, float second) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %2, %1;" : "=r"(y) : "f"(first), "f"(second));
    return y;
}

INLINE u32 pack_bf16(float first, float second) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %2, %1;" : "=r"(y) : "f"(first), "f"(second));
    return y;
}

INLINE u32 pack(float first, float second) { return HALF ? pack_fp16(first, second) : pack_bf16(first, second); }

INLINE u32 pack_out(float first, float second) { return OUT_HALF ? pack_fp16(first, second) : pack_bf16(first, second); }

INLINE float2 unpack_fp16(u32 x) {
    float2 y;
    asm("{\n .reg .b16 low, high;\n mov.b32 {low, high}, %2;\n cvt.f32.f16 %0, low;\n cvt.f32.f16 %1, high;\n}"
        : "=f"(y.x), "=f"(y.y)
        : "r"(x));
    return y;
}

INLINE float2 unpack_out(u32 x) {
    if (!OUT_HALF) return make_float2(__int_as_float(x << 16), __int_as_float(x & 0xFFFF0000));
    return unpack_fp16(x);
}

// Converts two bf16 to fp16.
INLINE u32 half_of(u32 x) { return pack_fp16(__int_as_float(x << 16), __int_as_float(x & 0xFFFF0000)); }

// Converts four E4M3 codes to fp16, which is exact.
INLINE void unpack_fp8(u32& low, u32& high, u32 codes) {
    asm("{\n .reg .b16 low, high;\n mov.b32 {low, high}, %2;\n cvt.rn.f16x2.e4m3x2 %0, low;\n cvt.rn.f16x2.e4m3x2 %1, high;\n}"
        : "=r"(low), "=r"(high)
        : "r"(codes));
}

// Packs four values as E4M3 codes, the first lowest; values beyond 448 become 448.
INLINE u32 pack_fp8(float a, float b, float c, float d) {
    u32 y;
    asm("{\n .reg .b16 low, high;\n cvt.rn.satfinite.e4m3x2.f32 low, %2, %1;\n cvt.rn.satfinite.e4m3x2.f32 high, %4, %3;\n"
        " mov.b32 %0, {low, high};\n}"
        : "=r"(y)
        : "f"(a), "f"(b), "f"(c), "f"(d));
    return y;
}

// (x & mask) | with, one instruction.
INLINE u32 masked(u32 x, u32 mask, u32 with) {
    u32 y;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "r"(mask), "r"(with));
    return y;
}

// (x & mask) ^ with.
INLINE u32 masked_xor(u32 x, u32 mask, u32 with) {
    u32 y;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(y) : "r"(x), "r"(mask), "r"(with));
    return y;
}

// Of two elements of 2 bytes.
INLINE u32 subtract(u32 a, u32 b) {
    u32 y;
    if (HALF) {
        asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    } else {
        asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    }
    return y;
}

INLINE u32 multiplied(u32 a, u32 b) {
    u32 y;
    if (HALF) {
        asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    } else {
        asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
    }
    return y;
}

// a * b + c, rounded once.
INLINE u32 multiplied_and_added(u32 a, u32 b, u32 c) {
    u32 y;
    if (HALF) {
        asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    } else {
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
    }
    return y;
}

// Four bytes of a (0 to 3) and b (4 to 7), chosen by the digits of SELECTOR from the lowest on.
template <int SELECTOR>
INLINE u32 chosen_bytes(u32 a, u32 b) {
    u32 y;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "n"(SELECTOR));
    return y;
}
