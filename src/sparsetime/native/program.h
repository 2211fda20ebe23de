// A plan, ready to run (Program), and one video through it (Stream). docs/plan.md says what every operation means.

#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "conv.h"
#include "pool.h"

namespace sparsetime {

struct TensorView {
    std::vector<int64_t> shape;
    const float* floats = nullptr;
    const int32_t* integers = nullptr;
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
    std::string codec;  // "", exact, hold, residual
    TensorView step;
    float low, high;
    std::vector<bool> opaque;  // islands: outputs that only islands read
};

enum class Kind {
    input, conv, affine, add, cat_channels, cat_pixels, channels, gather, pad, avg_pool, resize, identity, mul, max_pool, island
};

struct Value {
    std::vector<int64_t> shape;
    Shape map;
    bool opaque = false;
    int producer = -1;
    std::vector<int> consumers;
};

struct Node {
    Kind kind;
    std::string name;
    std::vector<int> inputs, outputs;
    bool linear = false;   // acts on deltas
    bool coded = false;    // has an accumulator apart from its value
    bool cheap = false;    // sums of so few terms that touched ones are computed from values: no accumulator is kept
    Encode encode;
    Act act;
    float act_a, act_b, low, high;
    Floats bias, step;
    bool step_map = false;
    std::unique_ptr<Conv> conv;
    // affine
    Floats scale, shift;
    bool scale_map = false, shift_map = false;
    // add
    float first = 1, second = 1;
    // pad
    float fill = 0;
    // channels, cat, gather, pad, windows and taps of pooling and resizing
    std::vector<int32_t> index, owner, rows, columns;
    std::vector<int32_t> reach_start, reach;  // gather: input pixel -> output pixels
    Floats row_weights, column_weights, divisor;
    int row_taps = 1, column_taps = 1, row_step = 1, column_step = 1;
};

class Program {
  public:
    Program(const std::vector<std::vector<int64_t>>& shapes, const std::vector<OpSpec>& ops, std::vector<int> outputs);

    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    std::vector<Value> values;
    std::vector<Node> nodes;
    std::vector<int> outputs;
    size_t weight_bytes = 0;

  private:
    void add(const OpSpec& spec);
};

struct NodeStats {
    int64_t events_in = 0, events = 0, macs = 0, time_ns = 0;
    const char* path = "dense";
};

// A frame, float32, with strides in elements by channel, row and column.
struct Frame {
    const float* data;
    int64_t channel, row, column;
};

class Stream {
  public:
    // Computes an island: reads values by number, then puts or touches each of its outputs.
    using Island = std::function<void(int node)>;

    Stream(std::shared_ptr<const Program> program, int threads, Island island);

    void run(const Frame& frame);
    void reset() { started_ = false; }
    void refresh() { refresh_ = true; }
    bool started() const { return started_; }

    // In logical order and shape.
    void read(int value, float* out) const;
    void read_accumulator(int node, float* out);
    void write(int value, const float* in);
    void write_accumulator(int node, const float* in);
    // After the whole state has been written.
    void resume();
    // From within an island's call: the new value of one of its outputs, in logical order.
    void put(int value, const float* in);
    // Opaque outputs, which the caller keeps, changed.
    void touch(int value);

    const std::vector<NodeStats>& stats() const { return stats_; }
    const Program& program() const { return *program_; }
    size_t scratch_bytes() const;

  private:
    struct State {
        Floats value;
        Change change;
        std::vector<uint8_t> mask;
        std::vector<int32_t> active, tally;
        bool want_rows = true, want_events = true;
    };
    template <class Fill>
    void rows(const Node& node, int output, const int32_t* list, int count, bool replace, const Fill& fill);
    template <class Body>
    void split(const Node& node, int output, const int32_t* list, int count, bool replace, bool by_row, const Body& body);
    void execute(int number, const Frame& frame);
    void convolve(const Node& node, NodeStats& stats);
    void move(const Node& node);
    void recompute(const Node& node);
    void take(const Node& node, const Frame& frame);
    void clear(int value);
    int touched(const Node& node);
    int union_of(const std::vector<int>& inputs);
    int listed(const Shape& map);
    bool rows_of(int value);
    bool events_of(int value);

    std::shared_ptr<const Program> program_;
    Pool pool_;
    Island compute_island_;
    std::vector<State> states_;
    std::vector<Floats> accumulators_;
    // By node, frames in a row that took the dense path everywhere. From the second on accumulators are not written, which
    // saves a third of the memory traffic; they are `stale` until a frame that needs them computes all anew.
    std::vector<int> dense_frames_;
    std::vector<uint8_t> stale_;
    bool keep_ = true;  // the node that runs writes its accumulators
    std::vector<NodeStats> stats_;
    std::vector<Workspace> workspaces_;
    std::vector<Floats> arena_floats_;
    std::vector<std::vector<uint32_t>> arena_places_;
    std::vector<uint8_t> touch_;
    std::vector<int32_t> list_, all_;
    bool started_ = false, refresh_ = false;
    bool flush_ = true;  // this frame is the first
    bool dense_ = true;  // in this frame every operation is computed from scratch, everywhere
    int current_ = 0;    // node that runs
};

}  // namespace sparsetime
