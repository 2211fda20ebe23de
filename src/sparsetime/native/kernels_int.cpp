// int8 layers: sums of products of bytes in registers, and from there to codes without a way through memory. Compiled once per
// instruction set, without contracting a product and a sum into one operation: codes must be the same bits everywhere.

#include "kernels_int.h"

#include <cstring>
#include <type_traits>

#define SPARSETIME_SAME_BITS
#include "activate.h"
#include "codes.h"
#include "kernels.h"
#include "vec.h"

namespace {

using namespace sparsetime;

#if defined(__AVX2__) && !defined(__AVX512F__)
#define BY_WORDS 1  // inputs and weights are multiplied as words, pair by pair
constexpr int JOINED = 2;
#else
#define BY_WORDS 0
constexpr int JOINED = INT_GROUP;
#endif

inline Int load_int(const void* p) { return *static_cast<const IntAt*>(p); }
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
#elif defined(__SSE2__)
    return reinterpret_cast<Int>(_mm_cvtps_epi32(x));
#else
    return __builtin_convertvector(round_even(x), Int);
#endif
}

// Four bytes in each lane as a factor: inputs without sign, weights with. Where products of neighbours cannot be added in 16 bits
// (two of them leave 16 bits), they are multiplied apart, as words: bytes 0 and 2 of each lane, and bytes 1 and 3.
#if defined(__SSE2__) && !defined(__AVX512VNNI__)
struct Factor {
    Int even, odd;
};
inline Factor input(Int four) {
    return {four & 0x00ff00ff, reinterpret_cast<Int>(PER_WIDTH(srli_epi16)(reinterpret_cast<Raw>(four), 8))};
}
inline Factor weights(Int four) {
    const Raw w = reinterpret_cast<Raw>(four);
    return {reinterpret_cast<Int>(PER_WIDTH(srai_epi16)(PER_WIDTH(slli_epi16)(w, 8), 8)),
            reinterpret_cast<Int>(PER_WIDTH(srai_epi16)(w, 8))};
}
// acc + sum of two products of words in each lane.
inline Int dot_words(Int acc, Int x, Int w) {
    return acc + reinterpret_cast<Int>(PER_WIDTH(madd_epi16)(reinterpret_cast<Raw>(x), reinterpret_cast<Raw>(w)));
}
// acc + sum of four products in each lane.
inline Int dot(Int acc, Factor x, Factor w) { return dot_words(dot_words(acc, x.even, w.even), x.odd, w.odd); }
#else
struct Factor {
    Int four;
};
inline Factor input(Int four) { return {four}; }
inline Factor weights(Int four) { return {four}; }
inline Int dot(Int acc, Factor input, Factor weights) {
    const Int x = input.four, w = weights.four;
#if defined(__AVX512VNNI__)
    return reinterpret_cast<Int>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc), reinterpret_cast<__m512i>(x),
                                                     reinterpret_cast<__m512i>(w)));
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
#endif

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

// Codes of a pixel from channel c on against those held; returns how many were sent. Stored without asking, since whether something
// changed cannot be foreseen.
[[gnu::always_inline]] inline int send(Codes code, const Settle& s, ptrdiff_t pixel, int c, int count) {
    uint8_t* held = s.codes + pixel * s.stride + c;
    const int part = part_of_row(c, s.stride);  // no more: what lies behind a row may be another thread's
    const CodeMask valid = first_codes(count);
    const Codes h = load_part(held, part);
    const CodeMask go = s.all ? valid : valid & above(distance(code, h), load_codes(s.threshold + c));
    store_part(held, choose(go, code, h), part);
    return how_many(go);
}

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
    for (int first = 0; first < count; first += CODES) {
        const int n = count - first < CODES ? count - first : CODES;
        const auto codes = [&](int i) {
            return i < n ? scale.code(activate<A>(load(z + first + i), s.act, s.act_a, s.act_b)) : Int{};
        };
        sent += send(pack_plain(codes(0), codes(VL), codes(2 * VL), codes(3 * VL)), s, pixel, c + first, n);
    }
    return sent;
}

int settle_from(const float* z, ptrdiff_t pixel, int c, int count, const Settle& s) {
    if (s.act == Act::none) return settle_of<Act::none>(z, pixel, c, count, s);
    if (s.act == Act::clamp) return settle_of<Act::clamp>(z, pixel, c, count, s);
    return settle_of<Act::leaky_relu>(z, pixel, c, count, s);  // stands for all that are chosen at run time
}

int settle(const float* z, int pixel, const Settle& s) { return settle_from(z, pixel, 0, s.channels, s); }

// A vector of codes, of which n are looked at; S = 2: of every second byte.
template <int S>
[[gnu::always_inline]] inline Codes codes_at(const uint8_t* x, int n) {
#if defined(__AVX512BW__)
    // A load of no more than these crosses fewer cache lines.
    if (S == 1 && n <= CODES / 2)
        return codes_of(_mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x))));
