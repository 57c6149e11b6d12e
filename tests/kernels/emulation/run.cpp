// Runs KERNEL's blocks one cluster after another: `emulate` is what Python calls.
#include KERNEL_SOURCE

static void (*launch)();
static void enter() {
    launch();
    machine.now->done = true;
    progress();
    while (true) pause_fiber();
}
#ifndef SPLITS
#define SPLITS 1
#endif
#if PAIRED
#define BLOCKS_OF_CLUSTER 2
#else
#define BLOCKS_OF_CLUSTER SPLITS
#endif
#ifdef MERGE
struct Arguments {
    const char* pieces;
    const int* kv_lens;
    const float *v_scale, *out_scale;
    char* out;
    int num_seqs;
};
static Arguments arguments;
static void call() {
    const Arguments& a = arguments;
    KERNEL(a.pieces, a.kv_lens, a.v_scale, a.out_scale, a.out, a.num_seqs);
}
static int run(int grid, int threads);
extern "C" int emulate(const char** pointers, int num_seqs, int grid, int threads) {
    auto f = [&](int i) { return (const float*)pointers[i]; };
    arguments = {pointers[0], (const int*)pointers[1], f(2), f(3), (char*)pointers[4], num_seqs};
    return run(grid, threads);
}
#elif defined(MANY)
#ifdef SHARES
#define PIECES a.pieces,
#else
#define PIECES
#endif
struct Arguments {
    TensorMap whole, ends;
    const char *qkv;
    char *cache;
    const int *table, *slots, *kv_lens;
    const float *k_scale, *v_scale, *out_scale, *cos_sin;
    char* out;
    float scale_log2;
    int table_stride, num_items;  // or sequences
    char* pieces;
};
static Arguments arguments;
static void call() {
    const Arguments& a = arguments;
    KERNEL(a.whole, 0, 0, 0, 0, a.ends, 0, 0, 0, 0, a.qkv, a.cache, a.table, a.slots, a.kv_lens, a.k_scale, a.v_scale, a.out_scale, a.cos_sin,
           a.out, PIECES a.scale_log2, a.table_stride, a.num_items);
}
static int run(int grid, int threads);
extern "C" int emulate(const char** pointers, long rows, float scale_log2, int table_stride, int num_items, int grid, int threads) {
    auto f = [&](int i) { return (const float*)pointers[i]; };
    auto n = [&](int i) { return (const int*)pointers[i]; };
    constexpr int ELEMENT = CODES ? 1 : 2;
    arguments = {{pointers[0], rows, D, ELEMENT, STEP}, {pointers[1], rows, D, ELEMENT, 8}, pointers[2], (char*)pointers[3], n(4), n(5), n(6),
                 f(7), f(8), f(9), f(10), (char*)pointers[11], scale_log2, table_stride, num_items, (char*)pointers[12]};
    return run(grid, threads);
}
#elif defined(ATTENTION)
struct Arguments {
    const char *qkv, *cache;
    const int *table, *slots, *kv_lens;
    const float *k_scale, *v_scale, *out_scale, *cos_sin;
    char* out;
    float scale_log2;
    int table_stride;
};
static Arguments arguments;
static void call() {
    const Arguments& a = arguments;
    KERNEL(a.qkv, a.cache, a.table, a.slots, a.kv_lens, a.k_scale, a.v_scale, a.out_scale, a.cos_sin, a.out, a.scale_log2, a.table_stride);
}
static int run(int grid, int threads);
extern "C" int emulate(const char** pointers, float scale_log2, int table_stride, int grid, int threads) {
    auto f = [&](int i) { return (const float*)pointers[i]; };
    auto n = [&](int i) { return (const int*)pointers[i]; };
    arguments = {pointers[0], pointers[1], n(2), n(3), n(4), f(5), f(6), f(7), f(8), (char*)pointers[9], scale_log2, table_stride};
    return run(grid, threads);
}
#elif defined(CHUNKS)
struct Arguments {
    TensorMap queries, cache;
    const int *table, *slots;
    const float *k_scale, *v_scale;
    const int *query_start, *kv_lens;
    const float* out_scale;
    char* out;
    float scale_log2;
    int num_decodes, num_seqs, table_stride;
};
static Arguments arguments;
static void call() {
    const Arguments& a = arguments;
    KERNEL(a.queries, 0, 0, 0, 0, a.cache, 0, 0, 0, 0, a.table, a.slots, a.k_scale, a.v_scale, a.query_start, a.kv_lens, a.out_scale, a.out,
           a.scale_log2, a.num_decodes, a.num_seqs, a.table_stride);
}
static int run(int grid, int threads);
extern "C" int emulate(const char** pointers, long tokens, long rows, float scale_log2, int num_decodes, int num_seqs, int table_stride, int grid,
                       int threads) {
    auto f = [&](int i) { return (const float*)pointers[i]; };
    auto n = [&](int i) { return (const int*)pointers[i]; };
    arguments = {{pointers[0], tokens, G * HKV * D, 1, TILE, D}, {pointers[1], rows, D, 1, PAGE, D}, n(2), n(3), f(4), f(5), n(6), n(7), f(8),
                 (char*)pointers[9], scale_log2, num_decodes, num_seqs, table_stride};
    return run(grid, threads);
}
#elif defined(PROMPTS)
struct Arguments {
    TensorMap queries, keys, values;
    const float *k_scale, *v_scale;
    const int *query_start, *kv_lens;
    const float* out_scale;
    char* out;
    float scale_log2;
    int num_decodes, num_seqs;
};
static Arguments arguments;
static void call() {
    const Arguments& a = arguments;
    KERNEL(a.queries, 0, 0, 0, 0, a.keys, 0, 0, 0, 0, a.values, 0, 0, 0, 0, a.k_scale, a.v_scale, a.query_start, a.kv_lens, a.out_scale, a.out,
           a.scale_log2, a.num_decodes, a.num_seqs);
}
static int run(int grid, int threads);
extern "C" int emulate(const char** pointers, long tokens, long columns, float scale_log2, int num_decodes, int num_seqs, int grid, int threads) {
    auto f = [&](int i) { return (const float*)pointers[i]; };
    auto n = [&](int i) { return (const int*)pointers[i]; };
    arguments = {{pointers[0], tokens, G * HKV * D, 1, TILE, D}, {pointers[1], tokens + TILE, HKV * D, 1, TILE, D},
                 {pointers[2], HKV * D, columns, 1, D}, f(3), f(4), n(5), n(6), f(7), (char*)pointers[8], scale_log2, num_decodes, num_seqs};
    return run(grid, threads);
}
#elif defined(ROW_SCALED)
struct Arguments {
    TensorMap x, w;
    const char *bias, *residual;
    const float *x_scale, *w_scale, *out_scale;
    char* y;
    int num_tokens;
};
static Arguments arguments;
static void call() {
    const Arguments& a = arguments;
    KERNEL(a.x, 0, 0, 0, 0, a.w, 0, 0, 0, 0, a.bias, a.residual, a.x_scale, a.w_scale, a.out_scale, a.y, a.num_tokens);
}
static int run(int grid, int threads);
extern "C" int emulate(const char** pointers, long x_rows, int num_tokens, int grid, int threads) {
    auto f = [&](int i) { return (const float*)pointers[i]; };
    arguments = {{pointers[0], x_rows, K, 1, ROWS}, {pointers[1], N, K, 1, COLUMNS}, pointers[2], pointers[3], f(4), f(5), f(6),
                 (char*)pointers[7], num_tokens};
    return run(grid, threads);
}
#elif defined(TILE_ROWS)
struct Arguments {
    TensorMap x, w;
    const char *bias, *residual;
    const float *x_scale, *w_scale, *out_scale;
    char* y;
    long long* best;
    const int4* words;
    const char *rows, *norm_weight;
    const float *norm_scale, *eps;
    int num_tokens;
};
static Arguments arguments;
static void call() {
    const Arguments& a = arguments;
    KERNEL(a.x, 0, 0, 0, 0, a.w, 0, 0, 0, 0, a.bias, a.residual, a.x_scale, a.w_scale, a.out_scale, a.y, a.best, a.words, a.rows, a.norm_weight,
           a.norm_scale, *a.eps, a.num_tokens);
}

