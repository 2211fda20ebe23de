// Values that are not kept, since they follow from others: see Program::spare.
//
// Resized maps that only the caller reads, such as a segmentation's as large as the frame: too large to be kept, compared and copied
// in every frame. They are written anew where the caller wants them, plane by plane, from the map that they are resized from, which
// is small. First its rows are stretched to the output's width, of these rows then each output row is a sum.

#include <atomic>

#include "stream.h"

namespace sparsetime {

void Stream::allocate_derived() {
    stretched_.resize(program_->nodes.size());
    for (size_t i = 0; i < stretched_.size(); ++i) {
        const Node& node = program_->nodes[i];
        if (!node.derived || node.kind != Kind::resize) continue;
        const Shape &in = program_->values[size_t(node.inputs[0])].map,
                    &out = program_->values[size_t(node.outputs[0])].map;
        Stretched& s = stretched_[i];
        s.width = size_t(round_up(out.width, LANE));
        s.slot.assign(size_t(in.height), 0);
        s.rows.assign(size_t(in.channels) * size_t(in.height) * 2 * s.width, 0.0f);
    }
}

// Where the caller wants a value; null: nowhere.
float* Stream::array_of(int value) const {
    for (size_t k = 0; k < arrays_.size(); ++k)
        if (program_->outputs[k] == value) return arrays_[k];
    return nullptr;
}

// Runs body(from, to) over parts of `count`, one a thread.
void Stream::each_part(int count, const std::function<void(int, int)>& body) {
    const int parts = pool_.threads();
    pool_.run([&](int t) { body(int(int64_t(count) * t / parts), int(int64_t(count) * (t + 1) / parts)); });
}

// Stretches the changed rows of the input; null: all. Their slots then hold what they were.
void Stream::expand(int number, const uint8_t* changed) {
    const Node& node = program_->nodes[size_t(number)];
    const Shape &in = program_->values[size_t(node.inputs[0])].map,
                &out = program_->values[size_t(node.outputs[0])].map;
    const float* value = states_[size_t(node.inputs[0])].value.data();
    Stretched& s = stretched_[size_t(number)];
    for (int y = 0; y < in.height; ++y) s.slot[size_t(y)] ^= uint8_t(!changed || changed[y]);
    each_part(in.height * in.channels, [&](int from, int to) {
        std::vector<float> row(size_t(in.width));
        for (int i = from; i < to; ++i) {
            const int y = i / in.channels, c = i % in.channels;
            if (changed && !changed[y]) continue;
            const float* x = value + size_t(y) * size_t(in.width) * size_t(in.stride()) + c;
            for (size_t k = 0; k < row.size(); ++k) row[k] = x[k * size_t(in.stride())];
            float* to_row =
                s.rows.data() + ((size_t(c) * size_t(in.height) + size_t(y)) * 2 + s.slot[size_t(y)]) * s.width;
            kernels().rows->spread(row.data(), node.columns.data(), node.column_weights.data(), node.column_taps,
                                   out.width, to_row);
        }
    });
}

// Writes the value to `out`, in logical order, unless that is null. Returns how many elements differ from those before the last change
// of `changed` rows of the input; null: is not asked.
int64_t Stream::write_derived(int number, const uint8_t* changed, float* out) {
    const Node& node = program_->nodes[size_t(number)];
    const Shape &in = program_->values[size_t(node.inputs[0])].map,
                &map = program_->values[size_t(node.outputs[0])].map;
    const Stretched& s = stretched_[size_t(number)];
    std::atomic<int64_t> events{0};
    each_part(map.height * map.channels, [&](int from, int to) {
        const size_t taps = size_t(node.row_taps);
        std::vector<const float*> now(taps), before(taps);
        std::vector<float> unwanted(out ? 0 : size_t(map.width));
        int64_t found = 0;
        for (int i = from; i < to; ++i) {
            const size_t c = size_t(i / map.height), y = size_t(i % map.height);
            bool moved = false;
            for (size_t k = 0; k < taps; ++k) {
                const size_t row = size_t(node.rows[y * taps + k]);
                const float* both = s.rows.data() + (c * size_t(in.height) + row) * 2 * s.width;
                const bool here = changed && changed[row];
                now[k] = both + s.slot[row] * s.width;
                before[k] = both + (s.slot[row] ^ size_t(here)) * s.width;
                moved = moved || here;
            }
            const float* weights = node.row_weights.data() + y * taps;
            float* row = out ? out + size_t(i) * size_t(map.width) : unwanted.data();
            if (moved)
                found += kernels().rows->blend_again(now.data(), before.data(), weights, int(taps), row, map.width);
            else if (out) kernels().rows->blend(now.data(), weights, int(taps), row, map.width);
        }
        events += found;
    });
    return events;
}

// A value in logical order.
void Stream::read_derived(int number, float* out) {
    const Node& node = program_->nodes[size_t(number)];
    if (node.kind == Kind::resize) return void(write_derived(number, nullptr, out));
    for (int v : node.inputs) {  // planes behind each other
        read(v, out);
        out += product(program_->values[size_t(v)].shape);
    }
}

void Stream::derive(int number) {
    const Node& node = program_->nodes[size_t(number)];
    const Change& x = states_[size_t(node.inputs[0])].change;
    if (node.kind != Kind::resize) {
        Change& joined = states_[size_t(node.outputs[0])].change;
        joined.events = 0;
        for (int v : node.inputs) joined.events += states_[size_t(v)].change.events;
        return;
    }
    Change& change = states_[size_t(node.outputs[0])].change;
    std::vector<uint8_t> changed(size_t(x.shape.height), 0);
    for (int i = 0; i < x.active_count; ++i) changed[size_t(x.active[i] / x.shape.width)] = 1;
    expand(number, flush_ ? nullptr : changed.data());
    change.active_count = 0;
    change.events = write_derived(number, flush_ ? nullptr : changed.data(), array_of(node.outputs[0]));
}

}  // namespace sparsetime
