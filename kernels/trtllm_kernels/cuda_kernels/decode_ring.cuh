// What the persistent forms of decode attention have in common: a warp's ring of stages, and what it does with one.
//
// A warp has a ring, softmax and sums of its own and never waits for another: it asks for tokens by TMA where it has just read some. A stage
// of the ring holds STEP tokens: a page, or part of one. It is loaded as one box of keys and one of values for each 128 bytes of a row; the
// last stage of a sequence, as boxes of END rows. So there are few copies, and few bytes past the end are read. Past the end, keys are
// arbitrary and values are set to zero.
#pragma once
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
struct Rings {
    char pages[WARPS][STAGES][2][TILE];  // keys, values
    float scales[CODES == INT8_CODES ? WARPS : 1][CODES == INT8_CODES ? STAGES : 1][2][STEP];
    Asked asked[WARPS][STAGES];
    u64 loaded[WARPS][STAGES];

    // Called by each warp. Barriers are made for all when the block has met after it.
    INLINE void begin(const TensorMap& whole, const TensorMap& ends) {
        int warp = threadIdx.x / 32;
        if (threadIdx.x % 32 == 0) {
            if (warp == 0) prefetch(whole), prefetch(ends);
#pragma unroll
            for (int i = 0; i < STAGES; i++) barrier_init(loaded[warp][i], 1);
            barriers_are_made();
        }
    }

    // Of a stage: scales of keys, then of values.
    INLINE float (&scales_of(int warp, int stage))[2][STEP] {
        return scales[CODES == INT8_CODES ? warp : 0][CODES == INT8_CODES ? stage : 0];
    }
};

// Where the cache is, and how a stage's tokens are loaded.
struct Loader {
    Rings& rings;
    const TensorMap &whole, &ends;
    const float* scales;
    const int* table;
    int table_stride;
    u64 policy;

    // Page numbers of 32 pages of a sequence from `first` on, one in each lane.
    INLINE u32 look_up(int slot, int length, int first) const {
        int at = first + (int)(threadIdx.x % 32);
        return at * OF_PAGE < steps_of(length) ? table[(long long)slot * table_stride + at] : 0;
    }

    // Starts to load a step of an item, (sequence, KV head). `number`: of the page.
    INLINE void load(int stage, int item, int step, int length, int number) const {
        if (threadIdx.x % 32) return;
        int warp = threadIdx.x / 32, left = length - step * STEP;
        bool all = left > STEP - END;
        int rows = all ? STEP : (left + END - 1) / END * END, tokens = min(STEP, (left + 3) / 4 * 4);
        int row = (number * TILES + item % HKV) * PAGE + step % OF_PAGE * STEP;
        rings.asked[warp][stage] = {item, step, row, length};
        u64& loaded = rings.loaded[warp][stage];
        arrive_expecting(loaded, 2 * (rows * ROW_BYTES + (CODES == INT8_CODES ? 4 * tokens : 0)));
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int first = row + i * (HKV * PAGE);
#pragma unroll
            for (int panel = 0; panel < PANELS; panel++) {
                char* to = rings.pages[warp][stage][i] + panel * (STEP * 128);
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
                load_bytes(rings.scales_of(warp, stage)[i], scales + first, 4 * tokens, loaded, policy);
            }
        }
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

// Maxima of scores, sums of weights, and of weighted values, of an item's tokens so far. A lane has those of heads 2 * (lane % 4) and the next;
// sums of weights are of some of the tokens, until `finish`.
struct Sums {
    float highest[2], total[2], sums[COLUMNS][4];

    INLINE void clear() {
#pragma unroll
        for (int i = 0; i < 2; i++) highest[i] = NONE, total[i] = 0.0f;
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] = 0.0f;
        }
    }

    // Prepares for scores up to `most`.
    INLINE void raise(const float (&most)[2]) {
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

    // Adds a stage, of which `left` tokens exist.
    INLINE void add(const char* keys, const char* values, const float (&scales)[2][STEP], int left, const Queries& q, float scale_log2) {
        float x[TOKENS][4], most[2] = {highest[0], highest[1]};
        int token = dealt(threadIdx.x % 32 / 4);
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
        if (any_of_warp(most[0] > highest[0] || most[1] > highest[1])) raise(most);
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
    }

    INLINE void finish() {
#pragma unroll
        for (int i = 0; i < 2; i++) total[i] = sum_of_column(total[i]);
    }

    // Stores an item's results. `out`: the sequence's row.
    INLINE void store_results(char* out, int kv_head, float of_values, float over) const {
        constexpr int BYTES = QUANTIZE ? 1 : 2;
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float factor = total[i] > 0.0f ? of_values / total[i] : of_values;
            int head = lane % 4 * 2 + i;
            char* to = out + (kv_head * G + head) * D * BYTES;
#pragma unroll
            for (int unit = 0; unit < UNITS; unit++) {
                float y[OF_LANE];
#pragma unroll
                for (int j = 0; j < OF_LANE; j++) y[j] = sums[unit * (OF_LANE / 2) + j / 2][i + j % 2 * 2] * factor;
                if (head < G) store(to + BYTES * OF_LANE * (dealt(lane / 4) + 8 * unit), y, over);
            }
        }
    }
};

// What a warp needs of an item besides its pages: queries and, where it is ROTATES that writes them, this step's key and value.
struct Own {
    Queries q;
    Row key, value;

    // `last`: whether this warp has the item's last page. `projected`: the sequence's row of queries, keys and values.
    INLINE void load(const char* projected, int kv_head, const float* cos_sin, int length, bool last, float of_keys, float of_values) {
        q.load(projected + 2 * kv_head * G * D);
        if (ROTATES) {
            const float* row = cos_sin + max(0, length - 1) * ROTARY;
            Angles angles;
            angles.load(row);
            if (last) {
                OwnAngles own_angles;
                own_angles.load(row);
                code_own(key, value, projected, kv_head, own_angles, of_keys, of_values);
            }
            angles.rotate(q);
        }
        q.convert();
    }

    // Completes an item's last stage, in which `left` tokens exist: this step's row, which it writes to the cache too, and values of tokens
    // that do not exist. The stage may be loaded again after it.
    INLINE void complete(char* keys, char* values, float (&scales)[2][STEP], int left, int row, char* cache, float* of_cache) const {
        int lane = threadIdx.x % 32;
        if (left < STEP) {
            for (int i = left * CHUNKS + lane; i < STEP * CHUNKS; i += 32) {
                *(uint4*)(values + place(i / CHUNKS, i % CHUNKS)) = make_uint4(0, 0, 0, 0);
            }
        }
        if (ROTATES && left > 0) {
            int last = left - 1;
            key.store([&](int chunk) { return keys + place(last, chunk); });
            value.store([&](int chunk) { return values + place(last, chunk); });
            if (CODES == INT8_CODES && lane == 0) scales[0][last] = key.scale, scales[1][last] = value.scale;
            write_row(cache, of_cache, row + last, key, value);
        }
        publish_to_async();
        __syncwarp();
    }
};
