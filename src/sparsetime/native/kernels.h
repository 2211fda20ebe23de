// The inner loops of the native engine, one table of functions per instruction set.
//
// kernels.cpp is compiled once per instruction set into a table; `kernels()` picks one when the module is imported. Everything
// here is float32 and channels-last: a map is rows of `stride` floats, one row per pixel, whole vectors (or C
// itself for maps of at most NARROW channels). Padding lanes of deltas and of values that are kept are zero; in a frame that keeps no
// state, where values live in the deltas' memory, and in sums they may hold anything.

#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsetime {

// Floats of the widest vector of any instruction set.
constexpr int LANE = 16;
constexpr int NARROW = 4;  // maps of at most this many channels are stored without padding (camera frames)
constexpr int MAX_SLOTS = 16;
constexpr int MAX_TILE = 6;  // most pixels in a register tile

enum class Act : int { none, clamp, leaky_relu, hardswish, hardsigmoid, silu, gelu, gelu_tanh, sigmoid, tanh, elu, mish };

// What happens between the accumulator and the value; docs/plan.md, "Encoding".
//   linear: value += delta and the delta itself is sent;  change: send y - v where not 0;  exact, hold, residual, pixel: as named.
enum class Encode : int { linear, change, exact, hold, residual, pixel };

// Whether a codec keeps something back, which the first frame of a stream does not.
constexpr bool keeps(Encode e) { return e == Encode::hold || e == Encode::residual || e == Encode::pixel; }

// What `pixel` is given as a step: 1 / threshold, thresholds below 1e-18 counting as that.
constexpr float inverse_of(float threshold) { return 1.0f / (threshold > 1e-18f ? threshold : 1e-18f); }

// Pixels that send something in a frame, and how much.
struct ActivePixels {
    uint8_t* mask;         // 1 where a pixel is active; zeros at first
    int32_t* active;       // appended, ascending
    int32_t* tally;        // appended: how many elements of each changed
    int32_t active_count;
    int64_t events;        // changed elements of all
    // Of pixel p so many elements changed: without a branch, since nobody can foresee whether there are any. Inlined always, so that no
    // instruction set's code is taken for another's.
    [[gnu::always_inline]] void add(ptrdiff_t p, int changed) {
        active[active_count] = int32_t(p);
        tally[active_count] = changed;
        active_count += changed != 0;
        mask[p] = changed != 0;
        events += changed;
    }
};

// The same and the deltas themselves, in either form or both.
struct Deltas : ActivePixels {
    float* rows;      // whole rows of the active pixels; or null
    uint32_t* place;  // appended events, pixel << shift | channel; or null. Kernels may write LANE entries too many
    float* change;
};

// Pixels by vectors of output channels.
struct TileShape {
    int pixels, vectors;
};

// What becomes of complete sums in the first frame of a stream, where nothing that was before counts: z = bias + (sum + extra),
// value = z, or z within [low, high]. For pixels next to each other, `stride` floats apart; pointers are to the first one's first sum.
struct WriteArgs {
    float* value;
    float* z;             // or null
    const float* extra;   // or null
    const float* bias;
    ptrdiff_t stride;
    bool clamp;
    float low, high;
    // With `far` nothing is written: new values take the place of the sums, and far[i] gains how far pixel i is from the value that was
    // sent: sum_c ((new - value) inverse)^2.
    float* far;
    const float* inverse;  // [stride]
    const int32_t* pixel;  // places of the pixels in the map, to which `value` and `extra` point then
};

// Sums for some pixels and vectors of output channels, pixel i's at out[i] = out + at[i]:
// out[i][:] = (accumulate ? out[i][:] : 0) + sum_s sum_k a[s][i][k] w[s][k][:].
struct TileArgs {
    int segments;
    const float* const* a;     // [segments][pixels]: input rows, `depth` floats each
    const float* const* w;     // [segments]: weights (depth, channels)
    int depth;
    float* out;
    const int32_t* at;         // [pixels]
    int offset;                // added to every input row: the first of `depth` channels
    bool accumulate;
    const WriteArgs* write;    // or null; sums go nowhere else then
};

// The same for pixels next to each other in a row, all of whose inputs lie inside the map: those of segment s and output i start at
// a[s] + i step, its sums at out + i row.
struct LineArgs {
    int pixels;
    int segments;
    const float* const* a;
    ptrdiff_t step;
    const float* const* w;
    int depth;
    float* out;
    ptrdiff_t row;
    const WriteArgs* write;
};

// The events [from, to) of one input pixel in one block of channels, and where the sums lie that they reach, in floats from scratch.
struct Run {
    int32_t from, to, at;
};

// Adds runs into scratch. What a run contributes to `slots` vectors of sums is gathered in registers:
// scratch[at + slot[t]] += sum_e change[e] * w[channel of e][t].
struct RunArgs {
    const uint32_t* place;
    const float* change;
    uint32_t channel_mask;
    int runs;
    const Run* run;
    const float* w;        // [channels][slots] vectors
    const int32_t* slot;   // [slots], in floats
    int slots;
    float* scratch;
};

