#include "conv_int.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace sparsetime {

namespace {

constexpr int CHUNK = 96;  // outputs whose input rows are looked up together
constexpr size_t NEAR_BYTES = 128 * 1024;
constexpr int FEW = 3;     // outputs: what they wait for is the memory, which comes by itself then

}  // namespace

IntConv::IntConv(Geometry geometry, bool transposed, const int8_t* weight, const float* scale, const float* bias,
                 int zero)
    : Geometry(std::move(geometry)), zero_(zero), kernels_(kernels().integers) {
    // The kernel walks along rows of outputs whose rows of inputs are the same.
    depthwise_ = depthwise_ && rows_.num == 1 && columns_.num == 1 && rows_.taps <= MAX_INT_ROWS;
    // Of few channels a tap costs more to look up than to compute.
    const bool adjoining =
        !transposed && columns_.taps > 1 && columns_.shift[0] - columns_.shift[1] == 1 && groups_ == 1;
    if (!depthwise_ && adjoining && byte_stride(in.channels) <= BYTE_LANE) joined_ = columns_.taps;
    outside_.assign(size_t(byte_stride(in.channels)) + BYTE_BLOCK, uint8_t(zero));
    const int og = out.channels / groups_, cg = in.channels / groups_, taps = rows_.taps * columns_.taps;
    for (int o = 0; o < out.channels; ++o) {
        double sum = 0;
        for (int c = 0; c < cg; ++c)
            for (int t = 0; t < taps; ++t)
                sum += std::abs(transposed ? weight[(size_t(o / og * cg + c) * og + o % og) * taps + t]
                                           : weight[(size_t(o) * cg + c) * taps + t]);
        largest_ = std::max(largest_, float(1.001 * (sum * 255 * scale[o] + (bias ? std::fabs(bias[o]) : 0))));
    }
    if (depthwise_) pack_depthwise(weight, scale, bias);
    else pack(weight, transposed, scale, bias);
}

void IntConv::pack(const int8_t* weight, bool transposed, const float* scale, const float* bias) {
    const int lanes = kernels_->width, C = in.channels, O = out.channels, cg = C / groups_, og = O / groups_,
              taps = rows_.taps * columns_.taps;
    const auto at = [&](int o, int c, int t) -> int {
        if (o >= O || c >= C || o / og != c / cg) return 0;
        return transposed ? weight[(size_t(c) * og + o % og) * taps + t] : weight[(size_t(o) * cg + c % cg) * taps + t];
    };
    const int most = groups_ > 1 ? vectors_together(groups_, in, out, 4, lanes) : 4;
    for (int channel = 0; channel < O;) {
        Panel p{channel, std::min(most, (O - channel + lanes - 1) / lanes), 0, 0, weight_.size(), start_.size()};
        const Channels read = channels_of(groups_, in, out, channel, p.vectors * lanes);
        p.first = read.first / INT_GROUP;
        p.depth = (read.end + INT_GROUP - 1) / INT_GROUP - p.first;
        const int stride = byte_stride(C), row = joined_ * stride;  // bytes of a tap
        if (joined_ > 1) p.depth = row / INT_GROUP;
        const auto output = [&](int v, int l) {
            return channel + (p.vectors == 4 ? packed_channel(v, l) : v * lanes + l);
        };
        p.groups = taps / joined_ * p.depth;
        // Weight of a panel's output v lanes + l for a byte of the row of a tap.
        const auto weight_at = [&](int o, int tap, int byte) {
            return joined_ > 1 ? at(output(o / lanes, o % lanes), byte % stride, tap * joined_ + byte / stride)
                               : at(output(o / lanes, o % lanes), byte, tap);
        };
        if (!kernels_->windows || !pair(p, weight_at))
            for (int t = 0; t < taps / joined_; ++t)
                for (int k = p.first; k < p.first + p.depth; ++k)
                    for (int from = k * INT_GROUP; from < (k + 1) * INT_GROUP; from += kernels_->joined)
                        for (int o = 0; o < p.vectors * lanes; ++o)
                            for (int byte = from; byte < from + kernels_->joined; ++byte)
                                weight_.push_back(int8_t(weight_at(o, t, byte)));
        for (int v = 0; v < p.vectors; ++v)
            for (int l = 0; l < lanes; ++l) {
                const int o = output(v, l);
                int sum = 0;
                if (o < O)
                    for (int c = o / og * cg; c < (o / og + 1) * cg; ++c)
                        for (int t = 0; t < taps; ++t) sum += at(o, c, t);
                start_.push_back(int32_t(uint32_t(-zero_) * uint32_t(sum)));
                scale_.push_back(o < O ? scale[o] : 0.0f);
                bias_.push_back(o < O && bias ? bias[o] : 0.0f);
            }
        panels_.push_back(p);
        channel += p.vectors * lanes;
    }
}

