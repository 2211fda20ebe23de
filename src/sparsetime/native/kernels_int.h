// The inner loops of int8 plans, one table of functions per instruction set, found as Kernels::integers.
//
// Codes are bytes, channels-last: a map is rows of `byte_stride` bytes, one row per pixel. A value is step * (code - zero). Sums
// are of 32 bits and exact; from a sum to a code every float operation is rounded by itself, so that all tables give the same bits.

#pragma once

#include <cstdint>

#include "kernels.h"

namespace sparsetime {

constexpr int BYTE_LANE = 16;       // byte strides of maps of more than NARROW channels are multiples of it
constexpr int BYTE_BLOCK = 64;      // most channels that are looked at together: arrays by channel are padded to it
constexpr int INT_GROUP = 4;        // bytes that one multiplication joins
constexpr int MAX_INT_ROWS = 12;    // kernel rows of the depthwise kernel

inline int byte_stride(int channels) {
    return channels <= NARROW ? NARROW : (channels + BYTE_LANE - 1) / BYTE_LANE * BYTE_LANE;
}

// Output channel of lane l of vector v in a panel of four vectors: packing four vectors of 32 bits to one of bytes, by the
// instructions that work inside of 16 bytes, puts channels in order; interleaving four rows of bytes takes it apart in the same way.
inline int packed_channel(int vector, int lane) { return 16 * (lane / 4) + 4 * vector + lane % 4; }

// From z to what consumers see; docs/plan.md, "Codes". Either `codes` or `values` is written.
struct Settle {
    int channels;
    Act act;
    float act_a, act_b;
    uint8_t* codes;             // or null
    int stride;                 // bytes from pixel to pixel
    float inverse;              // 1 / step
    int zero;
    const uint8_t* threshold;   // [channels], and BYTE_BLOCK more may be read
    bool all;                   // the first frame: everything is sent
    float* values;              // or null
    int value_stride;
    const uint8_t* residual;    // codes added to z after the bias, or null
    int residual_stride;
    float residual_step;
    int residual_zero;
    const float* residual_values;  // the same as floats, or null
    int residual_value_stride;
    // No |z / step| reaches 2^30, and the activation bounds no code more than a byte does: saturating packs are enough.
    bool saturates;
};

// Up to sixteen bytes of an input row in another order, by which neighbours' products fit into 16 bits together: see IntConv::pair.
struct IntWindow {
    int32_t tap, from;          // byte of the row
    int32_t groups;             // of four bytes that come out of it
    uint8_t order[16];          // where they come from; 128: a zero
};
constexpr int INT_PART = 2;     // vectors of a panel that are multiplied together
struct IntPart {                // parts may have the same windows
    const IntWindow* window;
    int windows, groups;
};

// A panel of outputs for a list of pixels: `vectors` vectors of sums, four in the order of packed_channel, fewer in plain order.
struct IntTileArgs {
    int pixels;
    int taps, depth;            // depth: groups of four channels
    const uint8_t* const* a;    // [taps][pixels]: input rows
    int offset;                 // added to every row: the first channel
    const int8_t* w;            // [taps][depth][4 / joined][vectors][lanes][joined]
    size_t next;                // bytes behind these weights that will be needed next, and are asked for meanwhile
    const IntPart* part;        // or null; then weights are [part][groups of its windows][vectors][lanes][4]
    size_t bytes;               // of these weights
    int vectors;
    const int32_t* start;       // [vectors][lanes]: what sums start from
    const float *scale, *bias;  // [vectors][lanes]
    int channel;                // first output channel
    const int32_t* pixel;       // [pixels]: place in the output
    int32_t* count;             // [pixels]: changed elements are added
};

// Outputs of a depthwise kernel next to each other in a row.
struct IntRun {
    int pixels;
    int first;                  // place of the first output
    int column;                 // of the first tap of the first output; may lie outside
    const uint8_t* row[MAX_INT_ROWS];  // rows of the input, from column 0; null outside of the map
};

struct IntDepthwiseArgs {
    int runs;
    const IntRun* run;
    int rows, columns;          // of the kernel
    int step, dilation;         // of columns
    int width, stride;          // of the input
    const int8_t* w;            // [block of channels][columns][groups of four rows][4][lanes][4]; as words, rows 0, 2, 1, 3, where
                                // `joined` is 2: [..][4][2][lanes][2]
    const int32_t* start;       // [block][4][lanes]
    const float *scale, *bias;  // [block][4][lanes]
    uint8_t zero;
    int32_t* count;             // [pixels of all runs]
};

// Pixels of a frame, at most NARROW channels, against the codes that were sent.
struct IntFrameArgs {
    int pixels;
    int32_t first;              // place of the first pixel
    const float* y;             // [pixels][channels]
};

// Codes that are moved as they are, or the largest of several.
struct IntMoveArgs {
    int pixels;
    const int32_t* pixel;       // [pixels]: place in the output
    int rows;
    const uint8_t* const* row;  // [pixels][rows]
    int step;                   // 1, or 2: every second byte of a row
    int32_t* count;             // [pixels]: changed elements are written
};

// New codes of listed pixels, which replace those held where they are far enough from them; the lists keep no others.
struct IntPixelArgs {
    const uint8_t* fresh;
    uint8_t* held;
    int stride, channels;
    int64_t limit;              // of the sum of squares of a pixel's changes
};

// A resize: outputs of one line as sums of rows of floats. sum_a row_weight[a] (sum_b column_weight[b] row[a][column[b]]), in this order.
struct IntResizeArgs {
    int pixels;
    const int32_t* pixel;       // [pixels]: place in the output
    int32_t start;              // of the line
    int row_taps, column_taps;
    const float* const* row;    // [row_taps]: lines of the input
    const float* row_weight;
    const int32_t* column;      // [width][column_taps]
    const float* column_weight;
    int stride;                 // floats from pixel to pixel, whole vectors
    int32_t* count;             // [pixels]: changed elements are written
};

struct IntKernels {
    int width;                  // 32-bit lanes of a vector
    int joined;                 // neighbouring weights of tiles that lie in one lane: 2 or INT_GROUP
    bool windows;               // whether tiles are faster with windows
    void (*tile)(const IntTileArgs&, const Settle&);
    void (*depthwise)(const IntDepthwiseArgs&, const Settle&);
    // z of one pixel, channels rounded up to LANE readable; returns how many elements changed.
    int (*settle)(const float* z, int pixel, const Settle&);
    void (*frame)(const IntFrameArgs&, const Settle&, ActivePixels&);
    void (*moves)(const IntMoveArgs&, const Settle&);
    void (*resize)(const IntResizeArgs&, const Settle&);
    void (*pixels)(const IntPixelArgs&, ActivePixels&);
    // v = step (code - zero), `stride` floats of which those behind `channels` are zero.
    void (*decode)(const uint8_t* codes, float step, int zero, int channels, int stride, float* out);
};

}  // namespace sparsetime
