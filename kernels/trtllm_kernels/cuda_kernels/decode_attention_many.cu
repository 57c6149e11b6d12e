// Paged attention of one query per sequence on Hopper, for many short sequences: persistent, so that no page waits for a block to begin.
//
// With many sequences of few keys, a block per (sequence, KV head) spends a fifth of its time before its first page arrives: lengths, the
// slot, page numbers and the page are four trips to memory, one after the other. Here a warp has one (sequence, KV head), an item, after the
// other and asks for the next one's pages while it still multiplies the last one's. It takes an item when two pages of the one before are
// left to ask for, reads its length then, and its page numbers a page later.
// The results of an item depend on nothing else. Items are dealt to blocks by number, and taken by a block's warps as they come to need
// them; so with long sequences of unequal lengths some SMs end early, and dividing them by `decode_attention_even.cu` is faster.
//
// ROTATES: as in `decode_attention.cu`. Pages are asked for before the kernel before has ended but for those with this step's row, unless
// this kernel writes it.
#include "decode_ring.cuh"

struct Shared {
    Rings rings;
    u32 taken;  // items of this block
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "SHARED_BYTES is what a launch asks for");

extern __shared__ __align__(1024) char memory[];

// Where a warp's next tokens are.
struct Cursor {
    Shared& shared;
    Loader loader;
    const int *slots, *kv_lens;
    int num_items;
    bool waited;                           // for the kernel before
    int item, length, step, slot;          // what to ask for next
    u32 numbers, later;                    // of the 32 pages around it, and of the 32 after those, one in each lane
    int next_item, next_length, next_slot;
    u32 next_numbers;

    INLINE void take(int index) {
        next_item = index * (int)gridDim.x + (int)blockIdx.x;
        if (next_item < num_items) next_length = kv_lens[next_item / HKV], next_slot = slots[next_item / HKV];
    }

    INLINE void take_next() {
        u32 index = 0;
        if (threadIdx.x % 32 == 0) index = count_up(shared.taken);
        take((int)from_lane(index, 0));
    }

    INLINE void look_up_next() {
        if (next_item < num_items) next_numbers = loader.look_up(next_slot, next_length, 0);
    }

    INLINE void begin_next() {
        item = next_item, length = next_length, slot = next_slot, numbers = next_numbers, step = 0;
        if (item < num_items) later = loader.look_up(slot, length, 32);
    }

    // What follows can be known in time: the next item two stages ahead, its page numbers one ahead.
    INLINE void look_ahead() {
        int left = steps_of(length) - step;
        if (left == 2 || (left == 1 && step == 0)) take_next();
        if (left == 1) look_up_next();
    }

    // Starts to load a stage's tokens and moves on to the next. Returns whether any were left.
    INLINE bool ask(int stage) {
        if (item >= num_items) return false;
        int number = (int)from_lane(numbers, step / OF_PAGE % 32);
        if (!ROTATES && !waited && length - step * STEP <= STEP) wait_for_previous(), waited = true;
        loader.load(stage, item, step, length, number);
        if (++step == steps_of(length)) {
            begin_next();
        } else if (step % KNOWN == 0) {
            numbers = later, later = loader.look_up(slot, length, step / OF_PAGE + 32);
        }
        if (item < num_items) look_ahead();
        return true;
    }
};

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
    decode_attention_many(const __grid_constant__ TensorMap whole, int, int, long long, long long, const __grid_constant__ TensorMap ends, int, int,
                          long long, long long, const char* qkv, char* cache, const int* table, const int* slots, const int* kv_lens, const float* k_scale, const float* v_scale, const float* out_scale,
                          const float* cos_sin, char* out, float scale_log2, int table_stride, int num_items) {
    let_next_start();
    Shared& shared = *(Shared*)memory;
    Rings& rings = shared.rings;
    int warp = from_lane(threadIdx.x / 32, 0);
    if (threadIdx.x == 0) shared.taken = WARPS;
    rings.begin(whole, ends);
    Cursor cursor = {shared, {rings, whole, ends, k_scale, table, table_stride, evict_first()}, slots, kv_lens, num_items, false};
    cursor.take(warp);
    cursor.look_up_next();
    cursor.begin_next();
    __syncthreads();
    if (cursor.item < num_items) cursor.look_ahead();
    int asked = 0;
#pragma unroll 1
    for (int i = 0; i < STAGES; i++) asked += cursor.ask(i);
    Factors factors(scale_log2, k_scale, v_scale, out_scale);
    wait_for_previous();
    cursor.waited = true;

    Own own;
    Sums sums;
    int stage = 0;
    u32 parity = 0;
#pragma unroll 1
    for (int done = 0; done < asked; done++) {
        wait(rings.loaded[warp][stage], parity);
        Asked here = rings.asked[warp][stage];
        char *keys = rings.pages[warp][stage][0], *values = rings.pages[warp][stage][1];
        float(&scales)[2][STEP] = rings.scales_of(warp, stage);
        long long seq = here.item / HKV;
        int kv_head = here.item % HKV, left = here.length - here.step * STEP;
        if (here.step == 0) {
            own.load(qkv + 2 * seq * (G + 2) * HKV * D, kv_head, cos_sin, here.length, true, factors.of_keys, factors.of_values);
            sums.clear();
        }
        if (left <= STEP) own.complete(keys, values, scales, left, here.row, cache, (float*)k_scale);
        sums.add(keys, values, scales, left, own.q, factors.of_scores);
        __syncwarp();
        asked += cursor.ask(stage);
        if (++stage == STAGES) stage = 0, parity ^= 1;
        if (left > STEP) continue;
        sums.finish();
        sums.store_results(out + seq * HKV * G * D * (QUANTIZE ? 1 : 2), kv_head, factors.of_values, factors.over);
    }
}
