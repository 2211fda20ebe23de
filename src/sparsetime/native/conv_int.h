// Convolution of codes with weights of int8: touched outputs anew from the codes of their receptive field, whatever the density. A
// product of bytes costs so little that this beats sums kept and corrected, and there is no sum to keep.

#pragma once

#include "conv.h"
#include "kernels_int.h"

namespace sparsetime {

using Bytes = std::vector<uint8_t, Aligned<uint8_t>>;

struct IntWorkspace {
    std::vector<const uint8_t*> rows;
    std::vector<int32_t> count;
    Bytes patches;
    Floats sum;
    std::vector<const float*> lines;
};

class IntConv {
  public:
    // weight as Conv takes it; scale and bias (or null) by output channel; `zero` is the input's.
    IntConv(Shape in, Shape out, Axis rows, Axis columns, int groups, bool transposed, const int8_t* weight, const float* scale,
            const float* bias, int zero);

    int touched(const Change& in, uint8_t* mask, int32_t* list, Workspace& ws) const;
    // The outputs of `list`, ascending, from the codes of the input.
    void run(const uint8_t* codes, const int32_t* list, int count, const Settle& settle, ActivePixels& sink, IntWorkspace& ws) const;

    const Macs& macs() const { return macs_; }

    Shape in, out;

  private:
    struct Panel {
        int channel, vectors;
        int first, depth;  // input channels, in groups of four
        size_t w, at;      // where its weights start, and its numbers by output
    };
    void pack(const int8_t* weight, bool transposed, const float* scale, const float* bias);
    void pack_depthwise(const int8_t* weight, const float* scale, const float* bias);
    bool saturates(const Settle& settle) const;
    void run_depthwise(const uint8_t* codes, const int32_t* list, int count, const Settle& settle, int32_t* found) const;

    Axis rows_, columns_;
    int groups_, zero_;
    bool depthwise_, pointwise_;
    int joined_ = 1;  // columns of the kernel that are taken as one tap, since they lie next to each other in a row of pixels
    const IntKernels* kernels_;
    std::vector<int8_t, Aligned<int8_t>> weight_;
    std::vector<int32_t, Aligned<int32_t>> start_;
    Floats scale_, bias_;
    std::vector<Panel> panels_;
    Bytes outside_;
    Macs macs_;
    float largest_ = 0;  // no |z| without residual is larger
};

}  // namespace sparsetime
