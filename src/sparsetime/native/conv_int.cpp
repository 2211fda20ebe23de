#include "conv_int.h"

#include <algorithm>
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
        // Weight of a panel's output v lanes + l for a byte of the row of a tap.
        const auto weight_at = [&](int o, int tap, int byte) {
            return joined_ > 1 ? at(output(o / lanes, o % lanes), byte % stride, tap * joined_ + byte / stride)
                               : at(output(o / lanes, o % lanes), byte, tap);
        };
        if (!kernels_->windows || !pair(p, taps / joined_, weight_at))
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
        p.bytes = weight_.size() - p.w;
        panels_.push_back(p);
        channel += p.vectors * lanes;
    }
}

// Products of codes and weights are added two by two in 16 bits, which is exact if no two weights of an output that are added are more
// than 128 together: 255 * 128 < 2^15. So inputs are paired with such others, of the same sixteen, that this holds for all outputs of a
// panel, or else for those of a part of it; what finds no such partner stays alone. False if too many are alone for this to be faster
// than to multiply words.
template <class At>
bool IntConv::pair(Panel& p, int taps, const At& at) {
    const int lanes = kernels_->width, groups = taps * p.depth;
    const size_t windows = windows_.size(), weights = weight_.size();
    const int parts = (p.vectors + INT_PART - 1) / INT_PART;
    const auto add = [&](int first, int last, int most) {
        const size_t window = windows_.size();
        if (!pair(p, taps, at, first, last, most)) return false;
        Panel::Part own{window, int(windows_.size() - window), 0};
        for (size_t k = window; k < windows_.size(); ++k) own.groups += windows_[k].groups;
        for (int i = first; i < last; ++i) p.part[i] = own;
        return true;
    };
    bool found = add(0, parts, groups + groups / 32);
    if (!found && parts > 1) {
        const int most = groups + groups / 8;
        found = add(0, 1, most) && add(1, 2, most);
    } else if (!found) {
        found = add(0, 1, groups + groups / 8);
    }
    if (found) {
        p.parts = parts;
        return true;
    }
    windows_.resize(windows);
    weight_.resize(weights);
    return false;
}

// The same for parts `first` to `last` together, in at most so many groups of four inputs.
template <class At>
bool IntConv::pair(const Panel& p, int taps, const At& at, int first, int last, int most) {
    constexpr int INPUTS = 16, OUTPUTS = 64;
    const int bytes = p.depth * INT_GROUP, size = INT_PART * kernels_->width, from_output = first * size;
    const int outputs = std::min(p.vectors * kernels_->width, last * size) - from_output;
    const size_t windows = windows_.size(), weights = weight_.size();
    std::vector<int8_t> second;  // weights of the second part
    int groups = 0;
    for (int tap = 0; tap < taps && groups <= most; ++tap)
        for (int from = 0; from < bytes && groups <= most; from += INPUTS) {
            const int n = std::min(INPUTS, bytes - from);
            int16_t w[INPUTS][OUTPUTS] = {};
            bool used[INPUTS] = {}, fit[INPUTS][INPUTS] = {};
            int choices[INPUTS] = {};
            for (int i = 0; i < n; ++i)
                for (int o = 0; o < outputs; ++o) {
                    w[i][o] = int16_t(at(from_output + o, tap, p.first * INT_GROUP + from + i));
                    used[i] |= w[i][o] != 0;
                }
            for (int i = 0; i < n; ++i)
                for (int j = 0; j < i; ++j) {
                    int16_t largest = 0;
                    for (int o = 0; o < outputs; ++o)
                        largest = std::max(largest, int16_t(std::abs(int16_t(w[i][o] + w[j][o]))));
                    if (!used[i] || !used[j] || largest > 128) continue;
                    fit[i][j] = fit[j][i] = true;
                    ++choices[i];
                    ++choices[j];
                }
            // Those with the fewest partners to choose from choose first, and take one with few.
            const auto fewest = [&](const bool* among) {
                int best = -1;
                for (int i = 0; i < n; ++i)
                    if (used[i] && among[i] && (best < 0 || choices[i] < choices[best])) best = i;
                if (best < 0) return best;
                used[best] = false;
                for (int i = 0; i < n; ++i) choices[i] -= fit[best][i];
                return best;
            };
            int order[2 * INPUTS + INT_GROUP], slots = 0;  // two by two; -1: none
            for (int i; (i = fewest(used)) >= 0;) {
                order[slots++] = i;
                order[slots++] = fewest(fit[i]);
            }
            while (slots % INT_GROUP) order[slots++] = -1;
            for (int k = 0; k < slots; k += INT_GROUP, ++groups) {
                if (k % INPUTS == 0) {
                    windows_.push_back({tap, p.first * INT_GROUP + from, 0, {}});
                    std::fill_n(windows_.back().order, INPUTS, uint8_t(128));
                }
                ++windows_.back().groups;
                for (int j = 0; j < INT_GROUP; ++j)
                    if (order[k + j] >= 0) windows_.back().order[k % INPUTS + j] = uint8_t(order[k + j]);
                for (int o = 0; o < outputs; ++o)
                    for (int j = 0; j < INT_GROUP; ++j) {
                        const int8_t x = order[k + j] < 0 ? int8_t(0) : int8_t(w[order[k + j]][o]);
                        if (o < size) weight_.push_back(x);
                        else second.push_back(x);
                    }
            }
        }
    weight_.insert(weight_.end(), second.begin(), second.end());
    if (groups > 0 && groups <= most) return true;
    windows_.resize(windows);
    weight_.resize(weights);
    return false;
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
                IntPart part[4 / INT_PART];
                for (int i = 0; i < p.parts; ++i)
                    part[i] = {windows_.data() + p.part[i].window, p.part[i].windows, p.part[i].groups};
                kernels_->tile({n, taps / joined_, p.depth, rows, p.first * INT_GROUP, weight_.data() + p.w, next,
                                p.parts ? part : nullptr, p.bytes, p.vectors, start_.data() + p.at, scale_.data() + p.at,
                                bias_.data() + p.at, p.channel, list + from, found},
                               settle);
            }
        }
        for (int i = 0; i < n; ++i) sink.add(list[from + i], found[i]);
    }
}

}  // namespace sparsetime
