// One video through a program.

#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "pool.h"
#include "program.h"

namespace sparsetime {

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
