// The dense path of a convolution and that of whole pixels, and which one is taken; conv_events.cpp has the third.

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "conv.h"

namespace sparsetime {

namespace {

constexpr size_t FUSED_FLOATS = 128 * 1024;  // weights of a 1x1 convolution that every pixel may pass through
constexpr int FLAT_FLOATS = 4 * 1024;        // weights of a panel that stay in the first cache beside its inputs
constexpr int FEW_TERMS = 512;               // of a sum, so few that it pays to look inputs up by the line
constexpr int MAX_DEPTH = 768;               // rows of weights that a register tile passes in one go
constexpr int CHANGED_FLOATS = 128 * 1024;   // sums of changes, kept in the second cache
constexpr int STRIP_FLOATS = 80 * 1024;      // scratch of one strip of rows, kept in the second cache
constexpr double MOST_SCRATCH = 16 << 20;    // floats: of a strip of one row, if that takes so much
constexpr int PANEL_FLOATS = 48 * 1024;      // weights that one sweep over a chunk of pixels keeps in the second cache

constexpr int MOST_APART = 8;                // stride of a transposed convolution whose outputs are put in order
constexpr int LATER = 24;  // pixels between one whose sums are computed and one whose memory is asked for

// Asks for channels [from, to) of a pixel's state, which comes from afar, before its sums are computed. Inlined always: calls of a
// function that does nothing else are left out by compilers.
[[gnu::always_inline]] inline void fetch(const FinishArgs& sink, int32_t pixel, int from, int to) {
    const ptrdiff_t row = ptrdiff_t(pixel) * sink.stride;
    for (int c = from; c < to; c += LANE) {
        __builtin_prefetch(sink.value + row + c, 1, 2);
        if (sink.z && !sink.replace) __builtin_prefetch(sink.z + row + c, 1, 2);
        if (sink.extra) __builtin_prefetch(sink.extra + row + c, 0, 2);
    }
}

// How pixels from `first` on are written whole, from a channel on.
WriteArgs write_of(const FinishArgs& sink, int32_t first, int channel) {
    const ptrdiff_t at = ptrdiff_t(first) * sink.stride + channel;
    return {sink.value + at, sink.z ? sink.z + at : nullptr, sink.extra ? sink.extra + at : nullptr, sink.bias + channel, sink.stride,
            sink.act == Act::clamp, sink.act_a, sink.act_b, nullptr, nullptr, nullptr};
}

// How pixels are compared with what was sent.
WriteArgs compare_of(const FinishArgs& sink, const int32_t* pixel, int channel, float* far) {
    WriteArgs to = write_of(sink, 0, channel);
    to.far = far;
    to.inverse = sink.step + channel;
    to.pixel = pixel;
    return to;
}

// The numbers of n ascending pixels, row by row, those whose columns leave the same rest of `stride` together.
void apart(const int32_t* pixel, int n, int stride, int width, int32_t* order) {
    for (int from = 0, to; from < n; from = to) {
        const int start = pixel[from] / width * width;
        for (to = from; to < n && pixel[to] < start + width;) ++to;
        for (int rest = 0; rest < stride; ++rest)
            for (int i = from; i < to; ++i)
                if ((pixel[i] - start) % stride == rest) *order++ = i;
    }
}

int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }

}  // namespace

void sent_whole(FinishArgs& sink, const int32_t* pixel, int n) {
    std::copy(pixel, pixel + n, sink.active + sink.active_count);
    std::fill(sink.tally + sink.active_count, sink.tally + sink.active_count + n, sink.channels);
    std::fill(sink.mask + pixel[0], sink.mask + pixel[0] + n, uint8_t(1));
    sink.active_count += n;
    sink.events += int64_t(n) * sink.channels;
}

Axis::Axis(int in_, int out_, int taps_, int num_, int den_, std::vector<int> shift_)
    : in(in_), out(out_), taps(taps_), num(num_), den(den_), shift(std::move(shift_)), source(size_t(out_) * taps_, -1),
      target(size_t(in_) * taps_, -1) {
    for (int o = 0; o < out; ++o)
        for (int k = 0; k < taps; ++k) {
            const int scaled = o * den - shift[k], i = scaled / num;
            if (scaled < 0 || scaled % num || i >= in) continue;
            source[size_t(o) * taps + k] = i;
            target[size_t(i) * taps + k] = o;
        }
}

Axis axis_of(bool transposed, int in, int out, int taps, int stride, int before, int dilation) {
    std::vector<int> shift(static_cast<size_t>(taps));
    for (int k = 0; k < taps; ++k) shift[size_t(k)] = transposed ? k * dilation - before : before - k * dilation;
    return transposed ? Axis(in, out, taps, stride, 1, std::move(shift))
                      : Axis(in, out, taps, 1, stride, std::move(shift));
}

