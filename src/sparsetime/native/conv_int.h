// Convolution of codes with weights of int8: touched outputs anew from the codes of their receptive field, whatever the density. A
// product of bytes costs so little that this beats sums kept and corrected, and there is no sum to keep.

#pragma once

#include "conv.h"
#include "kernels_int.h"

namespace sparsetime {

using Bytes = std::vector<uint8_t, Aligned<uint8_t>>;

struct IntWorkspace {
    std::vector<const uint8_t*> rows;
    std::vector<IntRun> runs;
    std::vector<int32_t> count;
    Bytes patches;
    Floats sum;
    std::vector<const float*> lines;
};

class IntConv : public Geometry {
  public:
    // weight as Conv takes it; scale and bias (or null) by output channel; `zero` is the input's.
    IntConv(Geometry geometry, bool transposed, const int8_t* weight, const float* scale, const float* bias, int zero);

    // The outputs of `list`, ascending, from the codes of the input.
    void run(const uint8_t* codes, const int32_t* list, int count, const Settle& settle, ActivePixels& sink,
             IntWorkspace& ws) const;

  private:
    struct Panel {
        int channel, vectors;
        int first, depth;  // input channels, in groups of four
        size_t w, at;      // where its weights start, and its numbers by output
        size_t bytes = 0;  // of its weights
        struct Part {
            size_t window = 0;  // its first one
            int windows = 0, groups = 0;
        } part[4 / INT_PART] = {};
        int parts = 0;     // that have windows
    };
    void pack(const int8_t* weight, bool transposed, const float* scale, const float* bias);
    template <class At>
    bool pair(Panel& panel, int taps, const At& at);
    template <class At>
    bool pair(const Panel& panel, int taps, const At& at, int first, int last, int most);
    void pack_depthwise(const int8_t* weight, const float* scale, const float* bias);
    bool saturates(const Settle& settle) const;
    void run_depthwise(const uint8_t* codes, const int32_t* list, int count, const Settle& settle, IntRun* runs,
                       int32_t* found) const;

    int zero_;
    // Columns of the kernel that are taken as one tap, since they lie next to each other in a row of pixels.
    int joined_ = 1;
    const IntKernels* kernels_;
    std::vector<int8_t, Aligned<int8_t>> weight_;
    std::vector<int32_t, Aligned<int32_t>> start_;
    Floats scale_, bias_;
    std::vector<Panel> panels_;
    std::vector<IntWindow> windows_;
    Bytes outside_;
    float largest_ = 0;  // no |z| without residual is larger
};

}  // namespace sparsetime
