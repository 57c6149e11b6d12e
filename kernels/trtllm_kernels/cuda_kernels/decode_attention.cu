// Paged attention of one query per sequence on Hopper, for few sequences: `triton_kernels/decode_attention.py`, but with keys and values in
// flight before the query is available, and with a sequence's parts merged where they are computed.
//
// With few sequences a layer's keys and values take a few microseconds to read, so what counts is when they are asked for and how often
// anything waits. All rows but this step's were written by earlier steps. So every warp asks for its first STAGES pages before the kernel
// before has ended, and for the one row that is missing after it.
// A warp has pages, softmax and sums of its own and never waits for another. Pages of one (sequence, KV head) go around the WARPS warps of
// SPLITS blocks, a cluster. In the end each warp sends its sums to the blocks of the cluster, a block's share of the dimensions to each,
// which complete on a barrier there; then each block merges its share.
//
// Keys are rows of the left operand, and the group's heads, padded to 8, are columns of the right one: scores are [tokens, heads], results
// [dimensions, heads]. Which column of a product is which dimension, and which row which token, is free as long as both operands agree. So a
// thread reads 16 bytes at a time, in whose order the query is loaded. Values of four tokens are transposed on the way from shared memory by
// byte permutes. A row's 16-byte chunks are swizzled by the token, and rows and chunks are dealt to lanes (`dealt`) such that reads of both
// kinds hit every bank once.
//
// ROTATES: queries, keys and values come as the projection leaves them. Each warp rotates its queries, and the one that has the last page
// rotates the key, writes this step's row to the cache and needs not read it.
#include "hopper.cuh"

#define NO_CODES 0
#define FP8_CODES 1   // one scale for keys, one for values
#define INT8_CODES 2  // a scale for each row

constexpr int ELEMENT = CODES ? 1 : 2, ROW_BYTES = D * ELEMENT, CHUNKS = ROW_BYTES / 16, OF_CHUNK = 16 / ELEMENT;
constexpr int TILE = PAGE * ROW_BYTES;  // bytes of a page's keys, or values
constexpr int OF_LANE = OF_CHUNK < D / 8 ? OF_CHUNK : D / 8, UNITS = D / 8 / OF_LANE;  // consecutive dimensions of a thread's values
constexpr int TOKENS = PAGE / 16, COLUMNS = D / 16;      // steps of a product over a page's tokens, and over dimensions
constexpr int OWN = COLUMNS / SPLITS;                     // of the results' tiles of 16 dimensions, those of a block
constexpr int MERGERS = OWN < WARPS ? OWN : WARPS, EACH = OWN / MERGERS;
constexpr int RUN = 2 * (EACH < OF_LANE / 2 ? EACH : OF_LANE / 2);  // consecutive dimensions of a merging thread
constexpr int PAIRS = (G + 1) / 2, PARTS = SPLITS * WARPS, AT_ONCE = PARTS < 16 ? PARTS : 16;
constexpr float NONE = -1e30f;
static_assert(COLUMNS % SPLITS == 0 && OWN % MERGERS == 0, "tiles of 16 dimensions are divided among blocks and their warps");
static_assert(!ROTATES || D == 128, "a lane then has two dimensions of each half of a row");
static_assert(G <= 8 && PAGE % 16 == 0 && D % 64 == 0, "what the tiles hold");

struct Stage {
    char keys[TILE], values[TILE];
    float scales[CODES == INT8_CODES ? 2 : 1][CODES == INT8_CODES ? PAGE : 4];
};
struct Part {
    float4 sums[OWN][8 * PAIRS], stats[PAIRS];  // of each lane that has heads of the group; of a pair of heads, maxima and totals
};
struct Shared {
    Stage stages[WARPS][STAGES];
    Part parts[SPLITS > 1 ? PARTS : 1];
    u64 all_received;
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "SHARED_BYTES is what a launch asks for");
static_assert(SPLITS > 1 || sizeof(Part) <= STAGES * sizeof(Stage), "an unsplit block's parts take the place of pages");

extern __shared__ __align__(1024) char memory[];

