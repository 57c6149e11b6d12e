// Runs one kernel on several ranks at once, launch after launch on each, in an order of ranks, blocks and threads that is drawn from a seed.
// Before a launch its rank writes the input, after it takes the output: into and out of memory that all its launches share.
#include KERNEL_SOURCE
#include <random>
#include <vector>

struct Launch {
    void* arguments[8];
    int rows, grid;
    const void* input;
    void* output;
    long input_bytes, output_bytes;
};
struct Rank {
    const Launch* launches;
    int launch = -1;
    std::vector<Block> blocks;
    std::vector<Fiber> fibers;
    std::vector<Fiber*> running;
    std::vector<long> wakes;  // turn until which a fiber does nothing
};

constexpr int NAP = 60000;  // turns, in which the others go as far as they can
static const Launch* started;  // by the fiber that begins

static void body() {
    const Launch& of = *started;
    void* const* p = of.arguments;
    CALL;
    machine.now->done = true;
    pause_fiber();
}

static void begin(Rank& rank, u32 threads) {
    const Launch& launch = rank.launches[++rank.launch];
    memcpy(launch.arguments[0], launch.input, launch.input_bytes);
    rank.running.clear();
    for (int index = 0; index < launch.grid * (int)threads; index++) {
        Block& block = rank.blocks[index / threads];
        if (index % threads == 0) {
            memset(block.meetings, 0, sizeof block.meetings);
            block.x = index / threads, block.y = 0;
        }
        Fiber& fiber = rank.fibers[index];
        char* stack = fiber.stack;
        memset(&fiber, 0, sizeof fiber);
        fiber.stack = stack, fiber.block = &block, fiber.thread = index % threads;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = stack, fiber.context.uc_stack.ss_size = STACK, fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, body, 0);
        rank.running.push_back(&fiber);
    }
}

// 0, or 1 where nothing ended within `limit` turns.
extern "C" int emulate(const Launch* launches, int ranks, int rounds, int most_blocks, u32 threads, u32 seed, long limit) {
    std::mt19937 random(seed);
    std::vector<Rank> all(ranks);
    machine.threads = threads;
    for (int r = 0; r < ranks; r++) {
        Rank& rank = all[r];
        rank.launches = launches + r * rounds;
        rank.blocks.resize(most_blocks), rank.fibers.resize(most_blocks * threads), rank.wakes.resize(most_blocks * threads);
        for (Block& block : rank.blocks) block.shared = (char*)malloc(1024), block.operands = (u32*)malloc(4 * threads);
        for (Fiber& fiber : rank.fibers) fiber.stack = (char*)malloc(STACK);
        begin(rank, threads);
    }
    int left = ranks;
    for (long turn = 0; left && turn < limit;) {
        Rank& rank = all[random() % ranks];
        if (rank.launch == rounds) continue;
        for (int burst = random() % 400; burst >= 0 && turn < limit; burst--, turn++) {  // one rank may run far ahead
            u32 chosen = random() % rank.running.size();
            Fiber* fiber = rank.running[chosen];
            long& wakes = rank.wakes[fiber - rank.fibers.data()];
            if (wakes > turn) continue;
            machine.now = fiber, machine.grid = rank.launches[rank.launch].grid, started = &rank.launches[rank.launch];
            swapcontext(&machine.scheduler, &fiber->context);
            if (naps) wakes = turn + random() % NAP, naps = false;
            if (!fiber->done) continue;
            rank.running[chosen] = rank.running.back(), rank.running.pop_back();
            if (!rank.running.empty()) continue;
            const Launch& ended = rank.launches[rank.launch];
            memcpy(ended.output, ended.arguments[RESULT], ended.output_bytes);
            if (rank.launch + 1 == rounds) {
                rank.launch++, left--;
                break;
            }
            begin(rank, threads);
        }
    }
    for (Rank& rank : all) {
        for (Block& block : rank.blocks) free(block.shared), free(block.operands);
        for (Fiber& fiber : rank.fibers) free(fiber.stack);
    }
    return left ? 1 : 0;
}
