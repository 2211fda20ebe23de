// Streams of int8 plans: values are codes, everything is computed anew where an event touched.

#include <algorithm>
#include <atomic>
#include <cstring>

#include "split.h"

namespace sparsetime {

// What stands between z and the value of a node.
Settle Stream::settle_of(const Node& node, int output) {
    const Value& v = program_->values[size_t(output)];
    State& state = states_[size_t(output)];
    Settle s{};
    s.channels = v.map.channels;
    s.act = node.act;
    s.act_a = node.act_a;
    s.act_b = node.act_b;
    s.all = flush_;
    if (v.coded) {
        s.codes = waits(node) ? waiting_.data() : state.codes;
        s.all = flush_ || waits(node);
        s.stride = byte_stride(v.map.channels);
        s.inverse = 1.0f / v.step;
        s.zero = v.zero;
        s.threshold = node.threshold.data();
    } else {
        s.values = state.value.data();
        s.value_stride = v.map.stride();
    }
    return s;
}

// Whether new codes of a node are to be looked at pixel by pixel before they are sent.
bool Stream::waits(const Node& node) const { return node.limit >= 0 && !flush_; }

// Of pixels whose new codes wait those are sent that are far enough from the codes held; the lists keep no others.
void Stream::send_pixels(const Node& node, int output, ActivePixels& sink) {
    const int channels = program_->values[size_t(output)].map.channels;
    kernels().integers->pixels(
        {waiting_.data(), states_[size_t(output)].codes, byte_stride(channels), channels, node.limit}, sink);
}

// Runs body(sink, from, to, thread) over parts of the list, one a thread, and joins what they emit; keeps floats for those who
// read floats.
template <class Body>
void Stream::share(int output, int count, const Body& body) {
    clear(output);
    const Value& v = program_->values[size_t(output)];
    State& state = states_[size_t(output)];
    Change& change = state.change;
    change.rowed = change.listed = false;
    const int parts = std::max(1, std::min(pool_.threads(), count / 4));
    std::vector<ActivePixels> sinks(size_t(parts), change);
    const auto part = [&](int t) {
        if (t >= parts) return;
        const int from = int(int64_t(count) * t / parts), to = int(int64_t(count) * (t + 1) / parts);
        ActivePixels& sink = sinks[size_t(t)];
        sink.active += from;
        sink.tally += from;
        if (from < to) body(sink, from, to, t);
        if (v.coded && waits(program_->nodes[size_t(current_)]))
            send_pixels(program_->nodes[size_t(current_)], output, sink);
        if (v.coded && v.floats)
            for (int i = 0; i < sink.active_count; ++i) decode_pixel(output, sink.active[i]);
    };
    if (parts == 1) part(0);
    else pool_.run(part);
    join(change, sinks);
}

void Stream::allocate_codes() {
    size_t total = 0;
    const auto size = [](const Value& v) {
        const int bytes = v.map.pixels() * byte_stride(v.map.channels);
        return v.coded ? size_t(round_up(bytes, BYTE_BLOCK)) + 3 * BYTE_BLOCK : 0;
    };
    for (const Value& v : program_->values) total += size(v);
    if (!total) return;
    codes_.assign(total + BYTE_BLOCK, 0);  // kernels read whole blocks
    size_t most = 0;
    for (const Node& node : program_->nodes)
        if (node.limit >= 0) most = std::max(most, size(program_->values[size_t(node.outputs[0])]));
    waiting_.assign(most, 0);
    uint8_t* next = codes_.data();
    for (const Node& node : program_->nodes)
        for (int v : node.outputs) {
            const Value& value = program_->values[size_t(v)];
            states_[size_t(v)].codes = next;
            // Lanes behind the last channel hold `zero` from now on.
            std::memset(next, value.zero, size(value));
            next += size(value);
        }
}

void Stream::decode_pixel(int value, int pixel) {
    const Value& v = program_->values[size_t(value)];
    State& state = states_[size_t(value)];
    kernels().integers->decode(state.codes + size_t(pixel) * byte_stride(v.map.channels), v.step, v.zero,
                               v.map.channels, v.map.stride(), state.value.data() + size_t(pixel) * v.map.stride());
}

// rows() of an int8 plan; z(pixels, n, sums, stride) writes z of some pixels.
void Stream::settle_rows(const Node& node, int output, const int32_t* list, int count, const FillRows& z) {
    const Settle settle = settle_of(node, output);
    share(output, count, [&](ActivePixels& sink, int from, int to, int thread) {
        const int stride = round_up(settle.channels, LANE), chunk = std::max(1, std::min(64, 8 * 1024 / stride));
        float* sum = sized(int_workspaces_[size_t(thread)].sum, size_t(chunk) * stride);
        for (int i = from; i < to; i += chunk) {
            const int n = std::min(chunk, to - i);
            z(list + i, n, sum, stride);
            for (int k = 0; k < n; ++k)
                sink.add(list[i + k], kernels().integers->settle(sum + size_t(k) * stride, list[i + k], settle));
        }
    });
}

// Operations that hand codes on as they are, byte by byte.
void Stream::move_codes(const Node& node) {
    const int y = node.outputs[0];
    const Value& v = program_->values[size_t(y)];
    const Shape& out = v.map;
    const int n = dense_ ? out.pixels() : touched(node);
    const int32_t* list = dense_ ? all_.data() : list_.data();
    if (n == 0) return clear(y);
    const Settle settle = settle_of(node, y);
    const IntKernels& kernel = *kernels().integers;
    const int C = out.channels;
    const auto input = [&](size_t k) -> const Value& { return program_->values[size_t(node.inputs[k])]; };
    const auto row = [&](size_t k, int p) -> const uint8_t* {
        return states_[size_t(node.inputs[k])].codes + size_t(p) * size_t(byte_stride(input(k).map.channels));
    };
    constexpr int CHUNK = 32, POINTERS = 32 * 1024;  // pixels, and what they are made of
    const auto run = [&](int rows, int step, bool filled, const auto& find) {
        share(y, n, [&](ActivePixels& sink, int from, int to, int thread) {
            IntWorkspace& ws = int_workspaces_[size_t(thread)];
            const size_t stride = size_t(C + BYTE_BLOCK);
            const int chunk = std::max(1, std::min({CHUNK, to - from, POINTERS / rows}));
            if (filled) sized(ws.patches, size_t(chunk) * stride);
            sized(ws.rows, size_t(chunk) * rows);
            sized(ws.count, size_t(chunk));
            Walk walk(out.width);
            for (int i = from; i < to; i += chunk) {
                const int count = std::min(chunk, to - i);
                for (int k = 0; k < count; ++k) {
                    if (filled) ws.rows[size_t(k)] = ws.patches.data() + size_t(k) * stride;
                    find(list[i + k], walk, &ws.rows[size_t(k) * rows], ws.patches.data() + size_t(k) * stride);
                }
                kernel.moves({count, list + i, rows, ws.rows.data(), step, ws.count.data()}, settle);
                for (int k = 0; k < count; ++k) sink.add(list[i + k], ws.count[size_t(k)]);
            }
        });
    };
    const auto fill = [&](const auto& body) {
        run(1, 1, true, [&](int p, Walk&, const uint8_t**, uint8_t* to) { body(p, to); });
    };
    const auto point = [&](int step, const auto& at) {
        run(1, step, false, [&](int p, Walk&, const uint8_t** to, uint8_t*) { *to = at(p); });
    };
    switch (node.kind) {
        case Kind::cat_channels: {
            struct Part {
                const uint8_t* codes;
                int channels;
            };
            std::vector<Part> parts;
            for (size_t k = 0; k < node.inputs.size(); ++k) parts.push_back({row(k, 0), input(k).map.channels});
            return fill([&](int p, uint8_t* to) {
                for (const Part& part : parts) {
                    const uint8_t* from = part.codes + size_t(p) * size_t(byte_stride(part.channels));
                    // What is too much is written over.
                    for (int c = 0; c < part.channels; c += BYTE_LANE) std::memcpy(to + c, from + c, BYTE_LANE);
                    to += part.channels;
                }
            });
        }
        case Kind::cat_pixels:
        case Kind::pad: {
            const Bytes border(size_t(C) + BYTE_BLOCK, uint8_t(v.zero));
            return point(1, [&](int p) {
                const int32_t from = node.index[size_t(p)];
                return from < 0 ? border.data() : row(node.owner.empty() ? 0 : size_t(node.owner[size_t(p)]), from);
            });
        }
        case Kind::channels: {
            // Parts of a value, and every second channel as shuffles take them, need no table.
            const int first = node.index[0], step = C > 1 ? node.index[1] - first : 1;
            bool even = first >= 0 && (step == 1 || step == 2);
            for (int c = 0; c < C; ++c) even = even && node.index[size_t(c)] == first + step * c;
            const uint8_t* codes = row(0, 0);
            const size_t stride = size_t(byte_stride(input(0).map.channels));
            if (even) return point(step, [&](int p) { return codes + size_t(p) * stride + first; });
            return fill([&](int p, uint8_t* to) {
                const uint8_t* x = codes + size_t(p) * stride;
                for (int c = 0; c < C; ++c)
                    to[c] = node.index[size_t(c)] < 0 ? uint8_t(v.zero) : x[node.index[size_t(c)]];
            });
        }
        case Kind::gather: {
            const int stride = input(0).map.stride();  // places are those in a map of floats
            return fill([&](int p, uint8_t* to) {
                for (int c = 0; c < C; ++c) {
                    const int32_t j = node.index[size_t(p) * size_t(C) + size_t(c)];
                    to[c] = j < 0 ? uint8_t(v.zero) : row(0, j / stride)[j % stride];
                }
            });
        }
        case Kind::max_pool: {
            const int width = input(0).map.width;
            const uint8_t* codes = row(0, 0);
            const size_t stride = size_t(byte_stride(C));
            const auto window = [&](int p, Walk& walk, const auto& found) {
                walk.to(p);
                const size_t oy = size_t(walk.y), ox = size_t(p - walk.start);
                for (int iy = node.rows[2 * oy]; iy < node.rows[2 * oy + 1]; iy += node.row_step)
                    for (int ix = node.columns[2 * ox]; ix < node.columns[2 * ox + 1]; ix += node.column_step)
                        found(codes + size_t(iy * width + ix) * stride);
            };
            const auto longest = [](const std::vector<int32_t>& bounds, int step) {
                int most = 1;
                for (size_t k = 0; k < bounds.size(); k += 2)
                    most = std::max(most, (bounds[k + 1] - bounds[k] + step - 1) / step);
                return most;
            };
            const int most = longest(node.rows, node.row_step) * longest(node.columns, node.column_step);
            // Windows that reach over the edge are shorter, and have their first pixel several times.
            return run(most, 1, false, [&](int p, Walk& walk, const uint8_t** to, uint8_t*) {
                int k = 0;
                window(p, walk, [&](const uint8_t* x) { to[k++] = x; });
                for (; k < most; ++k) to[k] = to[0];
            });
        }
        default: return point(1, [&](int p) { return row(0, p); });  // a reshape that moves nothing
    }
}

// A resize of int8 plans, of maps of more than NARROW channels: from sums to values in one kernel.
void Stream::resize_rows(const Node& node) {
    const int y = node.outputs[0];
    const Shape& out = program_->values[size_t(y)].map;
    const int n = dense_ ? out.pixels() : touched(node);
    const int32_t* list = dense_ ? all_.data() : list_.data();
    if (n == 0) return clear(y);
    const Settle settle = settle_of(node, y);
    const Shape& in = program_->values[size_t(node.inputs[0])].map;
    const float* x = states_[size_t(node.inputs[0])].value.data();
    share(y, n, [&](ActivePixels& sink, int from, int to, int thread) {
        IntWorkspace& ws = int_workspaces_[size_t(thread)];
        ws.lines.resize(size_t(node.row_taps));
        sized(ws.count, size_t(out.width));
        for (int i = from; i < to;) {
            const size_t taps = size_t(node.row_taps), line = size_t(list[i] / out.width);
            const int start = int(line) * out.width,
                      end = int(std::lower_bound(list + i, list + to, start + out.width) - list);
            for (size_t a = 0; a < taps; ++a)
                ws.lines[a] = x + size_t(node.rows[line * taps + a]) * in.width * in.stride();
            kernels().integers->resize({end - i, list + i, start, node.row_taps, node.column_taps, ws.lines.data(),
                                        &node.row_weights[line * taps], node.columns.data(), node.column_weights.data(),
                                        in.stride(), ws.count.data()},
                                       settle);
            for (int k = i; k < end; ++k) sink.add(list[k], ws.count[size_t(k - i)]);
            i = end;
        }
    });
}

void Stream::convolve_codes(const Node& node, NodeStats& stats) {
    const IntConv& conv = *node.integers;
    const int x = node.inputs[0], y = node.outputs[0], r = node.inputs.size() == 2 ? node.inputs[1] : -1;
    const int32_t* list = all_.data();
    int n = conv.out.pixels();
    if (!dense_) {
        n = touched_by(conv, node);
        list = list_.data();
    }
    stats.sparse = n == 0;
    stats.whole = n == conv.out.pixels();
    if (n == 0) return clear(y);
    Settle settle = settle_of(node, y);
    if (r >= 0) {
        const Value& v = program_->values[size_t(r)];
        if (v.coded) {
            settle.residual = states_[size_t(r)].codes;
            settle.residual_stride = byte_stride(v.map.channels);
            settle.residual_step = v.step;
            settle.residual_zero = v.zero;
        } else {
            settle.residual_values = states_[size_t(r)].value.data();
            settle.residual_value_stride = v.map.stride();
        }
    }
    const uint8_t* codes = states_[size_t(x)].codes;
    share(y, n, [&](ActivePixels& sink, int from, int to, int thread) {
        conv.run(codes, list + from, to - from, settle, sink, int_workspaces_[size_t(thread)]);
    });
}

// The frame of a camera, as take() does for floats.
void Stream::take_codes(const Node& node, const Frame& frame) {
    const int value = node.outputs[0];
    clear(value);
    Change& change = states_[size_t(value)].change;
    change.rowed = change.listed = false;
    const Settle settle = settle_of(node, value);
    std::vector<ActivePixels> sinks(size_t(pool_.threads()), change);
    std::atomic<int64_t> found{0};
    input_.each_band(true, [&](int t, int top, int bottom) {
        const size_t start = size_t(top) * size_t(change.shape.width);
        ActivePixels& sink = sinks[size_t(t)];
        sink.active += start;
        sink.tally += start;
        input_.each_span(frame, t, top, bottom, [&](const float* y, int first, int pixels) {
            const int64_t before = sink.events;
            kernels().integers->frame({pixels, first, y}, settle, sink);
            return waits(node) || !cuts(found += sink.events - before);  // what waits is not sent yet
        });
        if (waits(node)) send_pixels(node, value, sink);
    });
    join(change, sinks);
    if (program_->values[size_t(value)].floats)
        for (int i = 0; i < change.active_count; ++i) decode_pixel(value, change.active[i]);
}

void Stream::read_codes(int value, uint8_t* out) const {
    const Value& v = program_->values[size_t(value)];
    const int64_t n = product(v.shape);
    const Layout layout(v);
    const size_t stride = size_t(byte_stride(v.map.channels));
    for (int64_t i = 0; i < n; ++i)
        out[i] = states_[size_t(value)].codes[size_t(layout.pixel(i)) * stride + size_t(layout.channel(i))];
}

void Stream::write_codes(int value, const uint8_t* in) {
    const Value& v = program_->values[size_t(value)];
    const int64_t n = product(v.shape);
    const Layout layout(v);
    const size_t stride = size_t(byte_stride(v.map.channels));
    uint8_t* codes = states_[size_t(value)].codes;
    std::memset(codes, v.zero, stride * size_t(v.map.pixels()));
    for (int64_t i = 0; i < n; ++i) codes[size_t(layout.pixel(i)) * stride + size_t(layout.channel(i))] = in[i];
    if (v.floats)
        for (int p = 0; p < v.map.pixels(); ++p) decode_pixel(value, p);
}

// Floats of a value that has codes alone, in logical order.
void Stream::read_decoded(int value, float* out) const {
    const Value& v = program_->values[size_t(value)];
    const int64_t n = product(v.shape);
    const Layout layout(v);
    const size_t stride = size_t(byte_stride(v.map.channels));
    for (int64_t i = 0; i < n; ++i)
        out[i] = float(int(states_[size_t(value)].codes[size_t(layout.pixel(i)) * stride + size_t(layout.channel(i))]) -
                       v.zero) *
                 v.step;
}

}  // namespace sparsetime
