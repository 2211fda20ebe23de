// Sums and maxima of rows of channels: what operations without weights are made of. Compiled once per instruction set.

#include "kernels.h"
#include "vec.h"

namespace {

using namespace sparsetime;

void add(const float* x, float w, float* sum, int n) {
    int i = 0;
    for (; i + VL <= n; i += VL) store(sum + i, load(sum + i) + w * load(x + i));
    for (; i < n; ++i) sum[i] += w * x[i];
}

void blend(const float* const* x, const float* w, int rows, float* sum, int n) {
    int i = 0;
    for (; i + VL <= n; i += VL) {
        Vec total{};
        for (int k = 0; k < rows; ++k) total += w[k] * load(x[k] + i);
        store(sum + i, total);
    }
    for (; i < n; ++i) {
        float total = 0.0f;
        for (int k = 0; k < rows; ++k) total += w[k] * x[k][i];
        sum[i] = total;
    }
}

void combine(const float* x, float a, const float* y, float b, float* sum, int n) {
    int i = 0;
    for (; i + VL <= n; i += VL) store(sum + i, a * load(x + i) + b * load(y + i));
    for (; i < n; ++i) sum[i] = a * x[i] + b * y[i];
}

void multiply(const float* x, const float* y, float* sum, int n) {
    int i = 0;
    for (; i + VL <= n; i += VL) store(sum + i, load(x + i) * load(y + i));
    for (; i < n; ++i) sum[i] = x[i] * y[i];
}

void divide(float divisor, float* sum, int n) {
    int i = 0;
    for (; i + VL <= n; i += VL) store(sum + i, load(sum + i) / divisor);
    for (; i < n; ++i) sum[i] /= divisor;
}

void maximum(const float* x, float* sum, int n) {
    int i = 0;
    for (; i + VL <= n; i += VL) {
        const Vec a = load(x + i), b = load(sum + i);
        store(sum + i, a > b ? a : b);
    }
    for (; i < n; ++i) sum[i] = x[i] > sum[i] ? x[i] : sum[i];
}

void pick(const float* x, const int32_t* index, float* sum, int n) {
    int i = 0;
#if defined(__AVX512F__)
    for (; i + VL <= n; i += VL) {
        const __m512i at = _mm512_loadu_si512(index + i);
        store(sum + i, _mm512_mask_i32gather_ps(_mm512_setzero_ps(), _mm512_cmpge_epi32_mask(at, _mm512_setzero_si512()), at, x, 4));
    }
#endif
    for (; i < n; ++i) sum[i] = index[i] < 0 ? 0.0f : x[index[i]];
}

// Columns [0, channels) of `pixels` rows of `stride` floats as planes of `plane` floats each.
void planes(const float* x, int pixels, int stride, int channels, int plane, float* out) {
    constexpr int BLOCK = 64;  // pixels whose rows stay in the first cache
    for (int p = 0; p < pixels; p += BLOCK) {
        const int n = pixels - p < BLOCK ? pixels - p : BLOCK;
        for (int c = 0; c < channels; ++c) {
            float* to = out + ptrdiff_t(c) * plane + p;
            const float* from = x + ptrdiff_t(p) * stride + c;
            for (int i = 0; i < n; ++i, from += stride) to[i] = *from;
        }
    }
}

}  // namespace

namespace sparsetime {

extern const RowKernels SPARSETIME_ROWS;
const RowKernels SPARSETIME_ROWS = {add, blend, combine, multiply, divide, maximum, pick, planes};

}  // namespace sparsetime