Channels channels_of(int groups, const Shape& in, const Shape& out, int from, int count) {
    if (in.narrow()) return {0, in.channels};  // so few are read as they lie
    const int cg = in.channels / groups, og = out.channels / groups;
    return {from / og * cg, ((std::min(out.channels, from + count) - 1) / og + 1) * cg};
}

int vectors_together(int groups, const Shape& in, const Shape& out, int most, int lanes) {
    int best = 1;
    double least = std::numeric_limits<double>::infinity();
    for (int vectors = 1; vectors <= most; ++vectors) {
        double cost = 0;
        for (int from = 0; from < out.channels; from += vectors * lanes) {
            const int own = std::min(vectors, (out.channels - from + lanes - 1) / lanes);
            cost += channels_of(groups, in, out, from, own * lanes).count() * (own + 0.5);  // to read an input costs half a product
        }
        if (cost < least) least = cost, best = vectors;
    }
    return best;
}

Geometry::Geometry(Shape in_, Shape out_, Axis rows, Axis columns, int groups)
    : in(in_), out(out_), rows_(std::move(rows)), columns_(std::move(columns)), groups_(groups), macs_(rows_, columns_, in, out, groups) {
    const auto still = [](const Axis& a) { return a.taps == 1 && a.den == 1 && a.num == 1 && a.shift[0] == 0; };
    depthwise_ = groups > 1 && groups == in.channels && in.channels == out.channels && !in.narrow();
    pointwise_ = still(rows_) && still(columns_) && in.pixels() == out.pixels();
}

Conv::Conv(Geometry geometry, bool transposed, const float* weight) : Geometry(std::move(geometry)) {
    pack(weight, transposed);
    zeros_.assign(size_t(std::max(in.stride(), LANE)), 0.0f);
}

void Conv::pack(const float* weight, bool transposed) {
    kernels_ = &kernels();
    const Kernels& k = *kernels_;
    width_ = k.width;
    const int kh = rows_.taps, kw = columns_.taps, taps = kh * kw;
    const int C = in.channels, O = out.channels, cg = C / groups_, og = O / groups_;
    const auto at = [&](int o, int c, int t) -> float {
        if (o >= O || o / og != c / cg) return 0.0f;
        return transposed ? weight[(size_t(c) * og + o % og) * taps + t] : weight[(size_t(o) * cg + c % cg) * taps + t];
    };
    if (depthwise_) {
        tile_.assign(size_t(taps) * in.stride(), 0.0f);
        for (int t = 0; t < taps; ++t)
            for (int c = 0; c < C; ++c) tile_[size_t(t) * in.stride() + c] = weight[size_t(c) * taps + t];
        return;
    }
    const int blocks = (O + width_ - 1) / width_;
    lay_panels();
    double products = 0;
    for (Panel& p : panels_) {
        products += double(p.in.count()) * std::min(p.wide, O - p.column);
        p.w = tile_.size();
        for (int t = 0; t < taps; ++t)
            for (int c = p.in.first; c < p.in.end; ++c)
                for (int j = 0; j < p.wide; ++j) tile_.push_back(at(p.column + j, c, t));
    }
    share_ = products / (double(C) * O);

    // Maps of few channels have no padding for whole vectors.
    if (pointwise_ && groups_ == 1 && !out.narrow() && size_t(C) * out.stride() <= FUSED_FLOATS) {
        int group = k.group;
        for (int b = 0; b < blocks; b += group) {
            while (group > blocks - b) group /= 2;
            for (int c = 0; c < C; ++c)
                for (int j = 0; j < group * width_; ++j) fused_.push_back(at(b * width_ + j, c, 0));
        }
        has_elements_ = true;
        return;
    }

    // Offsets of taps from the base output, by phase of the input's place.
    row_low_ = column_low_ = std::numeric_limits<int>::max();
    row_high_ = column_high_ = std::numeric_limits<int>::min();
    const auto offsets = [](const Axis& a, int phase, std::vector<int>& tap, std::vector<int>& offset) {
        for (int t = 0; t < a.taps; ++t)
            if ((phase + a.shift[t]) % a.den == 0) {
                tap.push_back(t);
                offset.push_back(floor_div(phase + a.shift[t], a.den));
            }
    };
    for (int py = 0; py < rows_.phases(); ++py)
        for (int px = 0; px < columns_.phases(); ++px) {
            std::vector<int> ty, oy, tx, ox;
            offsets(rows_, py, ty, oy);
            offsets(columns_, px, tx, ox);
            for (int o : oy) row_low_ = std::min(row_low_, o), row_high_ = std::max(row_high_, o);
            for (int o : ox) column_low_ = std::min(column_low_, o), column_high_ = std::max(column_high_, o);
            const int n = int(ty.size() * tx.size());
            if (n == 0) continue;
            const int limit = width_ == 16 ? MAX_SLOTS : 9;  // registers
            const int pieces = (n + limit - 1) / limit;
            for (int b = 0; b < blocks;) {
                const int vectors = std::min(blocks - b, std::max(1, 8 / n));
                Channels read = channels_of(groups_, in, out, b * width_, vectors * width_);
                if (groups_ > 1) read = {read.first >> LEAST_SHIFT << LEAST_SHIFT, std::min(C, round_up(read.end, 1 << LEAST_SHIFT))};
                for (int piece = 0; piece < pieces; ++piece) {
                    const int from = n * piece / pieces, to = n * (piece + 1) / pieces;
                    Pass p{py * columns_.phases() + px, (to - from) * vectors, vectors, read, scatter_.size(), b, {}, {}};
                    for (int j = from; j < to; ++j)
                        for (int v = 0; v < vectors; ++v) {
                            p.row.push_back(oy[j / tx.size()]);
                            p.column.push_back(ox[j % tx.size()]);
                        }
                    for (int c = read.first; c < read.end; ++c)
                        for (int j = from; j < to; ++j)
                            for (int v = 0; v < vectors; ++v)
                                for (int l = 0; l < width_; ++l)
                                    scatter_.push_back(at((b + v) * width_ + l, c, ty[j / tx.size()] * kw + tx[j % tx.size()]));
                    passes_.push_back(std::move(p));
                }
                b += vectors;
            }
        }
    if (row_low_ > row_high_) row_low_ = row_high_ = 0;  // no tap meets the input
    if (column_low_ > column_high_) column_low_ = column_high_ = 0;
    sliding_ = !passes_.empty() && rows_.phases() * columns_.phases() == 1 && rows_.num == 1 && columns_.num == 1;
    for (const Pass& p : passes_) {
        sliding_ = sliding_ && p.slots == 9 && p.vectors == 1;
        for (int s = 0; sliding_ && s < 9; ++s) sliding_ = p.row[8 - s] == p.row[8] + s / 3 && p.column[8 - s] == p.column[8] + s % 3;
    }
    has_elements_ = lay_out();
}