#endif
    (void)n;
    return S == 1 ? load_codes(x) : every_second(x);
}

template <int S>
void moves_of(const IntMoveArgs& given, const Settle& all) {
    const IntMoveArgs m = given;
    const Settle s = all;  // a copy that no store can alias
    for (int i = 0; i < m.pixels; ++i) {
        const uint8_t* const* row = m.row + ptrdiff_t(i) * m.rows;
        int sent = 0;
        for (int c = 0; c < s.channels; c += CODES) {
            const int n = s.channels - c < CODES ? s.channels - c : CODES;
            Codes code = codes_at<S>(row[0] + S * c, n);
            for (int r = 1; r < m.rows; ++r) code = larger(code, codes_at<S>(row[r] + S * c, n));
            sent += send(code, s, m.pixel[i], c, n);
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
        for (int l = 0; l < VL; l += 4)
            std::memcpy(z + (V == 4 ? packed_channel(v, l) : v * VL + l), lane + l, 4 * sizeof(float));
    }
    const int count = s.channels - channel < V * VL ? s.channels - channel : V * VL;
    if (s.residual) {
        const uint8_t* r = s.residual + pixel * s.residual_stride + channel;
        for (int i = 0; i < count; i += VL)
            store(z + i, load(z + i) + floats(wide(r + i) - s.residual_zero) * s.residual_step);
    }
    if (s.residual_values) {
        const float* r = s.residual_values + pixel * s.residual_value_stride + channel;
        int i = 0;
        for (; i < count && channel + i + VL <= s.residual_value_stride; i += VL) store(z + i, load(z + i) + load(r + i));
        for (; i < count; ++i) z[i] += r[i];  // a narrow map
    }
    return settle_from(z, pixel, channel, count, s);
}

// Through memory of no alignment: a stack that a sanitizer makes has none to spare.
template <int V>
inline int finish_any(const Int* sum, const float* scale, const float* bias, ptrdiff_t pixel, int channel,
                      const Settle& s) {
    int32_t plain[V * VL];
    for (int v = 0; v < V; ++v) store(plain + v * VL, sum[v]);
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

template <int V>
[[gnu::always_inline]] inline int finish_bounded(const Int* sum, const float* scale, const float* bias, ptrdiff_t pixel,
                                                 int channel, const Bounds& b) {
    const Settle& s = b.s;
    Vec y[V];
    for (int v = 0; v < V; ++v) y[v] = floats(sum[v]) * load(scale + v * VL) + load(bias + v * VL);
    if (s.residual) {
        const uint8_t* r = s.residual + pixel * s.residual_stride + channel;
        Int x[4];
        if (V == 4) unpack(r, x);
        else
            for (int v = 0; v < V; ++v) x[v] = wide(r + v * VL);
        for (int v = 0; v < V; ++v) y[v] = y[v] + floats(x[v] - s.residual_zero) * b.residual_step;
    }
    for (int v = 0; v < V; ++v) y[v] = y[v] * b.scale.inverse;
    if (!PACKS || !s.saturates)
        for (int v = 0; v < V; ++v) y[v] = min(max(y[v], b.scale.low), b.scale.high);
    Int n[4] = {};
    for (int v = 0; v < V; ++v) n[v] = rounded(y[v]);
    if (s.zero)
        for (int v = 0; v < V; ++v) n[v] += b.scale.zero;
    const Codes code = V == 4 ? pack(n[0], n[1], n[2], n[3]) : pack_plain(n[0], n[1], n[2], n[3]);
    const int count = s.channels - channel;
    return send(code, s, pixel, channel, count < V * VL ? count : V * VL);
}

// ---- register tile ------------------------------------------------------------------------------------------------------

#if defined(__AVX512F__)
constexpr int PIXELS = 6;
constexpr int AHEAD = 1;  // groups of pixels
#elif defined(__AVX2__)
constexpr int PIXELS = 6;
constexpr int AHEAD = 2;
#else
constexpr int PIXELS = 2;
constexpr int AHEAD = 8;
#endif

// Weights of the panel behind the one that is multiplied with, asked for in pieces.
struct Following {
    const int8_t *at, *end;
    ptrdiff_t piece;  // bytes for each STEPS of a tile's steps
    static constexpr int STEPS = BY_WORDS ? 64 : 16;
    template <int V>
    static Following of(const IntTileArgs& t) {
        const int8_t* first = t.w + t.bytes;
        const ptrdiff_t steps = ptrdiff_t((t.pixels + PIXELS - 1) / PIXELS) * t.taps * ((t.depth + STEPS - 1) / STEPS);
        return {first, first + t.next, (ptrdiff_t(t.next) / steps + 64) / 64 * 64};
    }
    void ask() {
        if (at >= end) return;
        for (const int8_t* to = at + piece; at < to; at += 64) __builtin_prefetch(at, 0, 2);
    }
};

// Sums to codes, of M pixels. A copy of the bounds behind the products, which need all registers for themselves: kept in some of
// them, it would push out weights.
template <int M, int V>
[[gnu::always_inline]] inline void finish_tile(const Int (&acc)[M][V], const IntTileArgs& t, int at, const Settle& s,
                                               const Bounds& bounds, bool fast) {
    const Bounds* again = &bounds;
    asm volatile("" : "+r"(again));
    const Bounds b = *again;
    for (int i = 0; i < M; ++i) {
        const ptrdiff_t p = t.pixel[at + i];
        t.count[at + i] += fast ? finish_bounded<V>(acc[i], t.scale, t.bias, p, t.channel, b)
                                : finish_any<V>(acc[i], t.scale, t.bias, p, t.channel, s);
    }
}

#if BY_WORDS
// Sums gain the products of an input with weights. One pixel after the other: compilers would multiply all of them first, and have no
// registers for so many products.
inline void gain(Int& sum, __m256i products) { asm volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products)); }