// Products of codes and weights are added two by two in 16 bits, which is exact if no two weights of an output that are added are more
// than 128 together: 255 * 128 < 2^15. So inputs are paired with such others, of the same sixteen, that this holds for all outputs of the
// panel; what has no such partner stays alone. False if too many are alone for this to be faster than to multiply words.
template <class At>
bool IntConv::pair(Panel& p, const At& at) {
    constexpr int MOST = 16;
    const int outputs = p.vectors * kernels_->width, bytes = p.depth * INT_GROUP, taps = p.groups / p.depth;
    std::vector<IntWindow> windows;
    std::vector<int8_t> weights;
    int groups = 0;
    for (int tap = 0; tap < taps; ++tap)
        for (int from = 0; from < bytes; from += MOST) {
            const int n = std::min(MOST, bytes - from);
            std::vector<std::array<int8_t, MOST>> w(size_t(outputs), std::array<int8_t, MOST>{});
            bool used[MOST] = {}, fit[MOST][MOST];
            for (int o = 0; o < outputs; ++o)
                for (int i = 0; i < n; ++i) {
                    w[size_t(o)][size_t(i)] = int8_t(at(o, tap, p.first * INT_GROUP + from + i));
                    used[i] |= w[size_t(o)][size_t(i)] != 0;
                }
            for (int i = 0; i < n; ++i)
                for (int j = 0; j < i; ++j) {
                    bool all = used[i] && used[j];
                    for (int o = 0; o < outputs && all; ++o) {
                        const int a = w[size_t(o)][size_t(i)], b = w[size_t(o)][size_t(j)];
                        all = (a < 0) != (b < 0) || std::abs(a + b) <= 128;
                    }
                    fit[i][j] = fit[j][i] = all;
                }
            // Those with the fewest partners to choose from choose first, and take one with few.
            const auto choices = [&](int i) {
                int count = 0;
                for (int j = 0; j < n; ++j) count += j != i && used[j] && fit[i][j];
                return count;
            };
            const auto fewest = [&](const auto& among) {
                int best = -1, least = MOST;
                for (int i = 0; i < n; ++i)
                    if (used[i] && among(i) && choices(i) < least) least = choices(i), best = i;
                return best;
            };
            std::vector<int> order;  // two by two; -1: none
            for (;;) {
                const int i = fewest([](int) { return true; });
                if (i < 0) break;
                const int j = fewest([&](int k) { return k != i && fit[i][k]; });
                used[i] = false;
                if (j >= 0) used[j] = false;
                order.insert(order.end(), {i, j});
            }
            order.resize((order.size() + INT_GROUP - 1) / INT_GROUP * INT_GROUP, -1);
            for (size_t k = 0; k < order.size(); k += INT_GROUP) {
                if (k % MOST == 0) {
                    windows.push_back({tap, p.first * INT_GROUP + from, 0, {}});
                    std::fill_n(windows.back().order, MOST, uint8_t(128));
                }
                ++windows.back().groups;
                ++groups;
                for (int j = 0; j < INT_GROUP; ++j)
                    if (order[k + size_t(j)] >= 0) windows.back().order[k % MOST + size_t(j)] = uint8_t(order[k + size_t(j)]);
                for (int o = 0; o < outputs; ++o)
                    for (int j = 0; j < INT_GROUP; ++j) {
                        const int i = order[k + size_t(j)];
                        weights.push_back(i < 0 ? int8_t(0) : w[size_t(o)][size_t(i)]);
                    }
            }
        }
    if (groups == 0 || 5 * groups > 6 * p.groups) return false;
    p.window = windows_.size();
    p.windows = int(windows.size());
    p.groups = groups;
    windows_.insert(windows_.end(), windows.begin(), windows.end());
    weight_.insert(weight_.end(), weights.begin(), weights.end());
    return true;
}

