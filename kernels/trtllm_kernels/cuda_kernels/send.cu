// Rows of the residual stream to the same rank of the next pipeline stage, into its inbox (`pipe.cuh`).
//
// The sender writes and the receiver polls its own memory: one flight over the link. Rejected: that the receiver reads the sender's memory,
// which takes two, and keeps the sender's arena from being used again until then.
//
// Macros: `pipe.cuh`; KEEP 1: y is memory of its own, and gets the rows too.
#include "pipe.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) send(const char* x, Pipe* pipe, char* y, int num_rows) {
    let_next_start();
    char *inbox = pipe->next_inbox;
    long long inbox_bytes = (long long)pipe->most_rows * ROW_BYTES;
    wait_for_previous();
    u32 round = *(volatile u32*)&pipe->sent;
    await(pipe->taken, round - 1);  // round - 2 is out of this inbox
    copy_rows(inbox + (round % 2) * inbox_bytes, x, num_rows);
    if (KEEP) copy_rows(y, x, num_rows);
    end_round(pipe, &pipe->sent, pipe->next_arrived, round + 1);
}
