// Paged attention of one query per sequence on Hopper, for few sequences, or long ones: `triton_kernels/decode_attention.py`, but with keys
// and values in flight before the query is available, and with a sequence's parts merged where they are computed.
//
// With few sequences a layer's keys and values take a few microseconds to read, so what counts is when they are asked for and how often
// anything waits. All rows but this step's were written by earlier steps. So every warp asks for its first STAGES pages before the kernel
// before has ended, and for the one row that is missing after it.
// A warp has pages, softmax and sums of its own and never waits for another. Pages of one (sequence, KV head) go around the WARPS warps of
// SPLITS blocks, a cluster. In the end each warp sends its sums to the blocks of the cluster, a block's share of the dimensions to each,
// which complete on a barrier there; then each block merges its share.
//
// ROTATES: queries, keys and values come as the projection leaves them. Each warp rotates its queries, and the one that has the last page
// rotates the key, writes this step's row to the cache and needs not read it.
#include "decode_attention.cuh"

constexpr int PORTION = COLUMNS / SPLITS;                 // tiles of 16 result dimensions that a block merges
constexpr int MERGERS = PORTION < WARPS ? PORTION : WARPS, EACH = PORTION / MERGERS;
constexpr int RUN = 2 * (EACH < OF_LANE / 2 ? EACH : OF_LANE / 2);  // consecutive dimensions of a merging thread
constexpr int PARTS = SPLITS * WARPS, AT_ONCE = PARTS < 16 ? PARTS : 16;
static_assert(COLUMNS % SPLITS == 0 && PORTION % MERGERS == 0, "tiles of 16 dimensions are divided among blocks and their warps");

struct Stage {
    char keys[TILE], values[TILE];
    float scales[CODES == INT8_CODES ? 2 : 1][CODES == INT8_CODES ? PAGE : 4];
};
struct Part {
    float4 sums[PORTION][8 * PAIRS], stats[PAIRS];  // of each lane that has heads of the group; of a pair of heads, maxima and totals
};
struct Shared {
    Stage stages[WARPS][STAGES];
    Part parts[SPLITS > 1 ? PARTS : 1];
    u64 all_received;
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "SHARED_BYTES is what a launch asks for");
static_assert(SPLITS > 1 || sizeof(Part) <= STAGES * sizeof(Stage), "an unsplit block's parts take the place of pages");

extern __shared__ __align__(1024) char memory[];

// Where the pages of one (sequence, KV head) are, and how they get into shared memory.
struct Pages {
    const char* cache;    // at the KV head
    const float* scales;  // at the KV head
    const int* table;
    int length, count, first;  // tokens, pages, and the first page of this warp, which has every PARTS-th
    u32 numbers;               // of the next 32 pages of this warp, one in each lane

    INLINE void look_up(int round) {
        int page = first + (round + (int)(threadIdx.x % 32)) * PARTS;
        numbers = page < count ? table[page] : 0;
    }

    // A row of keys or values: a lane's 16 bytes of it.
    INLINE void copy(char* to, const char* from, int token, int chunk, u32 bytes) const {
        copy_16(to + place(token, chunk), from + token * ROW_BYTES + 16 * chunk, bytes);
    }

    // Asks for this warp's page `round`. `all`: with this step's row, if that is in the cache. What is past the end becomes zero.
    INLINE void ask(Stage& stage, int round, bool all) {
        int page = first + round * PARTS, lane = threadIdx.x % 32;
        if (page < count) {
            long long at = from_lane(numbers, round % 32);
            const char* keys = cache + at * (2 * HKV * TILE);
            int left = length - page * PAGE;
#pragma unroll
            for (int i = 0; i < PAGE * CHUNKS; i += 32) {
                int token = (i + lane) / CHUNKS, chunk = (i + lane) % CHUNKS;
                if ((all && !ROTATES) || token != left - 1) {
                    u32 bytes = token < left ? 16 : 0;
                    copy(stage.keys, keys, token, chunk, bytes);
                    copy(stage.values, keys + HKV * TILE, token, chunk, bytes);
                }
            }
            if (CODES == INT8_CODES) {
                for (int token = lane; token < PAGE; token += 32) {
                    if ((all && !ROTATES) || token != left - 1) copy_scales(stage, at, token, token < left ? 4 : 0);
                }
            }
        }
        commit_copies();
    }

    INLINE void copy_scales(Stage& stage, long long at, int token, u32 bytes) const {
        const float* of_keys = scales + at * (2 * HKV * PAGE) + token;
        copy_4(&stage.scales[0][token], of_keys, bytes);
        copy_4(&stage.scales[1][token], of_keys + HKV * PAGE, bytes);
    }

    INLINE bool has_last() const { return first < count && (count - 1 - first) % PARTS == 0; }