static int run(int grid, int threads);
extern "C" int emulate(const char** pointers, long x_rows, int num_tokens, int grid, int threads) {
    auto f = [&](int i) { return (const float*)pointers[i]; };
    long bytes = FP8 || INT8 ? 1 : 2;
    arguments = {{pointers[0], x_rows, K, bytes, TOKENS}, {pointers[1], N, K, bytes, TILE_ROWS}, pointers[2], pointers[3],
                 f(4), f(5), f(6), (char*)pointers[7], (long long*)pointers[8], (const int4*)pointers[9],
                 pointers[10], pointers[11], f(12), f(13), num_tokens};
    return run(grid, threads);
}
#else
struct Arguments {
    TensorMap x;
    const char *x_rows, *w, *group_scale, *weight_zero, *bias, *residual;
    const float *x_scale, *w_scale, *out_scale;
    char* y;
    const char* norm_weight;
    const float* norm_scale;
    float eps;
    int num_tokens;
};
#if defined(K_GROUPS) && !defined(RING)
#define OF_FEW(...) __VA_ARGS__,
#else
#define OF_FEW(...)
#endif
static Arguments arguments;
static void call() {
    const Arguments& a = arguments;
    KERNEL(a.x, 0, 0, 0, 0, OF_FEW(a.x_rows) a.w, a.group_scale, a.weight_zero, a.bias, a.residual, a.x_scale, a.w_scale, a.out_scale, a.y,
           OF_FEW(a.norm_weight, a.norm_scale, a.eps) a.num_tokens);
}