// The token of row g of a tile of scores, and the chunk of lanes 4 g to 4 g + 3.
INLINE int dealt(int g) { return g / 2 + g % 2 * 4; }

INLINE int swizzled(int token, int chunk) { return CHUNKS >= 8 ? chunk ^ token % 8 : chunk ^ token / 2 % CHUNKS; }

// Four codes as two pairs of 2-byte numbers.
INLINE void widen(u32& low, u32& high, u32 codes) {
    if (CODES == FP8_CODES) {
        unpack_fp8(low, high, codes);
    } else {  // behind the exponent of 1024 a byte is an integer
        u32 biased = codes ^ 0x80808080;
        low = subtract(chosen_bytes<0x4140>(biased, 0x64646464), 0x64806480);
        high = subtract(chosen_bytes<0x4342>(biased, 0x64646464), 0x64806480);
    }
}

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
        copy_16(to + token * ROW_BYTES + 16 * swizzled(token, chunk), from + token * ROW_BYTES + 16 * chunk, bytes);
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

// The queries of the group's heads as right operands: head lane / 4, the dimensions of chunk lane % 4 and of every fourth after it.
struct Queries {
    u32 words[COLUMNS][2];

    // First of the four dimensions of words[i].
    INLINE static int dimension(int i) { return OF_CHUNK * ((int)threadIdx.x % 4 + i * 4 / OF_CHUNK * 4) + i * 4 % OF_CHUNK; }

    INLINE void load(const char* row) {
        int head = threadIdx.x % 32 / 4;
#pragma unroll
        for (int i = 0; i < COLUMNS; i += 2) {
            uint4 eight = head < G ? *(const uint4*)(row + 2 * (head * D + dimension(i))) : make_uint4(0, 0, 0, 0);
            words[i][0] = eight.x, words[i][1] = eight.y, words[i + 1][0] = eight.z, words[i + 1][1] = eight.w;
        }
    }

    // To the type of products.
    INLINE void convert() {
        if (CODES && !IN_HALF) {
#pragma unroll
            for (int i = 0; i < 2 * COLUMNS; i++) words[i / 2][i % 2] = half_of(words[i / 2][i % 2]);
        }
    }
};

INLINE void rotate(float2& first, float2& second, float2 cosines, float2 sines) {
    float2 x = first, y = second;
    first = make_float2(x.x * cosines.x - y.x * sines.x, x.y * cosines.y - y.y * sines.y);
    second = make_float2(y.x * cosines.x + x.x * sines.x, y.y * cosines.y + x.y * sines.y);
}

// Of the queries' dimensions in the first half of a row. `row`: cosines, then sines, of the position.
struct Angles {
    float2 cosines[COLUMNS], sines[COLUMNS];

    INLINE void load(const float* row) {
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
            int dimension = Queries::dimension(i / 2) + i % 2 * 2;
            cosines[i] = *(const float2*)(row + dimension), sines[i] = *(const float2*)(row + D / 2 + dimension);
        }
    }

    INLINE void rotate(Queries& q) const {
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) {
            u32 &low = q.words[i / 2][i % 2], &high = q.words[i / 2 + COLUMNS / 2][i % 2];
            float2 first = unpack_out(low), second = unpack_out(high);
            ::rotate(first, second, cosines[i], sines[i]);
            low = pack_out(first.x, first.y), high = pack_out(second.x, second.y);
        }
    }
};

// A key, or a value, of this step as the cache holds it: of each lane two dimensions of the row's first half and two of the last.
struct Row {
    u32 first, last;
    float scale;