void IntConv::pack_depthwise(const int8_t* weight, const float* scale, const float* bias) {
    const int lanes = kernels_->width, C = in.channels, kh = rows_.taps, kw = columns_.taps;
    for (int block = 0; block < C; block += 4 * lanes) {
        for (int x = 0; x < kw; ++x)
            for (int g = 0; g < kh; g += INT_GROUP)
                for (int v = 0; v < 4; ++v) {
                    const auto at = [&](int l, int j) {
                        const int c = block + packed_channel(v, l), y = g + j;
                        return c < C && y < kh ? weight[(size_t(c) * kh + y) * kw + x] : int8_t(0);
                    };
                    const bool words = kernels_->joined == 2;
                    for (int odd = 0; odd < (words ? 2 : 1); ++odd)
                        for (int l = 0; l < lanes; ++l)
                            for (int j = odd; j < INT_GROUP; j += words ? 2 : 1) {
                                weight_.push_back(at(l, j));
                                if (words) weight_.push_back(at(l, j) < 0 ? int8_t(-1) : int8_t(0));
                            }
                }
        for (int v = 0; v < 4; ++v)
            for (int l = 0; l < lanes; ++l) {
                const int c = block + packed_channel(v, l);
                int sum = 0;
                if (c < C)
                    for (int t = 0; t < kh * kw; ++t) sum += weight[size_t(c) * kh * kw + t];
                start_.push_back(-zero_ * sum);
                scale_.push_back(c < C ? scale[c] : 0.0f);
                bias_.push_back(c < C && bias ? bias[c] : 0.0f);
            }
    }
}

bool IntConv::saturates(const Settle& s) const {
    if (!s.codes || s.residual_values || (s.act != Act::none && s.act != Act::clamp)) return false;
    const float residual = s.residual ? 256 * s.residual_step : 0.0f;
    if (!((largest_ + residual) * s.inverse < float(1 << 30))) return false;
    return s.act == Act::none ||
           (s.act_a * s.inverse <= float(-s.zero) && s.act_b * s.inverse >= float(255 - s.zero) - 0.25f);
}

void IntConv::run_depthwise(const uint8_t* codes, const int32_t* list, int count, const Settle& settle, IntRun* runs,
                            int32_t* found) const {
    const int stride = byte_stride(in.channels);
    IntDepthwiseArgs d{};
    d.run = runs;
    d.rows = rows_.taps;
    d.columns = columns_.taps;
    d.step = columns_.den;
    d.dilation = columns_.taps > 1 ? columns_.shift[0] - columns_.shift[1] : 1;
    d.width = in.width;
    d.stride = stride;
    d.w = weight_.data();
    d.start = start_.data();
    d.scale = scale_.data();
    d.bias = bias_.data();
    d.zero = uint8_t(zero_);
    d.count = found;
    // The line is followed along, since divisions are slow.
    int y = list[0] / out.width, start = y * out.width;
    for (int i = 0; i < count; i += runs[d.runs++].pixels) {
        const int p = list[i];
        for (; p >= start + out.width; start += out.width) ++y;
        IntRun& run = runs[d.runs];
        run.pixels = 1;
        while (p + run.pixels < start + out.width && i + run.pixels < count && list[i + run.pixels] == p + run.pixels)
            ++run.pixels;
        for (int r = 0; r < d.rows; ++r) {
            const int32_t source = rows_.source[size_t(y) * size_t(d.rows) + size_t(r)];
            run.row[r] = source < 0 ? nullptr : codes + size_t(source) * in.width * stride;
        }
        run.first = p;
        run.column = (p - start) * d.step - columns_.shift[0];
    }
    kernels_->depthwise(d, settle);
}

