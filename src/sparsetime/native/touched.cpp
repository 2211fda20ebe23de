// Which outputs the changes of a map reach, by marks of one byte a pixel.

#include <algorithm>
#include <cstring>

#include "stream.h"

namespace sparsetime {

namespace {

constexpr Columns NONE{1 << 30, 0};

Columns marked(const uint8_t* row, int n) {
    const void* first = std::memchr(row, 1, size_t(n));
    if (!first) return NONE;
    const int from = int(static_cast<const uint8_t*>(first) - row);
    int to = n;
    for (uint64_t word; to - from > int(sizeof word); to -= int(sizeof word)) {
        std::memcpy(&word, row + to - sizeof word, sizeof word);
        if (word) break;
    }
    while (!row[to - 1]) --to;
    return {from, to};
}

// The marks of all rows of a map.
const Columns* marked_rows(const Change& change, Workspace& ws) {
    const Shape& map = change.shape;
    Columns* marks = sized(ws.marks, size_t(map.height));
    for (int y = 0; y < map.height; ++y) marks[y] = marked(change.mask + size_t(y) * size_t(map.width), map.width);
    return marks;
}

// The marks of several rows as one, `line`, and where it has any. each_row(f) calls f(y) for these rows.
template <class EachRow>
Columns merged(const Change& change, const Columns* marks, const EachRow& each_row, uint8_t* line) {
    const size_t width = size_t(change.shape.width);
    Columns here = NONE;
    each_row([&](int y) {
        if (marks[y].empty()) return;
        const uint8_t* row = change.mask + size_t(y) * width;
        if (here.empty()) std::memcpy(line, row, width);
        else
            for (int x = marks[y].from; x < marks[y].to; ++x) line[x] |= row[x];
        here.join(marks[y]);
    });
    return here;
}

int ceil_div(int a, int b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }

}  // namespace

int Geometry::touched(const Change& change, uint8_t* mask, int32_t* list, Workspace& ws) const {
    if (pointwise_ && change.active_count) {
        std::memcpy(mask, change.mask, size_t(out.pixels()));
        std::memcpy(list, change.active, size_t(change.active_count) * sizeof(int32_t));
        return change.active_count;
    }
    std::memset(mask, 0, size_t(out.pixels()));
    if (change.active_count == 0) return 0;
    const Columns* marks = marked_rows(change, ws);
    uint8_t* line = sized(ws.bytes, size_t(in.width));
    int found = 0;
    for (int y = 0; y < out.height; ++y) {
        const int32_t* source = &rows_.source[size_t(y) * rows_.taps];
        const auto each_row = [&](const auto& body) {
            for (int k = 0; k < rows_.taps; ++k)
                if (source[k] >= 0) body(source[k]);
        };
        const Columns here = merged(change, marks, each_row, line);
        if (here.empty()) continue;
        uint8_t* to = mask + size_t(y) * out.width;
        Columns reached = NONE;
        for (int k = 0; k < columns_.taps; ++k) {
            const int shift = columns_.shift[k], step = columns_.den;
            if (columns_.num > 1) {
                reached = {0, out.width};
                for (int x = 0; x < out.width; ++x) {
                    const int i = columns_.source[size_t(x) * columns_.taps + k];
                    if (i >= here.from && i < here.to) to[x] |= line[i];
                }
                continue;
            }
            // Outputs x whose input x * step - shift lies within the span.
            const Columns by{std::max(0, ceil_div(here.from + shift, step)),
                             std::min(out.width, ceil_div(here.to + shift, step))};
            if (by.empty()) continue;
            reached.join(by);
            const uint8_t* from = line + (by.from * step - shift);
            if (step == 1)
                for (int x = by.from; x < by.to; ++x) to[x] |= *from++;
            else if (step == 2)
                for (int x = by.from; x < by.to; ++x, from += 2) to[x] |= *from;
            else
                for (int x = by.from; x < by.to; ++x, from += step) to[x] |= *from;
        }
        if (!reached.empty())
            found += kernels().rows->list(to + reached.from, reached.to - reached.from, y * out.width + reached.from,
                                          list + found);
    }
    return found;
}

// The marks of touch_ as list_.
int Stream::listed(const Shape& map) { return kernels().rows->list(touch_.data(), map.pixels(), 0, list_.data()); }

// Outputs that a change of the input, or of a residual that is added, reaches, as list_.
int Stream::touched_by(const Geometry& conv, const Node& node) {
    const int n = conv.touched(states_[size_t(node.inputs[0])].change, touch_.data(), list_.data(), workspaces_[0]);
    if (node.inputs.size() < 2) return n;
    const Change& residual = states_[size_t(node.inputs[1])].change;
    if (residual.active_count == 0) return n;
    for (int p = 0; p < conv.out.pixels(); ++p) touch_[size_t(p)] |= residual.mask[p];
    return listed(conv.out);
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
    const auto all = [&] {
        std::memcpy(list_.data(), all_.data(), size_t(out.pixels()) * sizeof(int32_t));
        return out.pixels();
    };
    switch (node.kind) {
        case Kind::mul:
            if (program_->values[size_t(node.inputs[1])].map.pixels() != out.pixels()) {
                return states_[size_t(node.inputs[1])].change.active_count ? all() : union_of({node.inputs[0]});
            }
            return union_of(node.inputs);
        case Kind::affine:
        case Kind::identity:
        case Kind::layer_norm:
        case Kind::softmax:
        case Kind::channels:
        case Kind::add:
        case Kind::cat_channels: return union_of(node.inputs);
        case Kind::group_norm: return all();
        case Kind::attention: return touched_by_attention(node);
        case Kind::cat_pixels:
            for (int p = 0; p < out.pixels(); ++p)
                touch_[size_t(p)] =
                    states_[size_t(node.inputs[size_t(node.owner[size_t(p)])])].change.mask[node.index[size_t(p)]];
            return listed(out);
        case Kind::pad:
            for (int p = 0; p < out.pixels(); ++p)
                touch_[size_t(p)] = node.index[size_t(p)] >= 0 && x.mask[node.index[size_t(p)]];
            return listed(out);
        case Kind::gather:
            std::memset(touch_.data(), 0, size_t(out.pixels()));
            for (int i = 0; i < x.active_count; ++i) {
                const size_t p = size_t(x.active[i]);
                for (int32_t j = node.reach_start[p]; j < node.reach_start[p + 1]; ++j)
                    touch_[size_t(node.reach[size_t(j)])] = 1;
            }
            return listed(out);
        default: return touched_by_window(node);
    }
}

// Of poolings and resizings: first over rows, then over columns.
int Stream::touched_by_window(const Node& node) {
    const Shape& out = program_->values[size_t(node.outputs[0])].map;
    const Change& x = states_[size_t(node.inputs[0])].change;
    std::memset(touch_.data(), 0, size_t(out.pixels()));
    const int width = x.shape.width;
    uint8_t *line = sized(workspaces_[0].bytes, 2 * size_t(width)), *wide = line + width;
    const Columns* marks = marked_rows(x, workspaces_[0]);
    const bool taps = node.kind == Kind::resize;
    int found = 0;
    for (int r = 0; r < out.height; ++r) {
        const auto each_row = [&](const auto& body) {
            if (taps)
                for (int k = 0; k < node.row_taps; ++k) body(node.rows[size_t(r) * node.row_taps + k]);
            else
                for (int y = node.rows[2 * size_t(r)]; y < node.rows[2 * size_t(r) + 1]; y += node.row_step) body(y);
        };
        const Columns here = merged(x, marks, each_row, line);
        if (here.empty()) continue;
        uint8_t* to = touch_.data() + size_t(r) * out.width;
        if (taps) {
            for (int c = 0; c < out.width; ++c)
                for (int k = 0; k < node.column_taps; ++k)
                    to[c] |= line[node.columns[size_t(c) * size_t(node.column_taps) + size_t(k)]];
            found += kernels().rows->list(to, out.width, r * out.width, list_.data() + found);
            continue;
        }
        // Whole windows by where they start, many at a time; the few that are cut off one by one.
        const int reach = (node.widest - 1) * node.column_step, low = std::max(0, here.from - reach);
        std::memcpy(wide + low, line + low, size_t(here.to - low));
        for (int k = node.column_step; k <= reach; k += node.column_step)
            for (int c = low; c + k < here.to; ++c) wide[c] |= line[c + k];
        Columns reached = NONE;
        for (int c = 0; c < out.width; ++c) {
            const int start = node.columns[2 * size_t(c)], end = node.columns[2 * size_t(c) + 1];
            if (end <= here.from || start >= here.to) continue;
            if (end - start <= reach)
                for (int i = start; i < end; i += node.column_step) to[c] |= line[i];
            else if (start >= low) to[c] = wide[start];
            reached.join({c, c + 1});
        }
        if (!reached.empty())
            found += kernels().rows->list(to + reached.from, reached.to - reached.from, r * out.width + reached.from,
                                          list_.data() + found);
    }
    return found;
}

}  // namespace sparsetime
