// How the operations of a stream share a list of touched pixels among threads.

#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "stream.h"

namespace sparsetime {

// Puts what threads have appended to their parts of a change's lists one behind the other.
template <class Sink>
void join(Change& change, const std::vector<Sink>& sinks) {
    for (const Sink& sink : sinks) {
        const size_t n = size_t(sink.active_count);
        std::memmove(change.active + change.active_count, sink.active, n * sizeof(int32_t));
        std::memmove(change.tally + change.active_count, sink.tally, n * sizeof(int32_t));
        if constexpr (!std::is_same_v<Sink, ActivePixels>)
            if (change.listed) {
                std::memmove(change.place + change.events, sink.place, size_t(sink.events) * sizeof(uint32_t));
                std::memmove(change.change + change.events, sink.change, size_t(sink.events) * sizeof(float));
            }
        change.active_count += sink.active_count;
        change.events += sink.events;
    }
}

// Runs body(sink, from, to, first row, last row, workspace) over parts of the list, one a thread, and joins what they emit.
template <class Body>
void Stream::split(const Node& node, int output, const int32_t* list, int count, bool replace, bool by_row,
                   const Body& body) {
    State& s = states_[size_t(output)];
    Change& change = s.change;
    clear(output);
    const Shape& map = change.shape;
    change.rowed = !dense_ && s.want_rows;
    change.listed = !dense_ && s.want_events;
    s.want_rows = s.want_events = false;  // consumers of this frame say what the next one should bring
    FinishArgs base{};
    static_cast<Deltas&>(base) = change.sink();
    base.replace = replace;
    base.flush = flush_;
    base.channels = map.channels;
    base.stride = map.stride();
    base.act = node.act;
    base.act_a = node.act_a;
    base.act_b = node.act_b;
    base.encode = flush_ && keeps(node.encode) ? Encode::change : node.encode;  // the first frame is sent whole
    base.bias = node.bias.data();
    base.step = node.step.empty() ? nullptr : node.step.data();
    base.step_map = node.step_map;
    base.low = node.low;
    base.high = node.high;
    base.z = node.summed && !node.cheap && keep_ ? accumulators_[size_t(current_)].data() : nullptr;
    base.value = s.value.data();
    base.shift = map.shift();

    const int parts = std::max(1, std::min(pool_.threads(), count / 4));
    std::vector<FinishArgs>& sinks = sinks_;  // kept from operation to operation, as the others
    std::vector<int>&bounds = bounds_, &row_bounds = row_bounds_;
    sinks.assign(size_t(parts), base);
    bounds.resize(size_t(parts) + 1);
    row_bounds.resize(size_t(parts) + 1);
    for (int t = 0; t <= parts; ++t) {
        int at = int(int64_t(count) * t / parts);
        row_bounds[size_t(t)] = t == 0 ? 0 : t == parts ? map.height : list[at] / map.width;
        if (by_row && t > 0 && t < parts)
            at = int(std::lower_bound(list, list + count, row_bounds[size_t(t)] * map.width) - list);
        bounds[size_t(t)] = at;
    }
    const auto part = [&](int t) {
        if (t >= parts) return;
        FinishArgs& sink = sinks[size_t(t)];
        Workspace& ws = workspaces_[size_t(t)];
        sink.room = sized(ws.room, size_t(map.stride()));
        sink.zeros = sized(ws.zeros, size_t(map.stride()));
        const size_t from = size_t(bounds[size_t(t)]);
        sink.active += from;
        sink.tally += from;
        if (change.listed) {
            sink.place += from * size_t(map.channels) + size_t(t) * LANE;
            sink.change += from * size_t(map.channels) + size_t(t) * LANE;
        }
        if (bounds[size_t(t)] < bounds[size_t(t) + 1])
            body(sink, bounds[size_t(t)], bounds[size_t(t) + 1], row_bounds[size_t(t)], row_bounds[size_t(t) + 1], ws);
    };
    if (parts == 1) part(0);
    else pool_.run(part);
    join(change, sinks);
}

// fill(pixels, n, sums, stride) writes the sums of some pixels.
template <class Fill>
void Stream::rows(const Node& node, int output, const int32_t* list, int count, bool replace, const Fill& fill) {
    if (program_->integer) return settle_rows(node, output, list, count, fill);
    const int width = kernels().width;
    split(node, output, list, count, replace, false, [&](FinishArgs& sink, int from, int to, int, int, Workspace& ws) {
        const int stride = round_up(sink.channels, LANE);
        const int chunk = std::max(1, std::min(64, 8 * 1024 / stride));
        float* sum = sized(ws.sum, size_t(chunk) * stride);
        int32_t* at = sized(ws.at, size_t(chunk));
        for (int i = 0; i < chunk; ++i) at[i] = i * stride;
        for (int i = from; i < to; i += chunk) {
            const int n = std::min(chunk, to - i);
            fill(list + i, n, sum, stride);
            sink.pixels = n;
            sink.pixel = list + i;
            sink.at = at;
            sink.sum = sum;
            sink.block = width;
            kernels().encoders->finish(sink);
        }
    });
}

}  // namespace sparsetime
