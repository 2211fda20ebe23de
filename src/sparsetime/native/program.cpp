#include "program.h"

#include <algorithm>
#include <limits>
#include <cstring>
#include <stdexcept>

namespace sparsetime {

namespace {

constexpr int CHEAP_TERMS = 36;

[[noreturn]] void refuse(const OpSpec& op, const std::string& why) {
    throw std::invalid_argument("operation '" + op.name + "' (" + op.kind + "): " + why);
}

Shape map_of(const std::vector<int64_t>& shape) {
    if (is_map(shape)) return {int(shape[2]), int(shape[3]), int(shape[1])};
    const int channels = shape.empty() ? 1 : int(shape.back());
    return {1, int(product(shape) / channels), channels};
}

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

const TensorView& bytes_of(const OpSpec& op, const char* role) {
    const auto found = op.tensors.find(role);
    if (found == op.tensors.end() || !found->second.bytes)
        refuse(op, std::string("tensor '") + role + "' is missing or not int8");
    return found->second;
}

std::vector<int> integers(const OpSpec& op, const char* key, size_t n) {
    const auto found = op.numbers.find(key);
    if (found == op.numbers.end() || found->second.size() != n)
        refuse(op, std::string("attribute '") + key + "' is missing or of another length");
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

// Of a gather, by output element the place in the source's rows: the pixels that outputs are whole copies of, -1 for zeros; or nothing if
// some output is no copy.
std::vector<int32_t> rows_moved(const std::vector<int32_t>& index, const Layout& source, const Layout& target) {
    std::vector<int32_t> pixel;
    for (int p = 0; source.channels == target.channels && p < target.pixels; ++p) {
        const int32_t* at = index.data() + size_t(p) * size_t(target.channels);
        for (int c = 0; c < target.channels; ++c)
            if (at[0] < 0 ? at[c] >= 0 : at[0] % source.stride != 0 || at[c] != at[0] + c) return {};
        pixel.push_back(at[0] < 0 ? -1 : at[0] / source.stride);
    }
    return pixel;
}

// The channels that all outputs take from their own pixel, -1 for zeros; or nothing if they differ.
std::vector<int32_t> channels_picked(const std::vector<int32_t>& index, const Layout& source, const Layout& target) {
    std::vector<int32_t> channel(index.begin(), index.begin() + target.channels);
    if (source.pixels != target.pixels) return {};
    for (int32_t c : channel)
        if (c >= source.channels) return {};
    for (int p = 0; p < target.pixels; ++p)
        for (int c = 0; c < target.channels; ++c) {
            const int32_t first = channel[size_t(c)], at = index[size_t(p) * size_t(target.channels) + size_t(c)];
            if (first < 0 ? at >= 0 : at != first + p * source.stride) return {};
        }
    return channel;
}

}  // namespace

Program::Program(const std::vector<std::vector<int64_t>>& shapes, const std::vector<OpSpec>& ops,
                 std::vector<int> outputs_, bool integer_)
    : outputs(std::move(outputs_)), integer(integer_), kernels(sparsetime::kernels()) {
    for (const auto& shape : shapes) {
        if (shape.size() > 8) throw std::invalid_argument("a value has a rank of more than 8");
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
    if (ops.empty()) throw std::invalid_argument("a program has no operations");
    for (const OpSpec& op : ops) add(op);
    for (Value& v : values) {
        if (!v.coded) continue;
        v.floats = false;
        for (int consumer : v.consumers)
            v.floats = v.floats || !(nodes[size_t(consumer)].integers || nodes[size_t(consumer)].moves_codes);
    }
    spare();
    for (int o : outputs)
        if (o < 0 || o >= int(values.size()) || values[size_t(o)].producer < 0 || values[size_t(o)].opaque)
            throw std::invalid_argument("an output is not a value of the plan");
}

void Program::spare() {
    for (Node& n : nodes) {
        const Value& y = values[size_t(n.outputs[0])];
        const bool plain = integer ? n.act == Act::none && !y.coded : n.encode == Encode::linear;
        if (n.kind == Kind::resize && plain) n.derived = y.consumers.empty();
        if (n.kind != Kind::cat_channels || !n.carries || !y.is_map() || n.inputs.size() > size_t(MOST_JOINED))
            continue;
        n.derived = true;
        for (int consumer : y.consumers)
            n.derived = n.derived && nodes[size_t(consumer)].kind == Kind::channels && nodes[size_t(consumer)].carries;
    }
    for (size_t i = 0; i < nodes.size(); ++i) {
        Node& n = nodes[i];
        if (n.kind != Kind::channels || !n.carries) continue;
        const Node& producer = nodes[size_t(values[size_t(n.inputs[0])].producer)];
        if (producer.derived) {
            n.inputs = producer.inputs;
            for (int v : n.inputs) {
                std::vector<int>& consumers = values[size_t(v)].consumers;
                consumers.insert(std::lower_bound(consumers.begin(), consumers.end(), int(i)), int(i));
            }
        }
        n.picks = picks_of(n);
    }
}

// By vector of outputs one of each row that it is made of; at least one, which may pick nothing.
std::vector<Pick> Program::picks_of(const Node& n) const {
    const int32_t width = kernels.width, channels = int32_t(n.index.size());
    const auto none_of = [](int32_t source) {
        Pick pick{source, false, Pick::far, 0, {}};
        std::fill(std::begin(pick.index), std::end(pick.index), -1);
        return pick;
    };
    std::vector<Pick> picks;
    for (int32_t first = 0; first < channels; first += width) {
        const size_t before = picks.size();
        int32_t start = 0;  // of the source among the channels that are joined
        for (size_t k = 0; k < n.inputs.size(); ++k) {
            const int32_t size = values[size_t(n.inputs[k])].map.channels;
            Pick pick = none_of(int32_t(k));
            int32_t low = size, high = -1;
            for (int32_t l = 0; l < width && first + l < channels; ++l) {
                const int32_t j = n.index[size_t(first + l)] - start;
                if (n.index[size_t(first + l)] < 0 || j < 0 || j >= size) continue;
                pick.index[l] = j;
                low = std::min(low, j), high = std::max(high, j);
            }
            start += size;
            if (high < 0) continue;
            bool run = true;  // from the first lane's, were it wanted, on
            int32_t from = -1;
            for (int32_t l = 0; l < width; ++l) {
                if (pick.index[l] < 0) continue;
                if (from < 0) from = pick.index[l] - l;
                run = run && from >= 0 && pick.index[l] - l == from;
            }
            if (run || high - low < 2 * width) {
                pick.kind = run ? Pick::run : Pick::near;
                pick.start = run ? from : low;
                for (int32_t& j : pick.index) j = j < 0 ? -1 : j - pick.start;
            }
            picks.push_back(pick);
        }
        if (picks.size() == before) picks.push_back(none_of(0));
        picks.back().last = true;
    }
    return picks;
}

void Program::weigh(Node& n, const OpSpec& spec, Geometry geometry, bool transposed) {
    if (!integer) {
        n.conv = std::make_unique<Conv>(std::move(geometry), transposed, need(spec, "weight").floats);
        return;
    }
    const int channels = geometry.out.channels;
    const Value& input = values[size_t(spec.inputs[0])];
    const TensorView& step = need(spec, "weight_step");
    const float* bias = nullptr;
    if (!input.coded) refuse(spec, "weights of int8 need an input of codes");
    if (step.size() != channels) refuse(spec, "the steps of the weights do not fit");
    if (spec.tensors.count("bias")) {
        if (need(spec, "bias").size() != channels) refuse(spec, "the bias does not fit");
        bias = need(spec, "bias").floats;
    }
    std::vector<float> scale(static_cast<size_t>(channels));
    for (size_t o = 0; o < scale.size(); ++o) scale[o] = input.step * step.floats[o];
    n.integers = std::make_unique<IntConv>(std::move(geometry), transposed, bytes_of(spec, "weight").bytes,
                                           scale.data(), bias, input.zero);
}

void Program::add(const OpSpec& spec) {
    const int number = int(nodes.size());
    Node n;
    n.name = spec.name;
    n.inputs = spec.inputs;
    n.outputs = spec.outputs;
    n.crossover = spec.crossover;
    const bool island = spec.kind == "island";
    if ((spec.kind == "input") != (number == 0)) refuse(spec, "the first operation, and only it, is the input");
    if (spec.outputs.empty() || (!island && spec.outputs.size() != 1)) refuse(spec, "wrong number of outputs");
    for (int v : spec.inputs)
        if (v < 0 || v >= int(values.size()) || values[size_t(v)].producer < 0 || (values[size_t(v)].opaque && !island))
            refuse(spec, "an input has not been produced");
    for (size_t k = 0; k < spec.outputs.size(); ++k) {
        const int v = spec.outputs[k];
        if (v < 0 || v >= int(values.size()) || values[size_t(v)].producer >= 0)
            refuse(spec, "an output is out of range or produced twice");
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
        const TensorView& w = integer ? bytes_of(spec, "weight") : need(spec, "weight");
        const Shape &x = in(0).map, &y = out.map;
        if (kind == "linear") {
            if (w.shape.size() != 2 || w.shape[0] != y.channels || w.shape[1] != x.channels ||
                x.pixels() != y.pixels() || in(0).is_map() || out.is_map())
                refuse(spec, "the weight does not fit");
            weigh(n, spec, {x, y, axis_of(false, x.height, y.height, 1, 1, 0, 1), axis_of(false, x.width, y.width, 1, 1, 0, 1), 1}, false);
        } else {
            const bool transposed = kind == "conv_transpose2d";
            const auto stride = integers(spec, "stride", 2), padding = integers(spec, "padding", 4),
                       dilation = integers(spec, "dilation", 2);
            const int groups = integers(spec, "groups", 1)[0];
            if (w.shape.size() != 4 || !in(0).is_map() || !out.is_map())
                refuse(spec, "expected maps and a weight of rank 4");
            const int64_t C = transposed ? w.shape[0] : w.shape[1] * groups,
                          O = transposed ? w.shape[1] * groups : w.shape[0];
            if (groups < 1 || C != x.channels || O != y.channels || C % groups || O % groups || stride[0] < 1 ||
                stride[1] < 1 || dilation[0] < 1 || dilation[1] < 1)
                refuse(spec, "the weight, groups or strides do not fit");
            const int kh = int(w.shape[2]), kw = int(w.shape[3]);
            const auto extent = [&](int size, int k, int axis, int taps) -> int64_t {
                const int before = padding[size_t(k)], after = padding[size_t(k) + 1], s = stride[size_t(axis)],
                          d = dilation[size_t(axis)];
                if (transposed)
                    return int64_t(size - 1) * s - before - after + int64_t(d) * (taps - 1) +
                           integers(spec, "output_padding", 2)[size_t(axis)] + 1;
                const int64_t room = int64_t(size) + before + after - int64_t(d) * (taps - 1) - 1;
                return room < 0 ? 0 : room / s + 1;
            };
            if (extent(x.height, 0, 0, kh) != y.height || extent(x.width, 2, 1, kw) != y.width)
                refuse(spec, "the output has another shape");
            weigh(n, spec,
                  {x, y, axis_of(transposed, x.height, y.height, kh, stride[0], padding[0], dilation[0]),
                   axis_of(transposed, x.width, y.width, kw, stride[1], padding[2], dilation[1]), groups},
                  transposed);
        }
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
        if (axis == (out.is_map() ? 1 : rank - 1)) {
            n.kind = Kind::cat_channels;
        } else {
            n.kind = Kind::cat_pixels;
            // Extents of pixels, outermost first, and the axis among them.
            const size_t first = out.is_map() ? 2 : 0, end = out.is_map() ? 4 : rank - 1;
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
        if (!in(0).is_map() || in(0).map.height != out.map.height || in(0).map.width != out.map.width)
            refuse(spec, "shapes differ");
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
        } else if (std::vector<int32_t> pixel = rows_moved(n.index, source, target); !pixel.empty()) {
            n.kind = Kind::pad;
            n.index = std::move(pixel);
        } else if (std::vector<int32_t> channel = channels_picked(n.index, source, target); !channel.empty()) {
            n.kind = Kind::channels;
            n.index = std::move(channel);
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
        if (!in(0).is_map() || !out.is_map() || x.channels != y.channels ||
            *std::min_element(padding.begin(), padding.end()) < 0 || x.height + padding[0] + padding[1] != y.height ||
            x.width + padding[2] + padding[3] != y.width)
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
        if (!in(0).is_map() || !out.is_map() || x.channels != y.channels) refuse(spec, "shapes differ");
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
        if (!in(0).is_map() || !out.is_map() || x.channels != y.channels) refuse(spec, "shapes differ");
        const TensorView &rw = need(spec, "row_weights"), &cw = need(spec, "column_weights");
        if (rw.size() % y.height || cw.size() % y.width || rw.size() == 0 || cw.size() == 0)
            refuse(spec, "the taps do not fit");
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
        if (in(1).shape != out.shape &&
            !(out.is_map() && in(1).is_map() && in(1).map.pixels() == 1 && in(1).map.channels == out.map.channels))
            refuse(spec, "shapes differ");
    } else if (kind == "softmax") {
        n.kind = Kind::softmax;
        n.linear = false;
        inputs_are(1, 1);
        same(in(0), out);
    } else if (kind == "layer_norm" || kind == "group_norm") {
        n.kind = kind == "layer_norm" ? Kind::layer_norm : Kind::group_norm;
        n.linear = false;
        inputs_are(1, 1);
        same(in(0), out);
        if (n.kind == Kind::group_norm) n.groups = integers(spec, "groups", 1)[0];
        if (n.groups < 1 || out.map.channels % n.groups) refuse(spec, "the groups do not fit");
        const auto eps = spec.numbers.find("eps");
        if (eps == spec.numbers.end() || eps->second.size() != 1) refuse(spec, "attribute 'eps' is missing");
        n.eps = float(eps->second[0]);
        for (auto [role, row] : {std::pair{"scale", &n.scale}, std::pair{"shift", &n.shift}}) {
            if (!spec.tensors.count(role)) continue;
            if (need(spec, role).size() != out.map.channels) refuse(spec, std::string("the ") + role + " does not fit");
            row->assign(need(spec, role).floats, need(spec, role).floats + out.map.channels);
        }
    } else if (kind == "attention") {
        n.kind = Kind::attention;
        n.linear = false;
        inputs_are(3, 3);
        n.windows = integers(spec, "windows", 1)[0];
        n.heads = integers(spec, "heads", 1)[0];
        const auto scale = spec.numbers.find("scale");
        if (scale == spec.numbers.end() || scale->second.size() != 1) refuse(spec, "attribute 'scale' is missing");
        n.factor = float(scale->second[0]);
        const Shape &q = in(0).map, &k = in(1).map, &v = in(2).map;
        for (const Value* x : {&in(0), &in(1), &in(2), &out})
            if (x->is_map() || n.windows < 1 || n.heads < 1 || x->map.pixels() % n.windows || x->map.channels % n.heads)
                refuse(spec, "windows and heads do not fit");
        if (q.channels != k.channels || k.pixels() != v.pixels() || out.map.pixels() != q.pixels() || out.map.channels != v.channels)
            refuse(spec, "queries, keys and values do not fit");
        if (spec.tensors.count("bias")) {
            const TensorView& bias = need(spec, "bias");
            const int64_t extents[] = {n.windows, n.heads, q.pixels() / n.windows, k.pixels() / n.windows};
            for (size_t i = 0; i < 4; ++i)
                if (bias.shape.size() != 4 || (bias.shape[i] != extents[i] && (i == 3 || bias.shape[i] != 1)))
                    refuse(spec, "the bias does not fit");
            n.added.assign(bias.floats, bias.floats + bias.size());
            size_t step = size_t(extents[3]);
            for (size_t i = 3; i-- > 0; step *= size_t(bias.shape[i])) n.added_step[i] = bias.shape[i] > 1 ? step : 0;
        }
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

    if (n.kind == Kind::max_pool || n.kind == Kind::avg_pool)
        for (size_t c = 0; c < n.columns.size(); c += 2)
            n.widest = std::max(n.widest, (n.columns[c + 1] - n.columns[c] - 1) / n.column_step + 1);
    n.summed = !integer && n.linear && (spec.act != Act::none || !spec.codec.empty());
    n.act = spec.act;
    n.act_a = spec.act_a;
    n.act_b = spec.act_b;
    n.low = spec.low;
    n.high = spec.high;
    n.encode = spec.codec == "exact"      ? Encode::exact
               : spec.codec == "hold"     ? Encode::hold
               : spec.codec == "residual" ? Encode::residual
               : spec.codec == "pixel"    ? Encode::pixel
               : n.linear && !n.summed     ? Encode::linear
                                          : Encode::change;
    if (integer) n.encode = Encode::change;
    n.bias.assign(size_t(out.map.stride()), 0.0f);
    if (n.conv && spec.tensors.count("bias")) {
        const TensorView& b = need(spec, "bias");
        if (b.size() != out.map.channels) refuse(spec, "the bias does not fit");
        std::memcpy(n.bias.data(), b.floats, size_t(b.size()) * sizeof(float));
    }
    Value& made = values[size_t(spec.outputs[0])];
    made.whole = n.encode == Encode::pixel;
    if (spec.codec.empty() && !spec.inputs.empty()) {
        made.whole = true;
        for (int input : spec.inputs) made.whole = made.whole && values[size_t(input)].whole;
    }
    // Where whole pixels change, their deltas are as many as their values.
    n.cheap = n.summed && n.kind == Kind::conv &&
              (n.conv->terms() <= CHEAP_TERMS || n.conv->depthwise() ||
               (n.conv->one_tap() && values[size_t(spec.inputs[0])].whole));
    const bool still = n.kind == Kind::affine && n.scale.empty() && n.shift.empty();
    n.carries = !integer && !n.summed && n.act == Act::none &&
                (n.encode == Encode::linear || n.encode == Encode::change) &&
                (still || n.kind == Kind::cat_channels || n.kind == Kind::cat_pixels || n.kind == Kind::channels ||
                 n.kind == Kind::gather || n.kind == Kind::pad || n.kind == Kind::max_pool);
    if (spec.coded) {
        Value& v = values[size_t(spec.outputs[0])];
        if (!integer || !(spec.code_step > 0) || spec.code_zero < 0 || spec.code_zero > 255)
            refuse(spec, "codes out of range");
        v.coded = true;
        v.step = spec.code_step;
        v.zero = spec.code_zero;
        const TensorView& t = spec.threshold;
        n.moves_codes = !t.integers;
        for (int input : spec.inputs)
            if (n.moves_codes && !values[size_t(input)].coded) refuse(spec, "codes are moved from codes alone");
        if (t.integers && t.size() != 1 && t.size() != v.map.channels) refuse(spec, "the thresholds do not fit");
        n.threshold.assign(size_t(round_up(v.map.channels, BYTE_BLOCK)) + BYTE_BLOCK, 0);  // blocks begin anywhere
        if (spec.by_pixel) {
            if (!t.integers || t.size() != 1 || t.integers[0] < 0) refuse(spec, "a pixel has one threshold");
            n.limit = t.integers[0];
        }
        for (int c = 0; t.integers && !spec.by_pixel && c < v.map.channels; ++c) {
            const int32_t threshold = t.integers[t.size() == 1 ? 0 : c];
            if (threshold < 0 || threshold > 255) refuse(spec, "a threshold out of range");
            n.threshold[size_t(c)] = uint8_t(threshold);
        }
    }
    if (!spec.codec.empty() && !integer) {
        const bool pixel = n.encode == Encode::pixel;
        n.step = expanded(spec, spec.step, out, pixel ? std::numeric_limits<float>::infinity() : 1.0f, n.step_map);
        if (pixel)
            for (float& x : n.step) x = inverse_of(x);
    }
    nodes.push_back(std::move(n));
}

}  // namespace sparsetime
