// A plan, ready to run. docs/plan.md says what every operation means.

#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "conv.h"
#include "conv_int.h"

namespace sparsetime {

struct TensorView {
    std::vector<int64_t> shape;
    const float* floats = nullptr;
    const int32_t* integers = nullptr;
    const int8_t* bytes = nullptr;
    int64_t size() const {
        int64_t n = 1;
        for (int64_t s : shape) n *= s;
        return n;
    }
};

// One entry of the plan's list, as it is read.
struct OpSpec {
    std::string kind, name;
    std::vector<int> inputs, outputs;
    std::map<std::string, std::vector<double>> numbers;
    std::map<std::string, TensorView> tensors;
    Act act = Act::none;
    float act_a = 0, act_b = 0;
    std::string codec;  // "", exact, hold, residual, pixel
    TensorView step;
    float low = 0, high = 0;
    std::vector<bool> opaque;  // islands: outputs that only islands read
    double crossover = -1;     // density above which the dense path is cheaper; below 0: not measured
    bool coded = false;        // int8 plans: the first output is kept as codes, of this step and zero
    float code_step = 1;
    int code_zero = 0;
    TensorView threshold;      // in codes; empty where a move hands codes on
    bool by_pixel = false;     // the threshold is one of the sum of squares of a pixel's changes
};

constexpr int MOST_JOINED = 16;  // maps that one Node picks channels from

enum class Kind {
    input, conv, affine, add, cat_channels, cat_pixels, channels, gather, pad, avg_pool, resize, identity, mul,
    layer_norm, group_norm, softmax, attention, max_pool, island
};

// (1, C, H, W): channels first. Of all other shapes the last axis counts as channels.
inline bool is_map(const std::vector<int64_t>& shape) { return shape.size() == 4 && shape[0] == 1; }

struct Value {
    std::vector<int64_t> shape;
    Shape map;
    bool opaque = false;
    int producer = -1;
    std::vector<int> consumers;
    bool whole = false;  // most changes are of whole pixels
    // Kept as codes; kept as floats (codes too, where operations on floats read them).
    bool coded = false, floats = true;
    float step = 1;
    int zero = 0;
    bool is_map() const { return sparsetime::is_map(shape); }
};

inline int64_t product(const std::vector<int64_t>& shape) {
    int64_t n = 1;
    for (int64_t s : shape) n *= s;
    return n;
}

// Place of element i, counted in logical order, in a map of rows of `stride` floats.
struct Layout {
    bool planar;
    int pixels, channels, stride;
    explicit Layout(const Value& v)
        : planar(v.is_map()), pixels(v.map.pixels()), channels(v.map.channels), stride(v.map.stride()) {}
    int pixel(int64_t i) const { return int(planar ? i % pixels : i / channels); }
    int channel(int64_t i) const { return int(planar ? i / pixels : i % channels); }
    size_t operator()(int64_t i) const { return size_t(pixel(i)) * stride + channel(i); }
};

struct Node {
    Kind kind = Kind::input;
    std::string name;
    std::vector<int> inputs, outputs;
    bool linear = false;   // acts on deltas
    bool summed = false;   // has an accumulator apart from its value
    bool cheap = false;    // touched sums are computed from values, which costs no more: no accumulator is kept
    Encode encode = Encode::change;
    Act act = Act::none;
    float act_a = 0, act_b = 0, low = 0, high = 0;
    Floats bias, step;
    bool step_map = false;
    std::unique_ptr<Conv> conv;
    std::unique_ptr<IntConv> integers;  // instead, in int8 plans
    const Geometry& geometry() const { return conv ? static_cast<const Geometry&>(*conv) : *integers; }
    Bytes threshold;
    int64_t limit = -1;        // of the sum of squares of a pixel's changes, if it is sent whole or not at all
    bool moves_codes = false;  // hands bytes on as they are
    double crossover = -1;
    // affine, layer_norm, group_norm
    Floats scale, shift;
    bool scale_map = false, shift_map = false;
    // add
    float first = 1, second = 1;
    float eps = 0;  // layer_norm, group_norm
    int groups = 1;
    // attention
    int windows = 1, heads = 1;
    float factor = 1;
    Floats added;                       // to the scores; [window][head][query][key]
    size_t added_step[3] = {0, 0, 0};   // from one window, head and query to the next, 0 where they share
    // pad
    float fill = 0;
    // channels, cat, gather, pad, windows and taps of pooling and resizing
    std::vector<int32_t> index, owner, rows, columns;
    std::vector<Pick> picks;  // channels that carry
    std::vector<int32_t> reach_start, reach;  // gather: input pixel -> output pixels
    Floats row_weights, column_weights, divisor;
    int row_taps = 1, column_taps = 1, row_step = 1, column_step = 1;
    int widest = 0;  // columns of a window that is not cut off
    bool carries = false;  // hands on what its inputs hold, each element as it is
    bool derived = false;  // its value is not kept: see Program::spare
};

class Program {
  public:
    // `integer`: an int8 plan, in which convolutions have weights of bytes and everything is computed anew where touched.
    Program(const std::vector<std::vector<int64_t>>& shapes, const std::vector<OpSpec>& ops, std::vector<int> outputs,
            bool integer = false);

    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    std::vector<Value> values;
    std::vector<Node> nodes;
    std::vector<int> outputs;
    bool integer = false;
    const Kernels& kernels;  // that this is laid out for and runs with
    const Value& input() const { return values[size_t(nodes[0].outputs[0])]; }

  private:
    void add(const OpSpec& spec);
    // Finds values that need not be kept, since they follow from others: resized maps that only the caller reads, and joined maps of which
    // channels are picked, which then are picked from what was joined.
    void spare();
    std::vector<Pick> picks_of(const Node& n) const;
    // Weights of a convolution, packed, of either precision.
    void weigh(Node& n, const OpSpec& spec, Geometry geometry, bool transposed);
};

}  // namespace sparsetime
