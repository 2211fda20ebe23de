// Compiled once per instruction set; SPARSETIME_TABLE names the table that this object defines.
// Plain loops over fixed blocks: the compiler makes vectors of them. Nothing from the standard library may be instantiated
// here, or the linker could pick this object's copy of it for machines that lack its instructions.
#include "quantize.h"

namespace sparsetime {
namespace {

constexpr std::size_t kBlock = 1024;  // floats; a block of every array of a frame stays in the first-level cache
constexpr std::size_t kLanes = 16;

inline float sign(float x) { return static_cast<float>(x > 0.f) - static_cast<float>(x < 0.f); }

// Independent partial sums, so that a sum of floats may be made of vectors.
inline double total(const float* lanes) {
    double sum = 0;
    for (std::size_t k = 0; k < kLanes; ++k) sum += lanes[k];
    return sum;
}

void quantize_block(const float* __restrict x, float* __restrict v, std::size_t n, float q, float low, float high) {
    for (std::size_t j = 0; j < n; ++j) {
        float a = x[j] < low ? low : x[j];  // a NaN stays one
        a = a > high ? high : a;
        v[j] = __builtin_rintf(a / q) * q;
    }
}

void inside_block(const float* __restrict x, std::uint8_t* __restrict inside, std::size_t n, float low, float high) {
    for (std::size_t j = 0; j < n; ++j) inside[j] = (x[j] > low) & (x[j] < high);
}

double change_block(const float* __restrict now, const float* __restrict before, std::size_t n) {
    float lanes[kLanes] = {};
    std::size_t j = 0;
    for (; j + kLanes <= n; j += kLanes)
        for (std::size_t k = 0; k < kLanes; ++k) lanes[k] += __builtin_fabsf(now[j + k] - before[j + k]);
    for (; j < n; ++j) lanes[0] += __builtin_fabsf(now[j] - before[j]);
    return total(lanes);
}

double dot_block(const float* __restrict a, const float* __restrict b, std::size_t n) {
    float lanes[kLanes] = {};
    std::size_t j = 0;
    for (; j + kLanes <= n; j += kLanes)
        for (std::size_t k = 0; k < kLanes; ++k) lanes[k] += a[j + k] * b[j + k];
    for (; j < n; ++j) lanes[0] += a[j] * b[j];
    return total(lanes);
}

double forward(const float* x, float* value, std::uint8_t* inside, Clips shape, std::size_t first, std::size_t last, float q,
               float low, float high) {
    double change = 0;
    for (std::size_t clip = 0; clip < shape.clips; ++clip)
        for (std::size_t at = first; at < last; at += kBlock) {
            const std::size_t n = last - at < kBlock ? last - at : kBlock;
            for (std::size_t t = 0; t < shape.frames; ++t) {
                const std::size_t offset = (clip * shape.frames + t) * shape.elements + at;
                quantize_block(x + offset, value + offset, n, q, low, high);
                if (inside) inside_block(x + offset, inside + offset, n, low, high);
                if (t) change += change_block(value + offset, value + offset - shape.elements, n);
            }
        }
    return change;
}

double backward(const float* grad, const float* value, const std::uint8_t* inside, float* out, Clips shape,
                std::size_t first, std::size_t last, float weight) {
    double product = 0;
    for (std::size_t clip = 0; clip < shape.clips; ++clip)
        for (std::size_t at = first; at < last; at += kBlock) {
            const std::size_t n = last - at < kBlock ? last - at : kBlock;
            for (std::size_t t = 0; t < shape.frames; ++t) {
                const std::size_t offset = (clip * shape.frames + t) * shape.elements + at;
                const float* v = value + offset;
                float* __restrict o = out + offset;
                if (grad)
                    for (std::size_t j = 0; j < n; ++j) o[j] = grad[offset + j];
                else
                    for (std::size_t j = 0; j < n; ++j) o[j] = 0.f;
                if (weight != 0.f && t) {
                    const float* before = v - shape.elements;
                    for (std::size_t j = 0; j < n; ++j) o[j] += weight * sign(v[j] - before[j]);
                }
                if (weight != 0.f && t + 1 < shape.frames) {
                    const float* after = v + shape.elements;
                    for (std::size_t j = 0; j < n; ++j) o[j] -= weight * sign(after[j] - v[j]);
                }
                product += dot_block(o, v, n);
                if (inside)
                    for (std::size_t j = 0; j < n; ++j) o[j] = inside[offset + j] ? o[j] : 0.f;
            }
        }
    return product;
}

}  // namespace

extern const QuantizeTable SPARSETIME_TABLE;
const QuantizeTable SPARSETIME_TABLE = {SPARSETIME_NAME, forward, backward};

}  // namespace sparsetime
