// int8 layers: sums of products of bytes in registers, and from there to codes without a way through memory. Compiled once per
// instruction set, without contracting a product and a sum into one operation: codes must be the same bits everywhere.

#include "kernels_int.h"

#include <cstring>

#include "activate.h"
#include "kernels.h"
#include "vec.h"

namespace {

using namespace sparsetime;

typedef int32_t IntU __attribute__((vector_size(VL * 4), aligned(4), may_alias));

inline Int load_int(const void* p) { return *static_cast<const IntU*>(p); }
inline Int splat_int(int32_t x) { return x - Int{}; }
inline Int four_bytes(const uint8_t* p) {
    int32_t x;
    std::memcpy(&x, p, sizeof x);
    return splat_int(x);
}
inline Vec floats(Int x) { return __builtin_convertvector(x, Vec); }
inline Int rounded(Vec x) {
#if defined(__AVX512F__)
    return reinterpret_cast<Int>(_mm512_cvtps_epi32(x));
#elif defined(__AVX2__)
    return reinterpret_cast<Int>(_mm256_cvtps_epi32(x));
#else
    return __builtin_convertvector(round_even(x), Int);
#endif
}

// acc + sum of four products in each lane: bytes of x without sign, of w with.
inline Int dot(Int acc, Int x, Int w) {
#if defined(__AVX512VNNI__)
    return reinterpret_cast<Int>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc), reinterpret_cast<__m512i>(x),
                                                     reinterpret_cast<__m512i>(w)));
#elif defined(__AVX512BW__)
    // Products of neighbours apart, since their sums leave 16 bits.
    const __m512i a = reinterpret_cast<__m512i>(x), b = reinterpret_cast<__m512i>(w);
    const __m512i even =
        _mm512_madd_epi16(_mm512_and_si512(a, _mm512_set1_epi16(255)), _mm512_srai_epi16(_mm512_slli_epi16(b, 8), 8));
    const __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(a, 8), _mm512_srai_epi16(b, 8));
    return acc + reinterpret_cast<Int>(even) + reinterpret_cast<Int>(odd);
#elif defined(__AVX2__)
    const __m256i a = reinterpret_cast<__m256i>(x), b = reinterpret_cast<__m256i>(w);
    const __m256i even =
        _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(b, 8));
    return acc + reinterpret_cast<Int>(even) + reinterpret_cast<Int>(odd);
#elif defined(__SSE2__)
    const __m128i a = reinterpret_cast<__m128i>(x), b = reinterpret_cast<__m128i>(w);
    const __m128i even = _mm_madd_epi16(_mm_and_si128(a, _mm_set1_epi16(255)), _mm_srai_epi16(_mm_slli_epi16(b, 8), 8));
    const __m128i odd = _mm_madd_epi16(_mm_srli_epi16(a, 8), _mm_srai_epi16(b, 8));
    return acc + reinterpret_cast<Int>(even) + reinterpret_cast<Int>(odd);
#elif defined(__ARM_FEATURE_DOTPROD)
    // Both with sign: x - 128, and what that takes away given back.
    const int8x16_t b = reinterpret_cast<int8x16_t>(w);
    const int32x4_t less =
        vdotq_s32(reinterpret_cast<int32x4_t>(acc),
                  vreinterpretq_s8_u8(veorq_u8(reinterpret_cast<uint8x16_t>(x), vdupq_n_u8(128))), b);
    return reinterpret_cast<Int>(vsubq_s32(less, vdotq_s32(vdupq_n_s32(0), vdupq_n_s8(-128), b)));
#else
    const Int low = x & 255, second = (x >> 8) & 255, third = (x >> 16) & 255, fourth = (x >> 24) & 255;
    return acc + low * ((w << 24) >> 24) + second * ((w << 16) >> 24) + third * ((w << 8) >> 24) + fourth * (w >> 24);
#endif
}

// ---- from numbers to codes ----------------------------------------------------------------------------------------------

// What the codec needs on vectors.
struct Scale {
    Vec inverse, low, high;
    Int zero;
    explicit Scale(const Settle& s)
        : inverse(splat(s.inverse)), low(splat(float(-s.zero))), high(splat(float(255 - s.zero))),
          zero(splat_int(s.zero)) {}
    Int code(Vec y) const { return rounded(min(max(y * inverse, low), high)) + zero; }
};

// Codes of a pixel from channel c on against those held; returns how many were sent.
inline int send(const uint8_t* code, const Settle& s, ptrdiff_t pixel, int c, int count) {
    uint8_t* held = s.codes + pixel * s.stride + c;
    const uint8_t* threshold = s.threshold + c;
    int sent = 0;
    for (int i = 0; i < count; ++i) {
        const uint8_t n = code[i], h = held[i], far = n > h ? uint8_t(n - h) : uint8_t(h - n);
        const bool go = s.all || far > threshold[i];
        held[i] = go ? n : h;
        sent += go;
    }
    return sent;
}