void Conv::lay_panels() {
    const Kernels& k = *kernels_;
    const int blocks = (out.channels + width_ - 1) / width_, half = width_ / 2;
    const bool flat = terms() * k.flat.vectors * width_ <= FLAT_FLOATS && blocks % k.flat.vectors == 0;
    const auto [pixels, vectors] = flat ? k.flat : k.most;
    tile_pixels_ = pixels;
    const int grouped = groups_ > 1 ? vectors_together(groups_, in, out, vectors, width_) : 0;
    const int panels = (blocks + vectors - 1) / vectors;  // of nearly one size: thin ones waste registers
    for (int b = 0; b < blocks;) {
        const int from = b * width_;
        b = grouped ? std::min(blocks, b + grouped) : blocks * (int(panels_.size()) + 1) / panels;
        const int wide = b * width_ - from - (k.halves && b * width_ - half >= out.channels ? half : 0);
        panels_.push_back({from, wide, channels_of(groups_, in, out, from, wide), 0});
    }
}

// Memory of the elements path. False if it is more than a stream should have for it.
bool Conv::lay_out() {
    const int64_t blocks = (out.channels + width_ - 1) / width_;
    const int64_t left = -std::min(0, column_low_), reach = columns_.base(in.width - 1) + 1 + std::max(0, column_high_);
    // A residual may touch outputs that no tap reaches.
    const int64_t wide = left + std::max<int64_t>(out.width, reach);
    const int64_t halo = int64_t(row_high_) - row_low_;
    // Without overlap between strips their scratch fits the first cache.
    const int64_t room = halo == 0 ? STRIP_FLOATS / 8 : STRIP_FLOATS;
    const int64_t fit = room / (wide * blocks * width_) - halo;  // output rows
    // Rows of the halo move to the top after each strip: as many should be done.
    const int64_t least = halo ? std::max<int64_t>(2, halo) : 1;
    const int64_t strip_rows = std::min<int64_t>(std::max(least, fit), rows_.base(in.height - 1) + 1);
    const int64_t in_rows = std::max<int64_t>(1, rows_.num == 1 ? strip_rows * rows_.den : strip_rows / rows_.num);
    const int64_t rows = rows_.base(int(in_rows)) + 2 + halo + 1;
    if (double(rows) * double(wide) * double(blocks * width_) > MOST_SCRATCH) return false;
    const int64_t region = (rows * wide) | 1;  // odd: blocks do not fall on the same lines of a cache
    scratch_ = {int(left), int(wide), int(halo), int(in_rows), int(rows), int(blocks), int(region)};
    return true;
}