constexpr int TOGETHER = 64;  // groups of inputs that are put together for all vectors of a panel

// The parts of a panel of V vectors: body(first vector, vectors).
template <int V, class Body>
[[gnu::always_inline]] inline void parts(const Body& body) {
    using std::integral_constant;
    body(integral_constant<int, 0>{}, integral_constant<int, V < INT_PART ? V : INT_PART>{});
    if constexpr (V > INT_PART) body(integral_constant<int, INT_PART>{}, integral_constant<int, V - INT_PART>{});
}

template <class T>
inline __m256i everywhere(const T* p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    return _mm256_set1_epi32(four);
}

// Inputs of some pixels as words, which are multiplied pair by pair.
struct Words {
    int16_t of[PIXELS][TOGETHER * INT_GROUP + 16];
    int tap = 0, k = 0;
    // The next ones of M pixels, of several taps if they are small; how many groups.
    template <int M>
    int take(const IntTileArgs& t, int at) {
        int groups = 0;
        while (groups < TOGETHER && tap < t.taps) {
            const int room = TOGETHER - groups, n = room < t.depth - k ? room : t.depth - k;
            for (int i = 0; i < M; ++i) {
                const uint8_t* row = t.a[ptrdiff_t(tap) * t.pixels + at + i] + t.offset + k * INT_GROUP;
                // Sixteen at once: what is too much is written over, or not looked at.
                for (int c = 0; c < n * INT_GROUP; c += 16)
                    _mm256_storeu_si256(reinterpret_cast<__m256i*>(of[i] + groups * INT_GROUP + c),
                                        _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + c))));
            }
            groups += n;
            k += n;
            if (k == t.depth) k = 0, ++tap;
        }
        return groups;
    }
    // Products of W vectors of a panel of V, from vector `first` on.
    template <int M, int V, int W>
    [[gnu::always_inline]] void multiply(Int (&sum)[M][W], const int8_t* w, int first, int groups) const {
        w += first * VL * 2;
        const int16_t* pair = of[0];
        for (const int16_t* end = pair + groups * INT_GROUP; pair < end; pair += 2, w += V * VL * 2) {
            __m256i weight[W];
            for (int v = 0; v < W; ++v)
                weight[v] = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w + v * VL * 2)));
            for (int i = 0; i < M; ++i) {
                const __m256i input = everywhere(pair + i * (TOGETHER * INT_GROUP + 16));
                for (int v = 0; v < W; ++v) gain(sum[i][v], _mm256_madd_epi16(input, weight[v]));
            }
        }
    }
};

// The same as bytes in the order of windows: products of two of them are added in 16 bits.
struct Paired {
    uint8_t of[PIXELS][TOGETHER * INT_GROUP + 16];
    int window = 0;
    template <int M>
    int take(const IntTileArgs& t, const IntPart& part, int at) {
        int groups = 0;
        for (; window < part.windows && groups + part.window[window].groups <= TOGETHER; ++window) {
            const IntWindow& from = part.window[window];
            const __m128i order = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from.order));
            const uint8_t* const* row = t.a + ptrdiff_t(from.tap) * t.pixels + at;
            for (int i = 0; i < M; ++i) {
                const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[i] + from.from));
                _mm_storeu_si128(reinterpret_cast<__m128i*>(of[i] + groups * INT_GROUP), _mm_shuffle_epi8(bytes, order));
            }
            groups += from.groups;
        }
        return groups;
    }
    template <int M, int W>
    [[gnu::always_inline]] void multiply(Int (&sum)[M][W], const int8_t* w, int groups) const {
        __m256i ones = _mm256_set1_epi16(1);
        asm volatile("" : "+x"(ones));  // in a register
        const uint8_t* group = of[0];
        for (const uint8_t* end = group + groups * INT_GROUP; group < end; group += INT_GROUP, w += W * VL * INT_GROUP)
            for (int i = 0; i < M; ++i) {
                const __m256i input = everywhere(group + i * (TOGETHER * INT_GROUP + 16));
                asm volatile("" : "+r"(w));  // weights out of memory each time: there are no registers for them
                for (int v = 0; v < W; ++v) {
                    const __m256i weight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + v * VL * INT_GROUP));
                    gain(sum[i][v], _mm256_madd_epi16(_mm256_maddubs_epi16(input, weight), ones));
                }
            }
    }
};

