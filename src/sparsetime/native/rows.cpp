// Sums and maxima of rows of channels: what operations without weights are made of. Compiled once per instruction set.

#include <cmath>
#include <cstring>
#include <type_traits>

#include "activate.h"
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

void affine(const float* x, const float* scale, const float* shift, float* sum, int n) {
    int i = 0;
    for (; i + VL <= n; i += VL) {
        Vec y = load(x + i);
        if (scale) y = y * load(scale + i);
        if (shift) y = y + load(shift + i);
        store(sum + i, y);
    }
    for (; i < n; ++i) {
        const float y = scale ? x[i] * scale[i] : x[i];
        sum[i] = shift ? y + shift[i] : y;
    }
}

void squares(const float* x, const float* centre, float* sum, int n) {
    int i = 0;
    for (; i + VL <= n; i += VL) {
        const Vec apart = load(x + i) - load(centre + i);
        store(sum + i, load(sum + i) + apart * apart);
    }
    for (; i < n; ++i) sum[i] += (x[i] - centre[i]) * (x[i] - centre[i]);
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

// A sum of n numbers in sixteen parts, the same for all vector widths: part l has numbers l, l + 16, ... in this order, and parts are added by
// halves. number(i, some) gives a vector of those from i on, zeros behind the first `some`.
template <class Number>
inline float sum_in_parts(int n, const Number& number) {
    constexpr int V = LANE / VL;
    Vec part[V] = {};
    for (int i = 0; i < n; i += LANE)
        for (int v = 0; v < V; ++v) part[v] += number(i + v * VL, n - i - v * VL);
    float parts[LANE];
    for (int v = 0; v < V; ++v) store(parts + v * VL, part[v]);
    for (int half = LANE / 2; half; half /= 2)
        for (int l = 0; l < half; ++l) parts[l] += parts[l + half];
    return parts[0];
}

// The first n floats of a vector, zeros behind them.
inline Vec load_first(const float* p, int n) {
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
#elif defined(__AVX2__)
    return _mm256_maskload_ps(p, reinterpret_cast<__m256i>(first_lanes(n)));
#else
    Vec v{};
    for (int i = 0; i < n; ++i) v[i] = p[i];
    return v;
#endif
}

inline Vec first_of(Vec v, int n) {
    static const int32_t number[LANE] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    Int lane;
    std::memcpy(&lane, number, sizeof lane);
    return lane < n ? v : Vec{};
}

inline void store_first(float* p, Vec v, int n) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
#else
    for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

void normalise(const float* x, float eps, const float* scale, const float* shift, float* sum, int n) {
    const auto some_of = [](const float* p, int some) __attribute__((always_inline)) { return some >= VL ? load(p) : some > 0 ? load_first(p, some) : Vec{}; };
    const float mean = sum_in_parts(n, [&](int i, int some) __attribute__((always_inline)) { return some_of(x + i, some); }) / float(n);
    const auto apart = [&](int i, int some) __attribute__((always_inline)) {
        return some >= VL ? load(x + i) - mean : some > 0 ? first_of(load_first(x + i, some) - mean, some) : Vec{};
    };
    const float variance = sum_in_parts(n, [&](int i, int some) __attribute__((always_inline)) {
        const Vec d = apart(i, some);
        return d * d;
    }) / float(n);
    const float factor = 1.0f / std::sqrt(variance + eps);
    for (int i = 0; i < n; i += VL) {
        const int some = n - i;
        Vec y = apart(i, some) * factor;
        if (scale) y = y * some_of(scale + i, some);
        if (shift) y = y + some_of(shift + i, some);
        some >= VL ? store(sum + i, y) : store_first(sum + i, y, some);
    }
}

float softmax(float* x, float factor, const float* added, int n) {
    const auto behind = [](Vec v, int some, float otherwise) __attribute__((always_inline)) {
        return some >= VL ? v : choose(first_lanes(some), v, splat(otherwise));
    };
    Vec most = splat(-__builtin_inff());
    for (int i = 0; i < n; i += VL) {
        const int some = n - i;
        Vec y = load(x + i) * factor;
        if (added) y = y + (some >= VL ? load(added + i) : load_first(added + i, some));
        most = max(behind(y, some, -__builtin_inff()), most);
        store(x + i, y);
    }
    float largest = most[0];
    for (int l = 1; l < VL; ++l) largest = most[l] > largest ? most[l] : largest;
    return 1.0f / sum_in_parts(n, [&](int i, int some) __attribute__((always_inline)) {
        if (some <= 0) return Vec{};
        const Vec e = behind(exp(load(x + i) - largest), some, 0.0f);
        store(x + i, e);
        return e;
    });
}

void maximum(const Window& w, float* out, int n) {
    int i = 0;
    const auto some = [&](auto vectors) __attribute__((always_inline)) {
        constexpr int V = decltype(vectors)::value;
        for (; i + V * VL <= n; i += V * VL) {
            Vec most[V];
            for (int v = 0; v < V; ++v) most[v] = load(w.first + i + v * VL);
            const float* line = w.first + i;
            for (int y = 0; y < w.lines; ++y, line += w.line) {
                const float* x = line;
                for (int k = 0; k < w.columns; ++k, x += w.column)
                    for (int v = 0; v < V; ++v) most[v] = max(load(x + v * VL), most[v]);
            }
            for (int v = 0; v < V; ++v) store(out + i + v * VL, most[v]);
        }
    };
    some(std::integral_constant<int, 4>{});
    some(std::integral_constant<int, 2>{});
    some(std::integral_constant<int, 1>{});
    for (; i < n; ++i) {
        float most = w.first[i];
        for (int y = 0; y < w.lines; ++y)
            for (int k = 0; k < w.columns; ++k) {
                const float x = w.first[i + y * w.line + k * w.column];
                most = x > most ? x : most;
            }
        out[i] = most;
    }
}

// Up to VL channels from i on, `then` until now: what changes is appended behind `changed` others. Returns how many do.
[[gnu::always_inline]] inline int settle(Vec now, Vec then, int i, int some, const Sent& to, int changed) {
    const bool whole = some >= VL;
    const unsigned lanes = differing(now, then);
    whole ? store(to.value + i, now) : store_first(to.value + i, now, some);
    if (to.row) whole ? store(to.row + i, now - then) : store_first(to.row + i, now - then, some);
    if (to.place) append(lanes, to.first + uint32_t(i), now - then, to.place + changed, to.change + changed);
    return __builtin_popcount(lanes);
}

int replace(const float* x, int n, const Sent& to) {
    int changed = 0;
    for (int i = 0; i < n; i += VL) {
        const int some = n - i;
        const bool whole = some >= VL;
        const Vec now = whole ? load(x + i) : load_first(x + i, some),
                  then = whole ? load(to.value + i) : load_first(to.value + i, some);
        changed += settle(now, then, i, some, to, changed);
    }
    return changed;
}

// Lanes of `otherwise`, but those that come of a row; see Pick. Permuting two vectors is several times faster than gathering.
inline Vec picked(const float* x, const Pick& pick, Vec otherwise) {
    x += pick.start;
#if defined(__AVX512F__)
    const __m512i at = _mm512_loadu_si512(pick.index);
    const __mmask16 wanted = _mm512_cmpge_epi32_mask(at, _mm512_setzero_si512());
    if (pick.kind == Pick::far) return _mm512_mask_i32gather_ps(otherwise, wanted, at, x, 4);
    const Vec found = pick.kind == Pick::run ? load(x) : Vec(_mm512_permutex2var_ps(load(x), at, load(x + VL)));
    return _mm512_mask_mov_ps(otherwise, wanted, found);
#elif defined(__AVX2__)
    const Int at = *reinterpret_cast<const IntAt*>(pick.index);
    if (pick.kind == Pick::far) return _mm256_mask_i32gather_ps(otherwise, x, reinterpret_cast<__m256i>(at), bits(~at), 4);
    Vec found = load(x);
    if (pick.kind == Pick::near) found = _mm256_blendv_ps(permuted(found, at), permuted(load(x + VL), at), bits(at << 28));
    return _mm256_blendv_ps(found, otherwise, bits(at));  // where the sign is set
#else
    for (int l = 0; l < VL; ++l)
        if (pick.index[l] >= 0) otherwise[l] = x[pick.index[l]];
    return otherwise;
#endif
}

int pick(const float* const* x, const Pick* picks, int n, const Sent& to) {
    int changed = 0;
    for (int i = 0; i < n; i += VL) {
        const int some = n - i;
        const Vec then = some >= VL ? load(to.value + i) : load_first(to.value + i, some);
        Vec now = then;
        for (bool last = false; !last; ++picks) {
            last = picks->last;
            if (const float* from = x[picks->source]) now = picked(from, *picks, now);
        }
        changed += settle(now, then, i, some, to, changed);
    }
    return changed;
}

void pick_rows(const float* const* x, const int32_t* stride, const Pick* picks, int n, int pixels, float* value) {
    for (ptrdiff_t p = 0; p < pixels; ++p, value += n) {
        const Pick* next = picks;
        for (int i = 0; i < n; i += VL) {
            Vec now{};
            for (bool last = false; !last; ++next) {
                last = next->last;
                now = picked(x[next->source] + p * stride[next->source], *next, now);
            }
            n - i >= VL ? store(value + i, now) : store_first(value + i, now, n - i);
        }
    }
}

void copy_rows(const float* x, int from, int n, int pixels, float* value, int to) {
    for (int p = 0; p < pixels; ++p, x += from, value += to) {
        int i = 0;
        for (; i + VL <= n; i += VL) store(value + i, load(x + i));
        if (i == n) continue;
        if (n >= VL) store(value + n - VL, load(x + n - VL));
        else
            for (; i < n; ++i) value[i] = x[i];
    }
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

template <int ROWS>
int blend_again_of(const float* const* rows_x, const float* const* rows_before, const float* rows_w, int rows,
                   float* sum, int n) {
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
        changed += __builtin_popcount(differing(now, total(ROWS ? before : rows_before, i)));
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

int list(const uint8_t* mark, int n, int32_t first, int32_t* list) {
    int found = 0, i = 0;
#if defined(__AVX512F__)
    for (; i < n; i += LANE) {
        const __mmask16 some = n - i < LANE ? __mmask16((1u << (n - i)) - 1) : __mmask16(0xffff);
        const __m128i bytes = _mm_maskz_loadu_epi8(some, mark + i);
        const __mmask16 set = _mm_test_epi8_mask(bytes, bytes);
        store(list + found, order_of(set) + (first + i));
        found += __builtin_popcount(set);
    }
#else
    const auto one = [&](int k) {  // without a branch: which are set cannot be foreseen
        list[found] = first + k;
        found += mark[k];
    };
    for (uint64_t word; i + 8 <= n; i += 8) {
        __builtin_memcpy(&word, mark + i, sizeof word);
        if (!word) continue;
#if defined(__AVX2__)
        const unsigned set = unsigned(_pext_u64(word, 0x0101010101010101));
        store(list + found, order_of(set) + (first + i));
        found += __builtin_popcount(set);
#else
        for (int k = i; k < i + 8; ++k) one(k);
#endif
    }
    for (; i < n; ++i) one(i);
#endif
    return found;
}

// Four pixels by four channels change places: from rows of `stride` floats to planes, `plane` floats from one to the next.
inline void planes_of_four(const float* x, ptrdiff_t stride, ptrdiff_t plane, float* out) {
#if defined(__x86_64__)
    __m128 a = _mm_loadu_ps(x), b = _mm_loadu_ps(x + stride), c = _mm_loadu_ps(x + 2 * stride),
           d = _mm_loadu_ps(x + 3 * stride);
    _MM_TRANSPOSE4_PS(a, b, c, d);
    _mm_storeu_ps(out, a);
    _mm_storeu_ps(out + plane, b);
    _mm_storeu_ps(out + 2 * plane, c);
    _mm_storeu_ps(out + 3 * plane, d);
#else
    for (int c = 0; c < 4; ++c)
        for (int i = 0; i < 4; ++i) out[c * plane + i] = x[i * stride + c];
#endif
}

void planes(const float* x, int pixels, int stride, int channels, int plane, float* out) {
    constexpr int BLOCK = 64;  // pixels whose rows stay in the first cache
    for (int p = 0; p < pixels; p += BLOCK) {
        const int n = pixels - p < BLOCK ? pixels - p : BLOCK;
        const float* rows = x + ptrdiff_t(p) * stride;
        float* to = out + p;
        int c = 0;
        for (; c + 4 <= channels; c += 4, to += 4 * ptrdiff_t(plane)) {
            const float* from = rows + c;
            int i = 0;
            for (; i + 4 <= n; i += 4, from += 4 * ptrdiff_t(stride)) planes_of_four(from, stride, plane, to + i);
            for (; i < n; ++i, from += stride)
                for (int k = 0; k < 4; ++k) to[ptrdiff_t(k) * plane + i] = from[k];
        }
        for (; c < channels; ++c, to += plane)
            for (int i = 0; i < n; ++i) to[i] = rows[ptrdiff_t(i) * stride + c];
    }
}

}  // namespace

namespace sparsetime {

extern const RowKernels SPARSETIME_ROWS;
const RowKernels SPARSETIME_ROWS = {add,     blend, combine, affine, squares, multiply, divide, normalise, softmax, maximum,
                                    replace, pick, pick_rows, copy_rows, spread,  blend_again, list,   planes};

}  // namespace sparsetime