// What m outputs that share a register tile read: segment s of output i starts at from[s * m + i] and goes with the weights of tap[s] on.
// Returns how many segments there are. `patches`, where a segment is a row of the kernel and not one tap: memory for m outputs' inputs.
int Conv::look_up(const float* value, const int32_t* pixel, int m, Walk& walk, float* patches, const float** from,
                  int32_t* tap) const {
    const int kh = rows_.taps, kw = columns_.taps, C = in.channels;
    if (pointwise_ && !in.narrow()) {
        for (int i = 0; i < m; ++i) from[i] = value + ptrdiff_t(pixel[i]) * in.stride();
        tap[0] = 0;
        return 1;
    }
    const auto input = [&](int y, int x) { return value + (ptrdiff_t(y) * in.width + x) * in.stride(); };
    int found = 0;
    // Most are neighbours in a row, away from the borders: what they read lies evenly spaced.
    walk.to(pixel[0]);
    if (const int last = pixel[m - 1];
        last - pixel[0] == m - 1 && last < walk.end && rows_.num == 1 && columns_.num == 1) {
        const int32_t *y = &rows_.source[size_t(walk.y) * kh],
                      *x = &columns_.source[size_t(pixel[0] - walk.start) * kw];
        const int32_t* x_last = x + (m - 1) * kw;
        if ((y[0] | y[kh - 1] | x[0] | x[kw - 1] | x_last[0] | x_last[kw - 1]) >= 0 &&
            (!patches || x[kw - 1] == x[0] + kw - 1)) {
            const ptrdiff_t step = columns_.den * in.stride();
            for (int ky = 0; ky < kh; ++ky)
                for (int kx = 0; kx < kw; kx += patches ? kw : 1) {
                    const float* first = input(y[ky], x[kx]);
                    for (int i = 0; i < m; ++i, first += step) *from++ = first;
                    tap[found++] = ky * kw + kx;
                }
            return found;
        }
    }
    const int32_t* ry[MAX_TILE];
    const int32_t* rx[MAX_TILE];
    for (int i = 0; i < m; ++i) {
        const int p = pixel[i];
        walk.to(p);
        ry[i] = &rows_.source[size_t(walk.y) * kh];
        rx[i] = &columns_.source[size_t(p - walk.start) * kw];
    }
    if (patches) {
        for (int i = 0; i < m; ++i, patches += kh * kw * C) {
            const bool adjoining = rx[i][0] >= 0 && rx[i][kw - 1] == rx[i][0] + kw - 1;
            if (adjoining && ry[i][0] >= 0 && ry[i][kh - 1] == ry[i][0] + kh - 1) {
                const float* x = input(ry[i][0], rx[i][0]);
                for (int ky = 0; ky < kh; ++ky, x += ptrdiff_t(in.width) * C) from[ky * m + i] = x;
                continue;
            }
            float* patch = patches;
            for (int ky = 0; ky < kh; ++ky, patch += kw * C) {
                const int y = ry[i][ky];
                if (y >= 0 && adjoining) {
                    from[ky * m + i] = input(y, rx[i][0]);
                    continue;
                }
                from[ky * m + i] = patch;
                for (int kx = 0; kx < kw; ++kx) {
                    const float* x = (y | rx[i][kx]) >= 0 ? input(y, rx[i][kx]) : nullptr;
                    for (int c = 0; c < C; ++c) patch[kx * C + c] = x ? x[c] : 0.0f;
                }
            }
        }
        for (int ky = 0; ky < kh; ++ky) tap[ky] = ky * kw;
        return kh;
    }
    for (int ky = 0; ky < kh; ++ky)
        for (int kx = 0; kx < kw; ++kx) {
            const float* inputs[MAX_TILE];
            bool any = false;
            for (int i = 0; i < m; ++i) {
                const bool live = (ry[i][ky] | rx[i][kx]) >= 0;
                inputs[i] = live ? input(ry[i][ky], rx[i][kx]) : zeros_.data();
                any |= live;
            }
            if (!any) continue;
            for (int i = 0; i < m; ++i) from[found * m + i] = inputs[i];
            tap[found++] = ky * kw + kx;
        }
    return found;
}