// Sums of W vectors of a panel of V, from vector `first` on. `start`: what sums begin with, if they do.
template <int M, int V, int W, class Multiply>
[[gnu::always_inline]] inline void part_of_panel(Int (&sum)[M][V], const int32_t* start, int first, const Multiply& multiply) {
    Int acc[M][W];
    for (int i = 0; i < M; ++i)
        for (int v = 0; v < W; ++v) acc[i][v] = start ? load_int(start + (first + v) * VL) : sum[i][first + v];
    multiply(acc);
    for (int i = 0; i < M; ++i)
        for (int v = 0; v < W; ++v) sum[i][first + v] = acc[i][v];
}

template <int M, int V>
void sums_of_words(Int (&sum)[M][V], const IntTileArgs& t, int at, Following& following) {
    Words x;
    const int8_t* w = t.w;
    const int32_t* start = t.start;
    do {
        const int groups = x.take<M>(t, at);
        following.ask();
        const auto part = [&](auto first, auto vectors) __attribute__((always_inline)) {
            part_of_panel<M, V, vectors>(sum, start, first, [&](Int(&acc)[M][vectors]) __attribute__((always_inline)) {
                x.multiply<M, V, vectors>(acc, w, first, groups);
            });
        };
        parts<V>(part);
        w += ptrdiff_t(groups) * V * VL * INT_GROUP;
        start = nullptr;
    } while (x.tap < t.taps);
}

template <int M, int V>
void sums_of_pairs(Int (&sum)[M][V], const IntTileArgs& t, int at, Following& following) {
    const bool shared = V > INT_PART && t.part[0].window == t.part[V > INT_PART].window;
    const int8_t* w[] = {t.w, t.w + ptrdiff_t(t.part[0].groups) * INT_PART * VL * INT_GROUP};
    for (int own = 0; own < (V > INT_PART && !shared ? 2 : 1); ++own) {
        Paired x;
        const int32_t* start = t.start;
        do {
            const int groups = x.take<M>(t, t.part[own], at);
            following.ask();
            const auto part = [&](auto first, auto vectors) __attribute__((always_inline)) {
                constexpr int index = first / INT_PART;
                if (!shared && index != own) return;
                part_of_panel<M, V, vectors>(sum, start, first, [&](Int(&acc)[M][vectors]) __attribute__((always_inline)) {
                    x.multiply<M, vectors>(acc, w[index], groups);
                });
                w[index] += ptrdiff_t(groups) * vectors * VL * INT_GROUP;
            };
            parts<V>(part);
            start = nullptr;
        } while (x.window < t.part[own].windows);
    }
}

template <int M, int V>
void tile_at(const IntTileArgs& t, int at, const Settle& s, const Bounds& bounds, bool fast, Following& following) {
    Int memory[M][V];
    auto* sum = &memory;
    asm volatile("" : "+r"(sum));  // memory, and no copies of it in registers that there are none of
    t.part ? sums_of_pairs<M, V>(*sum, t, at, following) : sums_of_words<M, V>(*sum, t, at, following);
    finish_tile<M, V>(*sum, t, at, s, bounds, fast);
}
#else
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
                Factor weight[V];
                for (int v = 0; v < V; ++v) weight[v] = weights(load_int(w + v * VL * INT_GROUP));
                for (int i = 0; i < M; ++i) {
                    const Factor x = input(four_bytes(a[i] + k * INT_GROUP));
                    for (int v = 0; v < V; ++v) acc[i][v] = dot(acc[i][v], x, weight[v]);
                }
            }
        }
    }
    finish_tile<M, V>(acc, t, at, s, bounds, fast);
}
#endif

