// Attention: for every query a mean of values, weighted by how well their keys fit; docs/plan.md, "attention".
//
// Queries, keys and values are rows of channels, heads next to each other. Both products are those of a few rows with a matrix, which
// register tiles compute: keys and values are laid out as the tiles read weights, one head after the other. A key or value that changes
// changes all answers of its window, so that window is computed anew.

#include <cstring>

#include "split.h"

namespace sparsetime {

namespace {

// One head of a window as a matrix of `depth` rows, in panels of columns, each [depth][columns of the panel]; whole vectors.
struct Matrix {
    int depth, columns, wide;
    Matrix(int depth_, int columns_, int width, int panel)
        : depth(depth_), columns(round_up(columns_, width)), wide(panel ? std::min(panel, columns) : columns) {}
    size_t size() const { return size_t(depth) * size_t(columns); }
    int across(int column) const { return std::min(wide, columns - column / wide * wide); }  // columns of its panel
    size_t place(int row, int column) const {
        return size_t(column / wide * wide) * size_t(depth) + size_t(row) * size_t(across(column)) + size_t(column % wide);
    }
    // One column, and the first `n` columns of a row.
    void set_column(float* matrix, int column, const float* x) const {
        float* to = matrix + place(0, column);
        for (int row = 0, step = across(column); row < depth; ++row, to += step) *to = x[row];
    }
    void set_row(float* matrix, int row, const float* x, int n) const {
        for (int column = 0; column < n; column += wide)
            std::memcpy(matrix + place(row, column), x + column, size_t(std::min(wide, n - column)) * sizeof(float));
    }
};

struct Heads {
    int queries, keys;  // of a window
    int depth, width;   // channels of a key and of a value, of one head
    Matrix key, value;  // keys as columns, values as rows
    Heads(const Program& p, const Node& node)
        : queries(of(p, node, 0).pixels() / node.windows), keys(of(p, node, 1).pixels() / node.windows),
          depth(of(p, node, 1).channels / node.heads), width(of(p, node, 2).channels / node.heads),
          key(depth, keys, p.kernels.width, panel(p)), value(keys, width, p.kernels.width, panel(p)) {}
    static const Shape& of(const Program& p, const Node& node, size_t k) { return p.values[size_t(node.inputs[k])].map; }
    // int8 plans round every product and sum by itself: rows of `blend`, not of register tiles.
    static int panel(const Program& p) { return p.integer ? 0 : p.kernels.most.vectors * p.kernels.width; }
    size_t size() const { return key.size() + value.size(); }
};

// out[i] = a[i] times a matrix, for m rows of `matrix.columns`.
void multiply(const Program& p, const float* const* a, int m, const Matrix& matrix, const float* w, float* out) {
    if (p.integer) {
        std::vector<const float*> rows(static_cast<size_t>(matrix.depth));
        for (int d = 0; d < matrix.depth; ++d) rows[size_t(d)] = w + matrix.place(d, 0);
        for (int i = 0; i < m; ++i, out += matrix.columns) p.kernels.rows->blend(rows.data(), a[i], matrix.depth, out, matrix.columns);
        return;
    }
    int32_t at[MAX_TILE];
    for (int i = 0; i < m; ++i) at[i] = i * matrix.columns;
    for (int column = 0; column < matrix.columns; column += matrix.wide) {
        const float* panel = w + matrix.place(0, column);
        p.kernels.tile(m, matrix.across(column), {1, a, &panel, matrix.depth, out + column, at, 0, false, nullptr});
    }
}

}  // namespace

void Stream::allocate_attention() {
    size_t most = 0;
    for (const Node& node : program_->nodes)
        if (node.kind == Kind::attention)
            most = std::max(most, size_t(node.windows) * size_t(node.heads) * Heads(*program_, node).size());
    heads_.assign(most, 0.0f);
}

// Outputs whose query changed, or any key or value of their window.
int Stream::touched_by_attention(const Node& node) {
    const Change& q = states_[size_t(node.inputs[0])].change;
    const int pixels = q.shape.pixels(), queries = pixels / node.windows;
    std::memcpy(touch_.data(), q.mask, size_t(pixels));
    for (size_t k : {1, 2}) {
        const Change& change = states_[size_t(node.inputs[k])].change;
        const int keys = change.shape.pixels() / node.windows;
        for (int i = 0, last = -1; i < change.active_count; ++i) {
            const int window = change.active[i] / keys;
            if (window != last) std::memset(touch_.data() + window * queries, 1, size_t(queries));
            last = window;
        }
    }
    return listed(q.shape);
}

void Stream::attend(const Node& node) {
    const int y = node.outputs[0];
    const Shape& out = program_->values[size_t(y)].map;
    const int n = dense_ ? out.pixels() : touched(node);
    const int32_t* list = dense_ ? all_.data() : list_.data();
    if (n == 0) return clear(y);
    const Heads size(*program_, node);
    const auto row = [&](size_t k, int p) { return row_of(node.inputs[k], p); };
    const auto matrices = [&](int window, int head) {
        return heads_.data() + size_t(window * node.heads + head) * size.size();
    };
    std::vector<uint8_t> touched_windows(static_cast<size_t>(node.windows));
    for (int i = 0; i < n; ++i) touched_windows[size_t(list[i] / size.queries)] = 1;
    each_part(node.windows * node.heads, [&](int from, int to) {
        for (int i = from; i < to; ++i) {
            const int window = i / node.heads, head = i % node.heads;
            if (!touched_windows[size_t(window)]) continue;
            float *keys = matrices(window, head), *values = keys + size.key.size();
            for (int j = 0; j < size.keys; ++j) {
                size.key.set_column(keys, j, row(1, window * size.keys + j) + head * size.depth);
                size.value.set_row(values, j, row(2, window * size.keys + j) + head * size.width, size.width);
            }
        }
    });

    rows(node, y, list, n, true, [&](const int32_t* pixel, int count, float* sum, int stride) {
        const int most = kernels().most.pixels;
        Floats scores(size_t(most) * size_t(size.key.columns)), sums(size_t(most) * size_t(size.value.columns));
        const float* from[MAX_TILE];
        float share[MAX_TILE];
        for (int head = 0; head < node.heads; ++head)
            for (int i = 0, m; i < count; i += m) {
                const int window = pixel[i] / size.queries;
                for (m = 0; m < most && i + m < count && pixel[i + m] / size.queries == window; ++m)
                    from[m] = row(0, pixel[i + m]) + head * size.depth;
                const float* keys = matrices(window, head);
                multiply(*program_, from, m, size.key, keys, scores.data());
                for (int k = 0; k < m; ++k) {
                    float* score = scores.data() + size_t(k) * size_t(size.key.columns);
                    const size_t query = size_t(pixel[i + k] % size.queries);
                    const size_t at = size_t(window) * node.added_step[0] + size_t(head) * node.added_step[1] + query * node.added_step[2];
                    const float* added = node.added.empty() ? nullptr : node.added.data() + at;
                    share[k] = kernels().rows->softmax(score, node.factor, added, size.keys);
                    from[k] = score;
                }
                multiply(*program_, from, m, size.value, keys + size.key.size(), sums.data());
                for (int k = 0; k < m; ++k) {
                    const float* mean = sums.data() + size_t(k) * size_t(size.value.columns);
                    float* z = sum + size_t(i + k) * size_t(stride) + head * size.width;
                    for (int c = 0; c < size.width; ++c) z[c] = mean[c] * share[k];
                }
            }
    });
}

}  // namespace sparsetime