// Sums of n pixels, `row` floats from one to the next, in the channels of panels [first, last): a panel of weights at a time over groups
// of pixels that fill the register tile.
void Conv::sums(const float* value, const int32_t* pixel, int n, int first, int last, float* sum, Workspace& ws,
                const FinishArgs* sink, float* far, const int32_t* place) const {
    const Kernels& k = *kernels_;
    const bool at_once = sink && (far || writes(*sink));
    const int taps = rows_.taps * columns_.taps, C = in.channels, limit = tile_pixels_;
    const int row = this->row();
    const int max_groups = n / limit + 1;
    const float** pointers = sized(ws.pointers, size_t(max_groups) * taps * limit);
    int32_t* segments = sized(ws.segments, size_t(max_groups) * (taps + 2));
    const float** weights = sized(ws.weights, size_t(taps));
    int32_t at[MAX_TILE];
    const bool patches = patched();
    float* copies = patches ? sized(ws.patches, size_t(n) * taps * C) : nullptr;
    Walk walk(out.width);
    const int groups = (n + limit - 1) / limit;
    int32_t* start = sized(ws.bound, size_t(groups) + 1);
    start[0] = 0;
    for (int g = 0; g < groups; ++g) {
        start[g + 1] = start[g] + n / groups + (g < n % groups);
        int32_t* segment = segments + size_t(g) * (taps + 1);
        segment[0] = look_up(value, pixel + start[g], start[g + 1] - start[g], walk,
                             patches ? copies + size_t(start[g]) * taps * C : nullptr,
                             pointers + size_t(g) * taps * limit, segment + 1);
    }
    for (int p = first; p < last; ++p) {
        const Panel& panel = panels_[size_t(p)];
        const int wide = panel.wide, column = panel.column, channels = panel.in.count();
        const int terms = patches ? columns_.taps * C : channels;  // of a segment
        const int depth_chunk = std::min(terms, MAX_DEPTH);
        const int tap_step = patches ? taps : std::max(1, PANEL_FLOATS / (depth_chunk * wide));
        bool accumulate = false;
        int asked = 0;  // pixels whose state of this panel has been asked for
        for (int c = 0; c < terms; c += depth_chunk) {
            const int depth = std::min(depth_chunk, terms - c);
            for (int t = 0; t < taps; t += tap_step) {
                const bool complete = at_once && c + depth == terms && t + tap_step >= taps;
                for (int g = 0; g < groups; ++g) {
                    const int from = start[g], m = start[g + 1] - from;
                    const int32_t* segment = segments + size_t(g) * (taps + 1);
                    const int32_t found = segment[0], *tap = segment + 1;
                    int s = 0;
                    while (s < found && tap[s] < t) ++s;
                    int e = s;
                    for (; e < found && tap[e] < t + tap_step; ++e)
                        weights[e - s] = &tile_[panel.w + (size_t(tap[e]) * channels + c) * wide];
                    if (e == s && accumulate && !complete) continue;
                    for (int i = 0; i < m; ++i) at[i] = (place ? place[from + i] : from + i) * row;
                    TileArgs args{e - s, pointers + size_t(g) * taps * limit + size_t(s) * m, weights, depth,
                                  sum + column, at, panel.in.first + c, accumulate, nullptr};
                    WriteArgs to;
                    if (complete) {
                        to = far ? compare_of(*sink, pixel + from, column, far + from)
                                 : write_of(*sink, pixel[from], column);
                        args.write = &to;
                    }
                    if (sink && !accumulate && (far || !complete))
                        for (; asked < std::min(n, from + m + LATER); ++asked)
                            fetch(*sink, pixel[asked], column, column + wide);
                    k.tile(m, wide, args);
                }
                accumulate = true;
            }
        }
    }
}

// Whether outputs away from the borders are computed line by line, with one pass of the weights. With many terms it takes more to compute
// borders by themselves than it saves.
bool Conv::has_lines() const {
    const int taps = rows_.taps * columns_.taps, terms = panels_[0].in.count();
    if (rows_.num != 1 || columns_.num != 1) return false;
    if (patched()) return columns_.taps == 1 || columns_.shift[0] - columns_.shift[1] == 1;
    return taps * terms <= (pointwise_ ? MAX_DEPTH : FEW_TERMS);
}

// sums() of pixels next to each other, in all panels. What the outputs of a line read lies evenly spaced, unless it is cut off at a border:
// no output is looked up by itself.
void Conv::lines(const float* value, const int32_t* pixel, int n, float* sum, Workspace& ws, const FinishArgs& sink, float* far) const {
    const int kh = rows_.taps, kw = columns_.taps;
    const bool written = !far && writes(sink), patches = patched();
    const auto whole = [&](int x) { return (columns_.source[size_t(x) * kw] | columns_.source[size_t(x + 1) * kw - 1]) >= 0; };
    int left = 0, right = out.width;  // columns of outputs that are not cut off
    while (left < right && !whole(left)) ++left;
    while (right > left && !whole(right - 1)) --right;
    for (int p = 0; p < panels(); ++p) {
        const Panel& panel = panels_[size_t(p)];
        const int channels = panel.in.count();
        int asked = 0;  // as in sums()
        for (int i = 0, m; i < n; i += m) {
            const int y = pointwise_ ? 0 : pixel[i] / out.width, x = pixel[i] - y * out.width;
            float* const to = sum + ptrdiff_t(i) * row();
            float* const distance = far ? far + i : nullptr;
            // Whole tiles in a line; what is left of it goes with the borders and what it takes to fill a tile behind them.
            m = pointwise_ ? n - i : x < left ? 0 : std::min(n - i, right - x) / tile_pixels_ * tile_pixels_;
            if (m <= 0) {
                m = std::min(n - i, round_up(x < left ? left - x : out.width - x + left, tile_pixels_));
                sums(value, pixel + i, m, p, p + 1, to, ws, &sink, distance);
                continue;
            }
            if (!written) {
                m = std::min(m, LATER);
                for (; asked < std::min(n, i + m + LATER); ++asked) fetch(sink, pixel[asked], panel.column, panel.column + panel.wide);
            }
            const float** inputs = sized(ws.pointers, size_t(kh) * kw);
            const float** weights = sized(ws.weights, size_t(kh) * kw);
            int segments = 0;
            for (int ky = 0; ky < kh; ++ky) {
                const int32_t from = rows_.source[size_t(y) * kh + ky];
                for (int kx = 0; from >= 0 && kx < kw; kx += patches ? kw : 1) {
                    const ptrdiff_t q = pointwise_ ? pixel[i] : ptrdiff_t(from) * in.width + columns_.source[size_t(x) * kw + kx];
                    inputs[segments] = value + q * in.stride() + panel.in.first;
                    weights[segments++] = &tile_[panel.w + size_t(ky * kw + kx) * channels * panel.wide];
                }
            }
            WriteArgs write;
            if (far) write = compare_of(sink, pixel + i, panel.column, distance);
            else if (written) write = write_of(sink, pixel[i], panel.column);
            kernels_->line(panel.wide, {m, segments, inputs, ptrdiff_t(columns_.den) * in.stride(), weights,
                                        patches ? kw * channels : channels, to + panel.column, row(), far || written ? &write : nullptr});
        }
    }
}

