// Merges what `decode_attention_even.cu` leaves of items that several blocks have pieces of: of each block, one of the item that ends there
// and began in an earlier block, and one of the item that begins there and ends in a later one. A block here merges the item that begins in
// the block there of the same number. Each of its warps has 16 dimensions.
#include "decode_shares.cuh"

constexpr int AT_ONCE = 8;

extern "C" __global__ void __launch_bounds__(32 * COLUMNS)
    decode_attention_merge(const char* pieces, const int* kv_lens, const float* v_scale, const float* out_scale, char* out, int num_seqs) {
    let_next_start();
    Shares shares = {kv_lens, num_seqs};
    shares.count();
    int first = shares.first_of_block(blockIdx.x), end = shares.first_of_block(blockIdx.x + 1);
    Extent extent = {0, 0, 0};
    if (end < shares.steps) extent = shares.at(end);
    float of_values = CODES == FP8_CODES ? load_constant(v_scale) : 1.0f, over = QUANTIZE ? 1.0f / load_constant(out_scale) : 1.0f;
    int column = threadIdx.x / 32, lane = threadIdx.x % 32, pair = lane % 4;
    wait_for_previous();  // all do, for the kernel after this one
    if (end == shares.steps || extent.first >= end || extent.first < first || pair >= PAIRS) return;
    int count = 1;
    while (shares.first_of_block(blockIdx.x + count) < extent.end) count++;
    float highest[2] = {NONE, NONE}, total[2] = {0.0f, 0.0f}, y[2][2] = {};
#pragma unroll 1
    for (int begun = 0; begun < count; begun += AT_ONCE) {
        float4 stats[AT_ONCE], sums[AT_ONCE];
        float most[2] = {highest[0], highest[1]};
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int part = begun + i;
            const Piece& piece = ((const Piece*)pieces)[2 * (blockIdx.x + part) + (part == 0)];
            stats[i] = part < count ? piece.stats[pair] : make_float4(NONE, NONE, 0.0f, 0.0f);
            sums[i] = part < count ? piece.sums[column][lane / 4 * PAIRS + pair] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) most[0] = fmaxf(most[0], stats[i].x), most[1] = fmaxf(most[1], stats[i].y);
#pragma unroll
        for (int j = 0; j < 2; j++) {
            float shrink = exp2_of(highest[j] - most[j]);
            highest[j] = most[j], total[j] *= shrink, y[j][0] *= shrink, y[j][1] *= shrink;
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            float weight[2] = {exp2_of(stats[i].x - highest[0]), exp2_of(stats[i].y - highest[1])};
            total[0] += stats[i].z * weight[0], total[1] += stats[i].w * weight[1];
            y[0][0] += sums[i].x * weight[0], y[1][0] += sums[i].y * weight[1];
            y[0][1] += sums[i].z * weight[0], y[1][1] += sums[i].w * weight[1];
        }
    }
    constexpr int BYTES = QUANTIZE ? 1 : 2;
    int dimension = OF_LANE * (dealt(lane / 4) + column / (OF_LANE / 2) * 8) + column % (OF_LANE / 2) * 2;
#pragma unroll
    for (int j = 0; j < 2; j++) {
        int head = 2 * pair + j;
        float factor = total[j] > 0.0f ? of_values / total[j] : of_values;
        char* to = out + (((long long)extent.item * G + head) * D + dimension) * BYTES;
        if (head >= G) continue;
#if QUANTIZE
        *(unsigned short*)to = (unsigned short)pack_fp8(y[j][0] * factor * over, y[j][1] * factor * over, 0.0f, 0.0f);
#else
        *(u32*)to = pack_out(y[j][0] * factor, y[j][1] * factor);
#endif
    }
}
