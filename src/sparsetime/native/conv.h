// Convolution on deltas: three ways to the same sums, each followed by FinishArgs' stage.
//
//   dense     every output from the values of its receptive field (flush, scene cut)
//   pixels    active pixels add their products, tap by tap, to the outputs that they reach, register-blocked
//   elements  every event adds its weights to the outputs that it reaches
//
// One class serves conv2d, conv_transpose2d and linear (a map of one pixel): on each axis, tap k joins input i and output o where
// o * den = i * num + shift[k].

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "macs.h"
#include "memory.h"

namespace sparsetime {

template <class T>
constexpr T round_up(T x, int to) { return (x + to - 1) / to * to; }

// Memory of a vector that is at least n long from now on.
template <class V>
typename V::value_type* sized(V& v, size_t n) {
    if (v.size() < n) v.resize(n);
    return v.data();
}

// A channels-last map. Its rows are whole vectors of the kernels in use when it is made.
class Shape {
  public:
    Shape() = default;
    Shape(int height_, int width_, int channels_)
        : height(height_), width(width_), channels(channels_), stride_(narrow() ? channels : round_up(channels, kernels().width)) {}
    int height = 0, width = 0, channels = 0;
    int stride() const { return stride_; }
    bool narrow() const { return channels <= NARROW; }
    int pixels() const { return height * width; }
    int shift() const {
        int s = 0;
        while ((1 << s) < channels) ++s;
        return s;
    }

  private:
    int stride_ = 0;
};

// The change of one value in one frame. `rows` holds deltas of the active pixels only; elsewhere it is undefined.
struct Change : Deltas {
    Shape shape;
    bool rowed;   // rows hold the deltas
    bool listed;  // place and change hold the events
    // For those who write them: in the forms that are wanted.
    Deltas sink() const {
        Deltas wanted = *this;
        if (!rowed) wanted.rows = nullptr;
        if (!listed) wanted.place = nullptr;
        return wanted;
    }
};

struct Axis {
    int in, out, taps;
    int num, den;            // o * den = i * num + shift[k]
    std::vector<int> shift;
    std::vector<int32_t> source;  // [out][taps]: input that tap k reads, or -1
    std::vector<int32_t> target;  // [in][taps]: output that reads it with tap k, or -1
    Axis() = default;
    Axis(int in, int out, int taps, int num, int den, std::vector<int> shift);
    int base(int i) const { return num == 1 ? i / den : i * num; }
    int phase(int i) const { return num == 1 ? i % den : 0; }
    int phases() const { return num == 1 ? std::min(den, in) : 1; }
};

// That of a convolution with `before` rows or columns of padding, or of a transposed one.
Axis axis_of(bool transposed, int in, int out, int taps, int stride, int before, int dilation);

// Rows and columns of ascending pixels, without a division for each.
struct Walk {
    int width, y = 0, start = 0, end = 0;
    explicit Walk(int width_) : width(width_) {}
    void to(int p) {
        if (p < end && p >= start) return;
        y = p / width;
        start = y * width;
        end = start + width;
    }
};

// Columns [from, to) of a row, outside of which none is marked. Changes lie together: work on few columns is little work.
struct Columns {
    int32_t from, to;
    bool empty() const { return from >= to; }
    void join(Columns other) {
        from = from < other.from ? from : other.from;
        to = to > other.to ? to : other.to;
    }
};

// Buffers of one thread, reused by all layers.
struct Workspace {
    Floats sum;
    Floats patches;
    Floats scratch;  // zero between uses
    Floats room, zeros;  // of FinishArgs
    Floats far;      // of WriteArgs
    std::vector<int32_t> bound, span, at, list;
    std::vector<const float*> pointers, weights;
    std::vector<int32_t> segments;
    std::vector<float*> outputs;
    std::vector<uint8_t> bytes;
    std::vector<Columns> marks;  // of rows
    std::vector<std::vector<Run>> runs;  // by phase and block of channels
};

// What is said of pixels next to each other that were written whole.
void sent_whole(FinishArgs& sink, const int32_t* pixel, int n);

// Input channels [first, end).
struct Channels {
    int first, end;
    int count() const { return end - first; }
};

// Those that outputs [from, from + count) read, some of which may lie past the last output: of all their groups.
Channels channels_of(int groups, const Shape& in, const Shape& out, int from, int count);

// How many vectors of outputs, at most `most` of `lanes`, should have their weights together where there are groups. Together they
// multiply all inputs of their groups, with zeros where these are of another group; alone they read inputs more often.
int vectors_together(int groups, const Shape& in, const Shape& out, int most, int lanes);

// How a convolution joins outputs with inputs, whatever its weights are.
class Geometry {
  public:
    // Padding top and left are in the axes' shifts.
    Geometry(Shape in, Shape out, Axis rows, Axis columns, int groups);

    // Marks the outputs that the active pixels of `change` reach; `mask` is written whole. Returns how many, in `list` ascending, which
    // has room for LANE more.
    int touched(const Change& change, uint8_t* mask, int32_t* list, Workspace& ws) const;
    const Macs& macs() const { return macs_; }
    bool depthwise() const { return depthwise_; }
    bool one_tap() const { return rows_.taps * columns_.taps == 1; }
    // Few channels: a row of the kernel is one segment, since its pixels lie side by side; where some lie outside, of a copy.
    bool patched() const { return in.narrow() && !one_tap(); }
    int terms() const { return rows_.taps * columns_.taps * in.channels / groups_; }  // of one sum

    Shape in, out;

  protected:
    Axis rows_, columns_;
    int groups_;
    bool depthwise_;  // each channel by itself, and more than NARROW
    bool pointwise_;  // output p needs input p, no other