void Conv::sums_of_changes(const Change& change, const int32_t* pixel, int n, int first, int last, float* sum,
                           Workspace& ws) const {
    const Kernels& k = *kernels_;
    const int kh = rows_.taps, kw = columns_.taps, taps = kh * kw, row = this->row();
    const int low = pixel[0], high = pixel[n - 1];
    int32_t* place = sized(ws.span, size_t(high - low) + 1);  // of an output from the first on: where its sums are
    for (int i = 0; i < n; ++i) place[pixel[i] - low] = i * row;

    // Active pixels in the rows that these outputs read.
    int top = in.height, bottom = -1;
    for (int i = low / out.width * kh; i < (high / out.width + 1) * kh; ++i) {
        const int y = rows_.source[size_t(i)];
        if (y >= 0) top = std::min(top, y), bottom = std::max(bottom, y);
    }
    const int32_t* const all = change.active + change.active_count;
    const int32_t* active = std::lower_bound<const int32_t*>(change.active, all, top * in.width);
    const int32_t* const end = std::lower_bound(active, all, (bottom + 1) * in.width);

    // By tap: the rows of active pixels that it joins with one of these outputs, and where that output's sums are.
    const size_t most = size_t(end - active);
    const float** from = sized(ws.pointers, taps * most);
    int32_t* to = sized(ws.at, taps * most);
    int32_t* found = sized(ws.segments, size_t(taps));
    std::fill(found, found + taps, 0);
    Walk walk(in.width);
    for (; active < end; ++active) {
        const int32_t p = *active;
        walk.to(p);
        const int32_t *ty = &rows_.target[size_t(walk.y) * kh], *tx = &columns_.target[size_t(p - walk.start) * kw];
        for (int ky = 0; ky < kh; ++ky) {
            if (ty[ky] < 0) continue;
            for (int kx = 0; kx < kw; ++kx) {
                const int o = ty[ky] * out.width + tx[kx], t = ky * kw + kx;
                if (tx[kx] < 0 || o < low || o > high) continue;
                from[t * most + size_t(found[t])] = change.rows + ptrdiff_t(p) * in.stride();
                to[t * most + size_t(found[t]++)] = place[o - low];
            }
        }
    }

    for (int p = first; p < last; ++p) {
        const Panel& panel = panels_[size_t(p)];
        const int wide = panel.wide, channels = panel.in.count(), depth_chunk = std::min(channels, MAX_DEPTH);
        for (int i = 0; i < n; ++i)
            std::memset(sum + size_t(i) * row + panel.column, 0, size_t(round_up(wide, width_)) * sizeof(float));
        for (int t = 0; t < taps; ++t) {
            const int groups = (found[t] + tile_pixels_ - 1) / tile_pixels_;
            for (int c = 0; c < channels; c += depth_chunk) {
                const float* w = &tile_[panel.w + (size_t(t) * channels + c) * wide];
                for (int g = 0; g < groups; ++g) {
                    const size_t at = size_t(found[t]) * g / groups, end = size_t(found[t]) * (g + 1) / groups;
                    k.tile(int(end - at), wide,
                           {1, from + t * most + at, &w, std::min(depth_chunk, channels - c), sum + panel.column,
                            to + t * most + at, panel.in.first + c, true, nullptr});
                }
            }
        }
    }
}

int Conv::chunk() const {
    // Large weights pass by once a chunk: the larger they are, the longer the chunk.
    // Where all fit the first cache, sums should too.
    const int row = this->row(), limit = tile_pixels_;
    const size_t bytes = tile_.size() * sizeof(float);
    const int wanted = bytes <= 512 * 1024 ? 16 * limit : 64 * limit;
    return std::max(limit, std::min(wanted, (bytes <= 24 * 1024 ? 5 : 128) * 1024 / row / limit * limit));
}

