// The computation of prefill attention on Hopper, common to `uncached_prefill_attention.cu` and `context_attention.cu`, which differ in
// what they load.
//
// After FlashAttention-3 (Shah et al. 2024). One block per SM: one warpgroup loads, and two compute 64 queries each of a tile of 128
// queries by 128 keys. A warpgroup issues the scores of the next keys before it waits for the values of these, and the two take turns at
// issuing wgmma, so that the softmax of each overlaps with the multiplications of the other. Probabilities stay in the registers they are
// computed in and are an operand of the second multiplication. Blocks are persistent and walk tiles (`tiles.cuh`): loads of the next tile,
// and stores of the last one, overlap with the computation.
//
// Tried on an H100 and slower: two blocks of a cluster that share loads of keys and values (multicast), which wait for each other longer
// than they would for L2; the first scores of a tile issued together with the last values of the tile before, in separate code for each
// warpgroup (half of whose diagonal is empty); keeping the wait for values behind the softmax, where the assembler moves it up; no turns.
//
// D is 64 or 128. Operands are bf16, or fp16 (HALF); results are fp8 if QUANTIZE, else bf16, or fp16 (OUT_HALF). Blocks of keys come from
// the last one that a tile's queries see down to the first. Without PAST, a tile's last block is its own tokens; with PAST, the diagonal
// lies anywhere in the last two. CODES: keys and values pass through shared memory as fp8. LOADERS: arrivals that make a block of them
// full.
#pragma once
#include "hopper.cuh"
#include "tiles.cuh"

constexpr int PANELS = D / 64, STAGES = 2, SLOTS = 2;
constexpr int PANEL_BYTES = TILE * 128, TILE_BYTES = PANELS * PANEL_BYTES;
constexpr int THREADS = 128 * 3, CONSUMER_WARPS = 8;
// Registers of a thread that loads and of one that computes: together what a launch gives, 168 for each of 384 threads.
constexpr int LOADING = CODES ? 72 : 56, COMPUTING = (3 * 168 - LOADING) / 2;
static_assert(LOADING % 8 == 0 && COMPUTING % 8 == 0, "registers are moved in multiples of eight");
constexpr int TURN = 1, OWN = 3, CODES_READ = 5;  // numbers of barriers among warps; the first two are one per warpgroup

struct Shared {
    char queries[SLOTS][TILE_BYTES];
    char keys[STAGES][TILE_BYTES];
    char values[STAGES][TILE_BYTES];
#if CODES
    char codes[SLOTS][TILE * D];
    u64 codes_full[SLOTS];
#endif
    Tile tiles[SLOTS];
    u64 queries_full[SLOTS], queries_empty[SLOTS];
    u64 keys_full[STAGES], keys_empty[STAGES];
    u64 values_full[STAGES], values_empty[STAGES];
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "SHARED_BYTES is what a launch asks for");

#define MINUS_INFINITY __int_as_float(0xFF800000)

extern __shared__ __align__(1024) char memory[];

// Called by one thread, before all others use them.
INLINE void make_barriers(Shared& shared) {
#pragma unroll
    for (int i = 0; i < SLOTS; i++) {
        barrier_init(shared.queries_full[i], 1);
        barrier_init(shared.queries_empty[i], CONSUMER_WARPS);
#if CODES
        barrier_init(shared.codes_full[i], 1);
#endif
    }
#pragma unroll
    for (int i = 0; i < STAGES; i++) {
        barrier_init(shared.keys_full[i], LOADERS);
        barrier_init(shared.keys_empty[i], CONSUMER_WARPS);
        barrier_init(shared.values_full[i], LOADERS);
        barrier_init(shared.values_empty[i], CONSUMER_WARPS);
    }
    barriers_are_made();
}

INLINE void load_tile(char* to, const TensorMap& qkv, int row, int column, u64& full) {
    arrive_expecting(full, TILE_BYTES);
#pragma unroll
    for (int panel = 0; panel < PANELS; panel++) load_box(to + panel * PANEL_BYTES, qkv, row, column + 64 * panel, full);
}

