// Operations without weights: linear ones on deltas, nonlinear ones anew where touched.

#include <cmath>
#include <cstring>
#include <limits>

#include "split.h"

namespace sparsetime {

// Linear operations other than convolutions: sums of the inputs' deltas, or on the dense path of their values.
void Stream::move(const Node& node) {
    const int y = node.outputs[0];
    const Shape& out = program_->values[size_t(y)].map;
    bool dense = dense_ || program_->integer;
    int n = out.pixels();
    const int32_t* list = all_.data();
    for (int v : node.inputs) states_[size_t(v)].want_rows = true;
    if (!dense_) {
        n = touched(node);
        list = list_.data();
        for (int v : node.inputs) dense = dense || !rows_of(v);
    }
    if (n == 0) return clear(y);
    const auto row = [&](int k, int p) -> const float* {  // null stands for zeros
        const State& s = states_[size_t(node.inputs[size_t(k)])];
        const int stride = s.change.shape.stride();
        if (dense) return s.value.data() + size_t(p) * stride;
        return s.change.mask[p] ? s.change.rows + size_t(p) * stride : nullptr;
    };
    const int C = out.channels, N = out.stride();  // whole vectors
    const RowKernels& kernel = *kernels().rows;
    switch (node.kind) {
        case Kind::affine:
            return rows(node, y, list, n, dense, [&](const int32_t* pixel, int count, float* sum, int stride) {
                for (int i = 0; i < count; ++i, sum += stride) {
                    const float* x = row(0, pixel[i]);
                    const size_t at = size_t(pixel[i]) * out.stride();
                    const float* scale = node.scale.empty() ? nullptr : node.scale.data() + (node.scale_map ? at : 0);
                    const float* shift =
                        node.shift.empty() || !dense ? nullptr : node.shift.data() + (node.shift_map ? at : 0);
                    kernel.affine(x, scale, shift, sum, C);
                }
            });
        case Kind::add:
            return rows(node, y, list, n, dense, [&](const int32_t* pixel, int count, float* sum, int stride) {
                for (int i = 0; i < count; ++i, sum += stride) {
                    const float *a = row(0, pixel[i]), *b = row(1, pixel[i]);
                    if (a && b) kernel.combine(a, node.first, b, node.second, sum, N);
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
                    const float* x =
                        node.index[p] < 0 ? nullptr : row(node.owner.empty() ? 0 : node.owner[p], node.index[p]);
                    for (int c = 0; c < C; ++c) sum[c] = x ? x[c] : node.fill;
                }
            });
        case Kind::channels:
            return rows(node, y, list, n, dense, [&](const int32_t* pixel, int count, float* sum, int stride) {
                for (int i = 0; i < count; ++i, sum += stride) {
                    const float* x = row(0, pixel[i]);
                    // Deltas lie in memory that ends with them, values do not: no reading behind them.
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
                // Row by row of the window, then over rows: thousands of numbers one after the other would gather more rounding. int8
                // plans have an order of their own.
                Floats line(static_cast<size_t>(N));
                for (int i = 0; i < count; ++i, sum += stride) {
                    const size_t oy = size_t(pixel[i] / out.width), ox = size_t(pixel[i] % out.width);
                    float* const to = program_->integer ? sum : line.data();
                    for (int c = 0; c < N; ++c) sum[c] = 0.0f;
                    for (int iy = node.rows[2 * oy]; iy < node.rows[2 * oy + 1]; ++iy) {
                        if (to != sum) std::fill(line.begin(), line.end(), 0.0f);
                        for (int ix = node.columns[2 * ox]; ix < node.columns[2 * ox + 1]; ++ix)
                            if (const float* x = row(0, iy * width + ix)) kernel.add(x, 1.0f, to, N);
                        if (to != sum) kernel.add(to, 1.0f, sum, N);
                    }
                    kernel.divide(node.divisor[size_t(pixel[i])], sum, N);
                }
            });
        default:  // resize
            if (program_->integer)  // narrow maps, in the order of int8 plans; others see resize_rows
                return rows(node, y, list, n, true, [&](const int32_t* pixel, int count, float* sum, int stride) {
                    const int width = program_->values[size_t(node.inputs[0])].map.width;
                    const size_t K = size_t(node.row_taps), L = size_t(node.column_taps);
                    for (int i = 0; i < count; ++i, sum += stride) {
                        const size_t oy = size_t(pixel[i] / out.width), ox = size_t(pixel[i] % out.width);
                        for (int c = 0; c < C; ++c) {
                            sum[c] = 0.0f;
                            for (size_t a = oy * K; a < (oy + 1) * K; ++a) {
                                float line = 0.0f;
                                for (size_t b = ox * L; b < (ox + 1) * L; ++b)
                                    line += node.column_weights[b] * row(0, node.rows[a] * width + node.columns[b])[c];
                                sum[c] += node.row_weights[a] * line;
                            }
                        }
                    }
                });
            return rows(node, y, list, n, dense, [&](const int32_t* pixel, int count, float* sum, int stride) {
                const int width = program_->values[size_t(node.inputs[0])].map.width;
                constexpr int TAPS = 16;
                const float* from[TAPS];
                float weights[TAPS];
                for (int i = 0; i < count; ++i, sum += stride) {
                    const size_t oy = size_t(pixel[i] / out.width), ox = size_t(pixel[i] % out.width);
                    int taps = 0;
                    for (size_t a = oy * size_t(node.row_taps); a < (oy + 1) * size_t(node.row_taps); ++a)
                        for (size_t b = ox * size_t(node.column_taps); b < (ox + 1) * size_t(node.column_taps); ++b) {
                            const float w = node.row_weights[a] * node.column_weights[b];
                            const float* x = w == 0.0f ? nullptr : row(0, node.rows[a] * width + node.columns[b]);
                            if (!x) continue;
                            from[taps] = x;
                            weights[taps++] = w;
                            if (taps < TAPS) continue;
                            // More than bicubic ones go in pieces; the sum so far is one of the rows.
                            kernel.blend(from, weights, taps, sum, N);
                            from[0] = sum;
                            weights[0] = 1.0f;
                            taps = 1;
                        }
                    kernel.blend(from, weights, taps, sum, N);
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
    const int C = out.channels, N = out.stride();  // whole vectors
    const RowKernels& kernel = *kernels().rows;
    const float* a = states_[size_t(node.inputs[0])].value.data();
    const Shape& in = program_->values[size_t(node.inputs[0])].map;
    if (node.kind == Kind::identity)
        return rows(node, y, list, n, true, [&](const int32_t* pixel, int count, float* sum, int stride) {
            for (int i = 0; i < count; ++i, sum += stride)
                std::memcpy(sum, a + size_t(pixel[i]) * in.stride(), size_t(C) * sizeof(float));
        });
    if (node.kind == Kind::layer_norm)
        return rows(node, y, list, n, true, [&](const int32_t* pixel, int count, float* sum, int stride) {
            const float *scale = node.scale.empty() ? nullptr : node.scale.data(),
                        *shift = node.shift.empty() ? nullptr : node.shift.data();
            for (int i = 0; i < count; ++i, sum += stride)
                kernel.normalise(a + size_t(pixel[i]) * in.stride(), node.eps, scale, shift, sum, C);
        });
    if (node.kind == Kind::group_norm) {
        const auto [scale, shift] = factors_of(node);
        return rows(node, y, list, n, true, [&, &scale = scale, &shift = shift](const int32_t* pixel, int count, float* sum, int stride) {
            for (int i = 0; i < count; ++i, sum += stride)
                kernel.affine(a + size_t(pixel[i]) * in.stride(), scale.data(), shift.data(), sum, C);
        });
    }
    if (node.kind == Kind::softmax)
        return rows(node, y, list, n, true, [&](const int32_t* pixel, int count, float* sum, int stride) {
            for (int i = 0; i < count; ++i, sum += stride) {
                std::memcpy(sum, a + size_t(pixel[i]) * in.stride(), size_t(C) * sizeof(float));
                const float share = kernel.softmax(sum, 1.0f, nullptr, C);
                for (int c = 0; c < C; ++c) sum[c] *= share;
            }
        });
    if (node.kind == Kind::mul) {
        const float* b = states_[size_t(node.inputs[1])].value.data();
        const bool one = program_->values[size_t(node.inputs[1])].map.pixels() == 1;
        return rows(node, y, list, n, true, [&](const int32_t* pixel, int count, float* sum, int stride) {
            for (int i = 0; i < count; ++i, sum += stride) {
                const float *p = a + size_t(pixel[i]) * in.stride(),
                            *q = b + (one ? 0 : size_t(pixel[i]) * in.stride());
                kernel.multiply(p, q, sum, N);
            }
        });
    }
    return rows(node, y, list, n, true, [&](const int32_t* pixel, int count, float* sum, int stride) {
        Walk walk(out.width);
        for (int i = 0; i < count; ++i, sum += stride) kernel.maximum(window_of(node, pixel[i], walk), sum, N);
    });
}

// By channel, what a group norm multiplies with and then adds: scale / sqrt(variance + eps), and shift - mean times that. Sums are of
// float32 over a row of the map and of float64 over rows, in order, whoever computes them.
std::pair<Floats, Floats> Stream::factors_of(const Node& node) {
    const Shape& map = program_->values[size_t(node.outputs[0])].map;
    const float* x = states_[size_t(node.inputs[0])].value.data();
    const int C = map.channels, stride = map.stride(), size = C / node.groups;
    const RowKernels& kernel = *kernels().rows;
    Floats rows(size_t(map.height) * size_t(stride));
    // Means over the groups of what `add(pixel, sums)` adds up.
    const auto means = [&](const auto& add) {
        std::fill(rows.begin(), rows.end(), 0.0f);
        each_part(map.height, [&](int from, int to) {
            for (int p = from * map.width; p < to * map.width; ++p)
                add(x + size_t(p) * size_t(stride), rows.data() + size_t(p / map.width) * size_t(stride));
        });
        std::vector<double> sum(size_t(node.groups));
        for (int r = 0; r < map.height; ++r)
            for (int c = 0; c < C; ++c) sum[size_t(c / size)] += rows[size_t(r) * size_t(stride) + size_t(c)];
        for (double& s : sum) s /= double(size) * map.pixels();
        return sum;
    };
    const std::vector<double> mean = means([&](const float* row, float* sum) { kernel.add(row, 1.0f, sum, C); });
    Floats centre(static_cast<size_t>(stride)), scale(static_cast<size_t>(stride)), shift(static_cast<size_t>(stride));
    for (int c = 0; c < C; ++c) centre[size_t(c)] = float(mean[size_t(c / size)]);
    const std::vector<double> variance = means([&](const float* row, float* sum) { kernel.squares(row, centre.data(), sum, C); });
    for (size_t c = 0; c < size_t(C); ++c) {
        const size_t group = c / size_t(size);
        const double factor = (node.scale.empty() ? 1.0 : double(node.scale[c])) / std::sqrt(variance[group] + double(node.eps));
        scale[c] = float(factor);
        shift[c] = float((node.shift.empty() ? 0.0 : double(node.shift[c])) - mean[group] * factor);
    }
    return {scale, shift};
}

// What an output of a pooling looks at; the next one asked for is most likely in the same row.
Window Stream::window_of(const Node& node, int pixel, Walk& walk) const {
    const State& input = states_[size_t(node.inputs[0])];
    const Shape& map = input.change.shape;
    walk.to(pixel);
    const int32_t *rows = &node.rows[2 * size_t(walk.y)], *columns = &node.columns[2 * size_t(pixel - walk.start)];
    return {input.value.data() + (size_t(rows[0]) * map.width + columns[0]) * map.stride(),
            (rows[1] - rows[0] + node.row_step - 1) / node.row_step,
            (columns[1] - columns[0] + node.column_step - 1) / node.column_step,
            ptrdiff_t(node.row_step) * map.width * map.stride(), ptrdiff_t(node.column_step) * map.stride()};
}

// What becomes of a pixel where all of it comes from one place: a row of an input, or one that is written to `room`, where whole vectors
// may be.
const float* Stream::carried(const Node& node, int pixel, Walk& walk, float* room) const {
    const Shape& out = program_->values[size_t(node.outputs[0])].map;
    switch (node.kind) {
        case Kind::affine: return row_of(node.inputs[0], pixel);
        case Kind::gather: {
            const float* x = row_of(node.inputs[0], 0);
            const int32_t* index = node.index.data() + size_t(pixel) * size_t(out.channels);
            for (int c = 0; c < out.channels; ++c) room[c] = index[c] < 0 ? 0.0f : x[index[c]];
            return room;
        }
        case Kind::max_pool: kernels().rows->maximum(window_of(node, pixel, walk), room, out.stride()); return room;
        default: {  // cat_pixels, pad
            const int32_t from = node.index[size_t(pixel)];
            if (from >= 0) return row_of(node.inputs[node.owner.empty() ? 0 : size_t(node.owner[size_t(pixel)])], from);
            std::fill(room, room + out.channels, node.fill);
            return room;
        }
    }
}

// Operations that hand on what their inputs hold: values are copied where an event touches, and compared as they are, which takes neither
// deltas of the inputs nor sums.
void Stream::carry(const Node& node) {
    const int y = node.outputs[0];
    const Shape& out = program_->values[size_t(y)].map;
    const int n = dense_ ? out.pixels() : touched(node);
    const int32_t* list = dense_ ? all_.data() : list_.data();
    if (n == 0) return clear(y);
    const RowKernels& kernel = *kernels().rows;
    const int C = out.channels, N = out.stride();  // whole vectors
    // Rows of the inputs that changed; null: nothing did, so what came of it is up to date. Most likely it is far away, too.
    const auto changed_row = [&](size_t k, int p) {
        return dense_ || states_[size_t(node.inputs[k])].change.mask[p] ? row_of(node.inputs[k], p) : nullptr;
    };
    const auto each = [&](const auto& body) {
        split(node, y, list, n, true, false, [&](FinishArgs& sink, int from, int to, int, int, Workspace& ws) {
            float* sum = sized(ws.sum, size_t(round_up(C, LANE)));
            std::fill(sum + C, sum + round_up(C, LANE), 0.0f);
            const auto fetch = [&](int p) {
                const float* value = sink.value + size_t(p) * size_t(sink.stride);
                for (int c = 0; c < sink.stride; c += LANE) __builtin_prefetch(value + c, 1);
            };
            constexpr int AHEAD = 8;
            auto settle = body;  // what it keeps is this thread's own
            for (int i = from; i < to; ++i) {
                if (i + AHEAD < to) fetch(list[i + AHEAD]);
                const int p = list[i];
                const size_t at = size_t(p) * size_t(sink.stride);
                const Sent place{sink.value + at, sink.rows ? sink.rows + at : nullptr, uint32_t(p) << sink.shift,
                                  sink.place ? sink.place + sink.events : nullptr, sink.change + sink.events};
                sink.add(p, settle(p, place, sum));
            }
        });
    };
    switch (node.kind) {
        case Kind::cat_channels:
            return each([&](int p, Sent to, float*) {
                int all = 0;
                for (size_t k = 0; k < node.inputs.size(); ++k) {
                    const int channels = states_[size_t(node.inputs[k])].change.shape.channels;
                    if (const float* x = changed_row(k, p)) {
                        const int changed = kernel.replace(x, channels, to);
                        if (to.place) to.place += changed, to.change += changed;
                        all += changed;
                    } else if (to.row) {
                        std::memset(to.row, 0, size_t(channels) * sizeof(float));
                    }
                    to.value += channels;
                    to.first += uint32_t(channels);
                    if (to.row) to.row += channels;
                }
                if (to.row) std::fill(to.row, to.row + (out.stride() - C), 0.0f);  // what was there is of another value
                return all;
            });
        case Kind::channels: {
            return each([&](int p, const Sent& to, float*) {
                const float* x[MOST_JOINED];
                for (size_t k = 0; k < node.inputs.size(); ++k) x[k] = changed_row(k, p);
                return kernel.pick(x, node.picks.data(), N, to);
            });
        }
        default:
            return each([&, walk = Walk(out.width)](int p, const Sent& to, float* room) mutable {
                return kernel.replace(carried(node, p, walk, room), N, to);
            });
    }
}

// The same in the first frame of a stream: all of the inputs, whatever there was.
void Stream::carry_whole(const Node& node) {
    const int y = node.outputs[0];
    const Shape& out = program_->values[size_t(y)].map;
    const RowKernels& kernel = *kernels().rows;
    const int C = out.channels, N = out.stride();
    const auto map = [&](size_t k) -> const Shape& { return program_->values[size_t(node.inputs[k])].map; };
    // Writes pixels from p on.
    const auto write = [&](int p, int pixels, float* value) {
        if (node.kind == Kind::cat_channels) {
            for (size_t k = 0; k < node.inputs.size(); ++k) {
                kernel.copy_rows(row_of(node.inputs[k], p), map(k).stride(), map(k).channels, pixels, value, N);
                value += map(k).channels;
            }
        } else if (node.kind == Kind::channels) {
            const float* x[MOST_JOINED];
            int32_t stride[MOST_JOINED];
            for (size_t k = 0; k < node.inputs.size(); ++k) x[k] = row_of(node.inputs[k], p), stride[k] = map(k).stride();
            kernel.pick_rows(x, stride, node.picks.data(), N, pixels, value);
        } else {
            Walk walk(out.width);
            for (int i = 0; i < pixels; ++i, value += N)
                if (const float* x = carried(node, p + i, walk, value); x != value) kernel.copy_rows(x, N, C, 1, value, N);
        }
    };
    split(node, y, all_.data(), out.pixels(), true, false, [&](FinishArgs& sink, int from, int to, int, int, Workspace&) {
        constexpr int PIECE = 32;  // pixels of one input that are copied before those of the next
        for (int p = from; p < to; p += PIECE) write(p, std::min(PIECE, to - p), sink.value + size_t(p) * size_t(N));
        sent_whole(sink, all_.data() + from, to - from);
    });
}

}  // namespace sparsetime