// Asks for what the pixels from `at` on will need: lists jump over what did not change, so the machine cannot foresee it.
[[gnu::always_inline]] inline void fetch(const IntTileArgs& t, const Settle& s, int at) {
    for (int i = at; i < at + PIXELS && i < t.pixels; ++i) {
        if (s.codes) {
            const uint8_t* held = s.codes + ptrdiff_t(t.pixel[i]) * s.stride + t.channel;
            __builtin_prefetch(held);
            if (t.vectors == 4) __builtin_prefetch(held + 4 * VL - 1);
        }
        if (s.residual) __builtin_prefetch(s.residual + ptrdiff_t(t.pixel[i]) * s.residual_stride + t.channel);
        if (t.channel == 0)  // those behind find it in the caches
            for (int tap = 0; tap < t.taps; ++tap) __builtin_prefetch(t.a[ptrdiff_t(tap) * t.pixels + i] + t.offset);
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
#if defined(__AVX2__)
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
inline void interleave(const uint8_t* const (&row)[4], Int (&v)[4]) {
#if defined(__SSE2__)
    const Raw r0 = raw(load_codes(row[0])), r1 = raw(load_codes(row[1])), r2 = raw(load_codes(row[2])),
              r3 = raw(load_codes(row[3]));
    const Raw a = PER_WIDTH(unpacklo_epi8)(r0, r1), b = PER_WIDTH(unpackhi_epi8)(r0, r1), d = PER_WIDTH(unpacklo_epi8)(r2, r3),
              e = PER_WIDTH(unpackhi_epi8)(r2, r3);
    v[0] = reinterpret_cast<Int>(PER_WIDTH(unpacklo_epi16)(a, d));
    v[1] = reinterpret_cast<Int>(PER_WIDTH(unpackhi_epi16)(a, d));
    v[2] = reinterpret_cast<Int>(PER_WIDTH(unpacklo_epi16)(b, e));
    v[3] = reinterpret_cast<Int>(PER_WIDTH(unpackhi_epi16)(b, e));
#else
    for (int j = 0; j < 4; ++j)
        for (int l = 0; l < VL; ++l) {
            const int at = packed_channel(j, l);
            v[j][l] = int32_t(uint32_t(row[0][at]) | uint32_t(row[1][at]) << 8 | uint32_t(row[2][at]) << 16 |
                                uint32_t(row[3][at]) << 24);
        }
#endif
}

// The same as factors.
struct Column {
    Factor v[4];
};
inline Column column_of(const uint8_t* const (&row)[4]) {
    Int four[4];
    interleave(row, four);
    Column c;
    for (int v = 0; v < 4; ++v) c.v[v] = input(four[v]);
    return c;
}

// Vector `at` of a depthwise kernel's weights, and the bytes of one.
constexpr int WEIGHT_BYTES = VL * INT_GROUP * (BY_WORDS ? 2 : 1);
inline Factor weights_at(const int8_t* w, int at) {
    w += ptrdiff_t(at) * WEIGHT_BYTES;
#if BY_WORDS
    return {load_int(w), load_int(w + VL * INT_GROUP)};
#else
    return weights(load_int(w));
#endif
}

// A block of channels of a depthwise layer.
struct Block {
    const IntDepthwiseArgs& d;
    const uint8_t* outside;  // 4 VL bytes of `zero`
    int channel;             // the first
    const int8_t* w;
    const int32_t* start() const { return d.start + channel; }
    const float* scale() const { return d.scale + channel; }
    const float* bias() const { return d.bias + channel; }
    Column column(const IntRun& run, int x, int group) const {
        const uint8_t* row[4];
        for (int r = 0; r < 4; ++r) {
            const int y = 4 * group + r;
            row[r] = y < d.rows && run.row[y] && x >= 0 && x < d.width
                         ? run.row[y] + ptrdiff_t(x) * d.stride + channel
                         : outside;
        }
        return column_of(row);
    }
};

// Any kernel: columns are read anew for every output.
void depthwise_any(const Block& block, const IntRun& run, int32_t* count, const Settle& s, const Bounds& b, bool fast) {
    const IntDepthwiseArgs& d = block.d;
    const int groups = (d.rows + 3) / 4;
    for (int i = 0; i < run.pixels; ++i) {
        Int acc[4];
        for (int v = 0; v < 4; ++v) acc[v] = load_int(block.start() + v * VL);
        for (int k = 0; k < d.columns; ++k)
            for (int g = 0; g < groups; ++g) {
                const Column x = block.column(run, run.column + i * d.step + k * d.dilation, g);
                for (int v = 0; v < 4; ++v) acc[v] = dot(acc[v], x.v[v], weights_at(block.w, (k * groups + g) * 4 + v));
            }
        count[i] += fast ? finish_bounded<4>(acc, block.scale(), block.bias(), run.first + i, block.channel, b)
                         : finish_any<4>(acc, block.scale(), block.bias(), run.first + i, block.channel, s);
    }
}

// Three rows and columns, outputs S columns apart.
#if BY_WORDS
// Of some outputs first all columns are taken apart, each once, then all sums are made, of one vector after the other with its weights
// in registers, and then all codes.
template <int S>
void depthwise_three(const Block& block, const Settle& given) {
    constexpr int MOST = 16;  // outputs together
    const Block k = block;
    const IntDepthwiseArgs d = k.d;
    const Bounds b(given);
    const uint8_t* const outside = k.outside;
    const Column border = column_of({outside, outside, outside, outside});
    Column column[3 * MOST];
    Int sum[MOST][4];
    const Column* first[MOST];  // columns of an output
    int32_t place[MOST];
    int32_t* count = d.count;
    int outputs = 0, columns = 0;
    const auto finish = [&] {
        for (int v = 0; v < 4; ++v) {
            const Factor left = weights_at(k.w, v), middle = weights_at(k.w, 4 + v), right = weights_at(k.w, 8 + v);
            const Int start = load_int(k.start() + v * VL);
            for (int i = 0; i < outputs; ++i) {
                const Column* x = first[i];
                sum[i][v] = dot(dot(dot(start, x[0].v[v], left), x[1].v[v], middle), x[2].v[v], right);
            }
        }
        for (int i = 0; i < outputs; ++i)
            *count++ += finish_bounded<4>(sum[i], k.scale(), k.bias(), place[i], k.channel, b);
        outputs = columns = 0;
    };
    for (int r = 0; r < d.runs; ++r) {
        const IntRun& run = d.run[r];
        const uint8_t* row[3];
        ptrdiff_t advance[3];  // rows outside of the map stand still
        for (int y = 0; y < 3; ++y) {
            advance[y] = run.row[y] ? d.stride : 0;
            row[y] = run.row[y] ? run.row[y] + k.channel : outside;
        }
        for (int i = 0; i < run.pixels;) {
            const int n = run.pixels - i < MOST - outputs ? run.pixels - i : MOST - outputs;
            for (int o = 0; o < n; ++o) {
                first[outputs] = column + columns + o * S;
                place[outputs++] = run.first + i + o;
            }
            for (int x = run.column + i * S, end = x + (n - 1) * S + 3; x < end; ++x)
                // The weights of the fourth row are zero.
                column[columns++] = unsigned(x) < unsigned(d.width)
                                        ? column_of({row[0] + x * advance[0], row[1] + x * advance[1],
                                                     row[2] + x * advance[2], outside})
                                        : border;
            i += n;
            if (outputs == MOST) finish();
        }
    }
    finish();
}
#else
// A window that slides.
template <int S>
void slide(const Block& block, const IntRun& run, int32_t* count, const Settle& given) {
    const Bounds b(given);
    const float *scale = block.scale(), *bias = block.bias();
    const int32_t* start = block.start();
    Factor weight[12];
    for (int v = 0; v < 12; ++v) weight[v] = weights_at(block.w, v);
    const int pixels = run.pixels, first = run.first, channel = block.channel;
    const uint8_t* const outside = block.outside;
    const unsigned width = unsigned(block.d.width);
    unsigned column = unsigned(run.column);  // of the next column; below 0 is beyond the width too
    const uint8_t* row[3];
    ptrdiff_t advance[3];  // rows outside of the map stand still
    for (int r = 0; r < 3; ++r) {
        advance[r] = run.row[r] ? block.d.stride : 0;
        row[r] = run.row[r] ? run.row[r] + channel + ptrdiff_t(run.column) * block.d.stride : outside;
    }
    const auto next = [&]() __attribute__((always_inline)) {
        // The weights of the fourth row are zero.
        const bool inside = column < width;
        const Column c =
            inside ? column_of({row[0], row[1], row[2], outside}) : column_of({outside, outside, outside, outside});
        ++column;
        for (int r = 0; r < 3; ++r) row[r] += advance[r];
        return c;
    };
    const auto finish = [&](int i, const Column& left, const Column& middle, const Column& right)
        __attribute__((always_inline)) {
        Int acc[4];
        for (int v = 0; v < 4; ++v) {
            acc[v] = dot(load_int(start + v * VL), left.v[v], weight[v]);
            acc[v] = dot(acc[v], middle.v[v], weight[4 + v]);
            acc[v] = dot(acc[v], right.v[v], weight[8 + v]);
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

template <int S>
void depthwise_three(const Block& block, const Settle& s) {
    int32_t* count = block.d.count;
    for (int r = 0; r < block.d.runs; count += block.d.run[r++].pixels) slide<S>(block, block.d.run[r], count, s);
}
#endif

void depthwise(const IntDepthwiseArgs& d, const Settle& s) {
    const Bounds b(s);
    const bool fast = bounded(s);
    uint8_t outside[4 * VL];
    std::memset(outside, d.zero, sizeof outside);
    const size_t weights = size_t(d.columns) * ((d.rows + 3) / 4) * 4 * WEIGHT_BYTES;
    const bool three = fast && d.columns == 3 && d.rows == 3 && d.dilation == 1;
    for (int c = 0; c < s.channels; c += 4 * VL) {
        const Block block{d, outside, c, d.w + size_t(c / (4 * VL)) * weights};
        if (three && d.step == 1) depthwise_three<1>(block, s);
        else if (three && d.step == 2) depthwise_three<2>(block, s);
        else {
            int32_t* count = d.count;
            for (int r = 0; r < d.runs; count += d.run[r++].pixels) depthwise_any(block, d.run[r], count, s, b, fast);
        }
    }
}

// ---- frames -------------------------------------------------------------------------------------------------------------

#if defined(__AVX2__)
// Codes of VL pixels of three channels, as they come one after the other, in the places that they have in memory; between them zeros.
inline Codes spread(Int a, Int b, Int c) {
#if defined(__AVX512BW__)
    const __m512i code = raw(pack(a, b, c, Int{}));
    const __m512i parts = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 3, 12, 1, 5, 7, 9, 13, 2, 11, 6, 10, 14, 15), code);
    return codes_of(_mm512_shuffle_epi8(
        parts, _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1))));
#else
    const __m256i code = raw(pack(a, b, c, Int{}));
    const __m256i parts = _mm256_permutevar8x32_epi32(code, _mm256_setr_epi32(0, 4, 1, 3, 5, 2, 6, 7));
    return codes_of(_mm256_shuffle_epi8(
        parts, _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 2, -1, 3, 4, 5, -1, 6, 7, 8, -1, 9, 10, 11, -1))));
