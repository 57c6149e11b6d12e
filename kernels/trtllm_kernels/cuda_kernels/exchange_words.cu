// The token of each row where ranks have parts of the vocabulary: the largest word of all ranks' (`triton_kernels/sampling.py`).
//
// Each rank writes its words into every peer's memory and polls its own until they are there, as in `all_reduce_one_shot.cu`: the word that
// stands for absence is the one that nothing was offered under. Then as `publish`: tokens go to the next step and to the host's memory, and
// the words are emptied for the next step.
//
// Macros: WORLD ranks; THREADS; MOST_ROWS that a buffer holds of each rank.
#include "group.cuh"

constexpr long long EMPTY = 1ll << 63;

extern "C" __global__ void __launch_bounds__(THREADS)
    exchange_words(long long* argmax_scratch, Group* group, const int* slots, const int* ring_slot, int* tokens, int* last_tokens, int* ring,
                   int num_rows, int ring_stride) {
    let_next_start();
    int row = blockIdx.x * THREADS + threadIdx.x;
    u32 rank = group->rank;
    wait_for_previous();
    u32 round = *(volatile u32*)&group->word_rounds, turn = round % 3, last = (round + 2) % 3;
    long long* own = group->words[rank];
    if (row < num_rows) {
        long long word = argmax_scratch[row];
#pragma unroll
        for (int to = 0; to < WORLD; to++) {
            if (to != rank) send_long(group->words[to] + (turn * WORLD + rank) * MOST_ROWS + row, word);
        }
#pragma unroll
        for (int from = 0; from < WORLD; from++) {
            if (from != rank) {
                long long theirs;
                do {
                    theirs = receive_long(own + (turn * WORLD + from) * MOST_ROWS + row);
                } while (theirs == EMPTY);
                word = max(word, theirs);
            }
        }
        int ordered = (int)(word >> 32), column = 0x7FFFFFFF - (int)(word & 0xFFFFFFFF);
        bool finite = ((ordered ^ (ordered >> 31 & 0x7FFFFFFF)) & 0x7F800000) != 0x7F800000;
        tokens[row] = last_tokens[slots[row]] = finite ? column : 0;
        ring[(long long)*ring_slot * ring_stride + row] = finite ? column : -1;
        argmax_scratch[row] = EMPTY;
    }
    // The buffer of the round before is emptied as far as it can have been filled.
    for (int at = row; at < WORLD * MOST_ROWS; at += gridDim.x * THREADS) own[last * WORLD * MOST_ROWS + at] = EMPTY;
    end_round(group, [&]() { *(volatile u32*)&group->word_rounds = round + 1; });
}
