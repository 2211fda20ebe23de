// From sums to values and events: activations, codecs, lists. Compiled once per instruction set like kernels.cpp, but without
// contracting a product and a sum into one operation: v' = q n is rounded before v' - v is taken, or an unchanged code would
// send the rounding error as an event.

#include "kernels.h"
#include "vec.h"

namespace {

using namespace sparsetime;

inline Vec bits(Int v) { return reinterpret_cast<Vec>(v); }
inline Int bits(Vec v) { return reinterpret_cast<Int>(v); }

// ---- activations --------------------------------------------------------------------------------------------------------

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }

inline Vec round_even(Vec x) {
#if defined(__AVX512F__)
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    // Adding 2^23 with x's sign leaves no bits behind the point; from 2^23 on there are none.
    const Int sign = bits(x) & int32_t(0x80000000);
    const Vec big = bits(bits(splat(8388608.0f)) | sign);
    const Vec magnitude = bits(bits(x) & 0x7fffffff);
    const Vec rounded = (x + big) - big;
    return magnitude < 8388608.0f ? bits(bits(rounded) | sign) : x;
#endif
}

inline Vec truncate(Vec x) {
    const Vec r = round_even(x);
    const Vec magnitude = bits(bits(x) & 0x7fffffff), rounded = bits(bits(r) & 0x7fffffff);
    const Vec one = bits(bits(splat(1.0f)) | (bits(x) & int32_t(0x80000000)));
    return rounded > magnitude ? r - one : r;
}

