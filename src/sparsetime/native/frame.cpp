// A camera's frame: from bytes or planes to rows of pixels, and against the value that was sent. Compiled once per instruction set,
// without contracting a product and a sum into one operation, like finish.cpp.

#include "activate.h"
#include "kernels.h"
#include "vec.h"

namespace {

using namespace sparsetime;

#if defined(__AVX2__)
// What VL pixels change, all at once: which pixels, how many channels of each, and the changes themselves. All that is written behind the
// last one lies where pixels to come have their place.
struct Group {
    uint64_t stride = 0;  // bit 0 of every pixel
    Int place[NARROW] = {};
    Group(int channels, int shift) {
        for (int p = 0; p < VL; ++p) stride |= uint64_t(1) << (p * channels);
        for (int p = 0, e = 0; p < VL; ++p)
            for (int c = 0; c < channels; ++c, ++e) place[e / VL][e % VL] = p << shift | c;
    }
    void emit(FrameArgs& f, int32_t pixel, uint64_t lanes, const float* change) const {
        const int C = f.channels;
        unsigned any = 0;
        Int tally{};
        for (int c = 0; c < C; ++c) {
            const unsigned here = unsigned(_pext_u64(lanes, stride << c));
            any |= here;
            tally += ones(here);
        }
        const Int order = order_of(any);
        store(f.active + f.active_count, order + pixel);
        store(f.tally + f.active_count, permuted(tally, order));
        f.active_count += __builtin_popcount(any);
        store_bits(f.mask + pixel, any);
        if (f.rows)
            for (int k = 0; k < C; ++k) store(f.rows + ptrdiff_t(pixel) * C + k * VL, load(change + k * VL));
        if (f.place) {
            int64_t to = f.events;
            for (int k = 0; k < C; ++k) {
                const unsigned here = unsigned(lanes >> (k * VL)) & ((1u << VL) - 1);
                const Int events = order_of(here);
                store(f.place + to, permuted(place[k], events) + int32_t(uint32_t(pixel) << f.shift));
                store(f.change + to, permuted(load(change + k * VL), events));
                to += __builtin_popcount(here);
            }
        }
        f.events += __builtin_popcountll(lanes);
    }
};
#endif

// VL pixels at a time: as many vectors as channels, whose changed lanes fit one word.
template <Encode E>
void compare_of(FrameArgs& all) {
    FrameArgs f = all;  // a copy that no store can alias
    const int C = f.channels;
    const uint64_t whole = (uint64_t(1) << C) - 1;
#if defined(__AVX2__)
    const Group group(C, f.shift);
#else
    const uint64_t all_lanes = ~uint64_t(0) >> (64 - VL * C);
#endif
    for (int i = 0; i < f.pixels; i += VL) {
        const int pixels = f.pixels - i < VL ? f.pixels - i : VL;
        const int elements = pixels * C;
        const float* y_at = f.y + i * C;
        float* v_at = f.value + ptrdiff_t(i) * C;
        const float* q_at = f.step_map ? f.step + ptrdiff_t(i) * C : f.step;
        float y_pad[NARROW * VL], v_pad[NARROW * VL], q_pad[NARROW * VL], change[NARROW * VL];
        if (pixels < VL) {
            for (int l = 0; l < VL * C; ++l) {
                y_pad[l] = l < elements ? y_at[l] : 0.0f;
                v_pad[l] = l < elements ? v_at[l] : 0.0f;
                q_pad[l] = E != Encode::change && l < elements ? q_at[l] : 1.0f;
            }
            y_at = y_pad;
            v_at = v_pad;
            q_at = q_pad;
        }
        uint64_t lanes = 0;
        for (int k = 0; k < C; ++k) {
            const Vec v = load(v_at + k * VL), q = steps_of<E>(q_at, k * VL);
            Vec to = encode<E>(load(y_at + k * VL), v, q, f.low, f.high), d = to - v;
            if (E == Encode::hold) {
                const Mask sent = sends<E>(d, q);
                d = choose(sent, d, Vec{});
                to = choose(sent, to, v);
            }
            store(change + k * VL, d);
            store(v_at + k * VL, to);
            lanes |= uint64_t(differing(d, Vec{})) << (k * VL);
        }
        if (pixels < VL) {
            if (elements < 64) lanes &= (uint64_t(1) << elements) - 1;
            for (int l = 0; l < elements; ++l) f.value[ptrdiff_t(i) * C + l] = v_pad[l];
        }
#if defined(__AVX2__)
        if (pixels == VL) {
            if (lanes) group.emit(f, f.first + i, lanes, change);
            continue;
        }
#else
        // A new picture: all pixels changed, and nobody takes deltas from so many.
        if (!f.rows && !f.place && elements == VL * C && lanes == all_lanes) {
            for (int p = 0; p < VL; ++p) f.add(f.first + i + p, C);
            continue;
        }
#endif
        while (lanes) {
            const int p = __builtin_ctzll(lanes) / C;
            const uint64_t here = lanes >> (p * C) & whole;
            lanes &= ~(whole << (p * C));
            const int32_t pixel = f.first + i + p;
            if (f.rows)
                for (int c = 0; c < C; ++c) f.rows[ptrdiff_t(pixel) * C + c] = change[p * C + c];
            if (f.place) {
                int64_t to = f.events;
                for (int c = 0; c < C; ++c) {  // what is no event is overwritten by the next
                    f.place[to] = uint32_t(pixel) << f.shift | uint32_t(c);
                    f.change[to] = change[p * C + c];
                    to += here >> c & 1;
                }
            }
            f.add(pixel, __builtin_popcountll(here));
        }
    }
    all.active_count = f.active_count;
    all.events = f.events;
}

// The VL floats from p + c on, c at most NARROW - 1, where whole vectors have just been stored at p and behind it: a load across
// both would have to wait for them to reach the cache.
inline Vec neighbours(const float* p, int c) {
#if defined(__AVX512F__)
    const __m512i low = _mm512_loadu_si512(p), high = _mm512_loadu_si512(p + VL);
    switch (c) {
        case 1: return reinterpret_cast<Vec>(_mm512_alignr_epi32(high, low, 1));
        case 2: return reinterpret_cast<Vec>(_mm512_alignr_epi32(high, low, 2));
        default: return reinterpret_cast<Vec>(_mm512_alignr_epi32(high, low, 3));
    }
#elif defined(__AVX2__)
    const __m256i low = reinterpret_cast<__m256i>(load(p)), high = reinterpret_cast<__m256i>(load(p + VL));
    const __m256i middle = _mm256_permute2x128_si256(low, high, 0x21);
    switch (c) {
        case 1: return reinterpret_cast<Vec>(_mm256_alignr_epi8(middle, low, 4));
        case 2: return reinterpret_cast<Vec>(_mm256_alignr_epi8(middle, low, 8));
        default: return reinterpret_cast<Vec>(_mm256_alignr_epi8(middle, low, 12));
    }
#else
    return load(p + c);
#endif
}

// `pixel`: sums over channels of neighbouring lanes, of which those count that start a pixel.
template <int C>
void compare_pixels(FrameArgs& all) {
    FrameArgs f = all;  // a copy that no store can alias
    uint64_t starts = 0;
    for (int p = 0; p < VL; ++p) starts |= uint64_t(1) << (p * C);
#if defined(__AVX2__)
    const Group group(C, f.shift);
#endif
    for (int i = 0; i < f.pixels; i += VL) {
        const int pixels = f.pixels - i < VL ? f.pixels - i : VL;
        const int elements = pixels * C;
        const float* y = f.y + i * C;
        float* v = f.value + ptrdiff_t(i) * C;
        const float* inverse = f.step_map ? f.step + ptrdiff_t(i) * C : f.step;
        float squares[NARROW * VL + VL];
        if (pixels == VL) {
            for (int k = 0; k < elements; k += VL)
                store(squares + k, distance(load(y + k), load(v + k), load(inverse + k)));
        } else {
            for (int k = 0; k < VL * C; ++k) squares[k] = k < elements ? distance(y[k], v[k], inverse[k]) : 0.0f;
        }
        store(squares + VL * C, Vec{});
        uint64_t lanes = 0;
        for (int k = 0; k < C; ++k) {
            Vec far = load(squares + k * VL);
            for (int c = 1; c < C; ++c) far += neighbours(squares + k * VL, c);
            lanes |= uint64_t(differing(max(far - float(C), Vec{}), Vec{})) << (k * VL);
        }
        lanes &= starts;
#if defined(__AVX2__)
        if (pixels == VL) {
            if (!lanes) continue;
            const uint64_t sent = lanes * ((uint64_t(1) << C) - 1);  // all channels of those pixels
            float change[NARROW * VL];
            uint64_t changed = 0;
            for (int k = 0; k < C; ++k) {
                const Mask here = mask_of(unsigned(sent >> (k * VL)));
                const Vec before = load(v + k * VL), to = choose(here, load(y + k * VL), before), d = to - before;
                store(v + k * VL, to);
                store(change + k * VL, d);
                changed |= uint64_t(differing(d, Vec{})) << (k * VL);
            }
            group.emit(f, f.first + i, changed, change);
            continue;
        }
#endif
        for (; lanes; lanes &= lanes - 1) {
            const int p = __builtin_ctzll(lanes) / C;
            const int32_t pixel = f.first + i + p;
            int any = 0;
            for (int c = 0; c < C; ++c) {
                const float d = y[p * C + c] - v[p * C + c];
                v[p * C + c] = y[p * C + c];
                if (f.rows) f.rows[ptrdiff_t(pixel) * C + c] = d;
                if (f.place) {  // what is no event is overwritten by the next
                    f.place[f.events + any] = uint32_t(pixel) << f.shift | uint32_t(c);
                    f.change[f.events + any] = d;
                }
                any += d != 0.0f;
            }
            f.add(pixel, any);
        }
    }
    all.active_count = f.active_count;
    all.events = f.events;
}

void compare(FrameArgs& f) {
    switch (f.encode) {
        case Encode::exact: return compare_of<Encode::exact>(f);
        case Encode::hold: return compare_of<Encode::hold>(f);
        case Encode::residual: return compare_of<Encode::residual>(f);
        case Encode::pixel:
            switch (f.channels) {
                case 1: return compare_pixels<1>(f);
                case 2: return compare_pixels<2>(f);
                case 3: return compare_pixels<3>(f);
                default: return compare_pixels<4>(f);
            }
        default: return compare_of<Encode::change>(f);
    }
}

void normalise(const uint8_t* in, const float* mean, const float* std, int n, float* out) {
    for (int i = 0; i < n; ++i) out[i] = (float(in[i]) - mean[i]) / std[i];
}

void reverse(const uint8_t* in, int channels, int n, uint8_t* out) {
    int i = 0;
#if defined(__SSSE3__)
    // Five pixels of three bytes at a time; the sixteenth byte is written over by the next.
    const __m128i order = _mm_setr_epi8(2, 1, 0, 5, 4, 3, 8, 7, 6, 11, 10, 9, 14, 13, 12, -1);
    for (; channels == 3 && i + 6 <= n; i += 5)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 3 * i),
                         _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 3 * i)), order));
