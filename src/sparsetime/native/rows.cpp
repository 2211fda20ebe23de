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

void spread(const float* x, const int32_t* index, const float* w, int taps, int n, float* out) {
    if (taps == 2) {  // bilinear: by far the most frequent
        for (int i = 0; i < n; ++i) out[i] = w[2 * i] * x[index[2 * i]] + w[2 * i + 1] * x[index[2 * i + 1]];
        return;
    }
    for (int i = 0; i < n; ++i, index += taps, w += taps) {
        float total = 0.0f;
        for (int k = 0; k < taps; ++k) total += w[k] * x[index[k]];
        out[i] = total;
    }
}

// Lanes of a and b that differ.
inline int differing(Vec a, Vec b) {
#if defined(__AVX512F__)
    return __builtin_popcount(_mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ));
#elif defined(__AVX2__)
    return __builtin_popcount(unsigned(_mm256_movemask_ps(reinterpret_cast<__m256>(a != b))));
#else
    const Int m = a != b;
    int n = 0;
    for (int i = 0; i < VL; ++i) n -= m[i];
    return n;
#endif
}

template <int ROWS>
int blend_again_of(const float* const* rows_x, const float* const* rows_before, const float* rows_w, int rows, float* sum, int n) {
    constexpr int MOST = 4;
    const float *x[MOST], *before[MOST];  // copies that no store can alias
    float w[MOST];
    if (ROWS)
        for (int k = 0; k < ROWS; ++k) x[k] = rows_x[k], before[k] = rows_before[k], w[k] = rows_w[k];
    const int taps = ROWS ? ROWS : rows;
    const auto total = [&](const float* const* from, int i) {
        Vec s{};
        for (int k = 0; k < taps; ++k) s += (ROWS ? w : rows_w)[k] * load(from[k] + i);
        return s;
    };
    int i = 0, changed = 0;
    for (; i + VL <= n; i += VL) {
        const Vec now = total(ROWS ? x : rows_x, i);
        changed += differing(now, total(ROWS ? before : rows_before, i));
        store(sum + i, now);
    }
    for (; i < n; ++i) {
        float now = 0.0f, then = 0.0f;
        for (int k = 0; k < taps; ++k) {
            now += rows_w[k] * rows_x[k][i];
            then += rows_w[k] * rows_before[k][i];
        }
        sum[i] = now;
        changed += now != then;
    }
    return changed;
}

int blend_again(const float* const* x, const float* const* before, const float* w, int rows, float* sum, int n) {
    if (rows == 1) return blend_again_of<1>(x, before, w, rows, sum, n);
    if (rows == 2) return blend_again_of<2>(x, before, w, rows, sum, n);
    if (rows == 4) return blend_again_of<4>(x, before, w, rows, sum, n);
    return blend_again_of<0>(x, before, w, rows, sum, n);
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
const RowKernels SPARSETIME_ROWS = {add, blend, combine, multiply, divide, maximum, pick, spread, blend_again, planes};

}  // namespace sparsetime