void Conv::finish(const int32_t* pixel, int n, float* sum, FinishArgs& sink, Workspace& ws, const float* far) const {
    const int row = this->row();
    int32_t* at = sized(ws.at, size_t(n));
    for (int i = 0; i < n; ++i) at[i] = i * row;
    sink.pixels = n;
    sink.pixel = pixel;
    sink.at = at;
    sink.sum = sum;
    sink.block = width_;
    sink.clear = false;
    if (far) kernels_->encoders->send(sink, far);
    else kernels_->encoders->finish(sink);
}

// Whether register tiles may write values themselves: in a first frame, if nothing has to be looked up for them.
bool Conv::writes(const FinishArgs& sink) const {
    const bool bounded = sink.act == Act::clamp, padded = sink.channels < sink.stride;
    return columns_.num == 1 && sink.flush && (sink.encode == Encode::change || sink.encode == Encode::linear) && (bounded || sink.act == Act::none) &&
           !out.narrow() && !(bounded && padded && (sink.act_a > 0.0f || sink.act_b < 0.0f));  // padding stays zero
}

// Whether they may compare values with those that were sent.
bool Conv::compares(const FinishArgs& sink) const {
    return sink.encode == Encode::pixel && sink.replace && !sink.z && !sink.step_map && !sink.extra_mask &&
           (sink.act == Act::clamp || sink.act == Act::none) && !out.narrow();
}

// Touched outputs in chunks.
void Conv::gather(const float* value, const int32_t* list, int count, FinishArgs& sink, Workspace& ws) const {
    const int step = chunk();
    const bool written = writes(sink), compared = compares(sink);
    float* sum = sized(ws.sum, size_t(step) * row());
    float* far = compared ? sized(ws.far, 2 * size_t(step)) : nullptr;
    // Transposed: neighbours in a row read other taps, those a stride apart the same ones.
    const bool transposed = columns_.num > 1 && columns_.num <= MOST_APART;
    int32_t* place = transposed ? sized(ws.list, 2 * size_t(step)) : nullptr;
    const bool by_line = count >= out.width && list[count - 1] - list[0] == count - 1 && has_lines();
    for (int start = 0; start < count; start += step) {
        const int n = std::min(step, count - start);
        if (compared) std::fill(far, far + n, 0.0f);
        if (transposed) {
            int32_t* const pixel = place + step;
            apart(list + start, n, columns_.num, out.width, place);
            for (int i = 0; i < n; ++i) pixel[i] = list[start + place[i]];
            float* const found = compared ? far + step : nullptr;
            if (compared) std::fill(found, found + n, 0.0f);
            sums(value, pixel, n, 0, panels(), sum, ws, &sink, found, place);
            for (int i = 0; compared && i < n; ++i) far[place[i]] = found[i];
        } else if (by_line) {
            lines(value, list + start, n, sum, ws, sink, far);
        } else {
            sums(value, list + start, n, 0, panels(), sum, ws, &sink, far);
        }
        if (written) sent_whole(sink, list + start, n);
        else finish(list + start, n, sum, sink, ws, far);
    }
}