#endif
    for (; i < n; ++i)
        for (int c = 0; c < channels; ++c) out[i * channels + c] = in[(i + 1) * channels - 1 - c];
}

void interleave(const float* const* planes, int channels, int n, float* __restrict__ out) {
    if (channels == 3) {
        const float *r = planes[0], *g = planes[1], *b = planes[2];
        for (int i = 0; i < n; ++i) {
            out[3 * i] = r[i];
            out[3 * i + 1] = g[i];
            out[3 * i + 2] = b[i];
        }
        return;
    }
    for (int c = 0; c < channels; ++c)
        for (int i = 0; i < n; ++i) out[i * channels + c] = planes[c][i];
}

bool finite(const float* x, int n) {
    uint32_t worst = 0;  // NaN and infinity have all bits of the exponent set
    for (int i = 0; i < n; ++i) {
        uint32_t u;
        __builtin_memcpy(&u, x + i, sizeof u);
        u &= 0x7fffffffu;
        worst = u > worst ? u : worst;
    }
    return worst < 0x7f800000u;
}

}  // namespace

namespace sparsetime {

extern const FrameKernels SPARSETIME_FRAMES;
const FrameKernels SPARSETIME_FRAMES = {compare, normalise, reverse, interleave, finite};

}  // namespace sparsetime
