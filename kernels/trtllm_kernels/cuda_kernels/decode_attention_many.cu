// Paged attention of one query per sequence on Hopper, for many short sequences: persistent, so that no page waits for a block to begin.
//
// With many sequences of few keys, a block per (sequence, KV head) spends a fifth of its time before its first page arrives: lengths, the
// slot, page numbers and the page are four trips to memory, one after the other. Here a warp has one (sequence, KV head), an item, after the
// other and asks for the next one's pages while it still multiplies the last one's. It takes an item when two pages of the one before are
// left to ask for, reads its length then, and its page numbers a page later.
// A warp has a ring of pages, softmax and sums of its own and never waits for another: it asks for pages by TMA where it has just read one,
// and the results of an item depend on nothing else. Items are dealt to blocks by number, and taken by a block's warps as they come to need
// them; so with long sequences of unequal lengths some SMs end early, and dividing them by `decode_attention.cu` is faster.
//
// A stage of the ring holds STEP tokens: a page, or part of one. It is loaded as one box of keys and one of values for each 128 bytes of a
// row; the last stage of a sequence, as boxes of END rows. So there are few copies, and few bytes past the end are read. Past the end, keys
// are arbitrary and values are set to zero.
//
// ROTATES: as in `decode_attention.cu`. Pages are asked for before the kernel before has ended but for those with this step's row, unless
// this kernel writes it.
#define BY_BOXES
#include "decode_attention.cuh"

constexpr int END = 8, PANELS = ROW_BYTES / 128;
constexpr int TILES = 2 * HKV;           // of a page: keys, then values, of each KV head
constexpr int OF_PAGE = PAGE / STEP;     // stages per page
constexpr int KNOWN = 32 * OF_PAGE;      // stages whose page numbers a warp holds
static_assert(ROW_BYTES % 128 == 0, "a box has rows of 128 bytes");

struct Asked {
    int item, step, row, length;  // the item, which of its steps, the cache row where that step's keys begin, and the sequence's tokens
};
struct Shared {
    char pages[WARPS][STAGES][2][TILE];  // keys, values
    float scales[CODES == INT8_CODES ? WARPS : 1][CODES == INT8_CODES ? STAGES : 1][2][STEP];
    Asked asked[WARPS][STAGES];
    u64 loaded[WARPS][STAGES];
    u32 taken;  // items of this block
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "SHARED_BYTES is what a launch asks for");

extern __shared__ __align__(1024) char memory[];

INLINE int steps_of(int length) { return max(1, (length + STEP - 1) / STEP); }

// Where a warp's next tokens are.
struct Cursor {
    Shared& shared;
    const TensorMap &whole, &ends;
    const float* scales;
    const int *table, *slots, *kv_lens;
    int table_stride, num_items;
    u64 policy;
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

    // Of 32 pages of a sequence from `first` on.
    INLINE u32 look_up(int of_slot, int of_length, int first) const {
        int at = first + (int)(threadIdx.x % 32);
        return at * OF_PAGE < steps_of(of_length) ? table[(long long)of_slot * table_stride + at] : 0;
    }

    INLINE void look_up_next() {
        if (next_item < num_items) next_numbers = look_up(next_slot, next_length, 0);
    }

