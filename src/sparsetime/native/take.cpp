// The input of a camera: few channels, every pixel looked at, few changed.

#include <atomic>

#include "split.h"

namespace sparsetime {

// Whether so many events of the input make this frame the first of a stream.
bool Stream::cuts(int64_t events) const {
    const Shape& map = program_->input().map;
    return !flush_ && double(events) > cut_ * map.pixels() * map.channels;
}

void Stream::take(const Node& node, const Frame& frame) {
    const int value = node.outputs[0];
    State& s = states_[size_t(value)];
    clear(value);
    Change& change = s.change;
    const Shape& map = change.shape;
    const int C = map.channels;
    const bool deltas = !dense_ && !program_->integer;
    change.rowed = deltas && s.want_rows;
    change.listed = deltas && s.want_events;
    s.want_rows = s.want_events = false;
    FrameArgs f{};
    static_cast<Deltas&>(f) = change.sink();
    f.step_map = node.step_map;
    f.low = node.low;
    f.high = node.high;
    f.encode = flush_ && keeps(node.encode) ? Encode::change : node.encode;
    f.channels = C;
    f.shift = map.shift();
    float repeated[NARROW * LANE];
    if (!node.step.empty() && !node.step_map)
        for (int i = 0; i < NARROW * LANE; ++i) repeated[i] = node.step[size_t(i % C)];
    std::vector<FrameArgs> sinks(size_t(pool_.threads()), f);
    std::atomic<int64_t> found{0};
    input_.each_band(true, [&](int t, int top, int bottom) {
        FrameArgs& sink = sinks[size_t(t)];
        const size_t start = size_t(top) * size_t(map.width);
        sink.active += start;
        sink.tally += start;
        if (sink.place) sink.place += start * size_t(C), sink.change += start * size_t(C);
        input_.each_span(frame, t, top, bottom, [&](const float* y, int first, int pixels) {
            const int64_t before = sink.events;
            sink.y = y;
            sink.first = first;
            sink.pixels = pixels;
            sink.value = s.value.data() + size_t(first) * C;
            sink.step = node.step_map ? node.step.data() + size_t(first) * C : repeated;
            kernels().frames->compare(sink);
            return !cuts(found += sink.events - before);
        });
    });
    join(change, sinks);
}

}  // namespace sparsetime
