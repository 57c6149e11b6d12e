// Paged attention of one query per sequence on Hopper, for long sequences: persistent, with an equal share of keys and values for each SM.
//
// Blocks of a fixed part of a sequence (`decode_attention.cu`) fill the SMs unevenly: their number is seldom a multiple of what fits, SMs get
// different numbers of them, and one sequence of many may be longer than the others. Here SHARES blocks divide the line of all steps
// (`decode_shares.cuh`), so all end together, whatever the lengths.
// A warp has consecutive steps. It stores the results of items that are all its own. Of the others, one at either end of its steps, it has a
// piece. In the end a block's pieces of one item become one, and what a block does not hold all of is merged by the kernel after it
// (`decode_attention_merge.cu`): an item has a piece in each of several blocks, and no block waits for another.
//
// ROTATES: as in `decode_attention_many.cu`; the warp that has a sequence's last step writes this step's row.
#include "decode_ring.cuh"
#include "decode_shares.cuh"

struct Shared {
    Rings rings;
    Piece heads[WARPS];  // of the item that began before the warp's first step. That of its last one takes the place of the warp's ring
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "SHARED_BYTES is what a launch asks for");
static_assert(sizeof(Piece) <= sizeof(Rings::pages) / WARPS, "a piece takes the place of a warp's ring");

extern __shared__ __align__(1024) char memory[];

// Where a warp's next tokens are.
struct Cursor {
    Loader loader;
    const int *slots, *kv_lens;
    int num_items;
    bool waited;                           // for the kernel before
    int left;                              // steps to ask for
    int item, length, step, slot;          // what to ask for next
    u32 numbers, later;                    // of the 32 pages around it, and of the 32 after those, one in each lane
    int next_item, next_length, next_slot;
    u32 next_numbers;

    INLINE void begin(int of_item, int of_step) {
        item = next_item = of_item, step = of_step;
        length = kv_lens[item / HKV], slot = slots[item / HKV];
        int first = step / KNOWN * 32;
        numbers = loader.look_up(slot, length, first), later = loader.look_up(slot, length, first + 32);
        look_ahead();
    }

    // What follows can be known in time: the next item two steps ahead, its page numbers one ahead.
    INLINE void look_ahead() {
        int of_item = steps_of(length) - step;
        if (of_item <= 2 && next_item == item && ++next_item < num_items) {
            next_length = kv_lens[next_item / HKV], next_slot = slots[next_item / HKV];
        }
        if (of_item == 1 && next_item < num_items) next_numbers = loader.look_up(next_slot, next_length, 0);
    }

    // Starts to load a step's tokens and moves on to the next, if any are left.
    INLINE void ask(int stage) {
        if (left == 0) return;
        left--;
        int number = (int)from_lane(numbers, step / OF_PAGE % 32);
        if (!ROTATES && !waited && length - step * STEP <= STEP) wait_for_previous(), waited = true;
        loader.load(stage, item, step, length, number);
        if (++step == steps_of(length)) {
            if (left == 0) return;
            item = next_item, length = next_length, slot = next_slot, numbers = next_numbers, step = 0;
            later = loader.look_up(slot, length, 32);
        } else if (step % KNOWN == 0) {
            numbers = later, later = loader.look_up(slot, length, step / OF_PAGE + 32);
        }
        look_ahead();
    }
};

INLINE void write(Piece& piece, const Sums& from) {
    int lane = threadIdx.x % 32, pair = lane % 4;
    if (pair < PAIRS) {
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
            piece.sums[i][lane / 4 * PAIRS + pair] = make_float4(from.sums[i][0], from.sums[i][1], from.sums[i][2], from.sums[i][3]);
        }
    }
    if (lane < PAIRS) piece.stats[lane] = make_float4(from.highest[0], from.highest[1], from.total[0], from.total[1]);
}