#if defined(__AVX512BW__)
[[gnu::always_inline]] inline int send(__m512i code, const Settle& s, ptrdiff_t pixel, int c, int count) {
    uint8_t* held = s.codes + pixel * s.stride + c;
    const __mmask64 valid = count >= 64 ? ~__mmask64(0) : (__mmask64(1) << count) - 1;
    // The row of this pixel alone: what lies behind it may be another thread's.
    const __mmask64 row =
        s.stride < BYTE_LANE ? valid : ~__mmask64(0) >> (64 - (count + BYTE_LANE - 1) / BYTE_LANE * BYTE_LANE);
    const __m512i h = _mm512_maskz_loadu_epi8(row, held);
    const __m512i far = _mm512_or_si512(_mm512_subs_epu8(code, h), _mm512_subs_epu8(h, code));
    const __mmask64 go = s.all ? valid : _mm512_mask_cmpgt_epu8_mask(valid, far, _mm512_loadu_si512(s.threshold + c));
    // Stored without asking, since whether something changed cannot be foreseen; and in whole parts of a row, since stores under a
    // mask of bytes are slow on some machines.
    const __m512i now = _mm512_mask_blend_epi8(go, h, code);
    if (s.stride < BYTE_LANE) {
        _mm_mask_storeu_epi8(held, __mmask16(go), _mm512_castsi512_si128(now));
    } else if (count > 48) {
        _mm512_storeu_si512(held, now);
    } else {
        if (count > 16) _mm256_storeu_si256(reinterpret_cast<__m256i*>(held), _mm512_castsi512_si256(now));
        if (count <= 16) _mm_storeu_si128(reinterpret_cast<__m128i*>(held), _mm512_castsi512_si128(now));
        else if (count > 32) _mm_storeu_si128(reinterpret_cast<__m128i*>(held + 32), _mm512_extracti32x4_epi32(now, 2));
    }
    return int(__builtin_popcountll(go));
}
#endif

template <Act A>
int settle_of(const float* z, ptrdiff_t pixel, int c, int count, const Settle& s) {
    if (s.values) {
        float* value = s.values + pixel * s.value_stride + c;
        int sent = 0, i = 0;
        for (; i < count && c + i + VL <= s.value_stride; i += VL) {
            Vec y = activate<A>(load(z + i), s.act, s.act_a, s.act_b);
            // Lanes behind the last channel stay zero.
            if (i + VL > count) y = choose(first_lanes(count - i), y, Vec{});
            sent += __builtin_popcount(differing(y, load(value + i)));
            store(value + i, y);
        }
        if (i < count) {  // a narrow map
            float y[VL];
            store(y, activate<A>(load(z + i), s.act, s.act_a, s.act_b));
            for (int l = 0; i + l < count; ++l) {
                sent += y[l] != value[i + l];
                value[i + l] = y[l];
            }
        }
        return s.all ? count : sent;
    }
    const Scale scale(s);
    int sent = 0;
    for (int first = 0; first < count; first += BYTE_BLOCK) {
        const int n = count - first < BYTE_BLOCK ? count - first : BYTE_BLOCK;
        const auto codes = [&](int i) { return scale.code(activate<A>(load(z + first + i), s.act, s.act_a, s.act_b)); };
#if defined(__AVX512BW__)
        const auto bytes = [&](int i) { return i < n ? _mm512_cvtepi32_epi8(__m512i(codes(i))) : _mm_setzero_si128(); };
        const __m512i code = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_set_m128i(bytes(16), bytes(0))),
                                                _mm256_set_m128i(bytes(48), bytes(32)), 1);
#else
        uint8_t code[BYTE_BLOCK + VL];
        for (int i = 0; i < n; i += VL) {
            const Int m = codes(i);
            for (int l = 0; l < VL; ++l) code[i + l] = uint8_t(m[l]);
        }
#endif
        sent += send(code, s, pixel, c + first, n);
    }
    return sent;
}

int settle_from(const float* z, ptrdiff_t pixel, int c, int count, const Settle& s) {
    if (s.act == Act::none) return settle_of<Act::none>(z, pixel, c, count, s);
    if (s.act == Act::clamp) return settle_of<Act::clamp>(z, pixel, c, count, s);
    return settle_of<Act::leaky_relu>(z, pixel, c, count, s);  // stands for all that are chosen at run time
}

int settle(const float* z, int pixel, const Settle& s) { return settle_from(z, pixel, 0, s.channels, s); }

#if defined(__AVX512BW__)
// Up to BYTE_BLOCK codes, of which n are looked at; S = 2: of every second byte. A load of no more than these crosses fewer cache lines.
template <int S>
[[gnu::always_inline]] inline __m512i codes_at(const uint8_t* x, int n) {
    if (S == 1 && n <= BYTE_BLOCK / 2)
        return _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
    if (S == 1) return _mm512_loadu_si512(x);
    const __m256i first = _mm512_cvtepi16_epi8(_mm512_loadu_si512(x)),
                  second = _mm512_cvtepi16_epi8(_mm512_loadu_si512(x + 64));
    return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}
#endif