// e^x, relative error below 2e-7 (Cody-Waite reduction, degree 6); saturates outside [-87, 88].
inline Vec exp(Vec x) {
    x = min(max(x, splat(-87.0f)), splat(88.0f));
    const Vec n = round_even(x * 1.44269504088896341f);
    Vec r = x - n * 0.693145751953125f;
    r = r - n * 1.42860682030941723212e-6f;
    Vec p = splat(1.3888949086377719040e-3f);
    p = p * r + 8.3333337679505980e-3f;
    p = p * r + 4.1666667908e-2f;
    p = p * r + 1.6666667163e-1f;
    p = p * r + 5.0000000000e-1f;
    p = p * r * r + r + 1.0f;
    const Int exponent = (__builtin_convertvector(n, Int) + 127) << 23;
    return p * bits(exponent);
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

inline Vec tanh(Vec x) {
    // Near 0 the quotient would cancel: odd polynomial below 0.625 (Cephes).
    const Vec magnitude = bits(bits(x) & 0x7fffffff);
    const Vec e = exp(2.0f * magnitude);
    Vec large = 1.0f - 2.0f / (e + 1.0f);
    large = bits(bits(large) | (bits(x) & int32_t(0x80000000)));
    const Vec s = x * x;
    Vec p = splat(-5.70498872745e-3f);
    p = p * s + 2.06390887954e-2f;
    p = p * s - 5.37397155531e-2f;
    p = p * s + 1.33314422036e-1f;
    p = p * s - 3.33332819422e-1f;
    const Vec small = x + x * s * p;
    return magnitude < 0.625f ? small : large;
}

inline Vec erf_gelu(Vec x) {
    for (int i = 0; i < VL; ++i) x[i] = 0.5f * x[i] * (1.0f + __builtin_erff(x[i] * 0.70710678118654752f));
    return x;
}

template <Act A>
inline Vec activate(Vec x, Act act, float a, float b) {
    if constexpr (A == Act::none) return x;
    if constexpr (A == Act::clamp) return min(max(x, splat(a)), splat(b));
    switch (act) {
        case Act::leaky_relu: return x > 0.0f ? x : x * a;
        case Act::hardswish: return x * min(max(x + 3.0f, Vec{}), splat(6.0f)) / 6.0f;
        case Act::hardsigmoid: return min(max(x + 3.0f, Vec{}), splat(6.0f)) / 6.0f;
        case Act::silu: return x * sigmoid(x);
        case Act::gelu: return erf_gelu(x);
        case Act::gelu_tanh: return 0.5f * x * (1.0f + tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
        case Act::sigmoid: return sigmoid(x);
        case Act::tanh: return tanh(x);
        default: return x;
    }
}

// ---- from sums to events ------------------------------------------------------------------------------------------------

inline Int iota() {
    Int v;
    for (int i = 0; i < VL; ++i) v[i] = i;
    return v;
}

#if defined(__AVX512F__)
using Lanes = __mmask16;
inline Lanes nonzero(Vec d) { return _mm512_cmp_ps_mask(d, _mm512_setzero_ps(), _CMP_NEQ_UQ); }
inline int append(Lanes m, Int place, Vec d, uint32_t* places, float* changes) {
    // Compressing into a register and storing whole vectors: compressing stores are microcoded on some machines.
    _mm512_storeu_si512(places, _mm512_maskz_compress_epi32(m, reinterpret_cast<__m512i>(place)));
    _mm512_storeu_ps(changes, _mm512_maskz_compress_ps(m, d));
    return __builtin_popcount(m);
}
#else
using Lanes = unsigned;
inline Lanes nonzero(Vec d) {
    const Int m = d != 0.0f;
#if defined(__AVX2__)
    return unsigned(_mm256_movemask_ps(reinterpret_cast<__m256>(m)));
#else
    unsigned lanes = 0;
    for (int i = 0; i < VL; ++i) lanes |= unsigned(m[i] & 1) << i;
    return lanes;
#endif
}
inline int append(Lanes m, Int place, Vec d, uint32_t* places, float* changes) {
    int n = 0;
    for (; m; m &= m - 1, ++n) {
        const int i = __builtin_ctz(m);
        places[n] = uint32_t(place[i]);
        changes[n] = d[i];
    }
    return n;
}
#endif

// Appends the events of `blocks` vectors of changes, whose nonzero lanes are the bits of `lanes`.
inline int append_group(uint64_t lanes, const Vec* d, int blocks, uint32_t first, uint32_t* places, float* changes) {
    const int total = __builtin_popcountll(lanes);
#if defined(__AVX512F__)
    if (total > 16) {
        Int where = iota() + int32_t(first);
        for (int b = 0, n = 0; b < blocks; ++b, where += VL, lanes >>= VL)
            n += append(Lanes(lanes), where, d[b], places + n, changes + n);
        return total;
    }
#endif
    float lane[64];
    for (int b = 0; b < blocks; ++b) store(lane + b * VL, d[b]);
    for (int n = 0; lanes; lanes &= lanes - 1, ++n) {
        const int i = __builtin_ctzll(lanes);
        places[n] = first + uint32_t(i);
        changes[n] = lane[i];
    }
    return total;
}

// `B` vectors of one pixel from channel c on; returns how many changed. Values are written only where some did: at low density
// most of them stay, and a line that is not written need not go back to memory.
template <Act A, Encode E, int B>
inline int finish_group(const FinishArgs& f, float* sum, const float* extra, float* z, float* value, const float* step, float* row,
                        int c, uint32_t place, int64_t event, bool last) {
    Vec d[B], to[B];
    uint64_t lanes = 0;
    for (int b = 0; b < B; ++b, sum += f.block) {
        const int i = c + b * VL;
        Vec s = load(sum);
        if (extra) s += load(extra + i);
        if (f.clear) store(sum, Vec{});
        const Vec v = load(value + i);
        if constexpr (E == Encode::linear) {
            to[b] = f.replace ? load(f.bias + i) + s : v + s;
            d[b] = f.replace ? to[b] - v : s;
        } else {
            const Vec next = (f.replace ? load(f.bias + i) : load(z + i)) + s;
            if (z) store(z + i, next);
            const Vec y = activate<A>(next, f.act, f.act_a, f.act_b);
            if constexpr (E == Encode::exact) {
                const Vec q = load(step + i);
                to[b] = q * round_even(min(max(y / q, splat(f.low)), splat(f.high)));
                d[b] = to[b] - v;
            } else if constexpr (E == Encode::residual) {
                const Vec q = load(step + i);
                to[b] = v + q * truncate((y - v) / q);
                d[b] = to[b] - v;
            } else if constexpr (E == Encode::hold) {
                const Vec raw = y - v;
                const Vec magnitude = bits(bits(raw) & 0x7fffffff);
                const Int sent = magnitude > load(step + i);
                d[b] = bits(bits(raw) & sent);
                to[b] = sent ? y : v;
            } else {
                to[b] = y;
                d[b] = y - v;
            }
        }
        if (last && b == B - 1) {
            const Int valid = iota() < f.channels - i;
            d[b] = bits(bits(d[b]) & valid);
            to[b] = bits(bits(to[b]) & valid);
        }
        lanes |= uint64_t(nonzero(d[b])) << (b * VL);
    }
    if (row)
        for (int b = 0; b < B; ++b) store(row + c + b * VL, d[b]);
    if (E != Encode::linear && !lanes) return 0;
    for (int b = 0; b < B; ++b) store(value + c + b * VL, to[b]);
    if (f.place) return append_group(lanes, d, B, place + uint32_t(c), f.place + event, f.change + event);
    return __builtin_popcountll(lanes);
}

template <Act A, Encode E>
void finish_rows(FinishArgs& all) {
    FinishArgs f = all;  // a copy that no store can alias
    constexpr int GROUP = 64 / VL;
    const int blocks = (f.channels + VL - 1) / VL;
    const bool ragged = f.channels % VL != 0;
    const int ahead = 1 + 512 / f.stride;
    int64_t events = f.events;
    for (int i = 0; i < f.pixels; ++i) {
        const ptrdiff_t p = f.pixel[i];
        float* sum = f.sum + f.at[i];
        float* value = f.value + p * f.stride;
        float* z = f.z ? f.z + p * f.stride : nullptr;
        float* row = f.rows ? f.rows + p * f.stride : nullptr;
        const float* step = f.step_map ? f.step + p * f.stride : f.step;
        const uint32_t place = uint32_t(p) << f.shift;
        const float* extra = f.extra && (!f.extra_mask || f.extra_mask[p]) ? f.extra + p * f.stride : nullptr;
        const int64_t before = events;
        // Accumulators and values come from the third cache: ask for those of a later pixel now.
        const ptrdiff_t later = ptrdiff_t(f.pixel[i + ahead < f.pixels ? i + ahead : f.pixels - 1]) * f.stride;
        for (int c = 0; c < f.stride; c += 16) {
            if (f.z) __builtin_prefetch(f.z + later + c, 1);
            __builtin_prefetch(f.value + later + c, 1);
        }
        int b = 0;
        for (; b + GROUP <= blocks - ragged; b += GROUP)
            events += finish_group<A, E, GROUP>(f, sum + b * f.block, extra, z, value, step, row, b * VL, place, events, false);
        for (; b < blocks; ++b)
            events += finish_group<A, E, 1>(f, sum + b * f.block, extra, z, value, step, row, b * VL, place, events,
                                            ragged && b == blocks - 1);
        f.active[f.active_count] = int32_t(p);
        f.tally[f.active_count] = int32_t(events - before);
        f.active_count += events != before;
        f.mask[p] = events != before;
    }
    all.active_count = f.active_count;
    all.events = events;
}

// Maps of at most NARROW channels are not padded to vectors: one channel at a time.
template <Encode E>
void finish_narrow(FinishArgs& f) {
    for (int i = 0; i < f.pixels; ++i) {
        const ptrdiff_t p = f.pixel[i];
        const float* extra = f.extra && (!f.extra_mask || f.extra_mask[p]) ? f.extra + p * f.stride : nullptr;
        int any = 0;
        for (int c = 0; c < f.channels; ++c) {
            // Sums lie in vectors of this instruction set, the last one padded.
            float& place = f.sum[f.at[i] + (c / VL) * f.block + c % VL];
            const float sum = place + (extra ? extra[c] : 0.0f);
            const ptrdiff_t e = p * f.stride + c;
            const float v = f.value[e];
            float d;
            if (E == Encode::linear) {
                const float next = f.replace ? f.bias[c] + sum : v + sum;
                d = f.replace ? next - v : sum;
                f.value[e] = next;
            } else {
                const float next = (f.replace ? f.bias[c] : f.z[e]) + sum;
                if (f.z) f.z[e] = next;
                const Vec all = f.act == Act::none ? splat(next)
                                : f.act == Act::clamp
                                    ? activate<Act::clamp>(splat(next), f.act, f.act_a, f.act_b)
                                    : activate<Act::leaky_relu>(splat(next), f.act, f.act_a, f.act_b);
                const float y = all[0];
                const float q = f.step ? f.step[f.step_map ? e : c] : 0.0f;
                float to = y;
                if (E == Encode::exact) to = q * round_even(min(max(splat(y / q), splat(f.low)), splat(f.high)))[0];
                if (E == Encode::residual) to = v + q * __builtin_truncf((y - v) / q);
                d = to - v;
                if (E == Encode::hold && !(__builtin_fabsf(d) > q)) d = 0.0f;
                else f.value[e] = to;
            }
            if (f.clear) place = 0.0f;
            if (f.rows) f.rows[e] = d;
            if (d != 0.0f) {
                ++any;
                if (f.place) {
                    f.place[f.events] = uint32_t(p) << f.shift | uint32_t(c);
                    f.change[f.events] = d;
                }
                ++f.events;
            }
        }
        f.active[f.active_count] = int32_t(p);
        f.tally[f.active_count] = any;
        f.active_count += any != 0;
        f.mask[p] = any != 0;
    }
}

template <Encode E>
void finish_encode(FinishArgs& f) {
    if (f.stride % LANE) return finish_narrow<E>(f);
    if (f.act == Act::none) return finish_rows<Act::none, E>(f);
    if (f.act == Act::clamp) return finish_rows<Act::clamp, E>(f);
    return finish_rows<Act::leaky_relu, E>(f);  // stands for all that are chosen at run time
}

void finish(FinishArgs& f) {
    switch (f.encode) {
        case Encode::linear:
            if (f.stride % LANE) return finish_narrow<Encode::linear>(f);
            return finish_rows<Act::none, Encode::linear>(f);
        case Encode::change: return finish_encode<Encode::change>(f);
        case Encode::exact: return finish_encode<Encode::exact>(f);
        case Encode::hold: return finish_encode<Encode::hold>(f);
        case Encode::residual: return finish_encode<Encode::residual>(f);
    }
}

template <Encode E>
void flat_of(FlatArgs& all) {
    FlatArgs f = all;  // a copy that no store can alias
    int64_t last = -1;  // pixel of the last event
    int phase = int(f.first % f.channels);
    for (int64_t i = 0; i < f.elements; i += VL) {
        const int left = f.elements - i < VL ? int(f.elements - i) : VL;
        float pad[3][VL];
        const float* y_at = f.y + i;
        const float* v_at = f.value + i;
        const float* q_at = f.step + (f.step_map ? i : phase);
        if (left < VL) {
            for (int l = 0; l < VL; ++l) {
                pad[0][l] = l < left ? y_at[l] : 0.0f;
                pad[1][l] = l < left ? v_at[l] : 0.0f;
                pad[2][l] = E != Encode::change && l < left ? q_at[l] : 1.0f;
            }
            y_at = pad[0];
            v_at = pad[1];
            q_at = pad[2];
        }
        const Vec y = load(y_at), v = load(v_at);
        Vec to = y, q = splat(1.0f);
        if (E != Encode::change) q = load(q_at);
        if (E == Encode::exact) to = q * round_even(min(max(y / q, splat(f.low)), splat(f.high)));
        if (E == Encode::residual) to = v + q * truncate((y - v) / q);
        Vec d = to - v;
        if (E == Encode::hold) {
            const Int sent = bits(bits(d) & 0x7fffffff) > q;
            d = bits(bits(d) & sent);
            to = sent ? y : v;
        }
        phase = (phase + VL) % f.channels;
        Lanes lanes = nonzero(d);
        if (left < VL) lanes &= (1u << left) - 1;
        if (!lanes) continue;
        if (left < VL)
            for (int l = 0; l < left; ++l) f.value[i + l] = to[l];
        else
            store(f.value + i, to);
        float change[VL];
        store(change, d);
        for (; lanes; lanes &= lanes - 1) {
            const int l = __builtin_ctz(lanes);
            const int64_t element = f.first + i + l;
            const uint32_t pixel = uint32_t(element) / uint32_t(f.channels);
            if (pixel != last) {
                last = pixel;
                f.active[f.active_count] = int32_t(pixel);
                f.tally[f.active_count++] = 0;
                f.mask[pixel] = 1;
                if (f.rows)
                    for (int c = 0; c < f.channels; ++c) f.rows[int64_t(pixel) * f.channels + c] = 0.0f;
            }
            ++f.tally[f.active_count - 1];
            if (f.rows) f.rows[element] = change[l];
            if (f.place) {
                f.place[f.events] = pixel << f.shift | (uint32_t(element) - pixel * uint32_t(f.channels));
                f.change[f.events] = change[l];
            }
            ++f.events;
        }
    }
    all.active_count = f.active_count;
    all.events = f.events;
}

void flat(FlatArgs& f) {
    switch (f.encode) {
        case Encode::exact: return flat_of<Encode::exact>(f);
        case Encode::hold: return flat_of<Encode::hold>(f);
        case Encode::residual: return flat_of<Encode::residual>(f);
        default: return flat_of<Encode::change>(f);
    }
}

int64_t events_of_rows(const float* rows, const int32_t* pixel, int pixels, int channels, int stride, int shift,
                       uint32_t* place, float* change) {
    int64_t n = 0;
    for (int i = 0; i < pixels; ++i) {
        const float* row = rows + ptrdiff_t(pixel[i]) * stride;
        const uint32_t base = uint32_t(pixel[i]) << shift;
        if (stride % LANE) {
            for (int c = 0; c < channels; ++c) {
                place[n] = base | uint32_t(c);
                change[n] = row[c];
                n += row[c] != 0.0f;
            }
            continue;
        }
        Int where = iota() + int32_t(base);
        for (int c = 0; c < channels; c += VL, where += VL) {  // padding lanes are zero
            const Vec d = load(row + c);
            n += append(nonzero(d), where, d, place + n, change + n);
        }
    }
    return n;
}

}  // namespace

namespace sparsetime {

extern const Encoders SPARSETIME_ENCODERS;
const Encoders SPARSETIME_ENCODERS = {finish, flat, events_of_rows};

}  // namespace sparsetime