    // `factor`: inverse of the cache's scale.
    INLINE void code(float2 x, float2 y, float factor) {
        if (CODES == NO_CODES) {
            first = pack_out(x.x, x.y), last = pack_out(y.x, y.y);
        } else if (CODES == FP8_CODES) {
            u32 codes = pack_fp8(x.x * factor, x.y * factor, y.x * factor, y.y * factor);
            first = codes & 0xFFFF, last = codes >> 16;
        } else {
            float largest = fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(y.x), fabsf(y.y)));
#pragma unroll
            for (u32 bits = 1; bits < 32; bits *= 2) largest = fmaxf(largest, from_lane_xor(largest, bits));
            scale = fmaxf(largest / 127.0f, 1e-12f);
            first = int8_of(x.x) | int8_of(x.y) << 8, last = int8_of(y.x) | int8_of(y.y) << 8;
        }
    }

    // The sum with 1.5 * 2^23 has no bits for a fraction.
    INLINE u32 int8_of(float x) const { return __float_as_int(x / scale + 12582912.0f) & 0xFF; }

    // `place(chunk)`: where that chunk of the row is.
    template <typename Place>
    INLINE void store(const Place& place) const {
        int byte = threadIdx.x % 32 * 2 * ELEMENT;
        char *to_first = place(byte / 16) + byte % 16, *to_last = place(byte / 16 + CHUNKS / 2) + byte % 16;
        if (CODES) {
            *(unsigned short*)to_first = (unsigned short)first, *(unsigned short*)to_last = (unsigned short)last;
        } else {
            *(u32*)to_first = first, *(u32*)to_last = last;
        }
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

INLINE void four_words(u32 (&to)[4], const char* from) {
    uint4 words = *(const uint4*)from;
    to[0] = words.x, to[1] = words.y, to[2] = words.z, to[3] = words.w;
}

// scores[t]: of tokens 16 t.. and all heads.
INLINE void score(float (&scores)[TOKENS][4], const char* keys, const Queries& q) {
    int token = dealt(threadIdx.x % 32 / 4), column = threadIdx.x % 4;
#pragma unroll
    for (int t = 0; t < TOKENS; t++) {
#pragma unroll
        for (int i = 0; i < 4; i++) scores[t][i] = 0.0f;
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; chunk += 4) {
            u32 low[4], high[4];
            int first = 16 * t + token;
            four_words(low, keys + first * ROW_BYTES + 16 * swizzled(first, chunk + column));
            four_words(high, keys + (first + 8) * ROW_BYTES + 16 * swizzled(first + 8, chunk + column));
#pragma unroll
            for (int i = 0; i < OF_CHUNK / 4; i++) {
                u32 a[4];
                if (CODES) {
                    widen(a[0], a[2], low[i]);
                    widen(a[1], a[3], high[i]);
                } else {
                    a[0] = low[2 * i], a[1] = high[2 * i], a[2] = low[2 * i + 1], a[3] = high[2 * i + 1];
                }
                const u32(&b)[2] = q.words[chunk / 4 * (OF_CHUNK / 4) + i];
                multiply_add_warp(scores[t], a, b[0], b[1]);
            }
        }
    }
}

// A lane's consecutive values of a token, at most 16 bytes.
INLINE void unit_words(u32 (&to)[OF_LANE * ELEMENT / 4], const char* values, int token, int unit) {
    int byte = unit * OF_LANE * ELEMENT;
    const char* from = values + token * ROW_BYTES + 16 * swizzled(token, byte / 16) + byte % 16;
    if (OF_LANE * ELEMENT == 16) {
        four_words((u32(&)[4])to, from);
    } else {
        uint2 words = *(const uint2*)from;
        to[0] = words.x, to[1] = words.y;
    }
}

