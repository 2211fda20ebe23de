// One video through a program.

#pragma once

#include <chrono>
#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "frame_input.h"
#include "pool.h"
#include "program.h"

namespace sparsetime {

// Writes z of some pixels: (pixels, how many, sums, floats from one to the next).
using FillRows = std::function<void(const int32_t*, int, float*, int)>;

struct NodeStats {
    int64_t events_in = 0, events = 0, macs = 0, effective_macs = 0, time_ns = 0;
    bool sparse = false;  // followed the events, not from all inputs of what they touched
    bool whole = false;   // all outputs were computed
};

class Stream {
  public:
    // Computes an island: reads values by number, then puts or touches each of its outputs.
    using Island = std::function<void(int node)>;

    Stream(std::shared_ptr<const Program> program, int threads, Island island);

    void set_camera(Camera camera) { input_.set_camera(std::move(camera)); }
    // A frame is a flush if more than this share of the input's elements are sent in it.
    void set_cut(double share) { cut_ = share; }
    // Writes the program's outputs to `arrays`, in logical order, where there are any. False, and nothing has happened, if the frame
    // holds NaN or infinity. Without `keep`, which only a first frame can do without, the next frame is a first one, too.
    bool run(const Frame& frame, const std::vector<float*>& arrays = {}, bool keep = true);
    // The next frame is the first of a new stream, which knows nothing of this one.
    void reset();
    // The next frame is a first one, and how those behind it are computed goes on as it was.
    void flush() { started_ = false; }
    void refresh() { refresh_ = true; }
    bool started() const { return started_; }
    bool flushed() const { return flush_; }

    // In logical order and shape.
    void read(int value, float* out);
    void read_accumulator(int node, float* out);
    void write(int value, const float* in);
    void write_accumulator(int node, const float* in);
    // Of values that int8 plans keep as codes.
    void read_codes(int value, uint8_t* out) const;
    void write_codes(int value, const uint8_t* in);
    // After the whole state has been written.
    void resume();
    // From within an island's call: the new value of one of its outputs, in logical order.
    void put(int value, const float* in);
    // Opaque outputs, which the caller keeps, changed.
    void touch(int value);

    const std::vector<NodeStats>& stats() const { return stats_; }  // without multiply-accumulates
    const std::vector<NodeStats>& counted_stats();
    const Program& program() const { return *program_; }
    size_t memory_bytes() const;  // all that is this stream's own

  private:
    const Kernels& kernels() const { return program_->kernels; }
    struct State {
        Span value;
        uint8_t* codes = nullptr;
        Change change;
        std::vector<uint8_t> mask;
        std::vector<int32_t> active, tally;
        bool want_rows = true, want_events = true;
    };
    template <class Fill>
    void rows(const Node& node, int output, const int32_t* list, int count, bool replace, const Fill& fill);
    template <class Body>
    void split(const Node& node, int output, const int32_t* list, int count, bool replace, bool by_row,
               const Body& body);
    void allocate_deltas();
    void execute_all(const Frame& frame);
    void execute(int number, const Frame& frame);
    struct Choice {
        Path path;
        const int32_t* list;  // of `count` outputs
        int count;
        bool by_event;  // the residual's changes go into the accumulators one by one
    };
    Choice choose(const Node& node);
    void convolve(const Node& node, NodeStats& stats);
    int touched_by(const Geometry& conv, const Node& node);
    void move(const Node& node);
    void recompute(const Node& node);
    const float* row_of(int value, int pixel) const {
        const Span& all = states_[size_t(value)].value;
        return all.data() + size_t(pixel) * size_t(program_->values[size_t(value)].map.stride());
    }
    const float* carried(const Node& node, int pixel, Walk& walk, float* room) const;
    void carry(const Node& node);
    void carry_whole(const Node& node);
    std::pair<Floats, Floats> factors_of(const Node& node);
    void allocate_attention();
    void attend(const Node& node);
    int touched_by_attention(const Node& node);
    Window window_of(const Node& node, int pixel, Walk& walk) const;
    // Values that are not kept, see Node::derived.
    void allocate_derived();
    float* array_of(int value) const;
    void each_part(int count, const std::function<void(int, int)>& body);
    void derive(int number);
    void read_derived(int number, float* out);
    void expand(int number, const uint8_t* changed);
    int64_t write_derived(int number, const uint8_t* changed, float* out);
    void take(const Node& node, const Frame& frame);
    // Of int8 plans.
    Settle settle_of(const Node& node, int output);
    bool waits(const Node& node) const;
    void send_pixels(const Node& node, int output, ActivePixels& sink);
    template <class Body>
    void share(int output, int count, const Body& body);
    void settle_rows(const Node& node, int output, const int32_t* list, int count, const FillRows& z);
    void move_codes(const Node& node);
    void resize_rows(const Node& node);
    void convolve_codes(const Node& node, NodeStats& stats);
    void take_codes(const Node& node, const Frame& frame);
    void allocate_codes();
    void decode_pixel(int value, int pixel);
    void read_decoded(int value, float* out) const;
    bool cuts(int64_t events) const;
    void clear(int value);
    int touched(const Node& node);
    int touched_by_window(const Node& node);
    int union_of(const std::vector<int>& inputs);
    int listed(const Shape& map);
    bool rows_of(int value);
    bool events_of(int value);

