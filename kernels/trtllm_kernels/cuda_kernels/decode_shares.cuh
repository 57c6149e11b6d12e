// Equal shares of a step's keys and values, and results of parts of them (`decode_attention_even.cu`, `decode_attention_merge.cu`).
//
// The steps (STEP tokens) of all items stand in one line: sequence by sequence, KV head by KV head. Each of SHARES blocks has an equal part of
// it, and each warp an equal part of its block's. So an item, (sequence, KV head), may be divided anywhere.
#pragma once
#include "decode_attention.cuh"

// A part of an item: weighted values of each lane that has heads of the group; of a pair of heads, maxima and sums of weights.
struct Piece {
    float4 sums[COLUMNS][8 * PAIRS], stats[PAIRS];
};

// First of a part, of equal ones, of which the first ones have what is left over.
INLINE int first_of_part(int whole, int parts, int part) { return part * (whole / parts) + min(part, whole % parts); }

// Of an item, its steps' places in the line.
struct Extent {
    int item, first, end;
};

struct Shares {
    const int* kv_lens;
    int num_seqs, steps;  // of all items

    // Of a KV head of four sequences, from `first_seq` + 4 lanes on.
    INLINE int steps_of_lane(int (&each)[4], int first_seq) const {
        int all = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int seq = first_seq + (int)(threadIdx.x % 32) * 4 + i;
            each[i] = seq < num_seqs ? steps_of(kv_lens[seq]) : 0;
            all += each[i];
        }
        return all;
    }

    INLINE void count() {
        u32 own = 0;
        int each[4];
        for (int first = 0; first < num_seqs; first += 128) own += steps_of_lane(each, first);
#pragma unroll
        for (u32 bits = 1; bits < 32; bits *= 2) own += from_lane_xor(own, bits);
        steps = HKV * (int)own;
    }

    INLINE int first_of_block(int block) const { return first_of_part(steps, SHARES, block); }

    // The item that has a step, one of less than `steps`.
    INLINE Extent at(int step) const {
        int lane = threadIdx.x % 32, before = 0, seq = 0, each[4], sum;
        while (true) {
            sum = steps_of_lane(each, seq);
#pragma unroll
            for (int bits = 1; bits < 32; bits *= 2) {
                int more = (int)from_lane((u32)sum, (lane - bits) % 32u);
                if (lane >= bits) sum += more;
            }
            int all = (int)from_lane((u32)sum, 31);
            if (HKV * (before + all) > step) break;
            before += all, seq += 128;
        }
        int passed = __popc(__ballot_sync(~0u, HKV * (before + sum) <= step)), earlier = (int)from_lane((u32)sum, max(0, passed - 1));
        if (passed > 0) before += earlier, seq += 4 * passed;
        int own = (int)from_lane((u32)each[0], passed);
#pragma unroll
        for (int i = 1; i < 4; i++) {
            int next = (int)from_lane((u32)each[i], passed);
            if (HKV * (before + own) <= step) before += own, own = next, seq++;
        }
        int kv_head = (step - HKV * before) / own, first = HKV * before + kv_head * own;
        return {seq * HKV + kv_head, first, first + own};
    }
};
