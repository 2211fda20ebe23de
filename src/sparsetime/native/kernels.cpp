// The sums: register tiles, runs of events, depthwise. One source, compiled once per instruction set with SPARSETIME_TABLE naming
// the table; products and sums are contracted where the machine can.

#include <algorithm>
#include <type_traits>
#include <utility>

#include "activate.h"
#include "kernels.h"
#include "vec.h"

namespace {

using namespace sparsetime;

// A vector of complete sums: channels c on, of the pixel whose first channel lies `at` floats behind the first.
[[gnu::always_inline]] inline void write(const WriteArgs& w, ptrdiff_t at, ptrdiff_t c, Vec sum) {
    if (w.extra) sum += load(w.extra + at + c);
    sum = load(w.bias + c) + sum;
    if (w.z) store(w.z + at + c, sum);
    if (w.clamp) sum = min(max(sum, splat(w.low)), splat(w.high));
    store(w.value + at + c, sum);
}

// The same with `far`: the new value goes to `out`, and its squared distance from the one that was sent is returned.
template <class T>
[[gnu::always_inline]] inline T compare(const WriteArgs& w, ptrdiff_t at, T bias, T inverse, T sum, float* out) {
    if (w.extra) sum += load_as<T>(w.extra + at);
    sum = bias + sum;
    if (w.clamp) sum = min(max(sum, splat_as<T>(w.low)), splat_as<T>(w.high));
    store(out, sum);
    return distance(sum, load_as<T>(w.value + at), inverse);
}

// ---- register tile ------------------------------------------------------------------------------------------------------

// Calls body(0) to body(N - 1) with types' values: arrays that only such numbers index are registers from the start.
template <int... I, class Body>
[[gnu::always_inline]] inline void each(std::integer_sequence<int, I...>, const Body& body) {
    (body(std::integral_constant<int, I>{}), ...);
}

// Sums, a row of weights and an input fill the registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr TileShape TILE{6, 4}, FLAT_TILE = TILE;
#elif defined(__AVX2__)
constexpr TileShape TILE{6, 2}, FLAT_TILE{4, 3};
#else
constexpr TileShape TILE{4, 2}, FLAT_TILE = TILE;
#endif

constexpr int AHEAD = 12;  // pixels between one that is written and one whose memory is asked for

// Where the pixels of a tile are: listed one by one ...
struct Listed {
    const TileArgs& t;
    int pixels;
    ptrdiff_t first() const { return 0; }
    bool accumulate() const { return t.accumulate; }
    const float* input(int segment, int i) const { return t.a[segment * pixels + i] + t.offset; }
    float* out(int i) const { return t.out + t.at[i]; }
};

// ... or next to each other, from the first one of a line on.
struct InLine {
    const LineArgs& t;
    ptrdiff_t from;
    ptrdiff_t first() const { return from; }
    bool accumulate() const { return false; }
    const float* input(int segment, int i) const { return t.a[segment] + (from + i) * t.step; }
    float* out(int i) const { return t.out + (from + i) * t.row; }
};

// M pixels by V vectors, the last of them half a one with HALF.
template <int M, int V, bool HALF, class Place>
[[gnu::always_inline]] inline void tile_at(const Place& place) {
    const auto& t = place.t;
    using Last = std::conditional_t<HALF, Half, Vec>;
    constexpr int WIDE = V * VL - (HALF ? VL / 2 : 0);
    Vec whole[M][V];
    Last last[M];  // in place of whole[.][V - 1]
    const auto pixels = [&](const auto& body)
                            __attribute__((always_inline)) { each(std::make_integer_sequence<int, M>{}, body); };
    // Calls body(pixel, first channel, sums) for all.
    const auto all = [&](const auto& body) __attribute__((always_inline)) {
        pixels([&](auto i) __attribute__((always_inline)) {
            each(std::make_integer_sequence<int, V - 1>{},
                 [&](auto v) __attribute__((always_inline)) { body(i, v * VL, whole[i][v]); });
            body(i, (V - 1) * VL, last[i]);
        });
    };
    if (t.write && !t.write->far) {  // values come from afar: ask for those of later pixels now
        const WriteArgs& w = *t.write;
        const float* value = w.value + (place.first() + AHEAD) * w.stride;
        all([&](auto i, int c, auto&) __attribute__((always_inline)) {
            if (c % LANE == 0) __builtin_prefetch(value + i * w.stride + c, 1);
        });
    }
    if (place.accumulate())
        all([&](auto i, int c, auto& sum)
                __attribute__((always_inline)) { sum = load_as<std::decay_t<decltype(sum)>>(place.out(i) + c); });
    else
        all([&](auto, int, auto& sum) __attribute__((always_inline)) { sum = std::decay_t<decltype(sum)>{}; });
    for (int s = 0; s < t.segments; ++s) {
        const float* a[M];
        for (int i = 0; i < M; ++i) a[i] = place.input(s, i);
        const float* w = t.w[s];
        const int depth = t.depth;
        for (int k = 0; k < depth; ++k, w += WIDE) {
            Vec b[V];
            each(std::make_integer_sequence<int, V - 1>{},
                 [&](auto v) __attribute__((always_inline)) { b[v] = load(w + v * VL); });
            const Last end = load_as<Last>(w + (V - 1) * VL);
            pixels([&](auto i) __attribute__((always_inline)) {
                const Vec x = splat(a[i][k]);
                each(std::make_integer_sequence<int, V - 1>{},
                     [&](auto v) __attribute__((always_inline)) { whole[i][v] += x * b[v]; });
                last[i] += splat_as<Last>(a[i][k]) * end;
            });
        }
    }
    if (t.write) {
        // What `write` does, one choice for all vectors instead of three for each.
        const WriteArgs w = *t.write;  // a copy that no store can alias
        const ptrdiff_t first = place.first();
        if (w.far) {
            pixels([&](auto i) __attribute__((always_inline)) {
                const ptrdiff_t sent = w.pixel[first + i] * w.stride;
                float* out = place.out(i);
                const auto distance = [&](int c, auto& sum) __attribute__((always_inline)) {
                    using T = std::decay_t<decltype(sum)>;
                    return compare<T>(w, sent + c, load_as<T>(w.bias + c), load_as<T>(w.inverse + c), sum, out + c);
                };
                Vec far{};
                each(std::make_integer_sequence<int, V - 1>{},
                     [&](auto v) __attribute__((always_inline)) { far += distance(v * VL, whole[i][v]); });
                const Last rest = distance((V - 1) * VL, last[i]);
                if constexpr (HALF) w.far[first + i] += ::sum(far) + ::sum(rest);
                else w.far[first + i] += ::sum(far + rest);
            });
            return;
        }
        if (w.extra)
            all([&](auto i, int c, auto& sum) __attribute__((always_inline)) {
                sum += load_as<std::decay_t<decltype(sum)>>(w.extra + (first + i) * w.stride + c);
            });
        all([&](auto, int c, auto& sum)
                __attribute__((always_inline)) { sum = load_as<std::decay_t<decltype(sum)>>(w.bias + c) + sum; });
        if (w.z)
            all([&](auto i, int c, auto& sum) __attribute__((always_inline)) { store(w.z + (first + i) * w.stride + c, sum); });
        if (w.clamp)
            all([&](auto, int, auto& sum) __attribute__((always_inline)) {
                using T = std::decay_t<decltype(sum)>;
                sum = min(max(sum, splat_as<T>(w.low)), splat_as<T>(w.high));
            });
        all([&](auto i, int c, auto& sum) __attribute__((always_inline)) { store(w.value + (first + i) * w.stride + c, sum); });
        return;
    }
    all([&](auto i, int c, auto& sum) __attribute__((always_inline)) { store(place.out(i) + c, sum); });
    // What is padding stays zero.
    if constexpr (HALF) pixels([&](auto i) __attribute__((always_inline)) { store(place.out(i) + WIDE, Half{}); });
}

template <int M, int V, bool HALF>
void tile(const TileArgs& t) {
    tile_at<M, V, HALF>(Listed{t, M});
}

template <int V, bool HALF>
void tile_of(int pixels, const TileArgs& t) {
    constexpr int MOST = V <= TILE.vectors ? TILE.pixels : FLAT_TILE.pixels;
    switch (pixels) {
        case 1: return tile<1, V, HALF>(t);
        case 2: return tile<2, V, HALF>(t);
        case 3: return tile<3, V, HALF>(t);
        case 4: return tile<4, V, HALF>(t);
        case 5:
            if constexpr (MOST >= 5) return tile<5, V, HALF>(t);
            return;
        case 6:
            if constexpr (MOST >= 6) return tile<6, V, HALF>(t);
            return;
        default: return;
    }
}

// `tiles` tiles of M pixels, from pixel p on.
template <int M, int V, bool HALF>
ptrdiff_t tiles_in_line(const LineArgs& t, ptrdiff_t p, int tiles) {
    for (; tiles; --tiles, p += M) tile_at<M, V, HALF>(InLine{t, p});
    return p;
}

// Tiles of nearly one size: thin ones waste registers.
template <int V, bool HALF>
void line_of(const LineArgs& t) {
    constexpr int MOST = V <= TILE.vectors ? TILE.pixels : FLAT_TILE.pixels;
    const int tiles = (t.pixels + MOST - 1) / MOST, size = t.pixels / tiles;
    ptrdiff_t p = 0;
    const auto some = [&](int pixels, int count) {
        each(std::make_integer_sequence<int, MOST>{}, [&](auto less) __attribute__((always_inline)) {
            if (pixels == less + 1) p = tiles_in_line<less + 1, V, HALF>(t, p, count);
        });
    };
    some(size + 1, t.pixels % tiles);
    some(size, tiles - t.pixels % tiles);
}

// Calls body(vectors, half) with types' values.
template <class Body>
[[gnu::always_inline]] inline void by_width(int wide, const Body& body) {
    const auto call = [&](auto vectors) __attribute__((always_inline)) { body(vectors, std::false_type{}); };
    switch (2 * wide / VL) {
        case 2: return call(std::integral_constant<int, 1>{});
        case 4: return call(std::integral_constant<int, 2>{});
#if !defined(__x86_64__) || defined(__AVX2__)
        case 6: return call(std::integral_constant<int, 3>{});
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
        case 8: return call(std::integral_constant<int, 4>{});
#endif
#if defined(__AVX512F__)
        case 1: return body(std::integral_constant<int, 1>{}, std::true_type{});
        case 3: return body(std::integral_constant<int, 2>{}, std::true_type{});
        case 5: return body(std::integral_constant<int, 3>{}, std::true_type{});
        case 7: return body(std::integral_constant<int, 4>{}, std::true_type{});
#endif
        default: return;
    }
}

void tile_any(int pixels, int wide, const TileArgs& t) {
    by_width(wide, [&](auto vectors, auto half) { tile_of<vectors, half>(pixels, t); });
}

void line_any(int wide, const LineArgs& t) {
    by_width(wide, [&](auto vectors, auto half) { line_of<vectors, half>(t); });
}

// ---- events into scratch ------------------------------------------------------------------------------------------------

template <int T>
inline void gather_run(Vec (&acc)[T], const RunArgs& r, int from, int to) {
    // Two sets of sums where one is too few to hide the latency of an addition.
    constexpr bool TWICE = T <= 4;
    Vec more[T] = {};
    int e = from;
    if (TWICE)
        for (; e + 2 <= to; e += 2) {
            const float* w = r.w + ptrdiff_t(r.place[e] & r.channel_mask) * (T * VL);
            const float* u = r.w + ptrdiff_t(r.place[e + 1] & r.channel_mask) * (T * VL);
            const Vec x = splat(r.change[e]), y = splat(r.change[e + 1]);
            for (int t = 0; t < T; ++t) {
                acc[t] += x * load(w + t * VL);
                more[t] += y * load(u + t * VL);
            }
        }
    for (; e < to; ++e) {
        const float* w = r.w + ptrdiff_t(r.place[e] & r.channel_mask) * (T * VL);
        const Vec x = splat(r.change[e]);
        for (int t = 0; t < T; ++t) acc[t] += x * load(w + t * VL);
    }
    if (TWICE)
        for (int t = 0; t < T; ++t) acc[t] += more[t];
}

template <int T>
void runs_of(const RunArgs& args) {
    const RunArgs r = args;  // a copy that no store can alias
    ptrdiff_t slot[T];
    for (int t = 0; t < T; ++t) slot[t] = r.slot[t];
    for (int i = 0; i < r.runs; ++i) {
        const Run& run = r.run[i];
        float* out = r.scratch + run.at;
        Vec acc[T] = {};
        gather_run<T>(acc, r, run.from, run.to);
        for (int t = 0; t < T; ++t) store(out + slot[t], load(out + slot[t]) + acc[t]);
    }
}

// Neighbouring pixels share two of three columns of sums, so a window of three columns slides along the row and each column goes to
// scratch once. Pixels without events pass through: cheaper than a branch that cannot be foreseen.
void slide(const SlideArgs& args) {
    const SlideArgs r = args;  // a copy that no store can alias
    const ptrdiff_t row = r.row;
    float* out = r.scratch;
    const int32_t* bound = r.bound;
    Vec left[3] = {}, middle[3] = {}, right[3] = {};
    for (int i = 0; i < r.pixels; ++i, out += VL, bound += r.step) {
        for (int e = bound[0]; e < bound[1]; ++e) {
            const float* w = r.w + ptrdiff_t(r.place[e] & r.channel_mask) * (9 * VL);
            const Vec x = splat(r.change[e]);
            for (int y = 0; y < 3; ++y) {
                left[y] += x * load(w + (8 - 3 * y) * VL);
                middle[y] += x * load(w + (7 - 3 * y) * VL);
                right[y] += x * load(w + (6 - 3 * y) * VL);
            }
        }
        for (int y = 0; y < 3; ++y) {
            float* to = out + y * row;
            store(to, load(to) + left[y]);
            left[y] = middle[y];
            middle[y] = right[y];
            right[y] = Vec{};
        }
    }
    for (int y = 0; y < 3; ++y) {
        float* to = out + y * row;
        store(to, load(to) + left[y]);
        store(to + VL, load(to + VL) + middle[y]);
    }
}

void runs(const RunArgs& r) {
    switch (r.slots) {
        case 1: return runs_of<1>(r);
        case 2: return runs_of<2>(r);
        case 3: return runs_of<3>(r);
        case 4: return runs_of<4>(r);
        case 5: return runs_of<5>(r);
        case 6: return runs_of<6>(r);
        case 7: return runs_of<7>(r);
        case 8: return runs_of<8>(r);
        case 9: return runs_of<9>(r);
        case 10: return runs_of<10>(r);
        case 11: return runs_of<11>(r);
        case 12: return runs_of<12>(r);
        case 13: return runs_of<13>(r);
        case 14: return runs_of<14>(r);
        case 15: return runs_of<15>(r);
        case 16: return runs_of<16>(r);
        default: return;
    }
}

// ---- depthwise ----------------------------------------------------------------------------------------------------------

// V vectors side by side hide the latency of an addition, and read whole runs of an input.
template <int V>
inline void depthwise_of(const DepthwiseArgs& d, const float* const* a, float* out, int c, Vec& far) {
    Vec acc[V] = {};
    const float* w = d.w + c;
    for (int s = 0; s < d.segments; ++s, w += d.stride)
        for (int v = 0; v < V; ++v) acc[v] += load(a[s] + c + v * VL) * load(w + v * VL);
    if (!d.write)
        for (int v = 0; v < V; ++v) store(out + c + v * VL, acc[v]);
    else if (d.write->far)
        for (int v = 0, at = c; v < V; ++v, at += VL)
            far += compare(*d.write, *d.write->pixel * d.write->stride + at, load(d.write->bias + at),
                           load(d.write->inverse + at), acc[v], out + at);
    else
        for (int v = 0; v < V; ++v) write(*d.write, 0, c + v * VL, acc[v]);
}

void depthwise(const DepthwiseArgs& d) {
    constexpr int V = 4;
    for (int i = 0; i < d.pixels; ++i) {
        const float* const* a = d.a + ptrdiff_t(i) * d.segments;
        int c = 0;
        Vec far{};
        for (; c + V * VL <= d.wide; c += V * VL) depthwise_of<V>(d, a, d.out[i], c, far);
        for (; c + 2 * VL <= d.wide; c += 2 * VL) depthwise_of<2>(d, a, d.out[i], c, far);
        for (; c < d.wide; c += VL) depthwise_of<1>(d, a, d.out[i], c, far);
        if (d.write && d.write->far) *d.write->far += ::sum(far);
    }
}

// P outputs side by side, from the first one on, share columns of inputs and all weights. Channels are the inner loop: inputs are then read
// in the order in which they lie, which is what brings them near in time. V vectors of channels at once where one alone would wait for its
// additions. EDGE: some columns lie outside the map.
template <int K, int S, int D, int P, int V, bool EDGE, class Out>
[[gnu::always_inline]] inline void depthwise_tile(const DepthwiseRowArgs& d, int first, ptrdiff_t& c, const Out& out) {
    constexpr int COLUMNS = (P - 1) * S + (K - 1) * D + 1;
    const ptrdiff_t stride = d.stride;
    const int column = d.column + first * S;
    const int low = EDGE ? -column : 0, high = EDGE ? d.width - column : COLUMNS;
    const float* row[K];
    for (int y = 0; y < K; ++y) row[y] = d.rows[y] + column * ptrdiff_t(d.advance[y]);
    for (; c + V * VL <= d.wide; c += V * VL) {
        Vec sum[V][P] = {};
        const float* w = d.w + c;
#pragma GCC unroll 3
        for (int y = 0; y < K; ++y) {
            const float* in = row[y] + c;
            const ptrdiff_t advance = d.advance[y];
            Vec x[V][COLUMNS];
            for (int j = 0; j < COLUMNS; ++j, in += advance)
                for (int v = 0; v < V; ++v) x[v][j] = EDGE && (j < low || j >= high) ? Vec{} : load(in + v * VL);
            for (int k = 0; k < K; ++k, w += stride)
                for (int v = 0; v < V; ++v) {
                    Vec weight = load(w + v * VL);
                    in_register(weight);
                    for (int i = 0; i < P; ++i) sum[v][i] += x[v][i * S + k * D] * weight;
                }
        }
        for (int v = 0; v < V; ++v) out(c + v * VL, sum[v]);
    }
}

// The same of kernels of any size, step and dilation, whose inputs no registers could hold; taps [low, high) of a row lie inside the map.
template <int P, int V, class Out>
[[gnu::always_inline]] inline void depthwise_tile_any(const DepthwiseRowArgs& d, int first, int low, int high,
                                                      ptrdiff_t& c, const Out& out) {
    const ptrdiff_t stride = d.stride, step = d.step * stride, apart = d.dilation * stride;
    const ptrdiff_t start = (d.column + ptrdiff_t(first) * d.step + ptrdiff_t(low) * d.dilation) * stride;
    for (; c + V * VL <= d.wide; c += V * VL) {
        Vec sum[V][P] = {};
        for (int y = 0; y < d.lines; ++y) {
            if (d.advance[y] == 0) continue;
            const float *in = d.rows[y] + start + c, *w = d.w + (ptrdiff_t(y) * d.taps + low) * stride + c;
            for (int k = low; k < high; ++k, in += apart, w += stride)
                for (int v = 0; v < V; ++v) {
                    const Vec weight = load(w + v * VL);
                    for (int i = 0; i < P; ++i) sum[v][i] += load(in + i * step + v * VL) * weight;
                }
        }
        for (int v = 0; v < V; ++v) out(c + v * VL, sum[v]);
    }
}

// What becomes of the sums of P pixels, from the first one on; all(out) computes them.
template <int P, class All>
[[gnu::always_inline]] inline void depthwise_pixels(const DepthwiseRowArgs& d, int first, const All& all) {
    const ptrdiff_t stride = d.stride;
    float* const to = d.out + first * stride;
    if (!d.write)
        return all([&](ptrdiff_t c, const Vec (&sum)[P]) __attribute__((always_inline)) {
            for (int i = 0; i < P; ++i) store(to + i * stride + c, sum[i]);
        });
    const WriteArgs w = *d.write;  // a copy that no store can alias
    const ptrdiff_t from = first * stride;
    // One choice for all pixels instead of one for each.
    const auto settled = [&](ptrdiff_t c, const Vec (&sum)[P], Vec (&y)[P], const float* extra, float* z)
        __attribute__((always_inline)) {
        const Vec bias = load(w.bias + c);
        for (int i = 0; i < P; ++i) y[i] = bias + (extra ? sum[i] + load(extra + i * stride + c) : sum[i]);
        if (z)
            for (int i = 0; i < P; ++i) store(z + i * stride + c, y[i]);
        if (w.clamp)
            for (int i = 0; i < P; ++i) y[i] = min(max(y[i], splat(w.low)), splat(w.high));
    };
    if (w.far) {
        const ptrdiff_t sent = (*w.pixel + first) * stride;
        Vec far[P] = {};
        all([&](ptrdiff_t c, const Vec (&sum)[P]) __attribute__((always_inline)) {
            Vec y[P];
            settled(c, sum, y, w.extra ? w.extra + sent : nullptr, nullptr);
            const Vec inverse = load(w.inverse + c);
            for (int i = 0; i < P; ++i) {
                store(to + i * stride + c, y[i]);
                far[i] += distance(y[i], load(w.value + sent + i * stride + c), inverse);
            }
        });
        for (int i = 0; i < P; ++i) w.far[first + i] += ::sum(far[i]);
        return;
    }
    all([&](ptrdiff_t c, const Vec (&sum)[P]) __attribute__((always_inline)) {
        if (c % LANE == 0)
            for (int i = 0; i < P; ++i) __builtin_prefetch(w.value + from + (i + AHEAD) * stride + c, 1);
        Vec y[P];
        settled(c, sum, y, w.extra ? w.extra + from : nullptr, w.z ? w.z + from : nullptr);
        for (int i = 0; i < P; ++i) store(w.value + from + i * stride + c, y[i]);
    });
}

template <int P>
constexpr int CHANNELS = P == 1 ? 4 : P < 4 ? 2 : 1;  // vectors of them beside P pixels

template <int K, int S, int D, int P, bool EDGE>
void depthwise_some(const DepthwiseRowArgs& d, int first) {
    depthwise_pixels<P>(d, first, [&](const auto& out) __attribute__((always_inline)) {
        ptrdiff_t c = 0;
        depthwise_tile<K, S, D, P, CHANNELS<P>, EDGE>(d, first, c, out);
        if constexpr (CHANNELS<P> > 1) depthwise_tile<K, S, D, P, 1, EDGE>(d, first, c, out);
    });
}

template <int P>
void depthwise_some_any(const DepthwiseRowArgs& d, int first, int low, int high) {
    depthwise_pixels<P>(d, first, [&](const auto& out) __attribute__((always_inline)) {
        ptrdiff_t c = 0;
        depthwise_tile_any<P, CHANNELS<P>>(d, first, low, high, c, out);
        if constexpr (CHANNELS<P> > 1) depthwise_tile_any<P, 1>(d, first, low, high, c, out);
    });
}

void depthwise_row_any(const DepthwiseRowArgs& d) {
    constexpr int P = 4;
    for (int i = 0; i < d.pixels;) {
        const int column = d.column + i * d.step, reach = (d.taps - 1) * d.dilation;
        if (i + P <= d.pixels && column >= 0 && column + (P - 1) * d.step + reach < d.width) {
            depthwise_some_any<P>(d, i, 0, d.taps);
            i += P;
            continue;
        }
        // By itself: the taps inside the map are others for each.
        const int low = column >= 0 ? 0 : std::min(d.taps, (-column + d.dilation - 1) / d.dilation);
        const int high =
            column >= d.width ? low : std::max(low, std::min(d.taps, (d.width - 1 - column) / d.dilation + 1));
        depthwise_some_any<1>(d, i++, low, high);
    }
}

template <int K, int S, int D = 1>
void depthwise_row_of(const DepthwiseRowArgs& d) {
    constexpr int P = 4;
    const auto some = [&](auto pixels, int first) {
        constexpr int N = decltype(pixels)::value;
        const int column = d.column + first * S;
        if (column < 0 || column + (N - 1) * S + (K - 1) * D >= d.width) depthwise_some<K, S, D, N, true>(d, first);
        else depthwise_some<K, S, D, N, false>(d, first);
    };
    int i = 0;
    for (; i + P <= d.pixels; i += P) some(std::integral_constant<int, P>{}, i);
    switch (d.pixels - i) {
        case 1: return some(std::integral_constant<int, 1>{}, i);
        case 2: return some(std::integral_constant<int, 2>{}, i);
        case 3: return some(std::integral_constant<int, 3>{}, i);
    }
}

void depthwise_row(const DepthwiseRowArgs& d) {
    if (d.lines == d.taps && d.step <= 2 && d.dilation == 1) switch (d.taps) {
            case 3: return d.step == 1 ? depthwise_row_of<3, 1>(d) : depthwise_row_of<3, 2>(d);
            case 5: return d.step == 1 ? depthwise_row_of<5, 1>(d) : depthwise_row_of<5, 2>(d);
            case 7: return d.step == 1 ? depthwise_row_of<7, 1>(d) : depthwise_row_of<7, 2>(d);
        }
    if (d.lines == 3 && d.taps == 3 && d.step == 1 && d.dilation == 2) return depthwise_row_of<3, 1, 2>(d);
    if (d.lines == 3 && d.taps == 3 && d.step == 1 && d.dilation == 4) return depthwise_row_of<3, 1, 4>(d);
    depthwise_row_any(d);
}

}  // namespace

namespace sparsetime {

extern const Encoders SPARSETIME_ENCODERS;
extern const FrameKernels SPARSETIME_FRAMES;
extern const RowKernels SPARSETIME_ROWS;
extern const IntKernels SPARSETIME_INTEGERS;
extern const Kernels SPARSETIME_TABLE;
const Kernels SPARSETIME_TABLE = {SPARSETIME_NAME, VL, TILE, FLAT_TILE, HALVES, GROUP,
                                  tile_any, line_any, runs, slide, depthwise, depthwise_row,
                                  &SPARSETIME_ENCODERS, &SPARSETIME_FRAMES, &SPARSETIME_ROWS, &SPARSETIME_INTEGERS};

}  // namespace sparsetime
