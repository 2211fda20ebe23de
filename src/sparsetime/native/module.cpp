// The Python face of the native engine.

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>

#include "arrays.h"
#include "layer.h"
#include "stream.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace sparsetime {
namespace {

template <int N>
using Input = nb::ndarray<const float, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Flat = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using FlatBytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;

// The value of an enumeration whose values have these names.
template <class Enum>
Enum named(const std::string& name, const char* what, std::initializer_list<const char*> names) {
    const auto found = std::find(names.begin(), names.end(), name);
    if (found == names.end()) throw std::invalid_argument(std::string("unknown ") + what + " '" + name + "'");
    return Enum(found - names.begin());
}

Act act_of(const std::string& name) {
    return named<Act>(
        name, "activation",
        {"none", "clamp", "leaky_relu", "hardswish", "hardsigmoid", "silu", "gelu", "gelu_tanh", "sigmoid", "tanh", "elu", "mish"});
}
Encode encode_of(const std::string& name) {
    return named<Encode>(name, "codec", {"linear", "change", "exact", "hold", "residual", "pixel"});
}
Path path_of(const std::string& name) { return named<Path>(name, "path", {"dense", "pixels", "elements"}); }

// A new array, which fill(data) writes.
template <class T, class Fill>
nb::object array_of(const std::vector<int64_t>& shape, const Fill& fill) {
    T* data = new T[size_t(product(shape))];
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    fill(data);
    const std::vector<size_t> sizes(shape.begin(), shape.end());
    return nb::cast(nb::ndarray<nb::numpy, T>(data, sizes.size(), sizes.data(), owner));
}

// A copy without padding; zeros where the mask is 0.
nb::object plain(const Shape& s, const float* data, const uint8_t* mask = nullptr) {
    return array_of<float>({s.height, s.width, s.channels}, [&](float* copy) {
        for (int p = 0; p < s.pixels(); ++p)
            for (int c = 0; c < s.channels; ++c) *copy++ = !mask || mask[p] ? data[size_t(p) * s.stride() + c] : 0.0f;
    });
}

Layer* make_layer(std::array<int, 2> size, Input<4> weight, std::optional<Vector> bias, std::array<int, 2> stride,
                  std::array<int, 4> padding, std::array<int, 2> dilation, int groups, bool transposed,
                  std::array<int, 2> output_padding, const std::string& activation, float a, float b,
                  const std::string& codec, std::optional<Flat> step) {
    const int kh = int(weight.shape(2)), kw = int(weight.shape(3));
    const int C = transposed ? int(weight.shape(0)) : int(weight.shape(1)) * groups;
    const int O = transposed ? int(weight.shape(1)) * groups : int(weight.shape(0));
    int oh, ow;
    if (transposed) {
        oh = (size[0] - 1) * stride[0] - padding[0] - padding[1] + dilation[0] * (kh - 1) + output_padding[0] + 1;
        ow = (size[1] - 1) * stride[1] - padding[2] - padding[3] + dilation[1] * (kw - 1) + output_padding[1] + 1;
    } else {
        oh = (size[0] + padding[0] + padding[1] - dilation[0] * (kh - 1) - 1) / stride[0] + 1;
        ow = (size[1] + padding[2] + padding[3] - dilation[1] * (kw - 1) - 1) / stride[1] + 1;
    }
    if (oh < 1 || ow < 1 || size[0] < 1 || size[1] < 1)
        throw std::invalid_argument("the map is smaller than the kernel");
    const Shape in{size[0], size[1], C}, out{oh, ow, O};
    Geometry geometry(in, out, axis_of(transposed, in.height, oh, kh, stride[0], padding[0], dilation[0]),
                      axis_of(transposed, in.width, ow, kw, stride[1], padding[2], dilation[1]), groups);
    auto conv = std::make_shared<const Conv>(std::move(geometry), transposed, weight.data());
    if (bias && int(bias->shape(0)) != O)
        throw std::invalid_argument("bias has another length than the output has channels");
    const bool step_map = step && step->ndim() == 3;
    if (step && int64_t(step->size()) != int64_t(O) * (step_map ? out.pixels() : 1))
        throw std::invalid_argument("step must be (O,) or (H, W, O)");
    return new Layer(conv, bias ? bias->data() : nullptr, act_of(activation), a, b, encode_of(codec),
                     step ? step->data() : nullptr, step_map);
}

TensorView view_of(nb::handle object) {
    const auto array = nb::cast<nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>>(object);
    TensorView view;
    for (size_t i = 0; i < array.ndim(); ++i) view.shape.push_back(int64_t(array.shape(i)));
    if (array.dtype() == nb::dtype<float>()) view.floats = static_cast<const float*>(array.data());
    else if (array.dtype() == nb::dtype<int32_t>()) view.integers = static_cast<const int32_t*>(array.data());
    else if (array.dtype() == nb::dtype<int8_t>()) view.bytes = static_cast<const int8_t*>(array.data());
    return view;
}

std::shared_ptr<Program> make_program(const std::vector<std::vector<int64_t>>& shapes, nb::list ops,
                                      const std::vector<int>& outputs, nb::dict tensors, bool integer) {
    std::vector<OpSpec> specs;
    for (nb::handle item : ops) {
        const auto op = nb::cast<nb::dict>(item);
        OpSpec spec;
        spec.kind = nb::cast<std::string>(op["kind"]);
        spec.name = nb::cast<std::string>(op["name"]);
        spec.inputs = nb::cast<std::vector<int>>(op["inputs"]);
        spec.outputs = nb::cast<std::vector<int>>(op["outputs"]);
        for (auto [key, value] : nb::cast<nb::dict>(op["numbers"]))
            spec.numbers[nb::cast<std::string>(key)] = nb::cast<std::vector<double>>(value);
        for (auto [role, name] : nb::cast<nb::dict>(op["tensors"]))
            spec.tensors[nb::cast<std::string>(role)] = view_of(tensors[name]);
        const auto activation = nb::cast<nb::tuple>(op["activation"]);
        spec.act = act_of(nb::cast<std::string>(activation[0]));
        spec.act_a = nb::cast<float>(activation[1]);
        spec.act_b = nb::cast<float>(activation[2]);
        const auto codec = nb::cast<nb::tuple>(op["codec"]);
        spec.codec = nb::cast<std::string>(codec[0]);
        if (!spec.codec.empty()) spec.step = view_of(tensors[codec[1]]);
        spec.low = nb::cast<float>(codec[2]);
        spec.high = nb::cast<float>(codec[3]);
        spec.opaque = nb::cast<std::vector<bool>>(op["opaque"]);
        spec.crossover = nb::cast<double>(op["crossover"]);
        if (!op["code"].is_none()) {
            const auto code = nb::cast<nb::tuple>(op["code"]);
            spec.coded = true;
            spec.code_step = nb::cast<float>(code[0]);
            spec.code_zero = nb::cast<int>(code[1]);
            if (!code[2].is_none()) spec.threshold = view_of(tensors[code[2]]);
            spec.by_pixel = nb::cast<bool>(code[3]);
        }
        specs.push_back(std::move(spec));
    }
    return std::make_shared<Program>(shapes, specs, outputs, integer);
}

const Value& value_of(const Stream& s, int value) {
    const auto& values = s.program().values;
    if (value < 0 || value >= int(values.size()) || values[size_t(value)].opaque)
        throw std::invalid_argument("no value " + std::to_string(value));
    return values[size_t(value)];
}

const Value& accumulator_of(const Stream& s, int node) {
    const auto& nodes = s.program().nodes;
    if (node < 0 || node >= int(nodes.size()) || !nodes[size_t(node)].summed)
        throw std::invalid_argument("operation " + std::to_string(node) + " has no accumulator");
    return value_of(s, nodes[size_t(node)].outputs[0]);
}

const Value& coded_of(const Stream& s, int value) {
    const Value& v = value_of(s, value);
    if (!v.coded) throw std::invalid_argument("value " + std::to_string(value) + " is not kept as codes");
    return v;
}

template <class Array>
void checked_shape(const Value& v, const Array& array,
                   const char* otherwise = "an array has another shape than the value") {
    bool same = array.ndim() == v.shape.size();
    for (size_t i = 0; same && i < v.shape.size(); ++i) same = int64_t(array.shape(i)) == v.shape[i];
    if (!same) throw std::invalid_argument(otherwise);
}

const float* checked(const Value& v, const Flat& array) {
    checked_shape(v, array);
    return array.data();
}

using FrameArray = nb::ndarray<nb::ro, nb::device::cpu>;

// A stream and the memory of its outputs.
struct BoundStream : Stream {
    BoundStream(std::shared_ptr<Program> program, int threads, Island island)
        : Stream(program, threads, std::move(island)) {
        // The caller holds those of one frame while the next are written.
        arrays = std::make_shared<Arrays>(2 * program->outputs.size());
    }
    std::shared_ptr<Arrays> arrays;
};

// The outputs, or None if the frame holds NaN or infinity.
nb::object run_stream(BoundStream& s, const FrameArray& array, bool keep) {
    const Value& v = s.program().input();
    checked_shape(v, array, "the frame has another shape than the program's input");
    Frame frame{nullptr, nullptr, 1, 0, 0};
    if (array.dtype() == nb::dtype<float>()) frame.floats = static_cast<const float*>(array.data());
    else if (array.dtype() == nb::dtype<uint8_t>()) frame.bytes = static_cast<const uint8_t*>(array.data());
    else throw std::invalid_argument("expected a frame of float32 or uint8");
    if (v.is_map()) {
        frame.channel = array.stride(1);
        frame.row = array.stride(2);
        frame.column = array.stride(3);
    } else {
        frame.column = v.map.channels;
        int64_t expected = 1;  // other ranks are taken in logical order
        for (size_t i = v.shape.size(); i-- > 0;) {
            if (v.shape[i] != 1 && array.stride(i) != expected)
                throw std::invalid_argument("expected a contiguous frame");
            expected *= v.shape[i];
        }
    }
    nb::list outputs;
    std::vector<float*> places;
    for (int output : s.program().outputs) {
        const Value& out = s.program().values[size_t(output)];
        std::unique_ptr<Arrays::Array> memory = s.arrays->take(size_t(product(out.shape)));
        places.push_back(memory->data);
        nb::capsule owner(memory.get(), [](void* p) noexcept { delete static_cast<Arrays::Array*>(p); });
        memory.release();
        const std::vector<size_t> sizes(out.shape.begin(), out.shape.end());
        outputs.append(nb::cast(nb::ndarray<nb::numpy, float>(places.back(), sizes.size(), sizes.data(), owner)));
    }
    bool taken;
    {
        nb::gil_scoped_release release;
        taken = s.run(frame, places, keep);
    }
    return taken ? nb::object(outputs) : nb::none();
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "Native kernels of the cpu backend";
    const char* wanted = std::getenv("SPARSETIME_ISA");
    if (wanted && *wanted && kernels().name != std::string(wanted))
        throw std::runtime_error(std::string("SPARSETIME_ISA=") + wanted +
                                 ": this machine runs vnni, v4, v3 or base, as far as it has them");
    m.def("isa", [] { return std::string(kernels().name); }, "Name of the kernels in use.");
    m.def("available", [] {
        std::vector<std::string> names;
        for (const Kernels* const* k = available(); *k; ++k) names.emplace_back((*k)->name);
        return names;
    }, "Names of the kernels that this machine can run, best first.");
    m.def("select", [](const std::string& name) {
        if (!select(name.c_str()))
            throw std::invalid_argument("no kernels named '" + name + "' on this machine; see available()");
    }, "name"_a,
       "Use other kernels for layers and programs made from now on. Those made before must not run any more.");

    nb::class_<Layer>(m, "Layer")
        .def("__init__", [](Layer* self, std::array<int, 2> size, Input<4> weight, std::optional<Vector> bias,
                            std::array<int, 2> stride, std::array<int, 4> padding, std::array<int, 2> dilation,
                            int groups, bool transposed, std::array<int, 2> output_padding,
                            const std::string& activation, float a, float b, const std::string& codec,
                            std::optional<Flat> step) {
            std::unique_ptr<Layer> made(make_layer(size, weight, bias, stride, padding, dilation, groups, transposed,
                                                   output_padding, activation, a, b, codec, step));
            new (self) Layer(std::move(*made));
        }, "size"_a, "weight"_a, "bias"_a = nb::none(), "stride"_a = std::array<int, 2>{1, 1},
           "padding"_a = std::array<int, 4>{0, 0, 0, 0}, "dilation"_a = std::array<int, 2>{1, 1}, "groups"_a = 1,
           "transposed"_a = false, "output_padding"_a = std::array<int, 2>{0, 0}, "activation"_a = "none", "a"_a = 0.0f,
           "b"_a = 0.0f, "codec"_a = "linear", "step"_a = nb::none())
        .def("set_input", [](Layer& l, Input<3> delta) {
            const Shape& s = l.conv->in;
            if (int(delta.shape(0)) != s.height || int(delta.shape(1)) != s.width || int(delta.shape(2)) != s.channels)
                throw std::invalid_argument("delta has another shape than the layer's input");
            l.set_input(delta.data());
        }, "delta"_a)
        .def("run", [](Layer& l, const std::string& path, bool rows, bool events) {
            l.run(path_of(path), rows, events);
        }, "path"_a, "rows"_a = true, "events"_a = true, nb::call_guard<nb::gil_scoped_release>())
        .def("value", [](const Layer& l) { return plain(l.conv->out, l.value.data()); })
        .def("accumulator", [](const Layer& l) { return plain(l.conv->out, l.z.data()); })
        .def("delta", [](const Layer& l) { return plain(l.conv->out, l.output.view.rows, l.output.view.mask); })
        .def("events", [](const Layer& l) {
            const Change& c = l.output.view;
            if (!c.listed) throw std::invalid_argument("the last run left no events");
            const uint32_t mask = (1u << c.shape.shift()) - 1;
            return array_of<float>({c.events, 3}, [&](float* out) {
                for (int64_t e = 0; e < c.events; ++e, out += 3) {
                    out[0] = float(c.place[e] >> c.shape.shift());
                    out[1] = float(c.place[e] & mask);
                    out[2] = c.change[e];
                }
            });
        }, "Events of the last run, (events, 3): pixel, channel, change.")
        .def_prop_ro("active", [](const Layer& l) {
            const Change& c = l.output.view;
            return std::vector<int32_t>(c.active, c.active + c.active_count);
        })
        .def_prop_ro("has_elements", [](const Layer& l) { return l.conv->has_elements(); },
                     "Whether it can be computed event by event.")
        .def_prop_ro("dense_macs", [](const Layer& l) { return l.conv->macs().dense(); })
        .def_prop_ro("macs", [](const Layer& l) { return l.conv->macs().caused(l.input.view); });

    nb::class_<Program>(m, "Program");
    m.def("program", &make_program, "shapes"_a, "ops"_a, "outputs"_a, "tensors"_a, "integer"_a = false);

    nb::class_<BoundStream>(m, "Stream")
        .def("__init__", [](BoundStream* self, std::shared_ptr<Program> program, int threads, nb::object island) {
            // The callable goes with the stream, which dies under the lock.
            new (self) BoundStream(std::move(program), threads, [island](int node) {
                nb::gil_scoped_acquire acquire;
                island(node);
            });
        }, "program"_a, "threads"_a, "island"_a.none())
        .def("run", &run_stream, "frame"_a, "keep"_a = true,
             "The outputs, or None if the frame holds NaN or infinity; then nothing has happened.")
        .def("set_camera", [](BoundStream& s, std::vector<float> mean, std::vector<float> std) {
            const int channels = s.program().input().map.channels;
            if (int(mean.size()) != channels || int(std.size()) != channels)
                throw std::invalid_argument("expected one number per channel");
            s.set_camera({std::move(mean), std::move(std)});
        }, "mean"_a, "std"_a)
        .def("set_cut", [](BoundStream& s, double share) { s.set_cut(share); }, "share"_a)
        .def("reset", [](BoundStream& s) { s.reset(); })
        .def("flush", [](BoundStream& s) { s.flush(); })
        .def("refresh", [](BoundStream& s) { s.refresh(); })
        .def("resume", [](BoundStream& s) { s.resume(); })
        .def_prop_ro("started", [](const BoundStream& s) { return s.started(); })
        .def_prop_ro("flushed", [](const BoundStream& s) { return s.flushed(); })
        .def_prop_ro("memory_bytes", [](const BoundStream& s) { return s.memory_bytes(); })
        .def("value", [](BoundStream& s, int value) {
            return array_of<float>(value_of(s, value).shape, [&](float* out) { s.read(value, out); });
        }, "value"_a)
        .def("accumulator", [](BoundStream& s, int node) {
            return array_of<float>(accumulator_of(s, node).shape, [&](float* out) { s.read_accumulator(node, out); });
        }, "node"_a)
        .def("set_value", [](BoundStream& s, int value, Flat array) {
            const Value& v = value_of(s, value);
            if (v.coded) throw std::invalid_argument("value " + std::to_string(value) + " is kept as codes");
            s.write(value, checked(v, array));
        }, "value"_a, "array"_a)
        .def("set_accumulator", [](BoundStream& s, int node, Flat array) {
            s.write_accumulator(node, checked(accumulator_of(s, node), array));
        }, "node"_a, "array"_a)
        .def("codes", [](const BoundStream& s, int value) {
            return array_of<uint8_t>(coded_of(s, value).shape, [&](uint8_t* out) { s.read_codes(value, out); });
        }, "value"_a, "A value that is kept as codes.")
        .def("set_codes", [](BoundStream& s, int value, FlatBytes array) {
            checked_shape(coded_of(s, value), array);
            s.write_codes(value, array.data());
        }, "value"_a, "array"_a)
        .def("put", [](BoundStream& s, int value, Flat array) {
            s.put(value, checked(value_of(s, value), array));
        }, "value"_a, "array"_a)
        .def("touch", [](BoundStream& s, int value) { s.touch(value); }, "value"_a)
        .def("events", [](const BoundStream& s) {
            const std::vector<NodeStats>& stats = s.stats();
            return array_of<int64_t>({int64_t(stats.size())}, [&](int64_t* out) {
                for (const NodeStats& n : stats) *out++ = n.events;
            });
        }, "What each operation sent in the last frame.")
        .def("stats", [](BoundStream& s) {
            std::vector<std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, std::string>> all;
            for (const NodeStats& n : s.counted_stats())
                all.emplace_back(n.events_in, n.events, n.macs, n.effective_macs, n.time_ns,
                                 n.sparse ? "sparse" : "dense");
            return all;
        });
}

}  // namespace sparsetime
