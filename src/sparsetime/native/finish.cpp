// From sums to values and events: activations, codecs, lists. Compiled once per instruction set like kernels.cpp, but without
// contracting a product and a sum into one operation: v' = q n is rounded before v' - v is taken, or an unchanged code would
// send the rounding error as an event.

#include "activate.h"
#include "kernels.h"
#include "vec.h"

namespace {

using namespace sparsetime;

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

// ---- from sums to values ------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
inline Vec choose(Lanes m, Vec a, Vec b) { return _mm512_mask_blend_ps(m, b, a); }
inline Lanes above(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Lanes differ(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
inline Lanes first(int n) { return Lanes((1u << n) - 1); }
inline Lanes both(Lanes a, Lanes b) { return a & b; }
struct Count {
    int n = 0;
    void add(Lanes m) { n += __builtin_popcount(m); }
    int sum() const { return n; }
};
using Mask = Lanes;
#else
using Mask = Int;
inline Vec choose(Mask m, Vec a, Vec b) { return m ? a : b; }
inline Mask above(Vec a, Vec b) { return a > b; }
inline Mask differ(Vec a, Vec b) { return a != b; }
inline Mask first(int n) { return iota() < n; }
inline Mask both(Mask a, Mask b) { return a & b; }
struct Count {
    Int n{};
    void add(Mask m) { n -= m; }
    int sum() const {
        int all = 0;
        for (int i = 0; i < VL; ++i) all += n[i];
        return all;
    }
};
#endif

// The dense path of an operation from which nobody takes deltas in this frame: values, and how many changed. At full density most
// of a frame's time beside the sums themselves is spent here.
template <Act A, Encode E>
void settle_rows(FinishArgs& all) {
    FinishArgs f = all;  // a copy that no store can alias
    const int whole = f.channels / VL, rest = f.channels % VL;
    const int ahead = 1 + 1024 / f.stride;
    int64_t events = f.events;
    for (int i = 0; i < f.pixels; ++i) {
        const ptrdiff_t p = f.pixel[i];
        const float* sum = f.sum + f.at[i];
        float* value = f.value + p * f.stride;
        float* z = f.z ? f.z + p * f.stride : nullptr;
        const float* step = f.step_map ? f.step + p * f.stride : f.step;
        const float* extra = f.extra && (!f.extra_mask || f.extra_mask[p]) ? f.extra + p * f.stride : nullptr;
        Count count;
        const auto settle = [&](int b) -> Mask {
            const int c = b * VL;
            Vec next = load(f.bias + c) + (extra ? load(sum + b * f.block) + load(extra + c) : load(sum + b * f.block));
            if (z) store(z + c, next);
            const Vec v = load(value + c);
            const Vec y = activate<A>(next, f.act, f.act_a, f.act_b);
            Vec to = y;
            if constexpr (E == Encode::exact) to = load(step + c) * round_even(min(max(y / load(step + c), splat(f.low)), splat(f.high)));
            if constexpr (E == Encode::residual) to = v + load(step + c) * truncate((y - v) / load(step + c));
            Mask changed;
            if constexpr (E == Encode::hold) {
                changed = above(bits(bits(y - v) & 0x7fffffff), load(step + c));
                to = choose(changed, y, v);
            } else {
                changed = differ(to, v);
            }
            if (rest && b == whole) {
                changed = both(changed, first(rest));
                to = choose(first(rest), to, Vec{});
            }
            store(value + c, to);
            return changed;
        };
        // The last row asked for lies elsewhere unless the pixels are neighbours: then the machine sees for itself what comes.
        if (i + ahead < f.pixels && f.pixel[i + ahead] != p + ahead) {
            const ptrdiff_t later = ptrdiff_t(f.pixel[i + ahead]) * f.stride;
            for (int c = 0; c < f.stride; c += 16) __builtin_prefetch(f.value + later + c, 1);
        }
        for (int b = 0; b < whole; ++b) count.add(settle(b));
        if (rest) count.add(settle(whole));
        const int changed = count.sum();
        events += changed;
        f.active[f.active_count] = int32_t(p);
        f.tally[f.active_count] = changed;
        f.active_count += changed != 0;
        f.mask[p] = changed != 0;
    }
    all.active_count = f.active_count;
    all.events = events;
}

template <Encode E>
void settle_encode(FinishArgs& f) {
    if (f.act == Act::none) return settle_rows<Act::none, E>(f);
    if (f.act == Act::clamp) return settle_rows<Act::clamp, E>(f);
    return settle_rows<Act::leaky_relu, E>(f);  // stands for all that are chosen at run time
}

void finish(FinishArgs& f) {
    if (f.replace && !f.rows && !f.place && f.stride % LANE == 0) {
        switch (f.encode) {
            case Encode::linear: return settle_rows<Act::none, Encode::change>(f);
            case Encode::change: return settle_encode<Encode::change>(f);
            case Encode::exact: return settle_encode<Encode::exact>(f);
            case Encode::hold: return settle_encode<Encode::hold>(f);
            case Encode::residual: return settle_encode<Encode::residual>(f);
        }
    }
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
const Encoders SPARSETIME_ENCODERS = {finish, events_of_rows};

}  // namespace sparsetime
