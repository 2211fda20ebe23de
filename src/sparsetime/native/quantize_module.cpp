// sparsetime._quantize: the training kernels. Takes addresses, so that it needs no headers of any array library.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

#include "quantize.h"

namespace nb = nanobind;
using namespace sparsetime;

namespace {

std::vector<const QuantizeTable*> tables() {
    std::vector<const QuantizeTable*> found = {&quantize_base};
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&quantize_v3);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
        found.push_back(&quantize_v4);
#endif
    return found;
}

const QuantizeTable& table(const std::string& isa) {
    static const std::vector<const QuantizeTable*> found = tables();
    if (isa.empty()) return *found.back();
    for (const QuantizeTable* t : found)
        if (isa == t->name) return *t;
    throw nb::value_error(("no instruction set " + isa + " on this machine").c_str());
}

// Below this many numbers a thread costs more than it saves.
constexpr std::size_t kWorthAThread = 1 << 18;

// Sum of part(first, last) over the elements of a frame, divided among threads.
template <typename Part>
double divided(const Clips& shape, std::size_t threads, const Part& part) {
    const std::size_t all = shape.clips * shape.frames * shape.elements;
    const std::size_t worth = all / kWorthAThread + 1;
    if (threads > worth) threads = worth;
    if (threads <= 1) return part(std::size_t{0}, shape.elements);
    const std::size_t share = (shape.elements / threads + 15) / 16 * 16;
    std::vector<double> sums(threads, 0.0);
    std::vector<std::thread> others;
    auto run = [&](std::size_t i) {
        const std::size_t first = i * share < shape.elements ? i * share : shape.elements;
        const std::size_t last = i + 1 == threads || first + share > shape.elements ? shape.elements : first + share;
        sums[i] = part(first, last);
    };
    for (std::size_t i = 1; i < threads; ++i) others.emplace_back(run, i);
    run(0);
    for (std::thread& other : others) other.join();
    double sum = 0;
    for (double s : sums) sum += s;
    return sum;
}

template <typename T>
T* at(std::uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace

NB_MODULE(_quantize, m) {
    m.def("instruction_sets", [] {
        std::vector<std::string> names;
        for (const QuantizeTable* t : tables()) names.emplace_back(t->name);
        return names;
    });
    m.def(
        "forward",
        [](std::uintptr_t x, std::uintptr_t value, std::uintptr_t inside, std::size_t clips, std::size_t frames,
           std::size_t elements, float q, float low, float high, std::size_t threads, const std::string& isa) {
            const QuantizeTable& kernels = table(isa);
            nb::gil_scoped_release release;
            const Clips shape{clips, frames, elements};
            return divided(shape, threads, [&](std::size_t first, std::size_t last) {
                return kernels.forward(at<float>(x), at<float>(value), at<std::uint8_t>(inside), shape, first, last, q, low,
                                       high);
            });
        },
        nb::arg("x"), nb::arg("value"), nb::arg("inside"), nb::arg("clips"), nb::arg("frames"), nb::arg("elements"),
        nb::arg("q"), nb::arg("low"), nb::arg("high"), nb::arg("threads"), nb::arg("isa") = "");
    m.def(
        "backward",
        [](std::uintptr_t grad, std::uintptr_t value, std::uintptr_t inside, std::uintptr_t out, std::size_t clips,
           std::size_t frames, std::size_t elements, float weight, std::size_t threads, const std::string& isa) {
            const QuantizeTable& kernels = table(isa);
            nb::gil_scoped_release release;
            const Clips shape{clips, frames, elements};
            return divided(shape, threads, [&](std::size_t first, std::size_t last) {
                return kernels.backward(at<float>(grad), at<float>(value), at<std::uint8_t>(inside), at<float>(out), shape,
                                        first, last, weight);
            });
        },
        nb::arg("grad"), nb::arg("value"), nb::arg("inside"), nb::arg("out"), nb::arg("clips"), nb::arg("frames"),
        nb::arg("elements"), nb::arg("weight"), nb::arg("threads"), nb::arg("isa") = "");
    m.def(
        "hold_forward",
        [](std::uintptr_t x, std::uintptr_t value, std::uintptr_t flags, std::size_t clips, std::size_t frames,
           std::size_t elements, float theta, float low, float high, std::size_t threads, const std::string& isa) {
            const QuantizeTable& kernels = table(isa);
            nb::gil_scoped_release release;
            const Clips shape{clips, frames, elements};
            return divided(shape, threads, [&](std::size_t first, std::size_t last) {
                return kernels.hold_forward(at<float>(x), at<float>(value), at<std::uint8_t>(flags), shape, first, last,
                                            theta, low, high);
            });
        },
        nb::arg("x"), nb::arg("value"), nb::arg("flags"), nb::arg("clips"), nb::arg("frames"), nb::arg("elements"),
        nb::arg("theta"), nb::arg("low"), nb::arg("high"), nb::arg("threads"), nb::arg("isa") = "");
    m.def(
        "hold_backward",
        [](std::uintptr_t grad, std::uintptr_t value, std::uintptr_t flags, std::uintptr_t out, std::size_t clips,
           std::size_t frames, std::size_t elements, float weight, std::size_t threads, const std::string& isa) {
            const QuantizeTable& kernels = table(isa);
            nb::gil_scoped_release release;
            const Clips shape{clips, frames, elements};
            divided(shape, threads, [&](std::size_t first, std::size_t last) {
                kernels.hold_backward(at<float>(grad), at<float>(value), at<std::uint8_t>(flags), at<float>(out), shape,
                                      first, last, weight);
                return 0.0;
            });
        },
        nb::arg("grad"), nb::arg("value"), nb::arg("flags"), nb::arg("out"), nb::arg("clips"), nb::arg("frames"),
        nb::arg("elements"), nb::arg("weight"), nb::arg("threads"), nb::arg("isa") = "");
}