// Called by one thread: waits for room for a tile's queries and loads them, or announces that there are no more tiles.
INLINE void announce(Shared& shared, const TensorMap& qkv, const Tile& tile, u32 count) {
    u32 slot = count % SLOTS;
    wait(shared.queries_empty[slot], (count / SLOTS + 1) % 2);
    shared.tiles[slot] = tile;
    if (tile.blocks == 0) {
        arrive(shared.queries_full[slot]);
    } else {
        load_tile(shared.queries[slot], qkv, tile.row, tile.head * D, shared.queries_full[slot]);
    }
}

// scores = queries @ keys.T; issued, not awaited
INLINE void begin_scores(float (&scores)[64], u64 queries, u64 keys) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        int at = (k / 4 * PANEL_BYTES + k % 4 * 32) / 16;
        multiply(scores, queries + at, keys + at, k > 0);
    }
    wgmma_commit();
}

// acc += probabilities @ values; issued, not awaited
INLINE void begin_values(float (&acc)[D / 2], const u32 (&probabilities)[32], u64 values) {
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) multiply_add(acc, probabilities + 4 * k, values + 2048 / 16 * k);
    wgmma_commit();
}

// Masks the scores of keys that a row does not see: those after its own position in the block.
INLINE void hide(float (&s)[64], int row, int column) {
#pragma unroll
    for (int j = 0; j < 64; j++) {
        int key = 2 * (j - j % 4) + column + j % 2, query = row + 8 * (j / 2 % 2);
        if (key > query) s[j] = MINUS_INFINITY;
    }
}

// Turns scores into probabilities relative to the running maximum (Milakov and Gimelshein 2018), for a thread's two rows. `shrink` is the
// factor for what was summed before. FIRST: the block in which the diagonal ends. With PAST a row may see none of its keys, so the maximum
// begins finite.
template <bool FIRST>
INLINE void soften(float (&s)[64], float (&highest)[2], float (&total)[2], float (&shrink)[2], float scale_log2, int row, int column) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float most = !FIRST ? highest[h] : PAST ? -1e30f : MINUS_INFINITY;
#pragma unroll
        for (int j = 2 * h; j < 64; j += 4) {
            if (FIRST) {
                int key = 2 * (j - 2 * h) + column, query = row + 8 * h;
                if (key > query) s[j] = MINUS_INFINITY;
                if (key + 1 > query) s[j + 1] = MINUS_INFINITY;
            }
            most = fmaxf(most, fmaxf(s[j], s[j + 1]));
        }
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        shrink[h] = FIRST ? 0.0f : exp2_of((highest[h] - most) * scale_log2);
        highest[h] = most;
        float offset = most * scale_log2, sum = 0.0f;
#pragma unroll
        for (int j = 2 * h; j < 64; j += 4) {
            s[j] = exp2_of(fmaf(s[j], scale_log2, -offset));
            s[j + 1] = exp2_of(fmaf(s[j + 1], scale_log2, -offset));
            sum += s[j] + s[j + 1];
        }
        total[h] = FIRST ? sum : total[h] * shrink[h] + sum;
    }
}

INLINE void round_to(u32 (&p)[32], const float (&s)[64]) {
#pragma unroll
    for (int i = 0; i < 32; i++) p[i] = pack(s[2 * i], s[2 * i + 1]);
}

// Transposes among four neighbouring lanes: lane i's x[k] becomes lane k's x[i].
INLINE void transpose(u32 (&x)[4], int lane) {
#pragma unroll
    for (int by = 1; by <= 2; by *= 2) {
        bool high = lane & by;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (k & by) continue;
            u32 got = __shfl_xor_sync(~0u, high ? x[k] : x[k + by], by);
            if (high) {
                x[k] = got;
            } else {
                x[k + by] = got;
            }
        }
    }
}