    // Asks for this step's row, of a page that is asked for already if this warp has it.
    INLINE void ask_for_last(Stage (&stages)[STAGES]) const {
        int round = (count - 1 - first) / PARTS, token = (length - 1) % PAGE, lane = threadIdx.x % 32;
        bool own = has_last() && round < STAGES;
        long long at = from_lane(numbers, own ? round : 0);
        if (own) {
            const char* keys = cache + at * (2 * HKV * TILE);
            for (int chunk = lane; chunk < 2 * CHUNKS; chunk += 32) {
                bool values = chunk >= CHUNKS;
                copy(values ? stages[round].values : stages[round].keys, values ? keys + HKV * TILE : keys, token, chunk % CHUNKS, 16);
            }
            if (CODES == INT8_CODES && lane == 0) copy_scales(stages[round], at, token, 4);
        }
        commit_copies();
    }
};

// Writes this step's row, on this warp's last page, to the cache.
INLINE void write_last(const Pages& pages, const Row& key, const Row& value) {
    int page = pages.table[pages.count - 1], token = (pages.length - 1) % PAGE;
    char* keys = (char*)pages.cache + (long long)page * (2 * HKV * TILE) + token * ROW_BYTES;
    key.store([&](int chunk) { return keys + 16 * chunk; });
    value.store([&](int chunk) { return keys + HKV * TILE + 16 * chunk; });
    if (CODES == INT8_CODES && threadIdx.x % 32 == 0) {
        float* of_keys = (float*)pages.scales + (long long)page * (2 * HKV * PAGE) + token;
        of_keys[0] = key.scale, of_keys[HKV * PAGE] = value.scale;
    }
}

// Stores RUN results of a head.
INLINE void store(char* out, const float* y, float over) {
#if QUANTIZE
    if (RUN == 2) {
        *(unsigned short*)out = (unsigned short)pack_fp8(y[0] * over, y[1] * over, 0.0f, 0.0f);
    } else {
#pragma unroll
        for (int i = 0; i + 3 < RUN; i += 4) {
            *(u32*)(out + i) = pack_fp8(y[i] * over, y[i + 1] * over, y[i + 2] * over, y[i + 3] * over);
        }
    }
#else
#pragma unroll
    for (int i = 0; i < RUN; i += 2) *(u32*)(out + 2 * i) = pack_out(y[i], y[i + 1]);
#endif
}

