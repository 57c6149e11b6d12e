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
// lies anywhere in the last two. CODES: values, and unless FP8 keys, pass through shared memory as fp8. LOADERS, LOADERS_OF_KEYS: arrivals
// that make a block of values or keys full.
//
// FP8: all operands are E4M3, probabilities too. A tensor core keeps some 14 bits of a sum of such products, too few for thousands of keys
// (at 20,000 an eighth of the last rows' sums was lost), so products of a block's values are summed apart, and the sums of blocks are added
// in fp32, in place of the multiplication by `shrink` that 16 bits have. Probabilities are summed as they were rounded, so that weights add
// up to 1: by the same products, which is more exact and takes fewer instructions than sums before rounding. The scores of a block take
// half as long as its softmax, so values are multiplied beside their own warpgroup's softmax as well.
#pragma once
#include "hopper.cuh"
#include "tiles.cuh"

constexpr int BYTES = FP8 ? 1 : 2;  // of an operand
constexpr int ROW_BYTES = D * BYTES < 128 ? D * BYTES : 128, PANELS = D * BYTES / ROW_BYTES, STAGES = FP8 ? 4 : 2, SLOTS = 2;
constexpr int PANEL_BYTES = TILE * ROW_BYTES, TILE_BYTES = PANELS * PANEL_BYTES;
constexpr int THREADS = 128 * 3, CONSUMER_WARPS = 8;
// Registers of a thread that loads and of one that computes: together what a launch gives, 168 for each of 384 threads.
constexpr int LOADING = CODES && !FP8 ? 72 : 56, COMPUTING = (3 * 168 - LOADING) / 2;
static_assert(LOADING % 8 == 0 && COMPUTING % 8 == 0, "registers are moved in multiples of eight");
// Bytes behind a tile of values, and registers of a thread's results: in fp8 the values have one more column, of ones, and seven of zeros,
// which sums the probabilities as they were rounded.
constexpr int ONES_BYTES = FP8 ? 8 * TILE : 0, RESULTS = FP8 ? D / 2 + 4 : D / 2;
// Registers of a thread's probabilities. In fp8 they are multiplied by 2 to the power of SHIFT, as its smallest number is 2^-9.
constexpr int WORDS = TILE * BYTES / 8;
constexpr float SHIFT = 8.0f;
// A register of an fp8 operand holds four neighbours of a row, where scores have two and two more 8 columns on. So either the keys of 16
// are interleaved where they are loaded, and values are not, or the other way round.
constexpr bool INTERLEAVED = FP8 && !PAST;
constexpr int TURN = 1, OWN = 3, CODES_READ = 5;  // numbers of barriers among warps; the first two are one per warpgroup

struct Shared {
    char queries[SLOTS][TILE_BYTES];
    char keys[STAGES][TILE_BYTES];
    char values[STAGES][TILE_BYTES + ONES_BYTES];
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
        barrier_init(shared.keys_full[i], LOADERS_OF_KEYS);
        barrier_init(shared.keys_empty[i], CONSUMER_WARPS);
        barrier_init(shared.values_full[i], LOADERS);
        barrier_init(shared.values_empty[i], CONSUMER_WARPS);
    }
    barriers_are_made();
}

INLINE void load_tile(char* to, const TensorMap& matrix, int row, int column, u64& full) {
    arrive_expecting(full, TILE_BYTES);
#pragma unroll
    for (int panel = 0; panel < PANELS; panel++) load_box(to + panel * PANEL_BYTES, matrix, row, column + ROW_BYTES / BYTES * panel, full);
}

// Called by one thread: waits for room for a tile's queries and loads them, or announces that there are no more tiles.
INLINE void announce(Shared& shared, const TensorMap& queries, const Tile& tile, u32 count) {
    u32 slot = count % SLOTS;
    wait(shared.queries_empty[slot], (count / SLOTS + 1) % 2);
    shared.tiles[slot] = tile;
    if (tile.blocks == 0) {
        arrive(shared.queries_full[slot]);
    } else {
        load_tile(shared.queries[slot], queries, tile.row, tile.head * D, shared.queries_full[slot]);
    }
}

// scores = queries @ keys.T; issued, not awaited
INLINE void begin_scores(float (&scores)[64], u64 queries, u64 keys) {
#pragma unroll
    for (int k = 0; k < D * BYTES / 32; k++) {
        int at = (k / 4 * PANEL_BYTES + k % 4 * 32) / 16;
        multiply(scores, queries + at, keys + at, k > 0);
    }
    wgmma_commit();
}

// acc += probabilities @ values, or = with FP8; issued, not awaited
INLINE void begin_values(float (&acc)[RESULTS], const u32 (&probabilities)[WORDS], u64 values) {
#if FP8
    multiply_skinny<false>(acc, *(const u32(*)[4])probabilities, values);
#pragma unroll
    for (int k = 1; k < TILE / 32; k++) multiply_skinny<true>(acc, *(const u32(*)[4])(probabilities + 4 * k), values + 32 / 16 * k);
#else
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) multiply_add(acc, probabilities + 4 * k, values + 2048 / 16 * k);
#endif
    wgmma_commit();
}