    std::shared_ptr<const Program> program_;
    Pool pool_;
    FrameInput input_;
    Island compute_island_;
    std::vector<State> states_;
    Floats memory_;  // values and accumulators, in the order in which a frame meets them
    Bytes codes_;    // values of int8 plans
    Bytes waiting_;  // new codes of one value, of which it is not known yet which pixels are sent
    // Values that live in the deltas' memory in a frame that keeps no state: what is written there is read again while it is near.
    std::vector<int> passing_;
    std::vector<Span> accumulators_;
    // By node, frames in a row that took the dense path everywhere. From the second on accumulators are not written, which
    // saves a third of the memory traffic; they are `stale` until a frame that needs them computes all anew.
    std::vector<int> dense_frames_;
    std::vector<uint8_t> stale_;
    // By convolution, which form of its inputs' deltas it needed when it last had something to do. First frames have no deltas, and the
    // frame behind one would write both forms for nothing if it did not know.
    struct Needs {
        bool rows, events, residual_rows, residual_events;
    };
    std::vector<Needs> needs_;
    bool keep_ = true;  // the node that runs writes its accumulators
    std::vector<NodeStats> stats_;
    std::vector<Workspace> workspaces_;
    Floats shared_;  // sums that threads share
    Floats heads_;   // keys and values of an attention, as matrices
    std::vector<FinishArgs> sinks_;         // of `split`
    std::vector<int> bounds_, row_bounds_;
    std::vector<IntWorkspace> int_workspaces_;
    std::vector<Floats> arena_floats_;
    std::vector<std::vector<uint32_t>> arena_places_;
    std::vector<uint8_t> touch_;
    std::vector<int32_t> list_, all_;
    // A derived map between its two passes: rows of the input, stretched to the output's width.
    struct Stretched {
        Floats rows;                // [channel][row][2][width]
        size_t width = 0;
        // By row: which of the two is the present one; the other is that of before the last change.
        std::vector<uint8_t> slot;
    };
    std::vector<Stretched> stretched_;  // by node
    std::vector<float*> arrays_;        // of the frame that runs
    bool started_ = false, refresh_ = false;
    double cut_ = std::numeric_limits<double>::infinity();
    bool flush_ = true;  // this frame is the first
    bool dense_ = true;  // in this frame every operation is computed from scratch, everywhere
    bool state_ = true;  // this frame leaves a state to the next one
    int current_ = 0;    // node that runs
    std::chrono::steady_clock::time_point clock_;  // when it started
};

}  // namespace sparsetime
