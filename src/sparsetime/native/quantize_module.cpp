// sparsetime._quantize: the training kernels. Takes addresses, so that it needs no headers of any array library.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "isa.h"
#include "openmp.h"
#include "quantize.h"

namespace nb = nanobind;
using namespace sparsetime;

namespace {

std::vector<const QuantizeTable*> tables() {
    std::vector<const QuantizeTable*> found = {&quantize_base};
#if defined(__x86_64__)
    if (has_v3()) found.push_back(&quantize_v3);
    if (has_v4()) found.push_back(&quantize_v4);
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

constexpr std::size_t kBlock = 16384;        // elements
constexpr std::size_t kWorthThreads = 1 << 15;  // numbers; with fewer, two threads are no faster than one

// Sum of part(block) over all blocks. Blocks and their order depend on the shape alone, so that any number of threads gives
// the same bits.
template <typename Part>
double total(const Clips& shape, std::size_t threads, const Part& part) {
    const std::size_t blocks = (shape.elements + kBlock - 1) / kBlock;
    const auto edge = [&](std::size_t i) {
        const std::size_t at = (shape.elements * i / blocks + 15) / 16 * 16;
        return at < shape.elements ? at : shape.elements;
    };
    std::vector<double> sums(shape.clips * blocks, 0.0);
    if (shape.clips * shape.frames * shape.elements < kWorthThreads) threads = 1;
    parallel(sums.size(), threads, [&](std::size_t i) {
        const std::size_t first = edge(i % blocks);
        sums[i] = part(Block{i / blocks, first, edge(i % blocks + 1) - first});
    });
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
            return total(shape, threads, [&](Block block) {
                return kernels.forward(at<float>(x), at<float>(value), at<std::uint8_t>(inside), shape, block, q, low,
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
            return total(shape, threads, [&](Block block) {
                return kernels.backward(at<float>(grad), at<float>(value), at<std::uint8_t>(inside), at<float>(out),
                                        shape, block, weight);
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
            return total(shape, threads, [&](Block block) {
                return kernels.hold_forward(at<float>(x), at<float>(value), at<std::uint8_t>(flags), shape, block,
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
            total(shape, threads, [&](Block block) {
                kernels.hold_backward(at<float>(grad), at<float>(value), at<std::uint8_t>(flags), at<float>(out), shape,
                                      block, weight);
                return 0.0;
            });
        },
        nb::arg("grad"), nb::arg("value"), nb::arg("flags"), nb::arg("out"), nb::arg("clips"), nb::arg("frames"),
        nb::arg("elements"), nb::arg("weight"), nb::arg("threads"), nb::arg("isa") = "");
}