    INLINE void begin_next() {
        item = next_item, length = next_length, slot = next_slot, numbers = next_numbers, step = 0;
        if (item < num_items) later = look_up(slot, length, 32);
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
        int warp = threadIdx.x / 32, number = (int)from_lane(numbers, step / OF_PAGE % 32), left = length - step * STEP;
        if (!ROTATES && !waited && left <= STEP) wait_for_previous(), waited = true;
        if (threadIdx.x % 32 == 0) {
            bool all = left > STEP - END;
            int rows = all ? STEP : (left + END - 1) / END * END, tokens = min(STEP, (left + 3) / 4 * 4);
            int row = (number * TILES + item % HKV) * PAGE + step % OF_PAGE * STEP;
            shared.asked[warp][stage] = {item, step, row, length};
            u64& loaded = shared.loaded[warp][stage];
            arrive_expecting(loaded, 2 * (rows * ROW_BYTES + (CODES == INT8_CODES ? 4 * tokens : 0)));
#pragma unroll
            for (int i = 0; i < 2; i++) {
                int first = row + i * (HKV * PAGE);
#pragma unroll
                for (int panel = 0; panel < PANELS; panel++) {
                    char* to = shared.pages[warp][stage][i] + panel * (STEP * 128);
                    int column = panel * (128 / ELEMENT);
                    if (all) {
                        load_box(to, whole, first, column, loaded, policy);
                    } else {
#pragma unroll 1
                        for (int end = 0; end < rows; end += END) {
                            load_box(to + end * 128, ends, first + end, column, loaded, policy);
                        }
                    }
                }
                if (CODES == INT8_CODES && tokens > 0) {
                    load_bytes(shared.scales[warp][stage][i], scales + first, 4 * tokens, loaded, policy);
                }
            }
        }
        if (++step == steps_of(length)) {
            begin_next();
        } else if (step % KNOWN == 0) {
            numbers = later, later = look_up(slot, length, step / OF_PAGE + 32);
        }
        if (item < num_items) look_ahead();
        return true;
    }
};

// Writes this step's key and value into the cache. `row`: the cache's row for the key.
INLINE void write_row(char* cache, float* scales, int row, const Row& key, const Row& value) {
    char *keys = cache + (long long)row * ROW_BYTES, *values = keys + HKV * PAGE * ROW_BYTES;
    key.store([&](int chunk) { return keys + 16 * chunk; });
    value.store([&](int chunk) { return values + 16 * chunk; });
    if (CODES == INT8_CODES && threadIdx.x % 32 == 0) scales[row] = key.scale, scales[row + HKV * PAGE] = value.scale;
}

// Stores OF_LANE results of a head.
INLINE void store(char* out, const float* y, float over) {
    u32 words[OF_LANE / 2];
    constexpr int COUNT = QUANTIZE ? OF_LANE / 4 : OF_LANE / 2;
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
#if QUANTIZE
        words[i] = pack_fp8(y[4 * i] * over, y[4 * i + 1] * over, y[4 * i + 2] * over, y[4 * i + 3] * over);
#else
        words[i] = pack_out(y[2 * i], y[2 * i + 1]);
#endif
    }
    if (COUNT == 2) {
        *(uint2*)out = make_uint2(words[0], words[1]);
    } else {
#pragma unroll
        for (int i = 0; i + 3 < COUNT; i += 4) *(uint4*)(out + 4 * i) = make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
    }
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, BLOCKS)
    decode_attention_many(const __grid_constant__ TensorMap whole, int, int, long long, long long, const __grid_constant__ TensorMap ends, int, int,
                          long long, long long, const char* qkv, char* cache, const int* table, const int* slots, const int* kv_lens, const float* k_scale, const float* v_scale, const float* out_scale,
                          const float* cos_sin, char* out, float scale_log2, int table_stride, int num_items) {
    let_next_start();
    Shared& shared = *(Shared*)memory;
    int warp = from_lane(threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    if (lane == 0) {
        if (warp == 0) prefetch(whole), prefetch(ends), shared.taken = WARPS;
#pragma unroll
        for (int i = 0; i < STAGES; i++) barrier_init(shared.loaded[warp][i], 1);
        barriers_are_made();
    }
    Cursor cursor = {shared, whole, ends, k_scale, table, slots, kv_lens, table_stride, num_items, evict_first(), false};
    cursor.take(warp);
    cursor.look_up_next();
    cursor.begin_next();
    __syncthreads();
    if (cursor.item < num_items) cursor.look_ahead();
    int asked = 0;
#pragma unroll 1
    for (int i = 0; i < STAGES; i++) asked += cursor.ask(i);
    float of_keys = 1.0f, of_values = 1.0f, over = 1.0f;
    if (CODES == FP8_CODES) {
        float scale = load_constant(k_scale);
        scale_log2 *= scale, of_keys = 1.0f / scale;
        of_values = load_constant(v_scale);
    }
    if (QUANTIZE) over = 1.0f / load_constant(out_scale);
    wait_for_previous();
    cursor.waited = true;

    Queries q;
    Row key, value;
    float highest[2], total[2], sums[COLUMNS][4];
    int stage = 0;
    u32 parity = 0;
#pragma unroll 1
    for (int done = 0; done < asked; done++) {
        wait(shared.loaded[warp][stage], parity);
        Asked here = shared.asked[warp][stage];
        char *keys = shared.pages[warp][stage][0], *values = shared.pages[warp][stage][1];
        float(&scales)[2][STEP] = shared.scales[CODES == INT8_CODES ? warp : 0][CODES == INT8_CODES ? stage : 0];
        long long seq = here.item / HKV;
        int kv_head = here.item % HKV, left = here.length - here.step * STEP;
        const char* projected = qkv + 2 * seq * (G + 2) * HKV * D;
        if (here.step == 0) {
            q.load(projected + 2 * kv_head * G * D);
            if (ROTATES) {
                const float* row = cos_sin + max(0, here.length - 1) * ROTARY;
                Angles angles;
                angles.load(row);
                OwnAngles own_angles;
                own_angles.load(row);
                code_own(key, value, projected, kv_head, own_angles, of_keys, of_values);
                angles.rotate(q);
            }
            q.convert();
#pragma unroll
            for (int i = 0; i < 2; i++) highest[i] = NONE, total[i] = 0.0f;
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] = 0.0f;
            }
        }
        if (left < STEP) {  // values of tokens that do not exist
            for (int i = left * CHUNKS + lane; i < STEP * CHUNKS; i += 32) {
                *(uint4*)(values + place(i / CHUNKS, i % CHUNKS)) = make_uint4(0, 0, 0, 0);
            }
        }
        if (ROTATES && left > 0 && left <= STEP) {
            int last = left - 1;
            key.store([&](int chunk) { return keys + place(last, chunk); });
            value.store([&](int chunk) { return values + place(last, chunk); });
            if (CODES == INT8_CODES && lane == 0) scales[0][last] = key.scale, scales[1][last] = value.scale;
            write_row(cache, (float*)k_scale, here.row + last, key, value);
        }
        if (left <= STEP) {
            publish_to_async();  // before the stage is loaded again
            __syncwarp();
        }
        float x[TOKENS][4], most[2] = {highest[0], highest[1]};
        int token = dealt(lane / 4);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            score(x[t], keys, t, q);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int at = 16 * t + token + i / 2 * 8;
                x[t][i] *= scale_log2;
                if (CODES == INT8_CODES) x[t][i] *= scales[0][at];
                if (at >= left) x[t][i] = __int_as_float(0xFF800000);
                most[i % 2] = fmaxf(most[i % 2], x[t][i]);
            }
        }