// Which key of a block a score belongs to: that of a thread's first column plus this.
INLINE constexpr int key_of(int score) { return (INTERLEAVED ? score / 8 * 16 + score / 4 % 2 * 2 : score / 4 * 8) + score % 2; }

// Masks the scores of keys that a row does not see: those after its own position in the block.
INLINE void hide(float (&s)[64], int row, int column) {
#pragma unroll
    for (int j = 0; j < 64; j++) {
        if (key_of(j) - 8 * (j / 2 % 2) > row - column) s[j] = MINUS_INFINITY;
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
                int key = key_of(j) + column, query = row + 8 * h;
                if (key > query) s[j] = MINUS_INFINITY;
                if (key + 1 > query) s[j + 1] = MINUS_INFINITY;
            }
            most = fmaxf(most, fmaxf(s[j], s[j + 1]));
        }
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
        most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
        shrink[h] = FIRST ? 0.0f : exp2_of((highest[h] - most) * scale_log2);
        highest[h] = most;
        float offset = FP8 ? fmaf(most, scale_log2, -SHIFT) : most * scale_log2, sum = 0.0f;
#pragma unroll
        for (int j = 2 * h; j < 64; j += 4) {
            s[j] = exp2_of(fmaf(s[j], scale_log2, -offset));
            s[j + 1] = exp2_of(fmaf(s[j + 1], scale_log2, -offset));
            if (!FP8) sum += s[j] + s[j + 1];
        }
        if (!FP8) total[h] = FIRST ? sum : total[h] * shrink[h] + sum;
    }
}