template <int S>
void moves_of(const IntMoveArgs& given, const Settle& all) {
    const IntMoveArgs m = given;
    const Settle s = all;  // a copy that no store can alias
    for (int i = 0; i < m.pixels; ++i) {
        const uint8_t* const* row = m.row + ptrdiff_t(i) * m.rows;
        int sent = 0;
        for (int c = 0; c < s.channels; c += BYTE_BLOCK) {
            const int n = s.channels - c < BYTE_BLOCK ? s.channels - c : BYTE_BLOCK;
#if defined(__AVX512BW__)
            __m512i code = codes_at<S>(row[0] + S * c, n);
            for (int r = 1; r < m.rows; ++r) code = _mm512_max_epu8(code, codes_at<S>(row[r] + S * c, n));
            sent += send(code, s, m.pixel[i], c, n);
#else
            uint8_t code[BYTE_BLOCK];
            for (int k = 0; k < n; ++k) code[k] = row[0][S * (c + k)];
            for (int r = 1; r < m.rows; ++r)
                for (int k = 0; k < n; ++k) code[k] = code[k] < row[r][S * (c + k)] ? row[r][S * (c + k)] : code[k];
            sent += send(code, s, m.pixel[i], c, n);
#endif
        }
        m.count[i] = sent;
    }
}

void moves(const IntMoveArgs& m, const Settle& s) { m.step == 2 ? moves_of<2>(m, s) : moves_of<1>(m, s); }

// DIRECT: the sums are the values.
template <bool DIRECT>
void resize_of(const IntResizeArgs& given, const Settle& all) {
    const IntResizeArgs r = given;
    const Settle s = all;  // copies that no store can alias
    const bool two = r.row_taps == 2 && r.column_taps == 2;
    for (int p = 0; p < r.pixels; ++p) {
        const ptrdiff_t x = ptrdiff_t(r.pixel[p] - r.start) * r.column_taps;
        const int32_t* column = r.column + x;
        const float* weight = r.column_weight + x;
        int sent = 0;
        for (int c = 0; c < s.channels; c += BYTE_BLOCK) {
            const int n = s.channels - c < BYTE_BLOCK ? s.channels - c : BYTE_BLOCK;
            float z[BYTE_BLOCK];
            if (two) {
                const Vec upper = splat(r.row_weight[0]), lower = splat(r.row_weight[1]), first = splat(weight[0]),
                          second = splat(weight[1]);
                const ptrdiff_t left = ptrdiff_t(column[0]) * r.stride + c, right = ptrdiff_t(column[1]) * r.stride + c;
                const float *top = r.row[0], *bottom = r.row[1];
                const auto sum = [&](int i) {
                    return upper * (first * load(top + left + i) + second * load(top + right + i)) +
                           lower * (first * load(bottom + left + i) + second * load(bottom + right + i));
                };
                if (DIRECT) {
                    float* value = s.values + ptrdiff_t(r.pixel[p]) * s.value_stride + c;
                    int changed = 0;
                    for (int i = 0; i < n; i += VL) {
                        Vec y = sum(i);
                        if (i + VL > n) y = choose(first_lanes(n - i), y, Vec{});  // as in settle_of
                        changed += __builtin_popcount(differing(y, load(value + i)));
                        store(value + i, y);
                    }
                    sent += s.all ? n : changed;
                    continue;
                }
                for (int i = 0; i < n; i += VL) store(z + i, sum(i));
            } else {
                for (int i = 0; i < n; i += VL) {
                    Vec total{};
                    for (int a = 0; a < r.row_taps; ++a) {
                        Vec line{};
                        for (int b = 0; b < r.column_taps; ++b)
                            line += splat(weight[b]) * load(r.row[a] + ptrdiff_t(column[b]) * r.stride + c + i);
                        total += splat(r.row_weight[a]) * line;
                    }
                    store(z + i, total);
                }
            }
            sent += settle_from(z, r.pixel[p], c, n, s);
        }
        r.count[p] = sent;
    }
}

void resize(const IntResizeArgs& r, const Settle& s) {
    // Rows of values are whole vectors, since the map is not narrow.
    s.values && s.act == Act::none ? resize_of<true>(r, s) : resize_of<false>(r, s);
}

// Sums of one pixel, V vectors of a panel, with all that may come behind.
template <int V>
[[gnu::noinline]] int finish_sums(const int32_t* sum, const float* scale, const float* bias, ptrdiff_t pixel,
                                  int channel, const Settle& s) {
    float z[V * VL];
    for (int v = 0; v < V; ++v) {
        float lane[VL];
        store(lane, floats(load_int(sum + v * VL)) * load(scale + v * VL) + load(bias + v * VL));
        for (int l = 0; l < VL; ++l) z[V == 4 ? packed_channel(v, l) : v * VL + l] = lane[l];
    }
    const int count = s.channels - channel < V * VL ? s.channels - channel : V * VL;
    if (s.residual) {
        const uint8_t* r = s.residual + pixel * s.residual_stride + channel;
        for (int i = 0; i < count; ++i) z[i] += float(int(r[i]) - s.residual_zero) * s.residual_step;
    }
    if (s.residual_values) {
        const float* r = s.residual_values + pixel * s.residual_value_stride + channel;
        for (int i = 0; i < count; ++i) z[i] += r[i];
    }
    return settle_from(z, pixel, channel, count, s);
}

// Through memory of no alignment: a stack that a sanitizer makes has none to spare.
template <int V>
inline int finish_any(const Int* sum, const float* scale, const float* bias, ptrdiff_t pixel, int channel,
                      const Settle& s) {
    int32_t plain[V * VL];
    for (int v = 0; v < V; ++v) *reinterpret_cast<IntU*>(plain + v * VL) = sum[v];
    return finish_sums<V>(plain, scale, bias, pixel, channel, s);
}