// The same for a 3x3 kernel of stride 1 and all pixels of a part of a row, with events or without.
struct SlideArgs {
    const uint32_t* place;
    const float* change;
    uint32_t channel_mask;
    int pixels;
    const int32_t* bound;  // pixel i has events [bound[i * step], bound[i * step + 1])
    int step;
    const float* w;        // [channels][9] vectors
    float* scratch;        // sums of the first pixel's last tap, which has the smallest offset
    ptrdiff_t row;         // floats from one row of sums to the next
};

// Depthwise sums of pixels: out = sum_s a[s] * w[s].
struct DepthwiseArgs {
    int pixels;
    int segments;
    const float* const* a;  // [pixels][segments]
    const float* w;         // [segments][stride]
    int stride, wide;       // floats from row to row, and those that are computed: whole vectors
    float* const* out;      // [pixels]
    const WriteArgs* write; // or null, as in TileArgs; of one pixel alone
};

// Depthwise sums of outputs next to each other in a row: output i reads input columns column + i * step + {0, 1, ...} * dilation, those outside
// the map being zero.
struct DepthwiseRowArgs {
    int lines, taps;           // rows and columns of the kernel
    int pixels;
    int step, dilation;
    int column, width;         // of inputs
    const float* const* rows;  // [lines]: rows of inputs; one outside the map is one pixel of zeros
    const int32_t* advance;    // [lines]: floats from pixel to pixel: stride, or 0 for a row outside the map
    const float* w;            // [lines][taps][stride]
    int stride, wide;          // as in DepthwiseArgs
    float* out;                // [pixels][stride]
    const WriteArgs* write;    // or null, as in TileArgs
};

// Pixels of a frame against the value that was sent: maps of at most NARROW channels, without padding, so flat arrays.
struct FrameArgs : Deltas {
    int pixels;
    int32_t first;          // place of the first pixel in the map
    const float* y;         // [pixels][channels], new values
    float* value;           // [pixels][channels]
    const float* step;      // [channels][LANE], repeating; or [pixels][channels]
    bool step_map;
    float low, high;
    Encode encode;          // any but linear
    int channels, shift;
};

struct FrameKernels {
    void (*compare)(FrameArgs&);
    // out = (in - mean) / std.
    void (*normalise)(const uint8_t* in, const float* mean, const float* std, int n, float* out);
    // The channels of n pixels in the opposite order.
    void (*reverse)(const uint8_t* in, int channels, int n, uint8_t* out);
    // n pixels of planes as rows.
    void (*interleave)(const float* const* planes, int channels, int n, float* out);
    bool (*finite)(const float* x, int n);
};

// From sums to values and events, for a list of touched pixels.
struct FinishArgs : Deltas {
    int pixels;
    const int32_t* pixel;   // [pixels], ascending
    const int32_t* at;      // [pixels]: where a pixel's sums start, in floats from `sum`
    float* sum;
    ptrdiff_t block;        // floats from one vector of sums to the next
    bool clear;             // leave zeros behind in `sum`
    bool replace;           // z = bias + sum instead of z += sum (dense path)
    bool flush;             // `replace`, and whatever value there was before does not count; codecs are `change`, `exact` or `linear`
    const float* extra;     // rows added to the sums (residual input), or null; of the pixels of extra_mask, or of all
    const uint8_t* extra_mask;
    int channels, stride;
    Act act;
    float act_a, act_b;
    Encode encode;
    const float* bias;      // [stride]
    const float* step;      // [stride], or [map] if step_map; for `pixel` 1 / threshold, and 0 in the padding
    bool step_map;
    float low, high;        // bounds of the codes of `exact`
    float* z;               // accumulators; null where encode is linear, or where `replace` and none are kept
    float* value;
    float* room;            // [stride], for `pixel`: what is not sent yet
    const float* zeros;     // [stride]
    int shift;              // of events
};

// Events whose sums need no memory: those of the listed pixels of a convolution that joins each pixel with itself alone.
struct EventArgs {
    const uint32_t* place;
    const float* change;
    uint32_t channel_mask;
    const int32_t* bound;  // [pixels + 1]: pixel i's events are [bound[i], bound[i + 1])
    const float* w;        // by group of vectors: [depth][vectors]
    int depth;             // input channels
};

struct Encoders {
    void (*finish)(FinishArgs&);
    // For `pixel`, where `sum` has new values already and far[i] is how far pixel i is from what was sent.
    void (*send)(FinishArgs&, const float* far);
    // The same as `finish` with sums of events; sum, at, block and clear are not looked at.
    void (*finish_events)(FinishArgs&, const EventArgs&);
    // Appends the events of `pixels` rows of deltas; returns how many.
    int64_t (*events_of_rows)(const float* rows, const int32_t* pixel, int pixels, int channels, int stride, int shift,
                              uint32_t* place, float* change);
};

