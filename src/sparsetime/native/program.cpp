#include "program.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>

namespace sparsetime {

namespace {

constexpr int CHEAP_TERMS = 36;

[[noreturn]] void refuse(const OpSpec& op, const std::string& why) {
    throw std::invalid_argument("operation '" + op.name + "' (" + op.kind + "): " + why);
}

int64_t product(const std::vector<int64_t>& shape) {
    int64_t n = 1;
    for (int64_t s : shape) n *= s;
    return n;
}

Shape map_of(const std::vector<int64_t>& shape) {
    if (shape.size() == 4) return {int(shape[2]), int(shape[3]), int(shape[1])};
    const int channels = int(shape.back());
    const int pixels = shape.size() == 1 ? 1 : int(product(shape) / channels);
    return {1, pixels, channels};
}

// Place of element i, counted in logical order, in a map of rows of `stride` floats.
struct Layout {
    bool planar;
    int pixels, channels, stride;
    explicit Layout(const Value& v)
        : planar(v.shape.size() == 4), pixels(v.map.pixels()), channels(v.map.channels), stride(v.map.stride()) {}
    int pixel(int64_t i) const { return int(planar ? i % pixels : i / channels); }
    int channel(int64_t i) const { return int(planar ? i / pixels : i % channels); }
    size_t operator()(int64_t i) const { return size_t(pixel(i)) * stride + channel(i); }
};

// [1], [C] or per element, as rows (map) or one row; padding holds `fill`.
Floats expanded(const OpSpec& op, const TensorView& t, const Value& value, float fill, bool& map) {
    const Shape& s = value.map;
    if (!t.floats) refuse(op, "a tensor is missing or not float32");
    map = !(t.size() == 1 || (t.shape.size() == 1 && t.size() == s.channels));
    if (map && t.size() != int64_t(s.pixels()) * s.channels) refuse(op, "a tensor does not fit the value");
    Floats out(size_t(map ? s.pixels() : 1) * s.stride(), fill);
    if (!map) {
        for (int c = 0; c < s.channels; ++c) out[size_t(c)] = t.floats[t.size() == 1 ? 0 : c];
        return out;
    }
    const Layout layout(value);
    for (int64_t i = 0; i < t.size(); ++i) out[layout(i)] = t.floats[i];
    return out;
}

const TensorView& need(const OpSpec& op, const char* role, bool integers = false) {
    const auto found = op.tensors.find(role);
    if (found == op.tensors.end() || !(integers ? (const void*)found->second.integers : found->second.floats))
        refuse(op, std::string("tensor '") + role + "' is missing or of another type");
    return found->second;
}

std::vector<int> integers(const OpSpec& op, const char* key, size_t n) {
    const auto found = op.numbers.find(key);
    if (found == op.numbers.end() || found->second.size() != n) refuse(op, std::string("attribute '") + key + "' is missing or of another length");
    std::vector<int> out;
    for (double x : found->second) out.push_back(int(x));
    return out;
}

std::vector<int32_t> table(const OpSpec& op, const char* role, int64_t size, int low, int64_t high) {
    const TensorView& t = need(op, role, true);
    if (t.size() != size) refuse(op, std::string("tensor '") + role + "' has another size");
    std::vector<int32_t> out(t.integers, t.integers + size);
    for (int32_t x : out)
        if (x < low || x >= high) refuse(op, std::string("tensor '") + role + "' points outside");
    return out;
}

Axis axis_of(bool transposed, int in, int out, int taps, int stride, int before, int dilation) {
    std::vector<int> shift(static_cast<size_t>(taps));
    for (int k = 0; k < taps; ++k) shift[size_t(k)] = transposed ? k * dilation - before : before - k * dilation;
    return transposed ? Axis(in, out, taps, stride, 1, std::move(shift)) : Axis(in, out, taps, 1, stride, std::move(shift));
}

}  // namespace

// ---- program ------------------------------------------------------------------------------------------------------------

Program::Program(const std::vector<std::vector<int64_t>>& shapes, const std::vector<OpSpec>& ops, std::vector<int> outputs_)
    : outputs(std::move(outputs_)) {
    for (const auto& shape : shapes) {
        if (shape.empty() || shape.size() > 6) throw std::invalid_argument("a value has rank 0 or more than 6");
        for (int64_t s : shape)
            if (s < 1 || s > (int64_t(1) << 28)) throw std::invalid_argument("a value has an extent out of range");
        Value v;
        v.shape = shape;
        v.map = map_of(shape);
        if (product(shape) > (int64_t(1) << 28) || (uint64_t(v.map.pixels()) << v.map.shift()) > (uint64_t(1) << 32) ||
            int64_t(v.map.pixels()) * v.map.stride() >= (int64_t(1) << 31))
            throw std::invalid_argument("a value is too large");
        values.push_back(std::move(v));
    }
    for (const OpSpec& op : ops) add(op);
    for (int o : outputs)
        if (o < 0 || o >= int(values.size()) || values[size_t(o)].producer < 0 || values[size_t(o)].opaque)
            throw std::invalid_argument("an output is not a value of the plan");
}

void Program::add(const OpSpec& spec) {
    const int number = int(nodes.size());
    Node n;
    n.name = spec.name;
    n.inputs = spec.inputs;
    n.outputs = spec.outputs;
    const bool island = spec.kind == "island";
    if ((spec.kind == "input") != (number == 0)) refuse(spec, "the first operation, and only it, is the input");
    if (spec.outputs.empty() || (!island && spec.outputs.size() != 1)) refuse(spec, "wrong number of outputs");
    for (int v : spec.inputs)
        if (v < 0 || v >= int(values.size()) || values[size_t(v)].producer < 0 || (values[size_t(v)].opaque && !island))
            refuse(spec, "an input has not been produced");
    for (size_t k = 0; k < spec.outputs.size(); ++k) {
        const int v = spec.outputs[k];
        if (v < 0 || v >= int(values.size()) || values[size_t(v)].producer >= 0) refuse(spec, "an output is out of range or produced twice");
        values[size_t(v)].producer = number;
        values[size_t(v)].opaque = island && k < spec.opaque.size() && spec.opaque[k];
    }
    for (int v : spec.inputs) values[size_t(v)].consumers.push_back(number);
    const Value& out = values[size_t(spec.outputs[0])];
    const auto in = [&](size_t k) -> const Value& {
        if (k >= spec.inputs.size()) refuse(spec, "too few inputs");
        return values[size_t(spec.inputs[k])];
    };
    const auto inputs_are = [&](size_t low, size_t high) {
        if (spec.inputs.size() < low || spec.inputs.size() > high) refuse(spec, "wrong number of inputs");
    };
    const auto same = [&](const Value& a, const Value& b) {
        if (a.shape != b.shape) refuse(spec, "shapes differ");
    };

    n.linear = true;
    const std::string& kind = spec.kind;
    if (kind == "conv2d" || kind == "conv_transpose2d" || kind == "linear") {
        n.kind = Kind::conv;
        inputs_are(1, kind == "conv_transpose2d" ? 1 : 2);
        if (spec.inputs.size() == 2) same(in(1), out);
        const TensorView& w = need(spec, "weight");
        const Shape &x = in(0).map, &y = out.map;
        if (kind == "linear") {
            if (w.shape.size() != 2 || w.shape[0] != y.channels || w.shape[1] != x.channels || x.pixels() != y.pixels() ||
                (in(0).shape.size() == 4) != (out.shape.size() == 4) || in(0).shape.size() == 4)
                refuse(spec, "the weight does not fit");
            n.conv = std::make_unique<Conv>(x, y, axis_of(false, x.height, y.height, 1, 1, 0, 1),
                                            axis_of(false, x.width, y.width, 1, 1, 0, 1), 1, false, w.floats);
        } else {
            const bool transposed = kind == "conv_transpose2d";
            const auto stride = integers(spec, "stride", 2), padding = integers(spec, "padding", 4), dilation = integers(spec, "dilation", 2);
            const int groups = integers(spec, "groups", 1)[0];
            if (w.shape.size() != 4 || in(0).shape.size() != 4 || out.shape.size() != 4) refuse(spec, "expected maps and a weight of rank 4");
            const int64_t C = transposed ? w.shape[0] : w.shape[1] * groups, O = transposed ? w.shape[1] * groups : w.shape[0];
            if (groups < 1 || C != x.channels || O != y.channels || C % groups || O % groups || stride[0] < 1 || stride[1] < 1 ||
                dilation[0] < 1 || dilation[1] < 1)
                refuse(spec, "the weight, groups or strides do not fit");
            const int kh = int(w.shape[2]), kw = int(w.shape[3]);
            const auto extent = [&](int size, int k, int axis, int taps) -> int64_t {
                const int before = padding[size_t(k)], after = padding[size_t(k) + 1], s = stride[size_t(axis)], d = dilation[size_t(axis)];
                if (transposed)
                    return int64_t(size - 1) * s - before - after + int64_t(d) * (taps - 1) + integers(spec, "output_padding", 2)[size_t(axis)] + 1;
                const int64_t room = int64_t(size) + before + after - int64_t(d) * (taps - 1) - 1;
                return room < 0 ? 0 : room / s + 1;
            };
            if (extent(x.height, 0, 0, kh) != y.height || extent(x.width, 2, 1, kw) != y.width) refuse(spec, "the output has another shape");
            n.conv = std::make_unique<Conv>(x, y, axis_of(transposed, x.height, y.height, kh, stride[0], padding[0], dilation[0]),
                                            axis_of(transposed, x.width, y.width, kw, stride[1], padding[2], dilation[1]), groups,
                                            transposed, w.floats);
        }
        weight_bytes += n.conv->weight_bytes();
    } else if (kind == "affine") {
        n.kind = Kind::affine;
        inputs_are(1, 1);
        same(in(0), out);
        if (spec.tensors.count("scale")) n.scale = expanded(spec, need(spec, "scale"), out, 0, n.scale_map);
        if (spec.tensors.count("shift")) n.shift = expanded(spec, need(spec, "shift"), out, 0, n.shift_map);
    } else if (kind == "add") {
        n.kind = Kind::add;
        inputs_are(2, 2);
        same(in(0), out);
        same(in(1), out);
        const auto found = spec.numbers.find("coefficients");
        if (found == spec.numbers.end() || found->second.size() != 2) refuse(spec, "coefficients are missing");
        n.first = float(found->second[0]);
        n.second = float(found->second[1]);
    } else if (kind == "cat") {
        const size_t axis = size_t(integers(spec, "axis", 1)[0]);
        const size_t rank = out.shape.size();
        if (spec.inputs.empty() || axis < 1 || axis >= rank) refuse(spec, "bad axis or no inputs");
        int64_t total = 0;
        for (size_t k = 0; k < spec.inputs.size(); ++k) {
            if (in(k).shape.size() != rank) refuse(spec, "ranks differ");
            for (size_t d = 0; d < rank; ++d)
                if (d != axis && in(k).shape[d] != out.shape[d]) refuse(spec, "shapes differ");
            total += in(k).shape[axis];
        }
        if (total != out.shape[axis]) refuse(spec, "the output has another shape");
        if (axis == (rank == 4 || rank == 2 ? 1 : rank - 1)) {
            n.kind = Kind::cat_channels;
        } else {
            n.kind = Kind::cat_pixels;
            // Extents of pixels, outermost first, and the axis among them.
            const size_t first = rank == 4 ? 2 : 0, end = rank == 4 ? 4 : rank - 1;
            for (int p = 0; p < out.map.pixels(); ++p) {
                std::vector<int64_t> at(rank, 0);
                int64_t rest = p;
                for (size_t d = end; d-- > first;) at[d] = rest % out.shape[d], rest /= out.shape[d];
                size_t k = 0;
                while (at[axis] >= in(k).shape[axis]) at[axis] -= in(k++).shape[axis];
                int64_t q = 0;
                for (size_t d = first; d < end; ++d) q = q * in(k).shape[d] + at[d];
                n.owner.push_back(int32_t(k));
                n.index.push_back(int32_t(q));
            }
        }
    } else if (kind == "channels") {
        n.kind = Kind::channels;
        inputs_are(1, 1);
        if (in(0).shape.size() != 4 || in(0).map.height != out.map.height || in(0).map.width != out.map.width) refuse(spec, "shapes differ");
        n.index = table(spec, "index", out.map.channels, -1, in(0).map.channels);
    } else if (kind == "gather" || kind == "reshape") {
        n.kind = Kind::gather;
        inputs_are(1, 1);
        const int64_t size = product(out.shape), from = product(in(0).shape);
        std::vector<int32_t> index(static_cast<size_t>(size));
        if (kind == "gather") index = table(spec, "index", size, -1, from);
        else {
            if (size != from) refuse(spec, "the number of elements changes");
            for (int64_t i = 0; i < size; ++i) index[size_t(i)] = int32_t(i);
        }
        const Layout source(in(0)), target(out);
        bool still = in(0).map.pixels() == out.map.pixels() && source.channels == target.channels;
        n.index.assign(size_t(target.pixels) * target.channels, -1);
        std::vector<std::pair<int32_t, int32_t>> pairs;
        for (int64_t i = 0; i < size; ++i) {
            const int32_t j = index[size_t(i)];
            const size_t to = size_t(target.pixel(i)) * target.channels + target.channel(i);
            if (j < 0) {
                still = false;
                continue;
            }
            n.index[to] = int32_t(source(j));
            still = still && source.pixel(j) == target.pixel(i) && source.channel(j) == target.channel(i);
            pairs.emplace_back(source.pixel(j), target.pixel(i));
        }
        if (still) {  // nothing moves
            n.kind = Kind::affine;
            n.index.clear();
        } else {
            std::sort(pairs.begin(), pairs.end());
            pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
            n.reach_start.assign(size_t(source.pixels) + 1, 0);
            for (const auto& [from_pixel, to_pixel] : pairs) {
                ++n.reach_start[size_t(from_pixel) + 1];
                n.reach.push_back(to_pixel);
            }
            for (size_t p = 1; p < n.reach_start.size(); ++p) n.reach_start[p] += n.reach_start[p - 1];
        }
    } else if (kind == "pad") {
        n.kind = Kind::pad;
        inputs_are(1, 1);
        const auto padding = integers(spec, "padding", 4);
        const Shape &x = in(0).map, &y = out.map;
        if (in(0).shape.size() != 4 || out.shape.size() != 4 || x.channels != y.channels || *std::min_element(padding.begin(), padding.end()) < 0 ||
            x.height + padding[0] + padding[1] != y.height || x.width + padding[2] + padding[3] != y.width)
            refuse(spec, "the output has another shape");
        const auto found = spec.numbers.find("value");
        n.fill = found == spec.numbers.end() || found->second.empty() ? 0.0f : float(found->second[0]);
        for (int r = 0; r < y.height; ++r)
            for (int c = 0; c < y.width; ++c) {
                const int i = r - padding[0], j = c - padding[2];
                n.index.push_back(i < 0 || i >= x.height || j < 0 || j >= x.width ? -1 : i * x.width + j);
            }
    } else if (kind == "avg_pool2d" || kind == "max_pool2d") {
        n.kind = kind == "avg_pool2d" ? Kind::avg_pool : Kind::max_pool;
        n.linear = kind == "avg_pool2d";
        inputs_are(1, 1);
        const Shape &x = in(0).map, &y = out.map;
        if (in(0).shape.size() != 4 || out.shape.size() != 4 || x.channels != y.channels) refuse(spec, "shapes differ");
        n.rows = table(spec, "rows", 2 * int64_t(y.height), 0, int64_t(x.height) + 1);
        n.columns = table(spec, "columns", 2 * int64_t(y.width), 0, int64_t(x.width) + 1);
        for (const auto* t : {&n.rows, &n.columns})
            for (size_t i = 0; i < t->size(); i += 2)
                if ((*t)[i] >= (*t)[i + 1]) refuse(spec, "an empty window");
        if (n.linear) {
            const TensorView& d = need(spec, "divisor");
            if (d.size() != y.pixels()) refuse(spec, "the divisor does not fit");
            n.divisor.assign(d.floats, d.floats + d.size());
        } else {
            const auto dilation = integers(spec, "dilation", 2);
            if (dilation[0] < 1 || dilation[1] < 1) refuse(spec, "dilation below 1");
            n.row_step = dilation[0];
            n.column_step = dilation[1];
        }
    } else if (kind == "resize2d") {
        n.kind = Kind::resize;
        inputs_are(1, 1);
        const Shape &x = in(0).map, &y = out.map;
        if (in(0).shape.size() != 4 || out.shape.size() != 4 || x.channels != y.channels) refuse(spec, "shapes differ");
        const TensorView &rw = need(spec, "row_weights"), &cw = need(spec, "column_weights");
        if (rw.size() % y.height || cw.size() % y.width || rw.size() == 0 || cw.size() == 0) refuse(spec, "the taps do not fit");
        n.row_taps = int(rw.size() / y.height);
        n.column_taps = int(cw.size() / y.width);
        n.rows = table(spec, "rows", rw.size(), 0, x.height);
        n.columns = table(spec, "columns", cw.size(), 0, x.width);
        n.row_weights.assign(rw.floats, rw.floats + rw.size());
        n.column_weights.assign(cw.floats, cw.floats + cw.size());
    } else if (kind == "identity") {
        n.kind = Kind::identity;
        n.linear = false;
        inputs_are(1, 1);
        same(in(0), out);
    } else if (kind == "mul") {
        n.kind = Kind::mul;
        n.linear = false;
        inputs_are(2, 2);
        same(in(0), out);
        if (in(1).shape != out.shape && !(out.shape.size() == 4 && in(1).shape.size() == 4 && in(1).map.pixels() == 1 && in(1).map.channels == out.map.channels))
            refuse(spec, "shapes differ");
    } else if (kind == "input") {
        n.kind = Kind::input;
        n.linear = false;
        inputs_are(0, 0);
    } else if (island) {
        n.kind = Kind::island;
        n.linear = false;
    } else {
        refuse(spec, "unknown kind");
    }

    n.coded = n.linear && (spec.act != Act::none || !spec.codec.empty());
    n.act = spec.act;
    n.act_a = spec.act_a;
    n.act_b = spec.act_b;
    n.low = spec.low;
    n.high = spec.high;
    n.encode = spec.codec == "exact"      ? Encode::exact
               : spec.codec == "hold"     ? Encode::hold
               : spec.codec == "residual" ? Encode::residual
               : n.linear && !n.coded     ? Encode::linear
                                          : Encode::change;
    n.bias.assign(size_t(out.map.stride()), 0.0f);
    if (n.kind == Kind::conv && spec.tensors.count("bias")) {
        const TensorView& b = need(spec, "bias");
        if (b.size() != out.map.channels) refuse(spec, "the bias does not fit");
        std::memcpy(n.bias.data(), b.floats, size_t(b.size()) * sizeof(float));
    }
    n.cheap = n.coded && n.kind == Kind::conv && n.conv->terms() <= CHEAP_TERMS;
    if (!spec.codec.empty()) n.step = expanded(spec, spec.step, out, 1.0f, n.step_map);
    nodes.push_back(std::move(n));
}

// ---- stream -------------------------------------------------------------------------------------------------------------

Stream::Stream(std::shared_ptr<const Program> program, int threads, Island island)
    : program_(std::move(program)), pool_(std::max(1, threads)), compute_island_(std::move(island)) {
    const Program& p = *program_;
    states_.resize(p.values.size());
    accumulators_.resize(p.nodes.size());
    dense_frames_.resize(p.nodes.size());
    stale_.resize(p.nodes.size());
    stats_.resize(p.nodes.size());
    workspaces_.resize(size_t(pool_.threads()));
    size_t largest = 1;
    for (size_t v = 0; v < p.values.size(); ++v) {
        if (p.values[v].opaque) continue;
        const Shape& s = p.values[v].map;
        State& state = states_[v];
        state.value.assign(size_t(s.pixels()) * s.stride(), 0.0f);
        state.mask.assign(size_t(s.pixels()), 0);
        state.active.assign(size_t(s.pixels()) + 1, 0);
        state.tally.assign(size_t(s.pixels()) + 1, 0);
        largest = std::max(largest, size_t(s.pixels()));
    }
    touch_.resize(largest);
    list_.resize(largest + 1);
    all_.resize(largest);
    for (size_t i = 0; i < largest; ++i) all_[i] = int32_t(i);
    for (size_t i = 0; i < p.nodes.size(); ++i)
        if (p.nodes[i].coded && !p.nodes[i].cheap) accumulators_[i].assign(states_[size_t(p.nodes[i].outputs[0])].value.size(), 0.0f);

    // Deltas live from their producer to their last consumer: values that never live together share memory.
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
            const size_t wanted = states_[size_t(v)].value.size();
            int best = -1;  // the smallest that is large enough, else the largest
            for (int s : free) {
                if (best < 0) best = s;
                const bool fits = sizes[size_t(s)] >= wanted, best_fits = sizes[size_t(best)] >= wanted;
                if (fits ? (!best_fits || sizes[size_t(s)] < sizes[size_t(best)]) : (!best_fits && sizes[size_t(s)] > sizes[size_t(best)])) best = s;
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
        arena_floats_.emplace_back(size, 0.0f);
        arena_floats_.emplace_back(size + slack, 0.0f);
        arena_places_.emplace_back(size + slack, 0u);
    }
    for (size_t v = 0; v < p.values.size(); ++v) {
        if (slot[v] < 0) continue;
        const size_t s = size_t(slot[v]);
        State& state = states_[v];
        state.change = {p.values[v].map, arena_floats_[2 * s].data(), state.mask.data(), state.active.data(), state.tally.data(), 0,
                        arena_places_[s].data(), arena_floats_[2 * s + 1].data(), 0, false, false};
    }
}

size_t Stream::scratch_bytes() const {
    size_t n = 0;
    for (const Floats& f : arena_floats_) n += f.size() * sizeof(float);
    for (const auto& f : arena_places_) n += f.size() * sizeof(uint32_t);
    for (const State& s : states_) n += s.mask.size() + (s.active.size() + s.tally.size()) * sizeof(int32_t);
    for (const Workspace& w : workspaces_) n += (w.sum.size() + w.scratch.size()) * sizeof(float);
    return n;
}

void Stream::clear(int value) {
    State& s = states_[size_t(value)];
    std::fill(s.mask.begin(), s.mask.end(), uint8_t(0));
    s.change.active_count = 0;
    s.change.events = 0;
    s.change.rowed = s.change.listed = true;
}

// Runs body(sink, from, to, first row, last row, workspace) over parts of the list, one a thread, and joins what they emit.
template <class Body>
void Stream::split(const Node& node, int output, const int32_t* list, int count, bool replace, bool by_row, const Body& body) {
    State& s = states_[size_t(output)];
    Change& change = s.change;
    clear(output);
    const Shape& map = change.shape;
    FinishArgs base{};
    base.replace = replace;
    base.channels = map.channels;
    base.stride = map.stride();
    base.act = node.act;
    base.act_a = node.act_a;
    base.act_b = node.act_b;
    base.encode = flush_ && (node.encode == Encode::hold || node.encode == Encode::residual) ? Encode::change : node.encode;  // the first frame is sent whole
    base.bias = node.bias.data();
    base.step = node.step.empty() ? nullptr : node.step.data();
    base.step_map = node.step_map;
    base.low = node.low;
    base.high = node.high;
    base.z = node.coded && !node.cheap && keep_ ? accumulators_[size_t(current_)].data() : nullptr;
    base.value = s.value.data();
    base.mask = change.mask;
    base.shift = map.shift();
    change.rowed = !dense_ && s.want_rows;
    change.listed = !dense_ && s.want_events;
    base.rows = change.rowed ? change.rows : nullptr;
    s.want_rows = s.want_events = false;  // consumers of this frame say what the next one should bring

    const int parts = std::max(1, std::min(pool_.threads(), count / 16));
    std::vector<FinishArgs> sinks(size_t(parts), base);
    std::vector<int> bounds(size_t(parts) + 1), row_bounds(size_t(parts) + 1);
    for (int t = 0; t <= parts; ++t) {
        int at = int(int64_t(count) * t / parts);
        row_bounds[size_t(t)] = t == 0 ? 0 : t == parts ? map.height : list[at] / map.width;
        if (by_row && t > 0 && t < parts) at = int(std::lower_bound(list, list + count, row_bounds[size_t(t)] * map.width) - list);
        bounds[size_t(t)] = at;
    }
    const auto part = [&](int t) {
        if (t >= parts) return;
        FinishArgs& sink = sinks[size_t(t)];
        const size_t from = size_t(bounds[size_t(t)]);
        sink.active = change.active + from;
        sink.tally = change.tally + from;
        if (change.listed) {
            sink.place = change.place + from * size_t(map.channels) + size_t(t) * LANE;
            sink.change = change.change + from * size_t(map.channels) + size_t(t) * LANE;
        }
        if (bounds[size_t(t)] < bounds[size_t(t) + 1])
            body(sink, bounds[size_t(t)], bounds[size_t(t) + 1], row_bounds[size_t(t)], row_bounds[size_t(t) + 1], workspaces_[size_t(t)]);
    };
    if (parts == 1) part(0);
    else pool_.run(part);
    for (const FinishArgs& sink : sinks) {
        const size_t n = size_t(sink.active_count), e = size_t(sink.events);
        std::memmove(change.active + change.active_count, sink.active, n * sizeof(int32_t));
        std::memmove(change.tally + change.active_count, sink.tally, n * sizeof(int32_t));
        if (change.listed) {
            std::memmove(change.place + change.events, sink.place, e * sizeof(uint32_t));
            std::memmove(change.change + change.events, sink.change, e * sizeof(float));
        }
        change.active_count += int32_t(n);
        change.events += int64_t(e);
    }
}

// fill(pixels, n, sums, stride) writes the sums of some pixels.
template <class Fill>
void Stream::rows(const Node& node, int output, const int32_t* list, int count, bool replace, const Fill& fill) {
    const int width = kernels().width;
    split(node, output, list, count, replace, false, [&](FinishArgs& sink, int from, int to, int, int, Workspace& ws) {
        const int stride = round_up(sink.channels, LANE);
        const int chunk = std::max(1, std::min(64, 8 * 1024 / stride));
        if (ws.sum.size() < size_t(chunk) * stride) ws.sum.resize(size_t(chunk) * stride);
        if (ws.at.size() < size_t(chunk)) ws.at.resize(size_t(chunk));
        for (int i = 0; i < chunk; ++i) ws.at[size_t(i)] = i * stride;
        for (int i = from; i < to; i += chunk) {
            const int n = std::min(chunk, to - i);
            fill(list + i, n, ws.sum.data(), stride);
            sink.pixels = n;
            sink.pixel = list + i;
            sink.at = ws.at.data();
            sink.sum = ws.sum.data();
            sink.block = width;
            kernels().encoders->finish(sink);
        }
    });
}

bool Stream::rows_of(int value) {
    Change& c = states_[size_t(value)].change;
    if (c.rowed) return true;
    if (!c.listed) return false;
    const int stride = c.shape.stride(), shift = c.shape.shift();
    for (int i = 0; i < c.active_count; ++i) std::memset(c.rows + size_t(c.active[i]) * stride, 0, size_t(stride) * sizeof(float));
    const uint32_t mask = (1u << shift) - 1;
    for (int64_t e = 0; e < c.events; ++e) c.rows[size_t(c.place[e] >> shift) * stride + (c.place[e] & mask)] = c.change[e];
    return c.rowed = true;
}

bool Stream::events_of(int value) {
    Change& c = states_[size_t(value)].change;
    if (c.listed) return true;
    if (!c.rowed) return false;
    c.events = kernels().encoders->events_of_rows(c.rows, c.active, c.active_count, c.shape.channels, c.shape.stride(), c.shape.shift(), c.place, c.change);
    return c.listed = true;
}

// The marks of touch_ as list_.
int Stream::listed(const Shape& map) {
    int n = 0;
    for (int p = 0; p < map.pixels(); ++p) {
        list_[size_t(n)] = p;
        n += touch_[size_t(p)] != 0;
    }
    return n;
}

int Stream::union_of(const std::vector<int>& inputs) {
    const Change& first = states_[size_t(inputs[0])].change;
    const int pixels = first.shape.pixels();
    bool only = true;
    for (size_t k = 1; k < inputs.size(); ++k) only = only && states_[size_t(inputs[k])].change.active_count == 0;
    if (only) {
        std::memcpy(list_.data(), first.active, size_t(first.active_count) * sizeof(int32_t));
        return first.active_count;
    }
    std::memcpy(touch_.data(), first.mask, size_t(pixels));
    for (size_t k = 1; k < inputs.size(); ++k) {
        const uint8_t* mask = states_[size_t(inputs[k])].change.mask;
        for (int p = 0; p < pixels; ++p) touch_[size_t(p)] |= mask[p];
    }
    return listed(first.shape);
}

// Outputs that an event reaches, as list_; for all operations but convolutions.
int Stream::touched(const Node& node) {
    const Shape& out = program_->values[size_t(node.outputs[0])].map;
    const Change& x = states_[size_t(node.inputs[0])].change;
    bool none = true;
    for (int v : node.inputs) none = none && states_[size_t(v)].change.active_count == 0;
    if (none) return 0;
    switch (node.kind) {
        case Kind::mul:
            if (program_->values[size_t(node.inputs[1])].map.pixels() != out.pixels()) {
                if (states_[size_t(node.inputs[1])].change.active_count) {
                    std::memcpy(list_.data(), all_.data(), size_t(out.pixels()) * sizeof(int32_t));
                    return out.pixels();
                }
                return union_of({node.inputs[0]});
            }
            return union_of(node.inputs);
        case Kind::affine:
        case Kind::identity:
        case Kind::channels:
        case Kind::add:
        case Kind::cat_channels: return union_of(node.inputs);
        case Kind::cat_pixels:
            for (int p = 0; p < out.pixels(); ++p)
                touch_[size_t(p)] = states_[size_t(node.inputs[size_t(node.owner[size_t(p)])])].change.mask[node.index[size_t(p)]];
            return listed(out);
        case Kind::pad:
            for (int p = 0; p < out.pixels(); ++p) touch_[size_t(p)] = node.index[size_t(p)] >= 0 && x.mask[node.index[size_t(p)]];
            return listed(out);
        case Kind::gather:
            std::memset(touch_.data(), 0, size_t(out.pixels()));
            for (int i = 0; i < x.active_count; ++i) {
                const size_t p = size_t(x.active[i]);
                for (int32_t j = node.reach_start[p]; j < node.reach_start[p + 1]; ++j) touch_[size_t(node.reach[size_t(j)])] = 1;
            }
            return listed(out);
        default: break;
    }
    // Windows and taps: first over rows, then over columns.
    std::memset(touch_.data(), 0, size_t(out.pixels()));
    std::vector<uint8_t>& bytes = workspaces_[0].bytes;
    if (bytes.size() < size_t(x.shape.height + x.shape.width)) bytes.resize(size_t(x.shape.height + x.shape.width));
    uint8_t *any = bytes.data(), *line = any + x.shape.height;
    std::memset(any, 0, size_t(x.shape.height));
    for (int i = 0; i < x.active_count; ++i) any[x.active[i] / x.shape.width] = 1;
    const bool taps = node.kind == Kind::resize;
    for (int r = 0; r < out.height; ++r) {
        bool hit = false;
        const auto row = [&](int y) {
            if (!any[y]) return;
            const uint8_t* from = x.mask + size_t(y) * x.shape.width;
            if (!hit) std::memset(line, 0, size_t(x.shape.width));
            for (int c = 0; c < x.shape.width; ++c) line[c] |= from[c];
            hit = true;
        };
        if (taps)
            for (int k = 0; k < node.row_taps; ++k) row(node.rows[size_t(r) * node.row_taps + k]);
        else
            for (int y = node.rows[2 * size_t(r)]; y < node.rows[2 * size_t(r) + 1]; y += node.row_step) row(y);
        if (!hit) continue;
        uint8_t* to = touch_.data() + size_t(r) * out.width;
        for (int c = 0; c < out.width; ++c) {
            if (taps)
                for (int k = 0; k < node.column_taps; ++k) to[c] |= line[node.columns[size_t(c) * node.column_taps + k]];
            else
                for (int i = node.columns[2 * size_t(c)]; i < node.columns[2 * size_t(c) + 1]; i += node.column_step) to[c] |= line[i];
        }
    }
    return listed(out);
}

void Stream::convolve(const Node& node, NodeStats& stats) {
    const Conv& conv = *node.conv;
    const int x = node.inputs[0], y = node.outputs[0];
    const int r = node.inputs.size() == 2 ? node.inputs[1] : -1;
    const Change& change = states_[size_t(x)].change;
    const Shape& out = conv.out;
    enum { DENSE, PIXELS, ELEMENTS } path = DENSE;
    const int32_t* list = all_.data();
    int n = out.pixels();
    bool by_event = false;
    if (!dense_) {
        n = conv.touched(change, touch_.data(), list_.data(), workspaces_[0]);
        list = list_.data();
        if (r >= 0 && states_[size_t(r)].change.active_count) {
            const uint8_t* mask = states_[size_t(r)].change.mask;
            for (int p = 0; p < out.pixels(); ++p) touch_[size_t(p)] |= mask[p];
            n = listed(out);
        }
        const PathTimes times = conv.estimate(change, n);
        path = node.cheap ? DENSE : times.elements < std::min(times.dense, times.pixels) ? ELEMENTS : times.pixels < times.dense ? PIXELS : DENSE;
        State& from = states_[size_t(x)];
        from.want_rows = from.want_rows || path == PIXELS;
        from.want_events = from.want_events || path == ELEMENTS;
        if (n == 0) from.want_rows = from.want_events = true;
        if (path == ELEMENTS && !events_of(x)) path = DENSE;
        if (path == PIXELS && !rows_of(x)) path = DENSE;
        if (r >= 0) {
            // Few changes of a residual go straight into the accumulators, many are added as rows.
            State& residual = states_[size_t(r)];
            by_event = node.coded && !node.cheap && residual.change.events * 4 < int64_t(residual.value.size());
            (by_event ? residual.want_events : residual.want_rows) = true;
            if (path != DENSE && !(by_event ? events_of(r) : rows_of(r))) path = DENSE;
        }
        if (path != DENSE && stale_[size_t(current_)] && n) {
            path = DENSE;
            list = all_.data();
            n = out.pixels();
        } else if (node.coded && !node.cheap && path == DENSE) {
            int& frames = dense_frames_[size_t(current_)];
            frames = n == out.pixels() ? frames + 1 : 0;
            keep_ = frames < 2 && !stale_[size_t(current_)];
        }
        if (path != DENSE) dense_frames_[size_t(current_)] = 0;
    }
    if (n) stale_[size_t(current_)] = !keep_;
    stats.path = path == DENSE ? "dense" : "sparse";
    // The dense path computes touched outputs only, from all of their inputs.
    stats.macs = path == DENSE ? int64_t(double(conv.dense_macs()) * n / out.pixels()) : conv.macs(change);
    if (n == 0) {
        stats.path = "sparse";
        stats.macs = 0;
        return clear(y);
    }
    by_event = by_event && path != DENSE;
    if (by_event) {
        const Change& c = states_[size_t(r)].change;
        float* z = accumulators_[size_t(current_)].data();
        const int shift = c.shape.shift(), stride = c.shape.stride();
        const uint32_t mask = (1u << shift) - 1;
        for (int64_t e = 0; e < c.events; ++e) z[size_t(c.place[e] >> shift) * stride + (c.place[e] & mask)] += c.change[e];
    }
    split(node, y, list, n, path == DENSE, path == ELEMENTS,
          [&](FinishArgs& sink, int from, int to, int first, int last, Workspace& ws) {
              if (r >= 0 && !by_event) {
                  const State& residual = states_[size_t(r)];
                  sink.extra = path == DENSE ? residual.value.data() : residual.change.rows;
                  sink.extra_mask = path == DENSE ? nullptr : residual.change.mask;
              }
              if (path == DENSE) conv.dense(states_[size_t(x)].value.data(), list + from, to - from, sink, ws);
              else if (path == PIXELS) conv.pixels(change, list + from, to - from, sink, ws);
              else conv.elements(change, first, last, list + from, to - from, sink, ws);
          });
}

// Linear operations other than convolutions: sums of the inputs' deltas, or on the dense path of their values.
void Stream::move(const Node& node) {
    const int y = node.outputs[0];
    const Shape& out = program_->values[size_t(y)].map;
    bool dense = dense_;
    int n = out.pixels();
    const int32_t* list = all_.data();
    if (!dense_) {
        n = touched(node);
        list = list_.data();
        for (int v : node.inputs) {
            states_[size_t(v)].want_rows = true;
            dense = dense || !rows_of(v);
        }
    }
    if (n == 0) return clear(y);
    const auto row = [&](int k, int p) -> const float* {  // null stands for zeros
        const State& s = states_[size_t(node.inputs[size_t(k)])];
        const int stride = s.change.shape.stride();
        if (dense) return s.value.data() + size_t(p) * stride;
        return s.change.mask[p] ? s.change.rows + size_t(p) * stride : nullptr;
    };
    const int C = out.channels;
    switch (node.kind) {
        case Kind::affine:
            return rows(node, y, list, n, dense, [&](const int32_t* pixel, int count, float* sum, int stride) {
                for (int i = 0; i < count; ++i, sum += stride) {
                    const float* x = row(0, pixel[i]);
                    const size_t at = size_t(pixel[i]) * out.stride();
                    const float* scale = node.scale.empty() ? nullptr : node.scale.data() + (node.scale_map ? at : 0);
                    const float* shift = node.shift.empty() || !dense ? nullptr : node.shift.data() + (node.shift_map ? at : 0);
                    for (int c = 0; c < C; ++c) sum[c] = scale ? x[c] * scale[c] : x[c];
                    if (shift)
                        for (int c = 0; c < C; ++c) sum[c] += shift[c];
                }
            });
        case Kind::add:
            return rows(node, y, list, n, dense, [&](const int32_t* pixel, int count, float* sum, int stride) {
                for (int i = 0; i < count; ++i, sum += stride) {
                    const float *a = row(0, pixel[i]), *b = row(1, pixel[i]);
                    if (a && b)
                        for (int c = 0; c < C; ++c) sum[c] = node.first * a[c] + node.second * b[c];
                    else if (a)
                        for (int c = 0; c < C; ++c) sum[c] = node.first * a[c];
                    else
                        for (int c = 0; c < C; ++c) sum[c] = node.second * b[c];
                }
            });
        case Kind::cat_channels:
            return rows(node, y, list, n, dense, [&](const int32_t* pixel, int count, float* sum, int stride) {
                for (int i = 0; i < count; ++i, sum += stride) {
                    float* to = sum;
                    for (size_t k = 0; k < node.inputs.size(); ++k) {
                        const int channels = program_->values[size_t(node.inputs[k])].map.channels;
                        const float* x = row(int(k), pixel[i]);
                        if (x) std::memcpy(to, x, size_t(channels) * sizeof(float));
                        else std::memset(to, 0, size_t(channels) * sizeof(float));
                        to += channels;
                    }
                }
            });
        case Kind::cat_pixels:
        case Kind::pad:
            return rows(node, y, list, n, dense, [&](const int32_t* pixel, int count, float* sum, int stride) {
                for (int i = 0; i < count; ++i, sum += stride) {
                    const size_t p = size_t(pixel[i]);
                    const float* x = node.index[p] < 0 ? nullptr : row(node.owner.empty() ? 0 : node.owner[p], node.index[p]);
                    for (int c = 0; c < C; ++c) sum[c] = x ? x[c] : node.fill;
                }
            });
        case Kind::channels:
            return rows(node, y, list, n, dense, [&](const int32_t* pixel, int count, float* sum, int stride) {
                for (int i = 0; i < count; ++i, sum += stride) {
                    const float* x = row(0, pixel[i]);
                    for (int c = 0; c < C; ++c) sum[c] = node.index[size_t(c)] < 0 ? 0.0f : x[node.index[size_t(c)]];
                }
            });
        case Kind::gather: {
            const State& s = states_[size_t(node.inputs[0])];
            const int from = s.change.shape.stride();
            return rows(node, y, list, n, dense, [&, from](const int32_t* pixel, int count, float* sum, int stride) {
                for (int i = 0; i < count; ++i, sum += stride) {
                    const int32_t* index = node.index.data() + size_t(pixel[i]) * C;
                    for (int c = 0; c < C; ++c) {
                        const int32_t j = index[c];
                        if (dense) sum[c] = j < 0 ? 0.0f : s.value[size_t(j)];
                        else sum[c] = j >= 0 && s.change.mask[j / from] ? s.change.rows[j] : 0.0f;
                    }
                }
            });
        }
        case Kind::avg_pool:
            return rows(node, y, list, n, dense, [&](const int32_t* pixel, int count, float* sum, int stride) {
                const int width = program_->values[size_t(node.inputs[0])].map.width;
                for (int i = 0; i < count; ++i, sum += stride) {
                    const size_t oy = size_t(pixel[i] / out.width), ox = size_t(pixel[i] % out.width);
                    for (int c = 0; c < C; ++c) sum[c] = 0.0f;
                    for (int iy = node.rows[2 * oy]; iy < node.rows[2 * oy + 1]; ++iy)
                        for (int ix = node.columns[2 * ox]; ix < node.columns[2 * ox + 1]; ++ix)
                            if (const float* x = row(0, iy * width + ix))
                                for (int c = 0; c < C; ++c) sum[c] += x[c];
                    const float divisor = node.divisor[size_t(pixel[i])];
                    for (int c = 0; c < C; ++c) sum[c] /= divisor;
                }
            });
        default:  // resize
            return rows(node, y, list, n, dense, [&](const int32_t* pixel, int count, float* sum, int stride) {
                const int width = program_->values[size_t(node.inputs[0])].map.width;
                for (int i = 0; i < count; ++i, sum += stride) {
                    const size_t oy = size_t(pixel[i] / out.width), ox = size_t(pixel[i] % out.width);
                    for (int c = 0; c < C; ++c) sum[c] = 0.0f;
                    for (size_t a = oy * size_t(node.row_taps); a < (oy + 1) * size_t(node.row_taps); ++a)
                        for (size_t b = ox * size_t(node.column_taps); b < (ox + 1) * size_t(node.column_taps); ++b) {
                            const float w = node.row_weights[a] * node.column_weights[b];
                            const float* x = w == 0.0f ? nullptr : row(0, node.rows[a] * width + node.columns[b]);
                            if (x)
                                for (int c = 0; c < C; ++c) sum[c] += w * x[c];
                        }
                }
            });
    }
}

// Nonlinear operations of their inputs' values, where an event touches.
void Stream::recompute(const Node& node) {
    const int y = node.outputs[0];
    const Shape& out = program_->values[size_t(y)].map;
    const int n = dense_ ? out.pixels() : touched(node);
    const int32_t* list = dense_ ? all_.data() : list_.data();
    if (n == 0) return clear(y);
    const int C = out.channels;
    const float* a = states_[size_t(node.inputs[0])].value.data();
    const Shape& in = program_->values[size_t(node.inputs[0])].map;
    if (node.kind == Kind::identity)
        return rows(node, y, list, n, true, [&](const int32_t* pixel, int count, float* sum, int stride) {
            for (int i = 0; i < count; ++i, sum += stride) std::memcpy(sum, a + size_t(pixel[i]) * in.stride(), size_t(C) * sizeof(float));
        });
    if (node.kind == Kind::mul) {
        const float* b = states_[size_t(node.inputs[1])].value.data();
        const bool one = program_->values[size_t(node.inputs[1])].map.pixels() == 1;
        return rows(node, y, list, n, true, [&](const int32_t* pixel, int count, float* sum, int stride) {
            for (int i = 0; i < count; ++i, sum += stride) {
                const float *p = a + size_t(pixel[i]) * in.stride(), *q = b + (one ? 0 : size_t(pixel[i]) * in.stride());
                for (int c = 0; c < C; ++c) sum[c] = p[c] * q[c];
            }
        });
    }
    return rows(node, y, list, n, true, [&](const int32_t* pixel, int count, float* sum, int stride) {
        for (int i = 0; i < count; ++i, sum += stride) {
            const size_t oy = size_t(pixel[i] / out.width), ox = size_t(pixel[i] % out.width);
            for (int c = 0; c < C; ++c) sum[c] = -std::numeric_limits<float>::infinity();
            for (int iy = node.rows[2 * oy]; iy < node.rows[2 * oy + 1]; iy += node.row_step)
                for (int ix = node.columns[2 * ox]; ix < node.columns[2 * ox + 1]; ix += node.column_step) {
                    const float* x = a + (size_t(iy) * in.width + ix) * in.stride();
                    for (int c = 0; c < C; ++c) sum[c] = x[c] > sum[c] ? x[c] : sum[c];
                }
        }
    });
}

// The input of a camera: few channels, every pixel looked at, few changed.
void Stream::take(const Node& node, const Frame& frame) {
    const int value = node.outputs[0];
    State& s = states_[size_t(value)];
    clear(value);
    Change& change = s.change;
    const Shape& map = change.shape;
    FlatArgs f{};
    f.step_map = node.step_map;
    f.low = node.low;
    f.high = node.high;
    f.encode = flush_ && (node.encode == Encode::hold || node.encode == Encode::residual) ? Encode::change : node.encode;
    f.channels = map.channels;
    f.shift = map.shift();
    change.rowed = !dense_ && s.want_rows;
    change.listed = !dense_ && s.want_events;
    s.want_rows = s.want_events = false;
    f.rows = change.rowed ? change.rows : nullptr;
    f.mask = change.mask;
    f.active = change.active;
    f.tally = change.tally;
    f.place = change.listed ? change.place : nullptr;
    f.change = change.change;
    Floats repeated(size_t(map.channels) + LANE);
    if (!node.step.empty() && !node.step_map)
        for (size_t i = 0; i < repeated.size(); ++i) repeated[i] = node.step[i % size_t(map.channels)];
    const int C = map.channels, row = map.width * C;
    Floats& line = workspaces_[0].sum;
    if (line.size() < size_t(row)) line.resize(size_t(row));
    for (int y = 0; y < map.height; ++y) {
        const float* from = frame.data + y * frame.row;
        if (frame.channel == 1 && frame.column == C) {
            f.y = from;
        } else {
            for (int c = 0; c < C; ++c) {
                float* to = line.data() + c;
                const float* x = from + c * frame.channel;
                for (int i = 0; i < map.width; ++i, to += C, x += frame.column) *to = *x;
            }
            f.y = line.data();
        }
        f.first = int64_t(y) * row;
        f.elements = row;
        f.value = s.value.data() + f.first;
        f.step = node.step_map ? node.step.data() + f.first : repeated.data();
        kernels().encoders->flat(f);
    }
    change.active_count = f.active_count;
    change.events = f.events;
}

void Stream::put(int value, const float* in) {
    const Node& node = program_->nodes[size_t(current_)];
    const Value& v = program_->values[size_t(value)];
    const Layout layout(v);
    Node plain;  // outputs beside the first have no codec
    plain.encode = Encode::change;
    plain.act = Act::none;
    plain.bias.assign(size_t(v.map.stride()), 0.0f);
    const int C = v.map.channels, pixels = v.map.pixels();
    states_[size_t(value)].want_rows = true;
    rows(value == node.outputs[0] ? node : plain, value, all_.data(), pixels, true,
         [&](const int32_t* pixel, int count, float* sum, int stride) {
             for (int i = 0; i < count; ++i, sum += stride)
                 for (int c = 0; c < C; ++c) sum[c] = in[layout.planar ? size_t(c) * pixels + pixel[i] : size_t(pixel[i]) * C + c];
         });
}

void Stream::touch(int value) { states_[size_t(value)].change.active_count = 1; }

void Stream::execute(int number, const Frame& frame) {
    const Node& node = program_->nodes[size_t(number)];
    NodeStats& stats = stats_[size_t(number)];
    const auto start = std::chrono::steady_clock::now();
    current_ = number;
    keep_ = true;
    stats = {};
    stats.path = dense_ ? "dense" : "sparse";
    switch (node.kind) {
        case Kind::conv: convolve(node, stats); break;
        case Kind::input: {
            const Shape& map = program_->values[size_t(node.outputs[0])].map;
            if (map.channels <= NARROW) {
                take(node, frame);
                break;
            }
            rows(node, node.outputs[0], all_.data(), map.pixels(), true, [&](const int32_t* pixel, int count, float* sum, int stride) {
                for (int i = 0; i < count; ++i, sum += stride) {
                    const float* x = frame.data + (pixel[i] / map.width) * frame.row + (pixel[i] % map.width) * frame.column;
                    for (int c = 0; c < map.channels; ++c) sum[c] = x[c * frame.channel];
                }
            });
            break;
        }
        case Kind::identity:
        case Kind::mul:
        case Kind::max_pool: recompute(node); break;
        case Kind::island: {
            bool changed = dense_;
            for (int v : node.inputs) changed = changed || states_[size_t(v)].change.active_count > 0;
            stats.path = "dense";
            for (int v : node.outputs) clear(v);
            if (changed) compute_island_(number);
            break;
        }
        default: move(node); break;
    }
    const auto count = [&](const std::vector<int>& list) {
        int64_t events = 0;
        for (int v : list)
            if (!program_->values[size_t(v)].opaque)
                events += flush_ ? int64_t(program_->values[size_t(v)].map.pixels()) * program_->values[size_t(v)].map.channels
                                 : states_[size_t(v)].change.events;
        return events;
    };
    stats.events_in = count(node.inputs);
    stats.events = count(node.outputs);
    stats.time_ns = std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count();
}

void Stream::run(const Frame& frame) {
    flush_ = !started_;
    dense_ = flush_ || refresh_;
    refresh_ = false;
    if (flush_)
        for (State& s : states_) {
            std::fill(s.value.begin(), s.value.end(), 0.0f);
            s.want_rows = s.want_events = true;
        }
    // A failed island leaves the state of a frame half done: only a new start mends it.
    started_ = false;
    for (size_t i = 0; i < program_->nodes.size(); ++i) {
        execute(int(i), frame);
        if (dense_)
            for (int v : program_->nodes[i].outputs) states_[size_t(v)].want_rows = states_[size_t(v)].want_events = true;
    }
    started_ = true;
}

void Stream::read(int value, float* out) const {
    const Value& v = program_->values[size_t(value)];
    const Layout layout(v);
    const int64_t n = product(v.shape);
    const float* from = states_[size_t(value)].value.data();
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
    const Floats& from = computed.empty() ? accumulators_[size_t(node)] : computed;
    for (int64_t i = 0; i < size; ++i) out[i] = from[layout(i)];
}

void Stream::write(int value, const float* in) {
    const Value& v = program_->values[size_t(value)];
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

void Stream::resume() {
    started_ = true;
    refresh_ = false;
    std::fill(dense_frames_.begin(), dense_frames_.end(), 0);
    for (State& s : states_) s.want_rows = s.want_events = true;
}

}  // namespace sparsetime