// The same where activation and codec are bounds of the codes alone, which most layers are. It holds a copy of what it was made
// from: a store of bytes could change anything that is not a local variable, and all would be read again after it.
struct Bounds {
    Settle s;
    Scale scale;
    Vec residual_step;
    explicit Bounds(const Settle& given) : s(given), scale(given), residual_step(splat(given.residual_step)) {
        if (s.act != Act::clamp) return;
        // Bounds of y are bounds of y / step: rounding keeps the order. Where they lie beyond all codes, the last code is meant.
        const Vec least = scale.low, most = scale.high;
        scale.low = min(max(splat(s.act_a * s.inverse), least), most);
        scale.high = min(max(splat(s.act_b * s.inverse), least), most);
    }
};

inline bool bounded(const Settle& s) {
    return s.codes && !s.residual_values && (s.act == Act::none || s.act == Act::clamp);
}

#if defined(__AVX512BW__)
template <int V>
[[gnu::always_inline]] inline int finish_bounded(const Int* sum, const float* scale, const float* bias, ptrdiff_t pixel,
                                                 int channel, const Bounds& b) {
    const Settle& s = b.s;
    Int n[V];
    Vec y[V];
    for (int v = 0; v < V; ++v) y[v] = floats(sum[v]) * load(scale + v * VL) + load(bias + v * VL);
    const int count = s.channels - channel;
    if (s.residual) {
        const uint8_t* r = s.residual + pixel * s.residual_stride + channel;
        __m512i wide[4];
        if (V == 4) {
            const __m512i bytes = _mm512_loadu_si512(r), none = _mm512_setzero_si512();
            const __m512i low = _mm512_unpacklo_epi8(bytes, none), high = _mm512_unpackhi_epi8(bytes, none);
            wide[0] = _mm512_unpacklo_epi16(low, none);
            wide[1] = _mm512_unpackhi_epi16(low, none);
            wide[2] = _mm512_unpacklo_epi16(high, none);
            wide[3] = _mm512_unpackhi_epi16(high, none);
        } else {
            for (int v = 0; v < V; ++v)
                wide[v] = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(r + v * VL)));
        }
        for (int v = 0; v < V; ++v)
            y[v] = y[v] + floats(reinterpret_cast<Int>(wide[v]) - s.residual_zero) * b.residual_step;
    }
    for (int v = 0; v < V; ++v) y[v] = y[v] * b.scale.inverse;
    if (V < 4 || !s.saturates)
        for (int v = 0; v < V; ++v) y[v] = min(max(y[v], b.scale.low), b.scale.high);
    for (int v = 0; v < V; ++v) n[v] = rounded(y[v]);
    if (s.zero)
        for (int v = 0; v < V; ++v) n[v] += b.scale.zero;
    __m512i code;
    if (V == 4) {
        const __m512i first = _mm512_packs_epi32(reinterpret_cast<__m512i>(n[0]), reinterpret_cast<__m512i>(n[1 % V]));
        const __m512i second =
            _mm512_packs_epi32(reinterpret_cast<__m512i>(n[2 % V]), reinterpret_cast<__m512i>(n[3 % V]));
        code = _mm512_packus_epi16(first, second);
    } else {
        code = _mm512_castsi128_si512(_mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(n[0])));
        if (V > 1) code = _mm512_inserti32x4(code, _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(n[1 % V])), 1);
        if (V > 2) code = _mm512_inserti32x4(code, _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(n[2 % V])), 2);
    }
    return send(code, s, pixel, channel, count < V * VL ? count : V * VL);
}
#else
template <int V>
inline int finish_bounded(const Int* sum, const float* scale, const float* bias, ptrdiff_t pixel, int channel,
                          const Bounds& b) {
    const Settle& s = b.s;
    uint8_t code[4 * VL];
    const int count = s.channels - channel < V * VL ? s.channels - channel : V * VL;
    for (int v = 0; v < V; ++v) {
        Vec y = floats(sum[v]) * load(scale + v * VL) + load(bias + v * VL);
        if (s.residual) {
            const uint8_t* r = s.residual + pixel * s.residual_stride + channel;
            Int wide;
            for (int l = 0; l < VL; ++l) wide[l] = r[V == 4 ? packed_channel(v, l) : v * VL + l];
            y = y + floats(wide - s.residual_zero) * b.residual_step;
        }
        const Int n = rounded(min(max(y * b.scale.inverse, b.scale.low), b.scale.high)) + b.scale.zero;
        for (int l = 0; l < VL; ++l) code[V == 4 ? packed_channel(v, l) : v * VL + l] = uint8_t(n[l]);
    }
    return send(code, s, pixel, channel, count);
}
#endif

// ---- register tile ------------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int PIXELS = 6;
constexpr int AHEAD = 1;  // groups of pixels
#else
constexpr int PIXELS = 2;
constexpr int AHEAD = 8;
#endif

