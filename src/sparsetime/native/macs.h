// Multiply-accumulates of a convolution.

#pragma once

#include <cstdint>
#include <vector>

namespace sparsetime {

struct Axis;
struct Change;
class Shape;

class Macs {
  public:
    Macs() = default;
    Macs(const Axis& rows, const Axis& columns, const Shape& in, const Shape& out, int groups);
    int64_t dense() const { return dense_; }
    // Of some outputs, from all of their inputs inside the map.
    int64_t done(const int32_t* list, int count) const;
    // Of the elements that changed, by true fan-out.
    int64_t caused(const Change& in) const;

  private:
    int64_t dense_ = 0;
    int in_width_ = 0, out_width_ = 0, pixels_ = 0, taps_ = 0;
    // Products of a tap: of all channels of an output, of one channel of an input.
    int64_t of_output_ = 0, of_input_ = 0;
    std::vector<int32_t> row_reads_, column_reads_;    // by output: inputs
    std::vector<int32_t> row_reaches_, column_reaches_;  // by input: outputs
};

}  // namespace sparsetime
