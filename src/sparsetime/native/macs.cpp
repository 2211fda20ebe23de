#include "macs.h"

#include <numeric>

#include "conv.h"

namespace sparsetime {

namespace {

// How many of each place's taps lie inside the map.
std::vector<int32_t> inside(const std::vector<int32_t>& table, int taps) {
    std::vector<int32_t> found(table.size() / size_t(taps), 0);
    for (size_t i = 0; i < table.size(); ++i) found[i / size_t(taps)] += table[i] >= 0;
    return found;
}

}  // namespace

Macs::Macs(const Axis& rows, const Axis& columns, const Shape& in, const Shape& out, int groups)
    : in_width_(in.width), out_width_(out.width), pixels_(out.pixels()), taps_(rows.taps * columns.taps),
      of_output_(int64_t(in.channels / groups) * out.channels), of_input_(out.channels / groups),
      row_reads_(inside(rows.source, rows.taps)), column_reads_(inside(columns.source, columns.taps)),
      row_reaches_(inside(rows.target, rows.taps)), column_reaches_(inside(columns.target, columns.taps)) {
    const auto sum = [](const std::vector<int32_t>& of) { return std::accumulate(of.begin(), of.end(), int64_t(0)); };
    dense_ = sum(row_reads_) * sum(column_reads_) * of_output_;
}

int64_t Macs::done(const int32_t* list, int count) const {
    if (count == pixels_) return dense_;
    if (taps_ == 1 && dense_ == pixels_ * of_output_) return count * of_output_;
    Walk walk(out_width_);
    int64_t taps = 0;
    for (int i = 0; i < count; ++i) {
        walk.to(list[i]);
        taps += row_reads_[size_t(walk.y)] * column_reads_[size_t(list[i] - walk.start)];
    }
    return taps * of_output_;
}

int64_t Macs::caused(const Change& change) const {
    Walk walk(in_width_);
    int64_t reached = 0;
    for (int i = 0; i < change.active_count; ++i) {
        walk.to(change.active[i]);
        reached += int64_t(change.tally[i]) * row_reaches_[size_t(walk.y)] *
                   column_reaches_[size_t(change.active[i] - walk.start)];
    }
    return reached * of_input_;
}

}  // namespace sparsetime