// Weights of the panel behind the one that is multiplied with, asked for in pieces.
struct Following {
    const int8_t *at, *end;
    ptrdiff_t piece;  // bytes for each STEPS of a tile's steps
    static constexpr int STEPS = 16;
    template <int V>
    static Following of(const IntTileArgs& t) {
        const int8_t* first = t.w + ptrdiff_t(t.taps) * t.depth * V * VL * INT_GROUP;
        const ptrdiff_t steps = ptrdiff_t((t.pixels + PIXELS - 1) / PIXELS) * t.taps * ((t.depth + STEPS - 1) / STEPS);
        return {first, first + t.next, (ptrdiff_t(t.next) / steps + 64) / 64 * 64};
    }
    void ask() {
        if (at >= end) return;
        for (const int8_t* to = at + piece; at < to; at += 64) __builtin_prefetch(at, 0, 2);
    }
};

template <int M, int V>
[[gnu::always_inline]] inline void tile_at(const IntTileArgs& t, int at, const Settle& s, const Bounds& bounds,
                                           bool fast, Following& following) {
    Int acc[M][V];
    for (int v = 0; v < V; ++v) {
        const Int start = load_int(t.start + v * VL);
        for (int i = 0; i < M; ++i) acc[i][v] = start;
    }
    const int8_t* w = t.w;
    for (int tap = 0; tap < t.taps; ++tap) {
        const uint8_t* a[M];
        for (int i = 0; i < M; ++i) a[i] = t.a[ptrdiff_t(tap) * t.pixels + at + i] + t.offset;
        for (int k = 0; k < t.depth;) {
            following.ask();
            for (const int end = t.next && k + Following::STEPS < t.depth ? k + Following::STEPS : t.depth; k < end;
                 ++k, w += V * VL * INT_GROUP) {
                Int weight[V];
                for (int v = 0; v < V; ++v) weight[v] = load_int(w + v * VL * INT_GROUP);
                for (int i = 0; i < M; ++i) {
                    const Int x = four_bytes(a[i] + k * INT_GROUP);
                    for (int v = 0; v < V; ++v) acc[i][v] = dot(acc[i][v], x, weight[v]);
                }
            }
        }
    }
    // Read again behind the loop, which needs all registers for itself: kept in some of them, it would push out weights.
    const Bounds* again = &bounds;
    asm volatile("" : "+r"(again));
    const Bounds b = *again;
    for (int i = 0; i < M; ++i) {
        const ptrdiff_t p = t.pixel[at + i];
        t.count[at + i] += fast ? finish_bounded<V>(acc[i], t.scale, t.bias, p, t.channel, b)
                                : finish_any<V>(acc[i], t.scale, t.bias, p, t.channel, s);
    }
}

// Asks for what the pixels from `at` on will need: lists jump over what did not change, so the machine cannot foresee it.
[[gnu::always_inline]] inline void fetch(const IntTileArgs& t, const Settle& s, int at) {
    for (int i = at; i < at + PIXELS && i < t.pixels; ++i) {
        if (s.codes) {
            const uint8_t* held = s.codes + ptrdiff_t(t.pixel[i]) * s.stride + t.channel;
            __builtin_prefetch(held);
            if (t.vectors == 4) __builtin_prefetch(held + 4 * VL - 1);
        }
        if (s.residual) __builtin_prefetch(s.residual + ptrdiff_t(t.pixel[i]) * s.residual_stride + t.channel);
        if (t.taps == 1) __builtin_prefetch(t.a[i] + t.offset);
    }
}

template <int V>
void tile_of(const IntTileArgs& given, const Settle& s) {
    const IntTileArgs t = given;
    const Bounds b(s);
    const bool fast = bounded(s);
    Following following = Following::of<V>(t);
    int at = 0;
    for (; at + PIXELS <= t.pixels; at += PIXELS) {
        fetch(t, b.s, at + AHEAD * PIXELS);
        tile_at<PIXELS, V>(t, at, s, b, fast, following);
    }
    switch (t.pixels - at) {
#if defined(__AVX512F__)
        case 5: return tile_at<5, V>(t, at, s, b, fast, following);
        case 4: return tile_at<4, V>(t, at, s, b, fast, following);
        case 3: return tile_at<3, V>(t, at, s, b, fast, following);
        case 2: return tile_at<2, V>(t, at, s, b, fast, following);
#endif
        case 1: return tile_at<1, V>(t, at, s, b, fast, following);
        default: return;
    }
}

void tile(const IntTileArgs& t, const Settle& s) {
    switch (t.vectors) {
        case 1: return tile_of<1>(t, s);
        case 2: return tile_of<2>(t, s);
        case 3: return tile_of<3>(t, s);
        default: return tile_of<4>(t, s);
    }
}

// ---- depthwise ----------------------------------------------------------------------------------------------------------

// Four rows of 4 VL bytes as four vectors of lanes that hold one channel's four bytes each, in the order of packed_channel.
struct Column {
    Int v[4];
};