#endif
}

void frame_of_three(const IntFrameArgs& given, const Settle& settle, ActivePixels& all) {
    const IntFrameArgs f = given;
    const Settle s = settle;
    ActivePixels sink = all;  // copies that no store can alias
    const Scale scale(s);
    uint8_t repeated[CODES];
    for (int i = 0; i < CODES; ++i) repeated[i] = i % 4 < 3 ? s.threshold[i % 4] : 255;
    const Codes threshold = load_codes(repeated), none = reinterpret_cast<Codes>(splat_int(int32_t(uint32_t(s.zero) << 24)));
    constexpr uint64_t channels = 0x7777777777777777u;  // bits of the bytes that are channels
    for (int from = 0; from < f.pixels; from += VL) {
        const int n = f.pixels - from < VL ? f.pixels - from : VL;
        float y[3 * VL];
        const float* in = f.y + ptrdiff_t(from) * 3;
        if (n < VL) {
            std::memset(y, 0, sizeof y);
            std::memcpy(y, in, size_t(n) * 3 * sizeof(float));
            in = y;
        }
        const Codes now = spread(scale.code(load(in)), scale.code(load(in + VL)), scale.code(load(in + 2 * VL))) | none;
        uint8_t* held = s.codes + ptrdiff_t(f.first + from) * NARROW;
        if (s.all && n == VL) {
            store_codes(held, now);
            store(sink.active + sink.active_count, iota() + (f.first + from));
            store(sink.tally + sink.active_count, splat_int(3));
            std::memset(sink.mask + f.first + from, 1, VL);
            sink.active_count += VL;
            sink.events += 3 * VL;
            continue;
        }
        // The pixels behind may be another thread's.
        const CodeMask here = first_codes(4 * n);
        Codes h{};
        if (n == VL) h = load_codes(held);
        else std::memcpy(&h, held, size_t(4 * n));
        const CodeMask far = s.all ? here : here & above(distance(now, h), threshold);
        uint64_t go = truths(far) & channels;
        if (!go) continue;
        const Codes kept = choose(far, now, h);  // behind the channels both are the same
        if (n == VL) store_codes(held, kept);
        else std::memcpy(held, &kept, size_t(4 * n));
        while (go) {
            const int p = __builtin_ctzll(go) / 4;
            sink.add(f.first + from + p, __builtin_popcountll(go >> 4 * p & 15));
            go &= ~(uint64_t(15) << 4 * p);
        }
    }
    all = sink;
}
#endif