void IntConv::run(const uint8_t* codes, const int32_t* list, int count, const Settle& given, ActivePixels& sink,
                  IntWorkspace& ws) const {
    Settle settle = given;
    settle.saturates = saturates(given);
    const int kh = rows_.taps, kw = columns_.taps, taps = kh * kw;
    const size_t stride = size_t(byte_stride(in.channels));
    int32_t* found = sized(ws.count, CHUNK);
    const uint8_t** rows = depthwise_ ? nullptr : sized(ws.rows, size_t(CHUNK) * taps);
    // Rows of joined columns that reach over the edge of the map are put together here.
    uint8_t* patches = joined_ > 1 ? sized(ws.patches, size_t(CHUNK) * taps * stride + BYTE_BLOCK) : nullptr;
    for (int from = 0; from < count; from += CHUNK) {
        const int n = std::min(CHUNK, count - from);
        std::memset(found, 0, size_t(n) * sizeof(int32_t));
        if (depthwise_) {
            run_depthwise(codes, list + from, n, settle, sized(ws.runs, CHUNK), found);
        } else {
            // The line is followed along, since divisions are slow.
            int line = list[from] / out.width, line_start = line * out.width;
            for (int i = 0; i < n; ++i) {
                const int p = list[from + i];
                if (pointwise_) {
                    rows[i] = codes + size_t(p) * stride;
                    continue;
                }
                for (; p >= line_start + out.width; line_start += out.width) ++line;
                const int column = p - line_start;
                const int32_t *ry = &rows_.source[size_t(line) * kh], *rx = &columns_.source[size_t(column) * kw];
                if (joined_ > 1) {
                    const int first = column * columns_.den - columns_.shift[0];
                    for (int y = 0, t = i; y < kh; ++y, t += n) {
                        if (ry[y] >= 0 && first >= 0 && first + kw <= in.width) {
                            rows[t] = codes + (size_t(ry[y]) * in.width + size_t(first)) * stride;
                            continue;
                        }
                        uint8_t* patch = patches + (size_t(i) * kh + size_t(y)) * kw * stride;
                        for (int x = 0; x < kw; ++x)
                            std::memcpy(patch + size_t(x) * stride,
                                        (ry[y] | rx[x]) >= 0 ? codes + (size_t(ry[y]) * in.width + rx[x]) * stride
                                                             : outside_.data(),
                                        stride);
                        rows[t] = patch;
                    }
                    continue;
                }
                for (int y = 0, t = i; y < kh; ++y)
                    for (int x = 0; x < kw; ++x, t += n)
                        rows[t] = (ry[y] | rx[x]) >= 0 ? codes + (size_t(ry[y]) * in.width + rx[x]) * stride
                                                       : outside_.data();
            }
            // What all layers together pass through does not stay in the caches.
            const bool far = n >= FEW && weight_.size() > NEAR_BYTES;
            for (size_t k = 0; k < panels_.size(); ++k) {
                const Panel& p = panels_[k];
                const auto start = [&](size_t of) { return of < panels_.size() ? panels_[of].w : weight_.size(); };
                const size_t next = far ? start(k + 2) - start(k + 1) : 0;
                kernels_->tile(
                    {n, taps / joined_, p.depth, rows, p.first * INT_GROUP, weight_.data() + p.w, next,
                     windows_.data() + p.window, p.windows, p.groups, p.vectors, start_.data() + p.at, scale_.data() + p.at, bias_.data() + p.at, p.channel, list + from, found},
                    settle);
            }
        }
        for (int i = 0; i < n; ++i) sink.add(list[from + i], found[i]);
    }
}

}  // namespace sparsetime