#pragma unroll
        for (int i = 0; i < 2; i++) most[i] = largest_of_column(most[i]);
        if (any_of_warp(most[0] > highest[0] || most[1] > highest[1])) {
            float shrink[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                shrink[i] = exp2_of(highest[i] - most[i]);
                total[i] *= shrink[i];
                highest[i] = most[i];
            }
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] *= shrink[j % 2];
            }
        }
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float p[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                p[i] = exp2_of(x[t][i] - highest[i % 2]);
                total[i % 2] += p[i];
                int at = 16 * t + token + i / 2 * 8;
                if (CODES == INT8_CODES && at < left) p[i] *= scales[1][at];
            }
            add_values(sums, values, t, transposed(pack(p[0], p[1])), transposed(pack(p[2], p[3])));
        }
        __syncwarp();
        asked += cursor.ask(stage);
        if (++stage == STAGES) stage = 0, parity ^= 1;
        if (left > STEP) continue;
        constexpr int BYTES = QUANTIZE ? 1 : 2;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float sum = sum_of_column(total[i]), factor = sum > 0.0f ? of_values / sum : of_values;
            int head = lane % 4 * 2 + i;
            char* to = out + ((seq * HKV + kv_head) * G + head) * D * BYTES;
#pragma unroll
            for (int unit = 0; unit < UNITS; unit++) {
                float y[OF_LANE];
#pragma unroll
                for (int j = 0; j < OF_LANE; j++) y[j] = sums[unit * (OF_LANE / 2) + j / 2][i + j % 2 * 2] * factor;
                if (head < G) store(to + BYTES * OF_LANE * (dealt(lane / 4) + 8 * unit), y, over);
            }
        }
    }
}
