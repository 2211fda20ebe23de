#include "layer.h"

#include <cstring>

namespace sparsetime {

ChangeBuffer::ChangeBuffer(Shape shape, float fill)
    : rows_(size_t(shape.pixels()) * shape.stride(), fill),
      change_(size_t(shape.pixels()) * shape.channels + LANE),
      mask_(size_t(shape.pixels())),
      active_(size_t(shape.pixels()) + 1),
      tally_(size_t(shape.pixels()) + 1),
      place_(size_t(shape.pixels()) * shape.channels + LANE) {
    const ActivePixels none{mask_.data(), active_.data(), tally_.data(), 0, 0};
    view = {{none, rows_.data(), place_.data(), change_.data()}, shape, true, true};
}

Layer::Layer(std::shared_ptr<const Conv> conv_, const float* bias, Act act, float act_a, float act_b, Encode encode,
             const float* step, bool step_map)
    : conv(std::move(conv_)),
      input(conv->in, __builtin_nanf("")),
      output(conv->out, __builtin_nanf("")),
      in_value(size_t(conv->in.pixels()) * conv->in.stride()),
      z(size_t(conv->out.pixels()) * conv->out.stride()),
      value(z.size()),
      act_(act),
      act_a_(act_a),
      act_b_(act_b),
      encode_(encode),
      step_map_(step_map),
      touched_(size_t(conv->out.pixels())),
      list_(size_t(conv->out.pixels()) + LANE) {
    const Shape& out = conv->out;
    bias_.assign(size_t(out.stride()), 0.0f);
    if (bias) std::memcpy(bias_.data(), bias, size_t(out.channels) * sizeof(float));
    const size_t pixels = step_map ? size_t(out.pixels()) : 1;
    // Padding lanes divide by it.
    step_.assign(pixels * out.stride(), encode == Encode::pixel ? __builtin_inff() : 1.0f);
    if (step)
        for (size_t p = 0; p < pixels; ++p)
            std::memcpy(&step_[p * out.stride()], step + p * out.channels, size_t(out.channels) * sizeof(float));
    if (encode == Encode::pixel)
        for (float& x : step_) x = inverse_of(x);
    workspace_.room.resize(size_t(out.stride()));
    workspace_.zeros.resize(size_t(out.stride()));
}

void Layer::set_input(const float* delta) {
    Change& in = input.view;
    const Shape& s = in.shape;
    in.active_count = 0;
    in.events = 0;
    for (int p = 0; p < s.pixels(); ++p) {
        const float* d = delta + size_t(p) * s.channels;
        int any = 0;
        for (int c = 0; c < s.channels; ++c)
            if (d[c] != 0.0f) {
                in.place[in.events + any] = uint32_t(p) << s.shift() | uint32_t(c);
                in.change[in.events + any++] = d[c];
                in_value[size_t(p) * s.stride() + c] += d[c];
            }
        in.add(p, any);
        float* row = in.rows + size_t(p) * s.stride();
        if (!any) {
            for (int c = 0; c < s.stride(); ++c) row[c] = __builtin_nanf("");  // nobody may look
            continue;
        }
        std::memset(row, 0, size_t(s.stride()) * sizeof(float));
        std::memcpy(row, d, size_t(s.channels) * sizeof(float));
    }
    in.listed = true;
}

void Layer::run(Path path, bool rows, bool events) {
    Change& out = output.view;
    out.active_count = 0;
    out.events = 0;
    out.rowed = rows;
    out.listed = events;
    FinishArgs sink{};
    static_cast<Deltas&>(sink) = out.sink();
    sink.channels = out.shape.channels;
    sink.stride = out.shape.stride();
    sink.act = act_;
    sink.act_a = act_a_;
    sink.act_b = act_b_;
    sink.encode = encode_;
    sink.bias = bias_.data();
    sink.step = step_.data();
    sink.step_map = step_map_;
    sink.z = encode_ == Encode::linear ? nullptr : z.data();
    sink.value = value.data();
    sink.room = workspace_.room.data();
    sink.zeros = workspace_.zeros.data();
    sink.low = -__builtin_inff();
    sink.high = __builtin_inff();
    sink.shift = out.shape.shift();
    const int pixels = out.shape.pixels();
    std::memset(out.mask, 0, size_t(pixels));
    if (path == Path::dense) {
        sink.replace = true;
        for (int p = 0; p < pixels; ++p) list_[size_t(p)] = p;
        conv->dense(in_value.data(), list_.data(), pixels, sink, workspace_);
    } else {
        const int n = conv->touched(input.view, touched_.data(), list_.data(), workspace_);
        if (path == Path::pixels) conv->pixels(input.view, list_.data(), n, sink, workspace_);
        else conv->elements(input.view, 0, out.shape.height, list_.data(), n, sink, workspace_);
    }
    out.active_count = sink.active_count;
    out.events = sink.events;
}

}  // namespace sparsetime
