#include "stream.h"

#include <algorithm>
#include <cstring>

#include "split.h"

namespace sparsetime {

namespace {

constexpr int SHARED_PIXELS = 48;          // a thread's, below which channels are shared instead
constexpr int SHARED_WEIGHTS = 32 * 1024;  // floats, below which it is not worth the second meeting of the threads

// Floats behind an array: those of a power of two would else fall on the same sets of a cache, and kernels may read two vectors too many.
constexpr size_t GAP = 3 * LANE;

}  // namespace

Stream::Stream(std::shared_ptr<const Program> program, int threads, Island island)
    : program_(std::move(program)), pool_(std::max(1, threads)), input_(program_->input().map, pool_),
      compute_island_(std::move(island)) {
    const Program& p = *program_;
    states_.resize(p.values.size());
    accumulators_.resize(p.nodes.size());
    dense_frames_.resize(p.nodes.size());
    stale_.resize(p.nodes.size());
    needs_.resize(p.nodes.size());
    stats_.resize(p.nodes.size());
    workspaces_.resize(size_t(pool_.threads()));
    int_workspaces_.resize(size_t(pool_.threads()));
    size_t largest = 1;
    for (size_t v = 0; v < p.values.size(); ++v) {
        if (p.values[v].opaque) continue;
        const Shape& s = p.values[v].map;
        State& state = states_[v];
        const int producer = p.values[v].producer;
        const bool kept = p.values[v].floats && !(producer >= 0 && p.nodes[size_t(producer)].derived);
        state.value.length = kept ? size_t(s.pixels()) * s.stride() : 0;
        state.mask.assign(size_t(s.pixels()), 0);
        state.active.assign(size_t(s.pixels()) + 1, 0);
        state.tally.assign(size_t(s.pixels()) + 1, 0);
        largest = std::max(largest, size_t(s.pixels()));
    }
    touch_.resize(largest);
    list_.resize(largest + LANE);
    all_.resize(largest);
    for (size_t i = 0; i < largest; ++i) all_[i] = int32_t(i);
    for (size_t i = 0; i < p.nodes.size(); ++i)
        if (p.nodes[i].summed && !p.nodes[i].cheap)
            accumulators_[i].length = states_[size_t(p.nodes[i].outputs[0])].value.length;
    const auto each = [&](const auto& place) {
        for (size_t i = 0; i < p.nodes.size(); ++i) {
            for (int v : p.nodes[i].outputs) place(states_[size_t(v)].value);
            place(accumulators_[i]);
        }
    };
    size_t total = 0;
    each([&](const Span& span) { total += span.length ? round_up(span.length, LANE) + GAP : 0; });
    memory_.assign(total, 0.0f);
    float* next = memory_.data();
    each([&](Span& span) {
        span.first = next;
        next += span.length ? round_up(span.length, LANE) + GAP : 0;
    });

    allocate_codes();
    allocate_derived();
    allocate_attention();
    allocate_deltas();
    reset();
}

// Deltas live from their producer to their last consumer: values that never live together share memory.
void Stream::allocate_deltas() {
    const Program& p = *program_;
    std::vector<size_t> sizes;
    std::vector<int> slot(p.values.size(), -1), free;
    std::vector<std::vector<int>> dying(p.nodes.size());
    for (size_t v = 0; v < p.values.size(); ++v) {
        const Value& value = p.values[v];
        if (value.opaque || value.producer < 0) continue;
        dying[size_t(value.consumers.empty() ? value.producer : value.consumers.back())].push_back(int(v));
    }
    for (size_t i = 0; i < p.nodes.size(); ++i) {
        for (int v : p.nodes[i].outputs) {
            if (p.values[size_t(v)].opaque) continue;
            const size_t wanted = p.integer ? 0 : states_[size_t(v)].value.size();  // codes have no deltas
            int best = -1;  // the smallest that is large enough, else the largest
            for (int s : free) {
                if (best < 0) best = s;
                const bool fits = sizes[size_t(s)] >= wanted, best_fits = sizes[size_t(best)] >= wanted;
                if (fits ? (!best_fits || sizes[size_t(s)] < sizes[size_t(best)])
                         : (!best_fits && sizes[size_t(s)] > sizes[size_t(best)]))
                    best = s;
            }
            if (best < 0) {
                best = int(sizes.size());
                sizes.push_back(0);
            } else {
                free.erase(std::find(free.begin(), free.end(), best));
            }
            sizes[size_t(best)] = std::max(sizes[size_t(best)], wanted);
            slot[size_t(v)] = best;
        }
        for (int v : dying[i]) free.push_back(slot[size_t(v)]);
    }
    const size_t slack = size_t(LANE) * (size_t(pool_.threads()) + 1);
    for (size_t size : sizes) {
        arena_floats_.emplace_back(size + GAP, 0.0f);
        arena_floats_.emplace_back(size + slack, 0.0f);
        arena_places_.emplace_back(size + slack, 0u);
    }
    for (size_t v = 0; v < p.values.size(); ++v) {
        if (slot[v] < 0) continue;
        const size_t s = size_t(slot[v]);
        State& state = states_[v];
        const ActivePixels none{state.mask.data(), state.active.data(), state.tally.data(), 0, 0};
        state.change = {{none, arena_floats_[2 * s].data(), arena_places_[s].data(), arena_floats_[2 * s + 1].data()},
                        p.values[v].map, false, false};
        // What outputs are read from has to last until the frame ends.
        bool lasts =
            program_->integer || state.value.length == 0 || std::count(p.outputs.begin(), p.outputs.end(), int(v));
        for (int consumer : p.values[v].consumers) lasts = lasts || p.nodes[size_t(consumer)].derived;
        // Channels of zeros are never written: no other memory has them.
        const Node& maker = p.nodes[size_t(p.values[v].producer)];
        lasts = lasts || (maker.kind == Kind::channels && maker.carries &&
                          *std::min_element(maker.index.begin(), maker.index.end()) < 0);
        if (!lasts) passing_.push_back(int(v));
    }
}

size_t Stream::memory_bytes() const {
    const auto of = [](const auto& v) { return bytes_of(v); };
    size_t n = input_.memory_bytes() + of(memory_) + of(codes_) + of(waiting_) + of(shared_) + of(heads_) + of(touch_) + of(list_) +
               of(all_) + of(stale_) + of(dense_frames_) + of(needs_) + of(stats_);
    for (const Floats& f : arena_floats_) n += of(f);
    for (const auto& f : arena_places_) n += of(f);
    for (const State& s : states_) n += of(s.mask) + of(s.active) + of(s.tally);
    for (const Stretched& s : stretched_) n += of(s.rows) + of(s.slot);
    for (const Workspace& w : workspaces_) {
        n += of(w.sum) + of(w.patches) + of(w.scratch) + of(w.room) + of(w.zeros) + of(w.far) + of(w.bound) + of(w.span) + of(w.at) +
             of(w.list) + of(w.pointers) + of(w.weights) + of(w.segments) + of(w.outputs) + of(w.bytes) + of(w.marks);
        for (const auto& runs : w.runs) n += of(runs);
    }
    for (const IntWorkspace& w : int_workspaces_)
        n += of(w.rows) + of(w.count) + of(w.patches) + of(w.sum) + of(w.lines);
    return n;
}

void Stream::clear(int value) {
    State& s = states_[size_t(value)];
    std::fill(s.mask.begin(), s.mask.end(), uint8_t(0));
    s.change.active_count = 0;
    s.change.events = 0;
    s.change.rowed = s.change.listed = true;
}

bool Stream::rows_of(int value) {
    Change& c = states_[size_t(value)].change;
    if (c.rowed) return true;
    if (!c.listed) return false;
    const int stride = c.shape.stride(), shift = c.shape.shift();
    for (int i = 0; i < c.active_count; ++i)
        std::memset(c.rows + size_t(c.active[i]) * stride, 0, size_t(stride) * sizeof(float));
    const uint32_t mask = (1u << shift) - 1;
    for (int64_t e = 0; e < c.events; ++e)
        c.rows[size_t(c.place[e] >> shift) * stride + (c.place[e] & mask)] = c.change[e];
    return c.rowed = true;
}

bool Stream::events_of(int value) {
    Change& c = states_[size_t(value)].change;
    if (c.listed) return true;
    if (!c.rowed) return false;
    c.events = kernels().encoders->events_of_rows(c.rows, c.active, c.active_count, c.shape.channels, c.shape.stride(),
                                                  c.shape.shift(), c.place, c.change);
    return c.listed = true;
}

// Multiply-accumulates of the last frame, whose changes are still there: they cost a frame that nobody asks about nothing.
const std::vector<NodeStats>& Stream::counted_stats() {
    for (size_t i = 0; i < stats_.size(); ++i) {
        const Node& node = program_->nodes[i];
        if (node.kind != Kind::conv) continue;
        NodeStats& stats = stats_[i];
        const Geometry& conv = node.geometry();
        const Macs& macs = conv.macs();
        stats.effective_macs = flush_ ? macs.dense() : macs.caused(states_[size_t(node.inputs[0])].change);
        // The dense path computes touched outputs only, from all of their inputs.
        if (stats.sparse) stats.macs = stats.effective_macs;
        else if (stats.whole) stats.macs = macs.dense();
        else {
            const int n = touched_by(conv, node);
            stats.macs = macs.done(list_.data(), n);
        }
    }
    return stats_;
}

// How a convolution is computed in this frame, and for which outputs; and what it will need to know of its inputs in the next one.
Stream::Choice Stream::choose(const Node& node) {
    const Conv& conv = *node.conv;
    const int x = node.inputs[0], r = node.inputs.size() == 2 ? node.inputs[1] : -1;
    Needs& needs = needs_[size_t(current_)];
    Choice c{Path::dense, all_.data(), conv.out.pixels(), false};
    if (!dense_) {
        const Change& change = states_[size_t(x)].change;
        c.count = touched_by(conv, node);
        c.list = list_.data();
        PathTimes times = conv.estimate(change, c.count);
        if (node.crossover >= 0 && c.count > 0 && conv.has_elements()) {
            // Measured: event by event costs as much as the dense path at this density of the inputs of touched outputs.
            const double reached = double(c.count) * conv.in.pixels() / conv.out.pixels() * conv.in.channels;
            times.elements =
                node.crossover > 0 ? times.dense * double(change.events) / (reached * node.crossover) : 2 * times.dense;
        }
        // Where whole pixels change, an event at a time costs too much.
        if (program_->values[size_t(x)].whole && !conv.in.narrow()) times.elements = 2 * times.dense;
        if (!node.cheap)
            c.path = times.elements < std::min(times.dense, times.pixels) ? Path::elements
                     : times.pixels < times.dense                         ? Path::pixels
                                                                          : Path::dense;
        if (r >= 0)  // few changes of a residual go straight into the accumulators, many are added as rows
            c.by_event = node.summed && !node.cheap &&
                         states_[size_t(r)].change.events * 4 < int64_t(states_[size_t(r)].value.size());
        if (c.count) needs = {c.path == Path::pixels, c.path == Path::elements, !c.by_event, c.by_event};
        if (c.path == Path::elements && !events_of(x)) c.path = Path::dense;
        if (c.path == Path::pixels && !rows_of(x)) c.path = Path::dense;
        if (r >= 0 && c.path != Path::dense && !(c.by_event ? events_of(r) : rows_of(r))) c.path = Path::dense;
        int& frames = dense_frames_[size_t(current_)];
        if (c.path != Path::dense && stale_[size_t(current_)] && c.count) {
            c = {Path::dense, all_.data(), conv.out.pixels(), c.by_event};
        } else if (node.summed && !node.cheap && c.path == Path::dense) {
            frames = c.count == conv.out.pixels() ? frames + 1 : 0;
            keep_ = frames < 2 && !stale_[size_t(current_)];
        }
        if (c.path != Path::dense) frames = 0;
    }
    const auto want = [&](State& s, bool rows, bool events) {
        s.want_rows = s.want_rows || rows;
        s.want_events = s.want_events || events;
    };
    want(states_[size_t(x)], needs.rows, needs.events);
    if (r >= 0) want(states_[size_t(r)], needs.residual_rows, needs.residual_events);
    if (c.count) stale_[size_t(current_)] = !keep_;
    return c;
}

void Stream::convolve(const Node& node, NodeStats& stats) {
    const Conv& conv = *node.conv;
    const int x = node.inputs[0], y = node.outputs[0];
    const int r = node.inputs.size() == 2 ? node.inputs[1] : -1;
    const Change& change = states_[size_t(x)].change;
    const Shape& out = conv.out;
    const Choice choice = choose(node);
    const Path path = choice.path;
    const int32_t* list = choice.list;
    const int n = choice.count;
    const bool by_event = choice.by_event && path != Path::dense;
    stats.sparse = path != Path::dense || n == 0;
    stats.whole = n == out.pixels();
    if (n == 0) return clear(y);
    if (by_event) {
        const Change& c = states_[size_t(r)].change;
        float* z = accumulators_[size_t(current_)].data();
        const int shift = c.shape.shift(), stride = c.shape.stride();
        const uint32_t mask = (1u << shift) - 1;
        for (int64_t e = 0; e < c.events; ++e)
            z[size_t(c.place[e] >> shift) * stride + (c.place[e] & mask)] += c.change[e];
    }
    // Few pixels of many channels: threads share the channels, each then reads its part of the weights alone.
    const int threads = pool_.threads();
    const float* values = states_[size_t(x)].value.data();
    float* shared = nullptr;
    const size_t row = size_t(conv.row());
    if (path != Path::elements && threads > 1 && !conv.depthwise() && n < SHARED_PIXELS * threads &&
        conv.panels() >= threads && conv.terms() * out.channels >= SHARED_WEIGHTS) {
        shared_.resize(std::max(shared_.size(), row * size_t(n)));
        shared = shared_.data();
        pool_.run([&](int t) {
            const int first = conv.panels() * t / threads, last = conv.panels() * (t + 1) / threads;
            if (path == Path::dense) conv.sums(values, list, n, first, last, shared, workspaces_[size_t(t)]);
            else conv.sums_of_changes(change, list, n, first, last, shared, workspaces_[size_t(t)]);
        });
    }
    split(node, y, list, n, path == Path::dense, path == Path::elements,
          [&](FinishArgs& sink, int from, int to, int first, int last, Workspace& ws) {
              if (r >= 0 && !by_event) {
                  const State& residual = states_[size_t(r)];
                  sink.extra = path == Path::dense ? residual.value.data() : residual.change.rows;
                  sink.extra_mask = path == Path::dense ? nullptr : residual.change.mask;
              }
              if (shared) conv.finish(list + from, to - from, shared + size_t(from) * row, sink, ws);
              else if (path == Path::dense) conv.dense(values, list + from, to - from, sink, ws);
              else if (path == Path::pixels) conv.pixels(change, list + from, to - from, sink, ws);
              else conv.elements(change, first, last, list + from, to - from, sink, ws);
          });
}

void Stream::put(int value, const float* in) {
    const Node& node = program_->nodes[size_t(current_)];
    const Value& v = program_->values[size_t(value)];
    const Layout layout(v);
    Node plain;  // outputs beside the first have no codec
    plain.kind = Kind::island;
    plain.bias.assign(size_t(v.map.stride()), 0.0f);
    const int C = v.map.channels, pixels = v.map.pixels();
    states_[size_t(value)].want_rows = true;
    rows(value == node.outputs[0] ? node : plain, value, all_.data(), pixels, true,
         [&](const int32_t* pixel, int count, float* sum, int stride) {
             for (int i = 0; i < count; ++i, sum += stride)
                 for (int c = 0; c < C; ++c)
                     sum[c] = in[layout.planar ? size_t(c) * pixels + pixel[i] : size_t(pixel[i]) * C + c];
         });
}

void Stream::touch(int value) { states_[size_t(value)].change.active_count = 1; }

void Stream::execute(int number, const Frame& frame) {
    const Node& node = program_->nodes[size_t(number)];
    NodeStats& stats = stats_[size_t(number)];
    current_ = number;
    keep_ = state_;
    stats = {};
    stats.sparse = !dense_;
    if (node.derived) derive(number);
    else if (node.carries) flush_ ? carry_whole(node) : carry(node);
    else if (node.moves_codes) move_codes(node);
    else switch (node.kind) {
        case Kind::conv: node.integers ? convolve_codes(node, stats) : convolve(node, stats); break;
        case Kind::input: {
            const Shape& map = program_->values[size_t(node.outputs[0])].map;
            if (map.narrow()) {
                program_->values[size_t(node.outputs[0])].coded ? take_codes(node, frame) : take(node, frame);
                break;
            }
            const auto fill = [&](const int32_t* pixel, int count, float* sum, int stride) {
                for (int i = 0; i < count; ++i, sum += stride) {
                    const int64_t at = (pixel[i] / map.width) * frame.row + (pixel[i] % map.width) * frame.column;
                    for (int c = 0; c < map.channels; ++c)
                        sum[c] = frame.at(at + c * frame.channel, c, input_.camera());
                }
            };
            rows(node, node.outputs[0], all_.data(), map.pixels(), true, fill);
            break;
        }
        case Kind::identity:
        case Kind::mul:
        case Kind::layer_norm:
        case Kind::group_norm:
        case Kind::softmax:
        case Kind::max_pool: recompute(node); break;
        case Kind::attention: attend(node); break;
        case Kind::island: {
            bool changed = dense_;
            for (int v : node.inputs) changed = changed || states_[size_t(v)].change.active_count > 0;
            stats.sparse = false;
            for (int v : node.outputs) clear(v);
            if (changed) compute_island_(number);
            break;
        }
        default:
            if (program_->integer && node.kind == Kind::resize &&
                !program_->values[size_t(node.outputs[0])].map.narrow())
                resize_rows(node);
            else move(node);
            break;
    }
    const auto count = [&](const std::vector<int>& list) {
        int64_t events = 0;
        for (int v : list)
            if (!program_->values[size_t(v)].opaque)
                events += flush_ ? int64_t(program_->values[size_t(v)].map.pixels()) *
                                       program_->values[size_t(v)].map.channels
                                 : states_[size_t(v)].change.events;
        return events;
    };
    stats.events_in = count(node.inputs);
    stats.events = count(node.outputs);
    // An operation ends where the next one starts: looking at the clock has its price, too.
    const auto now = std::chrono::steady_clock::now();
    stats.time_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(now - clock_).count();
    clock_ = now;
}

void Stream::execute_all(const Frame& frame) {
    for (size_t i = 0; i < program_->nodes.size(); ++i) {
        execute(int(i), frame);
        if (i == 0 && cuts(stats_[0].events)) {
            flush_ = dense_ = true;
            input_.open();
            execute(0, frame);
        }
    }
}

bool Stream::run(const Frame& frame, const std::vector<float*>& arrays, bool keep) {
    arrays_ = arrays;
    const bool flushed = flush_;
    flush_ = !started_;
    state_ = keep || !flush_;
    // A step of `residual` may leave a rest of a whole step by rounding, which is sent when the same frame comes again.
    if (!input_.look(frame, flush_, state_ && program_->nodes[0].encode != Encode::residual)) {
        flush_ = flushed;  // what is said of the last frame stays true
        return false;
    }
    dense_ = flush_ || refresh_;
    refresh_ = false;
    // A failed island leaves the state of a frame half done: only a new start mends it.
    started_ = false;
    clock_ = std::chrono::steady_clock::now();
    const auto exchange = [&] {
        if (!state_)
            for (int v : passing_) std::swap(states_[size_t(v)].value.first, states_[size_t(v)].change.rows);
    };
    exchange();
    try {
        execute_all(frame);
    } catch (...) {
        exchange();
        throw;
    }
    exchange();
    started_ = state_;
    for (size_t k = 0; k < arrays_.size(); ++k) {
        const int value = program_->outputs[k];
        const Node& node = program_->nodes[size_t(program_->values[size_t(value)].producer)];
        const bool written = node.derived && node.kind == Kind::resize && array_of(value) == arrays_[k];
        if (!written) read(value, arrays_[k]);
    }
    arrays_.clear();
    return true;
}

void Stream::read(int value, float* out) {
    const Value& v = program_->values[size_t(value)];
    const Layout layout(v);
    const int64_t n = product(v.shape);
    if (!v.floats) return read_decoded(value, out);
    if (program_->nodes[size_t(v.producer)].derived) return read_derived(v.producer, out);
    const float* from = states_[size_t(value)].value.data();
    if (layout.planar)
        return kernels().rows->planes(from, layout.pixels, layout.stride, layout.channels, layout.pixels, out);
    for (int64_t i = 0; i < n; ++i) out[i] = from[layout(i)];
}

void Stream::read_accumulator(int node, float* out) {
    const Node& n = program_->nodes[size_t(node)];
    const Value& v = program_->values[size_t(n.outputs[0])];
    const Layout layout(v);
    const int64_t size = product(v.shape);
    Floats computed;
    if (n.cheap || stale_[size_t(node)]) {
        // What is not kept follows from the values of the inputs.
        const size_t pixels = size_t(v.map.pixels());
        computed.assign(pixels * v.map.stride(), 0.0f);
        std::vector<uint8_t> mask(pixels);
        std::vector<int32_t> active(pixels + 1), tally(pixels + 1);
        FinishArgs sink{};
        sink.replace = true;
        sink.channels = v.map.channels;
        sink.stride = v.map.stride();
        sink.encode = Encode::linear;
        sink.bias = n.bias.data();
        sink.value = computed.data();
        sink.mask = mask.data();
        sink.active = active.data();
        sink.tally = tally.data();
        if (n.inputs.size() == 2) sink.extra = states_[size_t(n.inputs[1])].value.data();
        n.conv->dense(states_[size_t(n.inputs[0])].value.data(), all_.data(), int(pixels), sink, workspaces_[0]);
    }
    const float* from = computed.empty() ? accumulators_[size_t(node)].data() : computed.data();
    for (int64_t i = 0; i < size; ++i) out[i] = from[layout(i)];
}

void Stream::write(int value, const float* in) {
    const Value& v = program_->values[size_t(value)];
    if (program_->nodes[size_t(v.producer)].derived) return;  // follows from its input
    const Layout layout(v);
    const int64_t n = product(v.shape);
    for (int64_t i = 0; i < n; ++i) states_[size_t(value)].value[layout(i)] = in[i];
}

void Stream::write_accumulator(int node, const float* in) {
    const Value& v = program_->values[size_t(program_->nodes[size_t(node)].outputs[0])];
    const Layout layout(v);
    if (program_->nodes[size_t(node)].cheap) return;
    stale_[size_t(node)] = 0;
    const int64_t n = product(v.shape);
    for (int64_t i = 0; i < n; ++i) accumulators_[size_t(node)][layout(i)] = in[i];
}

void Stream::reset() {
    started_ = refresh_ = false;
    input_.forget();
    std::fill(dense_frames_.begin(), dense_frames_.end(), 0);
    for (State& s : states_) s.want_rows = s.want_events = true;
    for (size_t i = 0; i < needs_.size(); ++i) {
        const bool sums = !program_->nodes[i].cheap;
        needs_[i] = {sums, sums, sums, sums};
    }
}

void Stream::resume() {
    reset();
    started_ = true;
    for (size_t i = 0; i < program_->nodes.size(); ++i)
        if (program_->nodes[i].derived && program_->nodes[i].kind == Kind::resize) expand(int(i), nullptr);
}

}  // namespace sparsetime