void Conv::gather_depthwise(const float* rows, const int32_t* list, int count, FinishArgs& sink, Workspace& ws) const {
    const Kernels& k = *kernels_;
    const int kh = rows_.taps, kw = columns_.taps, taps = kh * kw, stride = in.stride();
    const int wide = round_up(in.channels, width_), chunk = std::max(4, std::min(64, 8 * 1024 / stride));
    float* sum = sized(ws.sum, size_t(chunk) * stride);
    const float** pointers = sized(ws.pointers, size_t(chunk) * taps);
    const float* zeros = zeros_.data();
    float** outs = sized(ws.outputs, size_t(chunk));
    const int step = columns_.den;
    Walk walk(out.width), later(out.width);
    const bool written = writes(sink), compared = compares(sink);
    float* far = compared ? sized(ws.far, size_t(chunk)) : nullptr;
    const int dilation = kw > 1 ? columns_.shift[0] - columns_.shift[1] : 1;
    const bool runs = rows_.num == 1 && columns_.num == 1;  // not transposed
    const float** lines = sized(ws.weights, size_t(kh));
    int32_t* advance = sized(ws.segments, size_t(kh));
    // A pixel's state, and the columns of inputs that it is the first to need, as far as the pixel before it was touched.
    const auto ask = [&](int p) __attribute__((always_inline)) {
        fetch(sink, p, 0, stride);
        later.to(p);
        for (int r = kh - std::min(step, kh); r < kh; ++r) {
            const int32_t y = rows_.source[size_t(later.y) * kh + r];
            if (y < 0) continue;
            const float* x = rows + (ptrdiff_t(y) * in.width + (p - later.start) * step) * stride;
            for (int c = 0; c < step * stride; c += LANE) __builtin_prefetch(x + c, 0, 2);
        }
    };
    int asked = 0;
    for (int start = 0; start < count; start += chunk) {
        const int n = std::min(chunk, count - start);
        if (compared) std::fill(far, far + n, 0.0f);
        int loose = 0;  // pixels for the general kernel
        const auto general = [&](int i) {
            const int p = list[start + i];
            walk.to(p);
            const int32_t *ry = &rows_.source[size_t(walk.y) * kh], *rx = &columns_.source[size_t(p - walk.start) * kw];
            const float** ptr = pointers + size_t(loose) * taps;
            for (int ky = 0; ky < kh; ++ky)
                for (int kx = 0; kx < kw; ++kx) {
                    const ptrdiff_t q = ptrdiff_t(ry[ky]) * in.width + rx[kx];
                    *ptr++ = (ry[ky] | rx[kx]) >= 0 ? rows + q * stride : zeros;
                }
            outs[loose++] = sum + size_t(i) * stride;
            if (!written && !compared) return;
            const WriteArgs to = compared ? compare_of(sink, list + start + i, 0, far + i) : write_of(sink, p, 0);
            k.depthwise({1, taps, pointers, tile_.data(), stride, wide, outs, &to});
            loose = 0;
        };
        for (int i = 0; i < n;) {
            if (!runs) {
                general(i++);
                continue;
            }
            const int p = list[start + i];
            walk.to(p);
            const int most = std::min(n - i, walk.end - p);
            int length = 1;
            while (length < most && list[start + i + length] == p + length) ++length;
            const WriteArgs to = compared ? compare_of(sink, list + start + i, 0, far + i) : write_of(sink, p, 0);
            const int32_t* source = &rows_.source[size_t(walk.y) * kh];
            for (int r = 0; r < kh; ++r) {
                lines[r] = source[r] >= 0 ? rows + ptrdiff_t(source[r]) * in.width * stride : zeros;
                advance[r] = source[r] >= 0 ? stride : 0;
            }
            for (; !written && asked < std::min(count, start + i + length + LATER); ++asked) ask(list[asked]);
            k.depthwise_row({kh, kw, length, step, dilation, (p - walk.start) * step - columns_.shift[0], in.width,
                             lines, advance, tile_.data(), stride, wide, sum + size_t(i) * stride,
                             written || compared ? &to : nullptr});
            i += length;
        }
        if (written) {
            sent_whole(sink, list + start, n);
            continue;
        }
        if (loose) k.depthwise({loose, taps, pointers, tile_.data(), stride, wide, outs, nullptr});
        finish(list + start, n, sum, sink, ws, far);
    }
}

void Conv::dense(const float* value, const int32_t* list, int count, FinishArgs& sink, Workspace& ws) const {
    if (depthwise_) gather_depthwise(value, list, count, sink, ws);
    else gather(value, list, count, sink, ws);
}

void Conv::pixels(const Change& change, const int32_t* list, int count, FinishArgs& sink, Workspace& ws) const {
    if (depthwise_) throw std::logic_error("a depthwise convolution is computed from values");
    const int row = this->row(), step = std::max(tile_pixels_, CHANGED_FLOATS / row);
    float* sum = sized(ws.sum, size_t(std::min(step, count)) * row);
    for (int start = 0; start < count; start += step) {
        const int n = std::min(step, count - start);
        sums_of_changes(change, list + start, n, 0, panels(), sum, ws);
        finish(list + start, n, sum, sink, ws);
    }
}

PathTimes Conv::estimate(const Change& change, int touched) const {
    const double taps = double(rows_.taps) * columns_.taps, n = touched;
    const double reach = taps * out.pixels() / in.pixels();  // outputs that an input pixel reaches, borders aside
    const double none = std::numeric_limits<double>::infinity();
    if (depthwise_) return {n, none, none};
    const double product = share_ * in.channels * out.channels * 0.008;  // of a pixel with the weights of one tap
    const double fetch = in.narrow() ? 0.3 * in.channels : 1.2;
    const double vectors = (out.channels + LANE - 1) / LANE;
    const int shift = run_shift(change), channel_blocks = (in.channels + (1 << shift) - 1) >> shift;
    const double passes = double(passes_.size()) / (rows_.phases() * columns_.phases());
    return {n * taps * (product + fetch), change.active_count * reach * (product + vectors + 3.0) + n * vectors * 0.6,
            !has_elements_ ? none
                           : double(change.events) * reach * vectors * share_ * (in.channels <= 64 ? 0.17 : 0.25) +
                                 double(change.active_count) * std::max(1.0, channel_blocks * share_) * passes * 5.0 +
                                 double(in.pixels()) * channel_blocks * 1.5 + n * vectors * 0.6};
}

}  // namespace sparsetime