// Where channels of one vector come from: lane l, unless index[l] is below 0, from start + index[l] of a row. `run`: index[l] = l. `near`:
// they lie within two vectors from `start` on. Both may be read whole then, also behind the row.
struct Pick {
    enum Kind : int32_t { run, near, far };
    int32_t source;  // which of several rows
    bool last;       // of those of the same vector
    Kind kind;
    int32_t start;
    int32_t index[LANE];
};

// Where the value of a pixel is, and where its changes go: as a row, unless null, and appended as events, unless null.
struct Sent {
    float *value, *row;
    uint32_t first;  // place of the first channel
    uint32_t* place;
    float* change;
};

// Pixels of a map that lie evenly spaced, in lines, by their first channels.
struct Window {
    const float* first;
    int lines, columns;
    ptrdiff_t line, column;  // floats from one to the next
};

// On rows of n channels.
struct RowKernels {
    void (*add)(const float* x, float w, float* sum, int n);  // sum += w x
    void (*blend)(const float* const* x, const float* w, int rows, float* sum, int n);     // sum = sum_k w[k] x[k]
    void (*combine)(const float* x, float a, const float* y, float b, float* sum, int n);  // sum = a x + b y
    void (*affine)(const float* x, const float* scale, const float* shift, float* sum, int n);  // sum = x scale + shift; both may be null
    void (*squares)(const float* x, const float* centre, float* sum, int n);  // sum += (x - centre)^2
    void (*multiply)(const float* x, const float* y, float* sum, int n);
    void (*divide)(float divisor, float* sum, int n);
    // sum = (x - mean) / sqrt(variance + eps) scale + shift of n channels; docs/plan.md, "int8 plans", has the order. Both may be null.
    void (*normalise)(const float* x, float eps, const float* scale, const float* shift, float* sum, int n);
    // x = e^(y - max y), y = factor x + added, of n numbers, zeros behind them up to a whole vector; `added` may be null. Returns one over
    // their sum, in the order of `normalise`.
    float (*softmax)(float* x, float factor, const float* added, int n);
    void (*maximum)(const Window& window, float* most, int n);
    // value = x, of n channels. Returns how many changed, and says what changed as Deltas have it.
    int (*replace)(const float* x, int n, const Sent& to);
    // value = x[source][...] by `picks`, of n channels; what comes of a source that is null, or of none, stays as it is.
    int (*pick)(const float* const* x, const Pick* picks, int n, const Sent& to);
    // The same of `pixels` next to each other, whose rows in source k are stride[k] floats apart, whatever there was; zeros come of none.
    void (*pick_rows)(const float* const* x, const int32_t* stride, const Pick* picks, int n, int pixels, float* value);
    // n channels of `pixels` next to each other, whose rows are `from` and `to` floats apart.
    void (*copy_rows)(const float* x, int from, int n, int pixels, float* value, int to);
    // out[i] = sum_k w[i][k] x[index[i][k]].
    void (*spread)(const float* x, const int32_t* index, const float* w, int taps, int n, float* out);
    // The same sum as blend; returns how many of n differ from that of `before`.
    int (*blend_again)(const float* const* x, const float* const* before, const float* w, int rows, float* sum, int n);
    // Writes the places of n marks, each 0 or 1, that are set to `list`, which has room for LANE more; the first one's place is `first`. Returns how many.
    int (*list)(const uint8_t* mark, int n, int32_t first, int32_t* list);
    // Rows of `stride` floats as planes, `plane` floats from one to the next.
    void (*planes)(const float* x, int pixels, int stride, int channels, int plane, float* out);
};

struct IntKernels;

struct Kernels {
    const char* name;
    int width;         // floats in a vector
    TileShape most;    // the largest register tile ...
    TileShape flat;    // ... and where its weights stay in the first cache
    bool halves;       // whether the last of them may be half a one
    int group;         // most vectors in a group of `finish_events`
    void (*tile)(int pixels, int channels, const TileArgs&);
    void (*line)(int channels, const LineArgs&);
    void (*runs)(const RunArgs&);
    void (*slide)(const SlideArgs&);
    void (*depthwise)(const DepthwiseArgs&);
    void (*depthwise_row)(const DepthwiseRowArgs&);
    const Encoders* encoders;
    const FrameKernels* frames;
    const RowKernels* rows;
    const IntKernels* integers;  // kernels_int.h
};

// The table in use: the best this machine has, or the one named by SPARSETIME_ISA.
const Kernels& kernels();
// All tables that this machine can run, best first; null-terminated.
const Kernels* const* available();
// Takes another table (tests); returns false if this machine lacks it. Not while streams run.
bool select(const char* name);

}  // namespace sparsetime
