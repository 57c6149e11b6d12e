// Rows of the residual stream from the same rank of the pipeline stage before, out of this rank's inbox (`pipe.cuh`).
//
// They are copied at once, so that the sender may go on: the residual stream is read until far into the stage's first layer, and the sender is
// two rounds ahead by then. The copy is 1% of what the stage's weights are to read.
//
// Macros: `pipe.cuh`.
#include "pipe.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) receive(Pipe* pipe, char* y, int num_rows) {
    let_next_start();
    const char* inbox = pipe->inbox;
    long long inbox_bytes = (long long)pipe->most_rows * ROW_BYTES;
    wait_for_previous();
    u32 round = *(volatile u32*)&pipe->received;
    await(pipe->arrived, round + 1);
    copy_rows(y, inbox + (round % 2) * inbox_bytes, num_rows);
    end_round(pipe, &pipe->received, pipe->before_taken, round + 1);
}