static int run(int grid, int threads);
extern "C" int emulate(const char** pointers, long x_rows, int num_tokens, int grid, int threads) {
    arguments.x = {pointers[0], x_rows, K, FP8 ? 1 : 2, TOKENS};
#if defined(K_GROUPS) && !defined(RING)
    arguments.x_rows = *++pointers, arguments.norm_weight = pointers[10], arguments.norm_scale = (const float*)pointers[11];
    arguments.eps = *(const float*)pointers[12];
#endif
    auto f = [&](int i) { return (const float*)pointers[i]; };
    arguments.w = pointers[1], arguments.group_scale = pointers[2], arguments.weight_zero = pointers[3], arguments.bias = pointers[4];
    arguments.residual = pointers[5], arguments.x_scale = f(6), arguments.w_scale = f(7), arguments.out_scale = f(8);
    arguments.y = (char*)pointers[9], arguments.num_tokens = num_tokens;
    return run(grid, threads);
}
#endif

// Returns 0, 4 where a barrier is misused, 3 where no thread moves, or 5 where loads are left over.
static int run(int grid, int threads) {
    launch = call;
    machine.threads = threads, machine.grid = grid, machine.failed = false;
    machine.loads.clear();
    machine.num_blocks = BLOCKS_OF_CLUSTER, machine.num_fibers = BLOCKS_OF_CLUSTER * threads;
    for (int x = 0; x < grid; x++) {
        machine.fibers = new Fiber[machine.num_fibers]();
        machine.cluster = {};
        for (int y = 0; y < BLOCKS_OF_CLUSTER; y++) {
            Block* block = machine.blocks[y] = new Block();
            block->shared = (char*)aligned_alloc(1024, SHARED_BYTES / 1024 * 1024 + 1024);
            memset(block->shared, 0xFF, SHARED_BYTES);
            block->x = x, block->y = y;
            block->operands = new u32[4 * threads];
            block->exchange = new u32[threads][8];
            block->barriers = (Barrier*)calloc(SHARED_BYTES / 8, sizeof(Barrier));
            for (int thread = 0; thread < threads; thread++) {
                Fiber& fiber = machine.fibers[y * threads + thread];
                getcontext(&fiber.context);
                fiber.stack = (char*)malloc(65536);
                fiber.context.uc_stack.ss_sp = fiber.stack;
                fiber.context.uc_stack.ss_size = 65536;
                fiber.block = block, fiber.thread = thread;
                makecontext(&fiber.context, enter, 0);
            }
        }
        u32 left = machine.num_fibers;
        while (left) {
            machine.moved = false;
            left = 0;
            for (u32 i = 0; i < machine.num_fibers; i++) {
                Fiber& fiber = machine.fibers[i];
                if (fiber.done) continue;
                machine.now = &fiber;
                swapcontext(&machine.scheduler, &fiber.context);
                left += !fiber.done;
                if (machine.failed) return 4;
            }
            if (left && !machine.moved && !machine.end_load()) {
                printf("%u threads wait for ever\n", left);
                return 3;
            }
        }
        if (!machine.loads.empty()) {
            printf("a block ends before %zu of its loads\n", machine.loads.size());
            return 5;
        }
        for (u32 i = 0; i < machine.num_fibers; i++) free(machine.fibers[i].stack);
        delete[] machine.fibers;
        for (int y = 0; y < BLOCKS_OF_CLUSTER; y++) {
            Block* block = machine.blocks[y];
            free(block->shared), free(block->barriers);
            delete[] block->operands;
            delete[] block->exchange;
            delete block;
        }
    }
    return 0;
}