extern "C" __global__ void __cluster_dims__(1, SPLITS, 1) __launch_bounds__(32 * WARPS, 1)
    decode_attention(const char* qkv, const char* cache, const int* table, const int* slots, const int* kv_lens, const float* k_scale,
                     const float* v_scale, const float* out_scale, const float* cos_sin, char* out, float scale_log2, int table_stride) {
    let_next_start();
    Shared& shared = *(Shared*)memory;
    int warp = from_lane(threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    int split = blockIdx.y, kv_head = blockIdx.x % HKV, part = warp * SPLITS + split;
    long long seq = blockIdx.x / HKV;
    if (SPLITS > 1) {
        if (threadIdx.x == 0) {
            barrier_init(shared.all_received, 1);
            barriers_are_made();
        }
        __syncthreads();
        cluster_arrive();  // until all have arrived, none may use another's barrier
    }
    Pages pages;
    pages.length = kv_lens[seq];
    pages.table = table + (long long)slots[seq] * table_stride;
    pages.cache = cache + (long long)kv_head * TILE;
    pages.scales = k_scale + (long long)kv_head * PAGE;
    pages.count = (pages.length + PAGE - 1) / PAGE;
    pages.first = part;
    Stage(&stages)[STAGES] = shared.stages[warp];
    pages.look_up(0);
#pragma unroll
    for (int i = 0; i < STAGES; i++) pages.ask(stages[i], i, false);
    Factors factors(scale_log2, k_scale, v_scale, out_scale);
    Angles angles;
    OwnAngles own_angles;
    if (ROTATES) {
        const float* row = cos_sin + max(0, pages.length - 1) * ROTARY;
        angles.load(row);
        own_angles.load(row);
    }
    if (SPLITS > 1) cluster_wait();
    wait_for_previous();
    int live = min(PARTS, pages.count);
    if (SPLITS > 1 && threadIdx.x == 0) arrive_expecting(shared.all_received, live * sizeof(Part));
    const char* projected = qkv + 2 * seq * (G + 2) * HKV * D;
    Queries q;
    Row key, value;
    if (ROTATES) {
        q.load(projected + 2 * kv_head * G * D);
        if (pages.has_last()) {
            code_own(key, value, projected, kv_head, own_angles, factors.of_keys, factors.of_values);
            write_last(pages, key, value);
        }
        angles.rotate(q);
    } else {
        pages.ask_for_last(stages);
        q.load(projected + 2 * kv_head * G * D);
    }
    q.convert();

    float highest[2] = {NONE, NONE}, total[2] = {0.0f, 0.0f}, sums[COLUMNS][4];
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) sums[i][j] = 0.0f;
    }
    int stage = 0;
    for (int round = 0; part + round * PARTS < pages.count; round++) {
        int page = part + round * PARTS;
        if (page == pages.count - 1) {
            wait_for_copies<0>();
        } else if (!ROTATES && round < STAGES) {  // the last row's group comes after those of the first pages
            wait_for_copies<STAGES>();
        } else {
            wait_for_copies<STAGES - 1>();
        }
        Stage& here = stages[stage];
        if (ROTATES && page == pages.count - 1) {
            int last = (pages.length - 1) % PAGE;
            key.store([&](int chunk) { return here.keys + place(last, chunk); });
            value.store([&](int chunk) { return here.values + place(last, chunk); });
            if (CODES == INT8_CODES && lane == 0) here.scales[0][last] = key.scale, here.scales[1][last] = value.scale;
        }
        __syncwarp();
        float x[TOKENS][4], most[2] = {highest[0], highest[1]};
        int token = dealt(lane / 4);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            score(x[t], here.keys, t, q);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int at = 16 * t + token + i / 2 * 8;
                x[t][i] *= factors.of_scores;
                if (CODES == INT8_CODES) x[t][i] *= here.scales[0][at];
                if (page * PAGE + at >= pages.length) x[t][i] = __int_as_float(0xFF800000);
                most[i % 2] = fmaxf(most[i % 2], x[t][i]);
            }
        }
        float shrink[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            most[i] = largest_of_column(most[i]);
            shrink[i] = exp2_of(highest[i] - most[i]);
            total[i] *= shrink[i];
            highest[i] = most[i];
        }
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] *= shrink[j % 2];
        }
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            float p[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                p[i] = exp2_of(x[t][i] - highest[i % 2]);
                total[i % 2] += p[i];
                if (CODES == INT8_CODES) p[i] *= here.scales[1][16 * t + token + i / 2 * 8];
            }
            add_values(sums, here.values, t, transposed(pack(p[0], p[1])), transposed(pack(p[2], p[3])));
        }
        __syncwarp();
        int next = round + STAGES;
        if (next % 32 == 0) pages.look_up(next);
        pages.ask(here, next, true);
        if (++stage == STAGES) stage = 0;
    }
    int pair = lane % 4, of_part = lane / 4 * PAIRS + pair;
    bool has_heads = pair < PAIRS;
    if (part < live) {
        float4 stats = make_float4(highest[0], highest[1], sum_of_column(total[0]), sum_of_column(total[1]));
        if (SPLITS == 1) {
            Part& own = *(Part*)stages;
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) {
                if (has_heads) own.sums[i][of_part] = make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
            }
            if (lane < PAIRS) own.stats[lane] = stats;
        } else {
            Part& there = shared.parts[part];
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) {
                float4 four = make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]);
                if (has_heads) send(&there.sums[i % PORTION][of_part], four, shared.all_received, i / PORTION);
            }
            if (lane < PAIRS) {
#pragma unroll
                for (int i = 0; i < SPLITS; i++) send(&there.stats[lane], stats, shared.all_received, i);
            }
        }
    }
    if (SPLITS == 1) __syncthreads();
    if (warp >= MERGERS || !has_heads) return;
    if (SPLITS > 1) wait(shared.all_received, 0);
    auto of = [&](int i) -> const Part& { return SPLITS == 1 ? *(const Part*)shared.stages[i] : shared.parts[i]; };
    int tile = warp * EACH;
    highest[0] = highest[1] = NONE;
#pragma unroll 1
    for (int first = 0; first < live; first += AT_ONCE) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (first + i < live) {
                float4 stats = of(first + i).stats[pair];
                highest[0] = fmaxf(highest[0], stats.x), highest[1] = fmaxf(highest[1], stats.y);
            }
        }
    }
    float y[2][2 * EACH] = {};
    total[0] = total[1] = 0.0f;
#pragma unroll 1
    for (int first = 0; first < live; first += AT_ONCE) {
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (first + i < live) {
                const Part& from = of(first + i);
                float4 stats = from.stats[pair];
                float weight[2] = {exp2_of(stats.x - highest[0]), exp2_of(stats.y - highest[1])};
                total[0] += stats.z * weight[0], total[1] += stats.w * weight[1];
#pragma unroll
                for (int j = 0; j < EACH; j++) {
                    float4 each = from.sums[tile + j][of_part];
                    y[0][2 * j] += each.x * weight[0], y[1][2 * j] += each.y * weight[1];
                    y[0][2 * j + 1] += each.z * weight[0], y[1][2 * j + 1] += each.w * weight[1];
                }
            }
        }
    }
    tile += split * PORTION;
    constexpr int BYTES = QUANTIZE ? 1 : 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int head = 2 * pair + i;
        float factor = total[i] > 0.0f ? factors.of_values / total[i] : factors.of_values;
#pragma unroll
        for (int j = 0; j < 2 * EACH; j++) y[i][j] *= factor;
        char* to = out + ((seq * HKV + kv_head) * G + head) * D * BYTES;
#pragma unroll
        for (int j = 0; j < 2 * EACH; j += RUN) {
            int at = tile + j / 2, dimension = OF_LANE * (dealt(lane / 4) + at / (OF_LANE / 2) * 8) + at % (OF_LANE / 2) * 2;
            if (head < G) store(to + BYTES * dimension, &y[i][j], factors.over);
        }
    }
}