// Four lanes hold the columns of a row. Each stores 16 bytes at a time, and the four store 64 adjacent bytes.
INLINE void store_row(char* to, const float (&acc)[D / 2], int half, float factor, int lane, bool present) {
    constexpr int WORDS = QUANTIZE ? D / 16 : D / 8;
    u32 words[WORDS];
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
        const float* x = acc + (QUANTIZE ? 8 * i : 4 * i) + 2 * half;
#if QUANTIZE
        words[i] = pack_fp8(x[0] * factor, x[1] * factor, x[4] * factor, x[5] * factor);
#else
        words[i] = pack_out(x[0] * factor, x[1] * factor);
#endif
    }
#pragma unroll
    for (int i = 0; i < WORDS; i += 4) {
        u32 x[4] = {words[i], words[i + 1], words[i + 2], words[i + 3]};
        transpose(x, lane);
        uint4 y;
#if QUANTIZE  // a word holds two groups of columns
        y.x = __byte_perm(x[0], x[1], 0x5410), y.y = __byte_perm(x[2], x[3], 0x5410);
        y.z = __byte_perm(x[0], x[1], 0x7632), y.w = __byte_perm(x[2], x[3], 0x7632);
#else
        y = make_uint4(x[0], x[1], x[2], x[3]);
#endif
        if (present) *(uint4*)(to + 16 * i + 16 * (lane % 4)) = y;
    }
}

// Stores a warpgroup's part of a tile, divided by the totals.
INLINE void store(char* out, const float (&acc)[D / 2], const float (&total)[2], Tile tile, float factor, int row) {
    constexpr int BYTES = QUANTIZE ? 1 : 2, ROW_BYTES = HKV * G * D * BYTES;
    char* at = out + (long long)(tile.row + row) * ROW_BYTES + tile.head * D * BYTES;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = total[h] + __shfl_xor_sync(~0u, total[h], 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        store_row(at + 8 * h * ROW_BYTES, acc, h, __fdividef(factor, sum), threadIdx.x % 32, row + 8 * h < tile.rows);
    }
}

template <typename T, int N>
INLINE void zero(T (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = 0;
}

// Zeroes rows from `from` on. Called by a whole warpgroup; all its later wgmma see it.
INLINE void zero_rows(char* tile, int from, u32 number) {
    int thread = threadIdx.x % 128;
    for (int chunk = from * 8 + thread; chunk < TILE * 8; chunk += 128) {
#pragma unroll
        for (int panel = 0; panel < PANELS; panel++) *(uint4*)(tile + panel * PANEL_BYTES + chunk * 16) = make_uint4(0, 0, 0, 0);
    }
    publish_to_async();
    sync_warps(number, 128);
}

#if HALF != OUT_HALF
// Converts bf16 queries to fp16, which holds cached codes exactly. Each warpgroup converts its own 64 rows.
INLINE void to_half(char* rows, u32 number) {
#pragma unroll
    for (int panel = 0; panel < PANELS; panel++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            uint4* at = (uint4*)(rows + panel * PANEL_BYTES) + 128 * i + threadIdx.x % 128;
            uint4 x = *at;
            *at = make_uint4(half_of(x.x), half_of(x.y), half_of(x.z), half_of(x.w));
        }
    }
    publish_to_async();
    sync_warps(number, 128);
}
#endif