void frame(const IntFrameArgs& f, const Settle& s, ActivePixels& sink) {
#if defined(__AVX2__)
    if (s.channels == 3) return frame_of_three(f, s, sink);
#endif
    const Scale scale(s);
    const int C = s.channels;
    constexpr int PIECE = 64;  // pixels
    for (int from = 0; from < f.pixels; from += PIECE) {
        const int n = f.pixels - from < PIECE ? f.pixels - from : PIECE, elements = n * C;
        float y[PIECE * NARROW + VL] = {};
        uint8_t code[PIECE * NARROW + CODES];
        std::memcpy(y, f.y + ptrdiff_t(from) * C, size_t(elements) * sizeof(float));
        for (int i = 0; i < elements; i += VL) {
            const Int m = scale.code(load(y + i));
            for (int l = 0; l < VL; ++l) code[i + l] = uint8_t(m[l]);
        }
        for (int i = 0; i < n; ++i) {
            const int32_t p = f.first + from + i;
            sink.add(p, send(load_codes(code + i * C), s, p, 0, C));
        }
    }
}

void decode(const uint8_t* codes, float step, int zero, int channels, int stride, float* out) {
    int c = 0;
    for (; c < channels && c + VL <= stride; c += VL) {
        const Vec v = floats(wide(codes + c) - zero) * step;
        store(out + c, c + VL <= channels ? v : choose(first_lanes(channels - c), v, Vec{}));
    }
    for (; c < channels; ++c) out[c] = float(int(codes[c]) - zero) * step;  // a narrow map
    for (; c < stride; ++c) out[c] = 0.0f;
}

