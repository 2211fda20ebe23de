// Compiled once per instruction set; SPARSETIME_TABLE names the table that this object defines.
// Plain loops over fixed blocks: the compiler makes vectors of them. Nothing from the standard library may be instantiated
// here, or the linker could pick this object's copy of it for machines that lack its instructions.
#include "quantize.h"
#include "vec.h"

namespace sparsetime {
namespace {

constexpr std::size_t kLanes = 16;

inline float sign(float x) { return static_cast<float>(x > 0.f) - static_cast<float>(x < 0.f); }

typedef std::uint8_t Bytes __attribute__((vector_size(VL)));

inline Bytes load_bytes(const std::uint8_t* p) {
    Bytes v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
}

// weight * sign(d), 0 at 0 and NaN.
inline Vec signs(Vec d, float weight) {
    const Vec plus = Vec{} + weight, zero = {};
    return d > zero ? plus : (d < zero ? -plus : zero);
}

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

double forward(const float* x, float* value, std::uint8_t* inside, Clips shape, Block block, float q, float low,
               float high) {
    double change = 0;
    for (std::size_t t = 0; t < shape.frames; ++t) {
        const std::size_t offset = (block.clip * shape.frames + t) * shape.elements + block.first;
        quantize_block(x + offset, value + offset, block.count, q, low, high);
        if (inside) inside_block(x + offset, inside + offset, block.count, low, high);
        if (t) change += change_block(value + offset, value + offset - shape.elements, block.count);
    }
    return change;
}

// out = inside * (g + weight (sign(v - before) - sign(after - v))), and the sum of that bracket times v.
// GRAD, INSIDE, BEFORE, AFTER say which of the arrays there are: decided once a block, not once a number.
template <bool GRAD, bool INSIDE, bool BEFORE, bool AFTER>
double backward_block(const float* grad, const float* v, const float* before, const float* after,
                      const std::uint8_t* inside, float* out, std::size_t n, float weight) {
    Vec sums = {};
    std::size_t j = 0;
    for (; j + VL <= n; j += VL) {
        const Vec value = load(v + j);
        Vec g = {};
        if (GRAD) g = load(grad + j);
        if (BEFORE) g += signs(value - load(before + j), weight);
        if (AFTER) g -= signs(load(after + j) - value, weight);
        sums += g * value;
        if (INSIDE) g = __builtin_convertvector(load_bytes(inside + j), Int) != 0 ? g : Vec{};
        store(out + j, g);
    }
    double product = 0;
    for (std::size_t k = 0; k < VL; ++k) product += sums[k];
    for (; j < n; ++j) {
        float g = GRAD ? grad[j] : 0.f;
        if (BEFORE) g += weight * sign(v[j] - before[j]);
        if (AFTER) g -= weight * sign(after[j] - v[j]);
        product += g * v[j];
        out[j] = INSIDE && !inside[j] ? 0.f : g;
    }
    return product;
}

using BackwardBlock = double (*)(const float*, const float*, const float*, const float*, const std::uint8_t*, float*,
                                 std::size_t, float);

template <bool GRAD, bool INSIDE>
BackwardBlock pick(bool before, bool after) {
    if (before) return after ? backward_block<GRAD, INSIDE, true, true> : backward_block<GRAD, INSIDE, true, false>;
    return after ? backward_block<GRAD, INSIDE, false, true> : backward_block<GRAD, INSIDE, false, false>;
}

double backward(const float* grad, const float* value, const std::uint8_t* inside, float* out, Clips shape, Block block,
                float weight) {
    double product = 0;
    for (std::size_t t = 0; t < shape.frames; ++t) {
        const std::size_t offset = (block.clip * shape.frames + t) * shape.elements + block.first;
        const float* v = value + offset;
        const bool before = weight != 0.f && t > 0, after = weight != 0.f && t + 1 < shape.frames;
        const BackwardBlock run = grad
                                      ? (inside ? pick<true, true>(before, after) : pick<true, false>(before, after))
                                      : (inside ? pick<false, true>(before, after) : pick<false, false>(before, after));
        product += run(grad ? grad + offset : nullptr, v, before ? v - shape.elements : nullptr,
                       after ? v + shape.elements : nullptr, inside ? inside + offset : nullptr, out + offset,
                       block.count, weight);
    }
    return product;
}

constexpr std::size_t kCarry = 4096;  // floats of a block whose gradients are carried backwards in time

void hold_block(const float* __restrict x, const float* __restrict before, float* __restrict v,
                std::uint8_t* __restrict flags, std::size_t n, float theta, float low, float high) {
    for (std::size_t j = 0; j < n; ++j) {
        float a = x[j] < low ? low : x[j];
        a = a > high ? high : a;
        const bool sent = !before || __builtin_fabsf(a - before[j]) > theta;
        v[j] = sent ? a : before[j];
        flags[j] = static_cast<std::uint8_t>(((x[j] > low) & (x[j] < high)) | (sent ? kSent : 0));
    }
}

double hold_forward(const float* x, float* value, std::uint8_t* flags, Clips shape, Block block, float theta, float low,
                    float high) {
    double change = 0;
    for (std::size_t t = 0; t < shape.frames; ++t) {
        const std::size_t offset = (block.clip * shape.frames + t) * shape.elements + block.first;
        float* v = value + offset;
        const float* before = t ? v - shape.elements : nullptr;
        hold_block(x + offset, before, v, flags + offset, block.count, theta, low, high);
        if (t) change += change_block(v, before, block.count);
    }
    return change;
}

void carry_block(const std::uint8_t* __restrict flags, float* __restrict carry, float* __restrict out, std::size_t n) {
    for (std::size_t j = 0; j < n; ++j) {
        const float g = carry[j] + out[j];
        const bool sent = flags[j] & kSent;
        out[j] = sent && (flags[j] & kInside) ? g : 0.f;
        carry[j] = sent ? 0.f : g;
    }
}

void hold_backward(const float* grad, const float* value, const std::uint8_t* flags, float* out, Clips shape,
                   Block block, float weight) {
    float carry[kCarry];
    for (std::size_t start = 0; start < block.count; start += kCarry) {
        const std::size_t n = block.count - start < kCarry ? block.count - start : kCarry;
        for (std::size_t j = 0; j < n; ++j) carry[j] = 0.f;
        for (std::size_t t = shape.frames; t-- > 0;) {
            const std::size_t offset = (block.clip * shape.frames + t) * shape.elements + block.first + start;
            const float* v = value + offset;
            const bool before = weight != 0.f && t > 0, after = weight != 0.f && t + 1 < shape.frames;
            const BackwardBlock run = grad ? pick<true, false>(before, after) : pick<false, false>(before, after);
            run(grad ? grad + offset : nullptr, v, before ? v - shape.elements : nullptr,
                after ? v + shape.elements : nullptr, nullptr, out + offset, n, weight);
            carry_block(flags + offset, carry, out + offset, n);
        }
    }
}

}  // namespace

extern const QuantizeTable SPARSETIME_TABLE;
const QuantizeTable SPARSETIME_TABLE = {SPARSETIME_NAME, forward, backward, hold_forward, hold_backward};

}  // namespace sparsetime