inline Column interleave(const uint8_t* const (&row)[4]) {
    Column c;
#if defined(__AVX512BW__)
    const __m512i r0 = _mm512_loadu_si512(row[0]), r1 = _mm512_loadu_si512(row[1]), r2 = _mm512_loadu_si512(row[2]),
                  r3 = _mm512_loadu_si512(row[3]);
    const __m512i a = _mm512_unpacklo_epi8(r0, r1), b = _mm512_unpackhi_epi8(r0, r1), d = _mm512_unpacklo_epi8(r2, r3),
                  e = _mm512_unpackhi_epi8(r2, r3);
    c.v[0] = reinterpret_cast<Int>(_mm512_unpacklo_epi16(a, d));
    c.v[1] = reinterpret_cast<Int>(_mm512_unpackhi_epi16(a, d));
    c.v[2] = reinterpret_cast<Int>(_mm512_unpacklo_epi16(b, e));
    c.v[3] = reinterpret_cast<Int>(_mm512_unpackhi_epi16(b, e));
#elif defined(__AVX2__)
    const auto at = [&](int i) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row[i])); };
    const __m256i r0 = at(0), r1 = at(1), r2 = at(2), r3 = at(3);
    const __m256i a = _mm256_unpacklo_epi8(r0, r1), b = _mm256_unpackhi_epi8(r0, r1), d = _mm256_unpacklo_epi8(r2, r3),
                  e = _mm256_unpackhi_epi8(r2, r3);
    c.v[0] = reinterpret_cast<Int>(_mm256_unpacklo_epi16(a, d));
    c.v[1] = reinterpret_cast<Int>(_mm256_unpackhi_epi16(a, d));
    c.v[2] = reinterpret_cast<Int>(_mm256_unpacklo_epi16(b, e));
    c.v[3] = reinterpret_cast<Int>(_mm256_unpackhi_epi16(b, e));
#else
    for (int j = 0; j < 4; ++j)
        for (int l = 0; l < VL; ++l) {
            const int at = packed_channel(j, l);
            c.v[j][l] = int32_t(uint32_t(row[0][at]) | uint32_t(row[1][at]) << 8 | uint32_t(row[2][at]) << 16 |
                                uint32_t(row[3][at]) << 24);
        }
#endif
    return c;
}

struct DepthwiseView {
    const IntDepthwiseArgs& d;
    const uint8_t* outside;  // 4 VL bytes of `zero`
    int c;                   // first channel
    Column at(int column, int group) const {
        const uint8_t* row[4];
        for (int r = 0; r < 4; ++r) {
            const int y = 4 * group + r;
            row[r] = y < d.rows && d.row[y] && column >= 0 && column < d.width
                         ? d.row[y] + ptrdiff_t(column) * d.stride + c
                         : outside;
        }
        return interleave(row);
    }
};

// Any kernel: columns are read anew for every output.
void depthwise_any(const IntDepthwiseArgs& d, const DepthwiseView& view, const int8_t* w, int block, const Settle& s,
                   const Bounds& b, bool fast) {
    const int groups = (d.rows + 3) / 4, size = 4 * VL;
    for (int i = 0; i < d.pixels; ++i) {
        Int acc[4];
        for (int v = 0; v < 4; ++v) acc[v] = load_int(d.start + block * size + v * VL);
        const int8_t* weight = w;
        for (int k = 0; k < d.columns; ++k)
            for (int g = 0; g < groups; ++g, weight += 4 * size) {
                const Column x = view.at(d.column + i * d.step + k * d.dilation, g);
                for (int v = 0; v < 4; ++v) acc[v] = dot(acc[v], x.v[v], load_int(weight + v * VL * INT_GROUP));
            }
        const float *scale = d.scale + block * size, *bias = d.bias + block * size;
        d.count[i] += fast ? finish_bounded<4>(acc, scale, bias, d.first + i, block * size, b)
                           : finish_any<4>(acc, scale, bias, d.first + i, block * size, s);
    }
}

// Three rows and columns: a window that slides, by S columns.
template <int S>
void depthwise_three(const IntDepthwiseArgs& d, const uint8_t* outside, const int8_t* w, int block,
                     const Settle& given) {
    constexpr int size = 4 * VL;
    const Bounds b(given);
    const float *scale = d.scale + block * size, *bias = d.bias + block * size;
    const int32_t* start = d.start + block * size;
    const int pixels = d.pixels, first = d.first, channel = block * size;
    int32_t* const count = d.count;
    const unsigned width = unsigned(d.width);
    unsigned column = unsigned(d.column);  // of the next column; below 0 is beyond the width too
    const uint8_t* row[3];
    ptrdiff_t advance[3];  // rows outside of the map stand still
    for (int r = 0; r < 3; ++r) {
        advance[r] = d.row[r] ? d.stride : 0;
        row[r] = d.row[r] ? d.row[r] + channel + ptrdiff_t(d.column) * d.stride : outside;
    }
    const auto next = [&]() __attribute__((always_inline)) {
        // The weights of the fourth row are zero.
        const bool inside = column < width;
        const Column c =
            inside ? interleave({row[0], row[1], row[2], outside}) : interleave({outside, outside, outside, outside});
        ++column;
        for (int r = 0; r < 3; ++r) row[r] += advance[r];
        return c;
    };
    const auto finish = [&](int i, const Column& left, const Column& middle, const Column& right)
        __attribute__((always_inline)) {
        Int acc[4];
        for (int v = 0; v < 4; ++v) {
            acc[v] = dot(load_int(start + v * VL), left.v[v], load_int(w + v * VL * INT_GROUP));
            acc[v] = dot(acc[v], middle.v[v], load_int(w + (4 + v) * VL * INT_GROUP));
            acc[v] = dot(acc[v], right.v[v], load_int(w + (8 + v) * VL * INT_GROUP));
        }
        count[i] += finish_bounded<4>(acc, scale, bias, first + i, channel, b);
    };
    Column left = next();
    if constexpr (S == 1) {
        Column middle = next();
        for (int i = 0; i < pixels; ++i) {
            const Column right = next();
            finish(i, left, middle, right);
            left = middle;
            middle = right;
        }
    } else {
        for (int i = 0; i < pixels; ++i) {
            const Column middle = next(), right = next();
            finish(i, left, middle, right);
            left = right;
        }
    }
}