// Adds values' [dimensions, 16 tokens] @ p's [16 tokens, heads].
INLINE void add_values(float (&sums)[COLUMNS][4], const char* values, int t, u32 p_low, u32 p_high) {
    int lane = threadIdx.x % 32, first = 16 * t + lane % 4;
#pragma unroll
    for (int unit = 0; unit < UNITS; unit++) {
        u32 v[4][OF_LANE * ELEMENT / 4];
#pragma unroll
        for (int i = 0; i < 4; i++) unit_words(v[i], values, first + 4 * i, dealt(lane / 4) + 8 * unit);
#pragma unroll
        for (int word = 0; word < OF_LANE * ELEMENT / 4; word++) {
            int tile = unit * (OF_LANE / 2) + word * 2 / ELEMENT;
            if (CODES) {
                u32 a[4], b[4];
                widen(a[0], a[1], chosen_bytes<0x5140>(v[0][word], v[1][word]));
                widen(a[2], a[3], chosen_bytes<0x5140>(v[2][word], v[3][word]));
                multiply_add_warp(sums[tile], a, p_low, p_high);
                widen(b[0], b[1], chosen_bytes<0x7362>(v[0][word], v[1][word]));
                widen(b[2], b[3], chosen_bytes<0x7362>(v[2][word], v[3][word]));
                multiply_add_warp(sums[tile + 1], b, p_low, p_high);
            } else {
                u32 a[4] = {chosen_bytes<0x5410>(v[0][word], v[1][word]), chosen_bytes<0x7632>(v[0][word], v[1][word]),
                            chosen_bytes<0x5410>(v[2][word], v[3][word]), chosen_bytes<0x7632>(v[2][word], v[3][word])};
                multiply_add_warp(sums[tile], a, p_low, p_high);
            }
        }
    }
}

// Over the rows of a tile of scores.
INLINE float largest_of_column(float x) {
#pragma unroll
    for (u32 bits = 4; bits < 32; bits *= 2) x = fmaxf(x, from_lane_xor(x, bits));
    return x;
}

INLINE float sum_of_column(float x) {
#pragma unroll
    for (u32 bits = 4; bits < 32; bits *= 2) x += from_lane_xor(x, bits);
    return x;
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
    float of_keys = 1.0f, of_values = 1.0f, over = 1.0f;
    if (CODES == FP8_CODES) {
        float scale = load_constant(k_scale);
        scale_log2 *= scale, of_keys = 1.0f / scale;
        of_values = load_constant(v_scale);
    }
    if (QUANTIZE) over = 1.0f / load_constant(out_scale);
    Angles angles;
    float2 cosines, sines;
    if (ROTATES) {
        const float* row = cos_sin + max(0, pages.length - 1) * D;
        angles.load(row);
        cosines = *(const float2*)(row + 2 * lane), sines = *(const float2*)(row + D / 2 + 2 * lane);
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
            const char *own_key = projected + 2 * (G * HKV + kv_head) * D + 4 * lane, *own_value = own_key + 2 * HKV * D;
            float2 first = unpack_out(*(const u32*)own_key), last = unpack_out(*(const u32*)(own_key + D));
            rotate(first, last, cosines, sines);
            key.code(first, last, of_keys);
            value.code(unpack_out(*(const u32*)own_value), unpack_out(*(const u32*)(own_value + D)), CODES == FP8_CODES ? 1.0f / of_values : 1.0f);
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
            key.store([&](int chunk) { return here.keys + last * ROW_BYTES + 16 * swizzled(last, chunk); });
            value.store([&](int chunk) { return here.values + last * ROW_BYTES + 16 * swizzled(last, chunk); });
            if (CODES == INT8_CODES && lane == 0) here.scales[0][last] = key.scale, here.scales[1][last] = value.scale;
        }
        __syncwarp();
        float x[TOKENS][4], most[2] = {highest[0], highest[1]};
        score(x, here.keys, q);
        int token = dealt(lane / 4);
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int at = 16 * t + token + i / 2 * 8;
                x[t][i] *= scale_log2;
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
                if (has_heads) send(&there.sums[i % OWN][of_part], four, shared.all_received, i / OWN);
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
    tile += split * OWN;
    constexpr int BYTES = QUANTIZE ? 1 : 2;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int head = 2 * pair + i;
        float factor = total[i] > 0.0f ? of_values / total[i] : of_values;
#pragma unroll
        for (int j = 0; j < 2 * EACH; j++) y[i][j] *= factor;
        char* to = out + ((seq * HKV + kv_head) * G + head) * D * BYTES;
#pragma unroll
        for (int j = 0; j < 2 * EACH; j += RUN) {
            int at = tile + j / 2, dimension = OF_LANE * (dealt(lane / 4) + at / (OF_LANE / 2) * 8) + at % (OF_LANE / 2) * 2;
            if (head < G) store(to + BYTES * dimension, &y[i][j], over);
        }
    }
}