// Sum of squares of the differences of two rows.
inline int32_t apart(const uint8_t* x, const uint8_t* y, int channels, int stride) {
    Int sum{};
    int c = 0;
    for (; c + CODES <= channels; c += CODES) sum += squares(distance(load_codes(x + c), load_codes(y + c)));
    if (c < channels) {
        const int part = part_of_row(c, stride);
        const Codes far = distance(load_part(x + c, part), load_part(y + c, part));
        sum += squares(choose(first_codes(channels - c), far, Codes{}));
    }
    return total(sum);
}

// to = from; returns how many channels that changes.
inline int32_t take_over(const uint8_t* from, uint8_t* to, int channels, int stride) {
    int32_t changed = 0;
    int c = 0;
    for (; c + CODES <= channels; c += CODES) {
        const Codes x = load_codes(from + c);
        changed += how_many(differ(x, load_codes(to + c)));
        store_codes(to + c, x);
    }
    if (c < channels) {
        const int part = part_of_row(c, stride);
        const Codes x = load_part(from + c, part), held = load_part(to + c, part);
        const CodeMask valid = first_codes(channels - c);
        changed += how_many(valid & differ(x, held));
        store_part(to + c, choose(valid, x, held), part);
    }
    return changed;
}

#if defined(__AVX2__)
// Of VL pixels of four bytes side by side, those that are farther than the limit, as bits.
inline unsigned farther(Codes x, Codes y, Codes channels, int limit) {
    const Int sum = squares(channels & distance(x, y));
#if defined(__AVX512F__)
    return _mm512_cmpgt_epi32_mask(reinterpret_cast<__m512i>(sum), _mm512_set1_epi32(limit));
#else
    return lanes(sum > limit);
#endif
}
#endif

void pixels(const IntPixelArgs& given, ActivePixels& all) {
    const IntPixelArgs f = given;
    ActivePixels sink = all;  // copies that no store can alias
    constexpr int CHUNK = 64;
    const int ahead = 1 + 1024 / f.stride;  // pixels
    sink.active_count = 0;
    sink.events = 0;
    for (int i = 0; i < all.active_count; i += CHUNK) {
        const int n = all.active_count - i < CHUNK ? all.active_count - i : CHUNK;
        const int32_t* list = all.active + i;
        int32_t far[CHUNK], sent[CHUNK + 16], found = 0;
        int k = 0;
#if defined(__AVX2__)
        // Pixels of four bytes side by side.
        const Codes channels = reinterpret_cast<Codes>(splat_int(int(~0u >> (8 * (4 - (f.channels < 4 ? f.channels : 4))))));
        const int limit = int(f.limit < INT32_MAX ? f.limit : INT32_MAX);
        for (; f.stride == 4 && k + VL <= n && list[k + VL - 1] == list[k] + VL - 1; k += VL) {
            const ptrdiff_t at = ptrdiff_t(list[k]) * 4;
            const unsigned go = farther(load_codes(f.fresh + at), load_codes(f.held + at), channels, limit);
            store_bits(sink.mask + list[k], go);
            store(sent + found, order_of(go) + list[k]);
            found += __builtin_popcount(go);
        }
#endif
        // Whether a pixel is sent nobody can foresee: first they are found, then they are copied.
        for (int j = k; j < n; ++j) {
            // What is held was last seen in the frame before, at places that the machine cannot foresee.
            if (j + ahead < n)
                for (int c = 0; c < f.stride; c += 64)
                    __builtin_prefetch(f.held + ptrdiff_t(list[j + ahead]) * f.stride + c);
            const ptrdiff_t at = ptrdiff_t(list[j]) * f.stride;
            far[j] = apart(f.fresh + at, f.held + at, f.channels, f.stride);
        }
        for (; k < n; ++k) {
            const bool go = far[k] > f.limit;
            sink.mask[list[k]] = go;
            sent[found] = list[k];
            found += go;
        }
        for (k = 0; k < found; ++k) {
            const ptrdiff_t at = ptrdiff_t(sent[k]) * f.stride;
            sink.add(sent[k], take_over(f.fresh + at, f.held + at, f.channels, f.stride));  // over what has been read already
        }
    }
    all = sink;
}

}  // namespace

namespace sparsetime {

extern const IntKernels SPARSETIME_INTEGERS;
const IntKernels SPARSETIME_INTEGERS = {VL, JOINED, BY_WORDS, tile, depthwise, settle, frame, moves, resize, pixels, decode};

}  // namespace sparsetime