void depthwise(const IntDepthwiseArgs& d, const Settle& s) {
    const Bounds b(s);
    const bool fast = bounded(s);
    uint8_t outside[4 * VL];
    std::memset(outside, d.zero, sizeof outside);
    const size_t weights = size_t(d.columns) * ((d.rows + 3) / 4) * 4 * VL * INT_GROUP;
    const int8_t* w = d.w;
    for (int block = 0; block * 4 * VL < s.channels; ++block, w += weights) {
        const DepthwiseView view{d, outside, block * 4 * VL};
        const bool three = fast && d.columns == 3 && d.rows == 3 && d.dilation == 1;
        if (three && d.step == 1) depthwise_three<1>(d, outside, w, block, s);
        else if (three && d.step == 2) depthwise_three<2>(d, outside, w, block, s);
        else depthwise_any(d, view, w, block, s, b, fast);
    }
}

// ---- frames -------------------------------------------------------------------------------------------------------------

#if defined(__AVX512BW__)
// 16 pixels of 3 channels: 48 codes, spread to the places that they have in memory.
void frame_of_three(const IntFrameArgs& f, const Settle& s, ActivePixels& sink) {
    const Scale scale(s);
    alignas(64) uint8_t repeated[64];
    for (int i = 0; i < 64; ++i) repeated[i] = i % 4 < 3 ? s.threshold[i % 4] : 255;
    const __m512i threshold = _mm512_load_si512(repeated);
    const __m128i spread = _mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1);
    const __m512i none = _mm512_set1_epi32(s.zero << 24);
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int from = 0; from < f.pixels; from += 16) {
        const int n = f.pixels - from < 16 ? f.pixels - from : 16;
        float y[48];
        const float* in = f.y + ptrdiff_t(from) * 3;
        if (n < 16) {
            std::memset(y, 0, sizeof y);
            std::memcpy(y, in, size_t(n) * 3 * sizeof(float));
            in = y;
        }
        uint8_t code[64];
        for (int k = 0; k < 3; ++k)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(code + 16 * k),
                             _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(scale.code(load(in + 16 * k)))));
        const auto four = [&](int k) {
            return _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(code + 12 * k)), spread);
        };
        __m512i now = _mm512_castsi128_si512(four(0));
        now = _mm512_inserti32x4(now, four(1), 1);
        now = _mm512_inserti32x4(now, four(2), 2);
        now = _mm512_or_si512(_mm512_inserti32x4(now, four(3), 3), none);
        uint8_t* held = s.codes + ptrdiff_t(f.first + from) * NARROW;
        // The pixels behind may be another thread's.
        const uint64_t here = n < 16 ? (uint64_t(1) << 4 * n) - 1 : ~uint64_t(0);
        const __m512i h = _mm512_maskz_loadu_epi8(here, held);
        const __m512i far = _mm512_or_si512(_mm512_subs_epu8(now, h), _mm512_subs_epu8(h, now));
        const uint64_t valid = here & 0x7777777777777777u;
        uint64_t go = s.all ? valid : valid & _mm512_cmpgt_epu8_mask(far, threshold);
        if (!go) continue;
        _mm512_mask_storeu_epi8(held, go, now);
        if (s.all && n == 16) {
            _mm512_storeu_si512(sink.active + sink.active_count,
                                _mm512_add_epi32(lanes, _mm512_set1_epi32(f.first + from)));
            _mm512_storeu_si512(sink.tally + sink.active_count, _mm512_set1_epi32(3));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(sink.mask + f.first + from), _mm_set1_epi8(1));
            sink.active_count += 16;
            sink.events += 48;
            continue;
        }
        while (go) {
            const int p = __builtin_ctzll(go) / 4;
            sink.add(f.first + from + p, __builtin_popcountll(go >> 4 * p & 15));
            go &= ~(uint64_t(15) << 4 * p);
        }
    }
}
#endif

void frame(const IntFrameArgs& f, const Settle& s, ActivePixels& sink) {
#if defined(__AVX512BW__)
    if (s.channels == 3) return frame_of_three(f, s, sink);
#endif
    const Scale scale(s);
    const int C = s.channels;
    constexpr int PIECE = 64;  // pixels
    for (int from = 0; from < f.pixels; from += PIECE) {
        const int n = f.pixels - from < PIECE ? f.pixels - from : PIECE, elements = n * C;
        float y[PIECE * NARROW + VL] = {};
        uint8_t code[PIECE * NARROW + VL];
        std::memcpy(y, f.y + ptrdiff_t(from) * C, size_t(elements) * sizeof(float));
        for (int i = 0; i < elements; i += VL) {
            const Int m = scale.code(load(y + i));
            for (int l = 0; l < VL; ++l) code[i + l] = uint8_t(m[l]);
        }
        for (int i = 0; i < n; ++i) {
            const int32_t p = f.first + from + i;
            sink.add(p, send(code + i * C, s, p, 0, C));
        }
    }
}