// Warpgroup `who` computes queries 64 * who to 64 * who + 63 of each tile.
INLINE void consume(Shared& shared, char* out, float scale_log2, float out_factor, int who) {
    int lane = threadIdx.x % 32, row = 64 * who + 16 * (threadIdx.x / 32 % 4) + lane / 4, column = 2 * (lane % 4);
    auto release = [&](u64& empty) {  // each warp reads on its own, so each reports when it is done
        if (lane == 0) arrive(empty);
    };
    auto keys = [&](u32 step) { return by_rows(shared_address(shared.keys[step % STAGES])); };
    auto values = [&](u32 step) { return by_columns(shared_address(shared.values[step % STAGES]), PANEL_BYTES); };
    auto queries = [&](u32 slot) { return by_rows(shared_address(shared.queries[slot]) + who * 64 * 128); };
    if (who == 1) signal_warps(TURN, 256);

    float scores[64], acc[D / 2], highest[2], total[2], shrink[2];
    u32 probabilities[32];
    for (u32 count = 0, step = 0;; count++, step++) {  // numbers of tiles and of blocks of keys before this one
        u32 slot = count % SLOTS;
        wait(shared.queries_full[slot], count / SLOTS % 2);
        Tile tile = shared.tiles[slot];
        if (tile.blocks == 0) break;
        int diagonal = tile.diagonal();
#if HALF != OUT_HALF
        to_half(shared.queries[slot] + who * 64 * 128, OWN + who);
#endif
        wait(shared.keys_full[step % STAGES], step / STAGES % 2);
        wgmma_begin();
        begin_scores(scores, queries(slot), keys(step));
        wait_for_wgmma<0>();
        hold(scores);
        release(shared.keys_empty[step % STAGES]);
        soften<true>(scores, highest, total, shrink, scale_log2, row + diagonal, column);
        round_to(probabilities, scores);
        zero(acc);
        if (LOADERS == 1 && tile.keys() < TILE) {
            wait(shared.values_full[step % STAGES], step / STAGES % 2);
            zero_rows(shared.values[step % STAGES], tile.keys(), OWN + who);
        }
        for (int block = 1; block < tile.blocks; block++) {
            step++;
            u32 now = step % STAGES, last = (step - 1) % STAGES;
            wait(shared.keys_full[now], step / STAGES % 2);
            sync_warps(TURN + who, 256);
            hold(probabilities);
            hold(acc);
            wgmma_begin();
            begin_scores(scores, queries(slot), keys(step));
            wait(shared.values_full[last], (step - 1) / STAGES % 2);
            begin_values(acc, probabilities, values(step - 1));
            signal_warps(TURN + 1 - who, 256);
            wait_for_wgmma<1>();
            hold(scores);
            release(shared.keys_empty[now]);
            if (PAST && block == 1 && diagonal < 0) hide(scores, row + diagonal + TILE, column);
            soften<false>(scores, highest, total, shrink, scale_log2, row, column);
            wait_for_wgmma<0>();
            hold(acc);
            hold(probabilities);
            release(shared.values_empty[last]);
#pragma unroll
            for (int i = 0; i < D / 2; i++) acc[i] *= shrink[i / 2 % 2];
            round_to(probabilities, scores);
        }
        release(shared.queries_empty[slot]);
        wait(shared.values_full[step % STAGES], step / STAGES % 2);
        hold(probabilities);
        hold(acc);
        wgmma_begin();
        begin_values(acc, probabilities, values(step));
        wait_for_wgmma<0>();
        hold(acc);
        hold(probabilities);
        release(shared.values_empty[step % STAGES]);
        store(out, acc, total, tile, out_factor, row);
    }
    if (who == 0) sync_warps(TURN, 256);  // consumes the other's last signal
}

// A block from beginning to end: some warps run `load`, the others compute. `of_..`: scales, 1 where there are none.
template <typename Load>
INLINE void run(Shared& shared, const TensorMap& qkv, char* out, float scale_log2, float of_keys, float of_values, float of_out,
                Load load) {
    if (threadIdx.x == 0) {
        prefetch(qkv);
        make_barriers(shared);
    }
    wait_for_previous();
    __syncthreads();
    int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
    if (group == 0) {
        give_registers_down_to<LOADING>();
        if (threadIdx.x < 32 * LOADERS) load();
    } else {
        take_registers_up_to<COMPUTING>();
        consume(shared, out, scale_log2 * of_keys, __fdividef(of_values, of_out), group - 1);
    }
}
