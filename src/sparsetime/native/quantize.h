// Clamp, quantize and penalty in one pass over memory, and their gradient in another.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsetime {

// Clips of `frames` frames of `elements` numbers, frames and clips one after the other.
struct Clips {
    std::size_t clips, frames, elements;
};

// The unit of work: some elements of every frame of one clip. All frames of a block stay in the second-level cache.
struct Block {
    std::size_t clip, first, count;
};

struct QuantizeTable {
    const char* name;
    // value = round(clamp(x, low, high) / q) * q; inside = low < x < high, where not null.
    // Returns the sum of |value(t) - value(t-1)| over the block.
    double (*forward)(const float* x, float* value, std::uint8_t* inside, Clips shape, Block block, float q, float low,
                      float high);
    // With g = grad + weight (sign(v(t) - v(t-1)) - sign(v(t+1) - v(t))): out = g * inside. Returns the block's sum of
    // g * value. grad and inside may be null (zeros, ones).
    double (*backward)(const float* grad, const float* value, const std::uint8_t* inside, float* out, Clips shape,
                       Block block, float weight);
    // The codec `hold`: with a = clamp(x, low, high), value = a where t = 0 or |a - value(t - 1)| > theta, else value(t - 1).
    // flags say of each element kInside and kSent. Returns the sum of |value(t) - value(t-1)| over the block.
    double (*hold_forward)(const float* x, float* value, std::uint8_t* flags, Clips shape, Block block, float theta,
                           float low, float high);
    // With g as in `backward`: what was sent receives the g of all frames in which it was held. grad may be null.
    void (*hold_backward)(const float* grad, const float* value, const std::uint8_t* flags, float* out, Clips shape,
                          Block block, float weight);
};

constexpr std::uint8_t kInside = 1, kSent = 2;

extern const QuantizeTable quantize_base, quantize_v3, quantize_v4;

}  // namespace sparsetime