void decode(const uint8_t* codes, float step, int zero, int channels, int stride, float* out) {
    for (int c = 0; c < channels; ++c) out[c] = float(int(codes[c]) - zero) * step;
    for (int c = channels; c < stride; ++c) out[c] = 0.0f;
}

// Sum of squares of the differences of two rows.
inline int32_t apart(const uint8_t* x, const uint8_t* y, int channels) {
#if defined(__AVX512BW__)
    __m512i sum = _mm512_setzero_si512();
    for (int c = 0; c < channels; c += 32) {
        const __mmask32 valid = channels - c >= 32 ? ~__mmask32(0) : (__mmask32(1) << (channels - c)) - 1;
        const __m512i d = _mm512_sub_epi16(_mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(valid, x + c)),
                                           _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(valid, y + c)));
        sum = _mm512_add_epi32(sum, _mm512_madd_epi16(d, d));
    }
    return _mm512_reduce_add_epi32(sum);
#else
    int32_t sum = 0;
    for (int c = 0; c < channels; ++c) {
        const int32_t d = int32_t(x[c]) - int32_t(y[c]);
        sum += d * d;
    }
    return sum;
#endif
}

// to = from; returns how many channels that changes.
inline int32_t take_over(const uint8_t* from, uint8_t* to, int channels) {
    int32_t changed = 0;
#if defined(__AVX512BW__)
    for (int c = 0; c < channels; c += 64) {
        const __mmask64 valid = channels - c >= 64 ? ~__mmask64(0) : (__mmask64(1) << (channels - c)) - 1;
        const __m512i x = _mm512_maskz_loadu_epi8(valid, from + c);
        changed += __builtin_popcountll(_mm512_cmpneq_epu8_mask(x, _mm512_maskz_loadu_epi8(valid, to + c)));
        _mm512_mask_storeu_epi8(to + c, valid, x);
    }
#else
    for (int c = 0; c < channels; ++c) changed += from[c] != to[c];
    __builtin_memcpy(to, from, size_t(channels));
#endif
    return changed;
}

void pixels(const IntPixelArgs& given, ActivePixels& all) {
    const IntPixelArgs f = given;
    ActivePixels sink = all;  // copies that no store can alias
    constexpr int CHUNK = 64;
    sink.active_count = 0;
    sink.events = 0;
    for (int i = 0; i < all.active_count; i += CHUNK) {
        const int n = all.active_count - i < CHUNK ? all.active_count - i : CHUNK;
        const int32_t* list = all.active + i;
        int32_t far[CHUNK], sent[CHUNK + 16], found = 0;
        int k = 0;
#if defined(__AVX512BW__)
        // Pixels of four bytes side by side: squares of even bytes and of odd ones.
        const __m512i channels = _mm512_set1_epi32(int(~0u >> (8 * (4 - (f.channels < 4 ? f.channels : 4)))));
        for (; f.stride == 4 && k + 16 <= n && list[k + 15] == list[k] + 15; k += 16) {
            const __m512i x = _mm512_loadu_si512(f.fresh + ptrdiff_t(list[k]) * 4),
                          y = _mm512_loadu_si512(f.held + ptrdiff_t(list[k]) * 4);
            const __m512i d =
                _mm512_and_si512(channels, _mm512_or_si512(_mm512_subs_epu8(x, y), _mm512_subs_epu8(y, x)));
            const __m512i even = _mm512_and_si512(d, _mm512_set1_epi16(0xff)), odd = _mm512_srli_epi16(d, 8);
            const __m512i sum = _mm512_add_epi32(_mm512_madd_epi16(even, even), _mm512_madd_epi16(odd, odd));
            const __mmask16 go =
                _mm512_cmpgt_epi32_mask(sum, _mm512_set1_epi32(int(f.limit < INT32_MAX ? f.limit : INT32_MAX)));
            _mm_storeu_si128(reinterpret_cast<__m128i*>(sink.mask + list[k]), _mm_maskz_set1_epi8(go, 1));
            _mm512_storeu_si512(sent + found, _mm512_maskz_compress_epi32(go, _mm512_loadu_si512(list + k)));
            found += __builtin_popcount(go);
        }
#endif
        // Whether a pixel is sent nobody can foresee: first they are found, then they are copied.
        for (int j = k; j < n; ++j)
            far[j] = apart(f.fresh + ptrdiff_t(list[j]) * f.stride, f.held + ptrdiff_t(list[j]) * f.stride, f.channels);
        for (; k < n; ++k) {
            const bool go = far[k] > f.limit;
            sink.mask[list[k]] = go;
            sent[found] = list[k];
            found += go;
        }
        for (k = 0; k < found; ++k) {
            const uint8_t* x = f.fresh + ptrdiff_t(sent[k]) * f.stride;
            uint8_t* held = f.held + ptrdiff_t(sent[k]) * f.stride;
            sink.add(sent[k], take_over(x, held, f.channels));  // over what has been read already
        }
    }
    all = sink;
}

}  // namespace

namespace sparsetime {

extern const IntKernels SPARSETIME_INTEGERS;
const IntKernels SPARSETIME_INTEGERS = {VL, tile, depthwise, settle, frame, moves, resize, pixels, decode};

}  // namespace sparsetime