INLINE void add(Sums& to, const Piece& piece) {
    int lane = threadIdx.x % 32, pair = lane % 4;
    if (pair >= PAIRS) return;
    float4 stats = piece.stats[pair];
    float most[2] = {fmaxf(to.highest[0], stats.x), fmaxf(to.highest[1], stats.y)};
    to.raise(most);
    float weight[2] = {exp2_of(stats.x - most[0]), exp2_of(stats.y - most[1])};
    to.total[0] += stats.z * weight[0], to.total[1] += stats.w * weight[1];
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
        float4 four = piece.sums[i][lane / 4 * PAIRS + pair];
        to.sums[i][0] += four.x * weight[0], to.sums[i][1] += four.y * weight[1];
        to.sums[i][2] += four.z * weight[0], to.sums[i][3] += four.w * weight[1];
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
    decode_attention_even(const __grid_constant__ TensorMap whole, int, int, long long, long long, const __grid_constant__ TensorMap ends, int, int,
                          long long, long long, const char* qkv, char* cache, const int* table, const int* slots, const int* kv_lens, const float* k_scale, const float* v_scale, const float* out_scale,
                          const float* cos_sin, char* out, char* pieces, float scale_log2, int table_stride, int num_seqs) {
    let_next_start();
    Shared& shared = *(Shared*)memory;
    Rings& rings = shared.rings;
    int warp = from_lane(threadIdx.x / 32, 0);
    rings.begin(whole, ends);
    Shares shares = {kv_lens, num_seqs};
    shares.count();
    int block_first = shares.first_of_block(blockIdx.x), block_end = shares.first_of_block(blockIdx.x + 1);
    auto first_of_warp = [&](int index) { return block_first + first_of_part(block_end - block_first, WARPS, index); };
    int first = first_of_warp(warp), count = first_of_warp(warp + 1) - first;
    Cursor cursor = {{rings, whole, ends, k_scale, table, table_stride, evict_first()}, slots, kv_lens, HKV * num_seqs, false, count};
    __syncthreads();
    if (count > 0) {
        Extent extent = shares.at(first);
        cursor.begin(extent.item, first - extent.first);
    }
#pragma unroll 1
    for (int i = 0; i < STAGES; i++) cursor.ask(i);
    Factors factors(scale_log2, k_scale, v_scale, out_scale);
    wait_for_previous();
    cursor.waited = true;

    constexpr int OUT_BYTES = HKV * G * D * (QUANTIZE ? 1 : 2);  // of a sequence
    Piece& tail = *(Piece*)rings.pages[warp];
    Extent begun = {0, 0, 0}, ended = {0, 0, 0};  // items that have a piece in `heads`, and in `tail`
    Own own;
    Sums sums;
    int stage = 0;
    u32 parity = 0;
#pragma unroll 1
    for (int done = 0; done < count; done++) {
        wait(rings.loaded[warp][stage], parity);
        Asked here = rings.asked[warp][stage];
        char *keys = rings.pages[warp][stage][0], *values = rings.pages[warp][stage][1];
        float(&scales)[2][STEP] = rings.scales_of(warp, stage);
        long long seq = here.item / HKV;
        int kv_head = here.item % HKV, left = here.length - here.step * STEP, later = steps_of(here.length) - here.step;
        if (done == 0 || here.step == 0) {
            own.load(qkv + 2 * seq * (G + 2) * HKV * D, kv_head, cos_sin, here.length, later <= count - done, factors.of_keys, factors.of_values);
            sums.clear();
        }
        if (left <= STEP) own.complete(keys, values, scales, left, here.row, cache, (float*)k_scale);
        sums.add(keys, values, scales, left, own.q, factors.of_scores);
        __syncwarp();
        cursor.ask(stage);
        if (++stage == STAGES) stage = 0, parity ^= 1;
        if (later > 1 && done < count - 1) continue;
        sums.finish();
        Extent extent = {here.item, first + done - here.step, first + done + later};
        if (here.step > done) {
            begun = extent;
            write(shared.heads[warp], sums);
        } else if (later > 1) {
            ended = extent;
            write(tail, sums);
        } else {
            sums.store_results(out + seq * OUT_BYTES, kv_head, factors.of_values, factors.over);
        }
    }
    __syncthreads();
    // The first warp of the block that has a piece of an item adds the others' to it.
#pragma unroll
    for (int i = 0; i < 2; i++) {
        Extent extent = i == 0 ? begun : ended;
        if (extent.end == 0 || (i == 0 && warp > 0)) continue;
        sums.clear();
        add(sums, i == 0 ? shared.heads[0] : tail);
#pragma unroll 1
        for (int other = warp + 1; other < WARPS && first_of_warp(other) < min(extent.end, block_end); other++) add(sums, shared.heads[other]);
        if (extent.first >= block_first && extent.end <= block_end) {
            sums.store_results(out + (long long)(extent.item / HKV) * OUT_BYTES, extent.item % HKV, factors.of_values, factors.over);
        } else {
            write(((Piece*)pieces)[2 * blockIdx.x + (extent.first >= block_first)], sums);
        }
    }
}