  private:
    Macs macs_;
};

enum class Path { dense, pixels, elements };

// Estimated time of a frame by path, in ns on one core of the kind that the constants were measured on; only their order counts.
struct PathTimes {
    double dense, pixels, elements;
};

class Conv : public Geometry {
  public:
    // weight is (O, C / groups, kh, kw), or (C, O / groups, kh, kw) where transposed.
    Conv(Geometry geometry, bool transposed, const float* weight);

    void dense(const float* value, const int32_t* list, int count, FinishArgs& sink, Workspace& ws) const;
    // The dense path in two parts, so that threads can share the output channels of a few pixels: sums of panels [first, last) of
    // weights, row() floats a pixel, and what follows them. With a sink its state is asked for, and
    // values that need no more than their sums are written at once; with `far` they are compared at once (WriteArgs). `pixel` may be
    // in any order, where `place` has the numbers of their sums.
    int panels() const { return int(panels_.size()); }
    int row() const { return round_up(out.channels, width_); }
    void sums(const float* value, const int32_t* pixel, int n, int first, int last, float* sum, Workspace& ws,
              const FinishArgs* sink = nullptr, float* far = nullptr, const int32_t* place = nullptr) const;
    // The same of the pixels path: sums of changes. `pixel` has all outputs between its first and its last that are touched.
    void sums_of_changes(const Change& in, const int32_t* pixel, int n, int first, int last, float* sum,
                         Workspace& ws) const;
    void finish(const int32_t* pixel, int n, float* sum, FinishArgs& sink, Workspace& ws,
                const float* far = nullptr) const;

    // Not where depthwise().
    void pixels(const Change& in, const int32_t* list, int count, FinishArgs& sink, Workspace& ws) const;
    // Outputs of rows [first, last); `list` holds the touched ones among them. Only where has_elements().
    void elements(const Change& in, int first, int last, const int32_t* list, int count, FinishArgs& sink,
                  Workspace& ws) const;

    PathTimes estimate(const Change& in, int touched) const;
    bool has_elements() const { return has_elements_; }  // whether there is a path event by event

  private:
    static constexpr int LEAST_SHIFT = 5;  // channels of a run, see run_shift
    struct Panel {         // outputs whose weights lie together
        int column, wide;  // output channels
        Channels in;
        size_t w;          // where its weights start in tile_: [tap][channel][wide]
    };
    struct Pass {          // one sweep over a strip's events of one phase
        int phase;         // row phase * column phases + column phase
        int slots;         // taps * vectors
        int vectors;
        Channels in;       // from the first of a block of 1 << LEAST_SHIFT on
        size_t w;          // where the weights of their first start in scatter_
        int first_block;
        std::vector<int> row, column;  // [slots]: output offset from the base
    };
    struct Strip {         // rows of inputs whose events go into scratch together
        const uint32_t* place;
        const float* change;
        int events;
        const uint8_t* mask;  // of the map
        int first, last;      // rows
        int block_shift, blocks;  // of channels
        float* scratch;
        int top, left;        // row and column of outputs that its first sum is of, the column below 0
        int wide, region;     // sums in a row, and in a vector of channels
    };
    struct Scratch {          // of the elements path: where sums lie while a strip of inputs is passed
        int left, wide;       // columns left of the map, and all
        int halo;             // rows that neighbouring strips share
        int in_rows, rows;    // of inputs in a strip; of sums, the last one a spare that is always zero
        int blocks, region;   // vectors of channels, and the sums in each
    };
    void pack(const float* weight, bool transposed);
    void lay_panels();
    bool lay_out();
    int chunk() const;  // outputs that are computed together
    int look_up(const float* value, const int32_t* pixel, int m, Walk& walk, float* patches, const float** from,
                int32_t* tap) const;
    bool has_lines() const;
    void lines(const float* value, const int32_t* pixel, int n, float* sum, Workspace& ws, const FinishArgs& sink, float* far) const;
    void gather(const float* value, const int32_t* list, int count, FinishArgs& sink, Workspace& ws) const;
    bool writes(const FinishArgs& sink) const;
    bool compares(const FinishArgs& sink) const;
    int run_shift(const Change& in) const;
    const float* weights_of(const Pass& pass, const Strip& strip, int block) const;
    int32_t sums_of(const Strip& strip, int y, int x) const;
    void slots_of(const Pass& pass, const Strip& strip, int32_t* slots) const;
    void slide(const Strip& strip, Workspace& ws) const;
    void scatter(const Strip& strip, Workspace& ws) const;
    void elements_fused(const Change& in, int first, const int32_t* list, int count, FinishArgs& sink,
                        Workspace& ws) const;
    void gather_depthwise(const float* rows, const int32_t* list, int count, FinishArgs& sink, Workspace& ws) const;

    const Kernels* kernels_;
    int width_;                  // vector width that the weights are packed for
    Floats tile_;    // by panel; of depthwise convolutions [tap][channel]
    std::vector<Panel> panels_;
    int tile_pixels_ = 1;        // most that share a register tile
    double share_ = 1;           // of all inputs times all outputs: what panels multiply
    Floats scatter_;
    Floats fused_;   // [group of vectors][channel][vectors], 1x1 only and then instead of scatter_
    std::vector<Pass> passes_;
    bool sliding_ = false;  // they are those of a 3x3 kernel of stride 1
    bool has_elements_ = false;
    Scratch scratch_{};
    Floats zeros_;
    // Outputs that taps reach beside the base: base + [low, high].
    int row_low_ = 0, row_high_ = 0, column_low_ = 0, column_high_ = 0;
};

}  // namespace sparsetime