INLINE void round_to(u32 (&p)[WORDS], const float (&s)[64]) {
#pragma unroll
    for (int i = 0; i < WORDS; i++) {
#if FP8
        const float* x = s + i / 2 * 8 + i % 2 * 2;
        p[i] = pack_fp8(x[0], x[1], x[4], x[5]);
#else
        p[i] = pack(s[2 * i], s[2 * i + 1]);
#endif
    }
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
INLINE void store_row(char* to, const float (&acc)[RESULTS], int half, float factor, int lane, bool present) {
    constexpr int COUNT = QUANTIZE ? D / 16 : D / 8;
    u32 words[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const float* x = acc + (QUANTIZE ? 8 * i : 4 * i) + 2 * half;
#if QUANTIZE
        words[i] = pack_fp8(x[0] * factor, x[1] * factor, x[4] * factor, x[5] * factor);
#else
        words[i] = pack_out(x[0] * factor, x[1] * factor);
#endif
    }
#pragma unroll
    for (int i = 0; i < COUNT; i += 4) {
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
INLINE void store(char* out, const float (&acc)[RESULTS], const float (&total)[2], Tile tile, float factor, int row) {
    constexpr int HEAD = D * (QUANTIZE ? 1 : 2), ROW = HKV * G * HEAD;  // bytes
    char* at = out + (long long)(tile.row + row) * ROW + tile.head * HEAD;
#pragma unroll
    for (int h = 0; h < 2; h++) {
#if FP8
        float own = threadIdx.x % 4 ? 0.0f : acc[D / 2 + 2 * h];
#else
        float own = total[h];
#endif
        float sum = own + __shfl_xor_sync(~0u, own, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        store_row(at + 8 * h * ROW, acc, h, __fdividef(factor, sum), threadIdx.x % 32, row + 8 * h < tile.rows);
    }
}

template <typename T, int N>
INLINE void zero(T (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = 0;
}

// Of word `word` of the values of 16 tokens, the bytes of the first `tokens`.
INLINE u32 bytes_of(int tokens, int word) {
    auto first = [](int count) { return (1u << 8 * min(max(count, 0), 2)) - 1; };
    int low = tokens - (INTERLEAVED ? 4 : 2) * word, high = low - (INTERLEAVED ? 2 : 8);
    return first(low) | first(high) << 16;
}

// Zeroes values of tokens from `from` on. Called by a whole warpgroup; all its later wgmma see it.
INLINE void zero_values(char* tile, int from, u32 number) {
    int thread = threadIdx.x % 128;
#if FP8  // a token is a column, of whose rows each thread has a half or the whole
    constexpr int EACH = 8 * D / 128;
    int row = thread * EACH / 8, first = thread * EACH % 8;
    for (int piece = max(first, from / 16); piece < first + EACH; piece++) {
        uint4* at = (uint4*)(tile + row * 128 + (piece ^ row % 8) * 16);
        uint4 x = *at;
        int kept = from - 16 * piece;
        x.x &= bytes_of(kept, 0), x.y &= bytes_of(kept, 1), x.z &= bytes_of(kept, 2), x.w &= bytes_of(kept, 3);
        *at = x;
    }
#else
    for (int chunk = from * 8 + thread; chunk < TILE * 8; chunk += 128) {
#pragma unroll
        for (int panel = 0; panel < PANELS; panel++) *(uint4*)(tile + panel * PANEL_BYTES + chunk * 16) = make_uint4(0, 0, 0, 0);
    }
#endif
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
    int lane = threadIdx.x % 32, row = 64 * who + 16 * (threadIdx.x / 32 % 4) + lane / 4, column = (INTERLEAVED ? 4 : 2) * (lane % 4);
    auto release = [&](u64& empty) {  // each warp reads on its own, so each reports when it is done
        if (lane == 0) arrive(empty);
    };
    auto keys = [&](u32 step) { return by_rows<ROW_BYTES>(shared_address(shared.keys[step % STAGES])); };
#if FP8
    auto values = [&](u32 step) { return by_rows(shared_address(shared.values[step % STAGES])); };
#else
    auto values = [&](u32 step) { return by_columns(shared_address(shared.values[step % STAGES]), PANEL_BYTES); };
#endif
    auto queries = [&](u32 slot) { return by_rows<ROW_BYTES>(shared_address(shared.queries[slot]) + who * 64 * ROW_BYTES); };
    if (who == 1) signal_warps(TURN, 256);

    float scores[64], acc[RESULTS], highest[2], total[2], shrink[2];
    u32 probabilities[WORDS];
    float of_block[RESULTS], last_shrink[2];
    float(&sums)[RESULTS] = FP8 ? of_block : acc;
    auto add_up = [&] {
#pragma unroll
        for (int i = 0; i < RESULTS; i++) acc[i] = fmaf(acc[i], last_shrink[i / 2 % 2], of_block[i]);
        last_shrink[0] = shrink[0], last_shrink[1] = shrink[1];
    };
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
        zero(of_block);
        zero(last_shrink);
        if ((FP8 || LOADERS == 1) && tile.keys() < TILE) {
            wait(shared.values_full[step % STAGES], step / STAGES % 2);
            zero_values(shared.values[step % STAGES], tile.keys(), OWN + who);
        }
        for (int block = 1; block < tile.blocks; block++) {
            step++;
            u32 now = step % STAGES, last = (step - 1) % STAGES;
            wait(shared.keys_full[now], step / STAGES % 2);
            sync_warps(TURN + who, 256);
            hold(probabilities);
            hold(sums);
            wgmma_begin();
            begin_scores(scores, queries(slot), keys(step));
            if (FP8) add_up();
            wait(shared.values_full[last], (step - 1) / STAGES % 2);
            begin_values(sums, probabilities, values(step - 1));
            signal_warps(TURN + 1 - who, 256);
            wait_for_wgmma<1>();
            hold(scores);
            if (!FP8) release(shared.keys_empty[now]);
            if (PAST && block == 1 && diagonal < 0) hide(scores, row + diagonal + TILE, column);
            soften<false>(scores, highest, total, shrink, scale_log2, row, column);
            if (FP8) {  // always, but the assembler has to compute probabilities first, and so does not move the wait before them
                float some = 0.0f;
#pragma unroll
                for (int i = 2; i < 64; i += 8) some += scores[i];
                if (!(some > 1e30f)) release(shared.keys_empty[now]);
            }
            wait_for_wgmma<0>();
            hold(sums);
            hold(probabilities);
            release(shared.values_empty[last]);
            if (!FP8) {
#pragma unroll
                for (int i = 0; i < D / 2; i++) acc[i] *= shrink[i / 2 % 2];
            }
            round_to(probabilities, scores);
        }
        release(shared.queries_empty[slot]);
        if (FP8) add_up();
        wait(shared.values_full[step % STAGES], step / STAGES % 2);
        hold(probabilities);
        hold(sums);
        wgmma_begin();
        begin_values(sums, probabilities, values(step));
        wait_for_wgmma<0>();
        hold(sums);
        hold(probabilities);
        release(shared.values_empty[step % STAGES]);
        if (FP8) add_up();
        store(out, acc, total, tile, out_factor, row);
    }
    if (who == 0) sync_warps(TURN, 256);  // consumes the other's last signal
}

// A block from beginning to end: some warps run `load`, the others compute. `of_..`: scales, 1 where there are none.
template <typename Load>
INLINE void run(Shared& shared, const TensorMap& queries, char* out, float scale_log2, float of_keys, float of_values, float of_out,
                Load load) {
    if (threadIdx.x == 0) {
        prefetch(queries);
        make_barriers(shared);
    }
#if FP8
    for (int i = threadIdx.x; i < STAGES * ONES_BYTES / 4; i += THREADS) {
        int word = i % (ONES_BYTES / 4);
        *(u32*)(shared.values[i / (ONES_BYTES / 4)] + TILE_BYTES + 4 * word) = word < TILE / 4 ? 0x38383838 : 0;
    }
    publish_to_async();
#endif
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
