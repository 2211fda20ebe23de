// The sums: register tiles, runs of events, depthwise. One source, compiled once per instruction set with SPARSETIME_TABLE naming
// the table; products and sums are contracted where the machine can.

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

// ---- register tile ------------------------------------------------------------------------------------------------------

// Calls body(0) to body(N - 1) with types' values: arrays that only such numbers index are registers from the start.
template <int... I, class Body>
[[gnu::always_inline]] inline void each(std::integer_sequence<int, I...>, const Body& body) {
    (body(std::integral_constant<int, I>{}), ...);
}

constexpr int AHEAD = 12;  // pixels between one that is written and one whose memory is asked for

template <int M, int V>
void tile(const TileArgs& t) {
    Vec acc[M][V];
    const auto all = [&](const auto& body) __attribute__((always_inline)) {
        each(std::make_integer_sequence<int, M>{}, [&](auto i) __attribute__((always_inline)) {
            each(std::make_integer_sequence<int, V>{}, [&](auto v) __attribute__((always_inline)) { body(i, v); });
        });
    };
    if (t.write) {  // values come from afar: ask for those of later pixels now
        const WriteArgs& w = *t.write;
        all([&](auto i, auto v) __attribute__((always_inline)) { __builtin_prefetch(w.value + (i + AHEAD) * w.stride + v * VL, 1); });
    }
    if (t.accumulate)
        all([&](auto i, auto v) __attribute__((always_inline)) { acc[i][v] = load(t.out + i * t.row + v * VL); });
    else
        all([&](auto i, auto v) __attribute__((always_inline)) { acc[i][v] = Vec{}; });
    for (int s = 0; s < t.segments; ++s) {
        const float* a[M];
        for (int i = 0; i < M; ++i) a[i] = t.a[s * M + i] + t.offset;
        const float* w = t.w[s];
        const int depth = t.depth;
        for (int k = 0; k < depth; ++k, w += V * VL) {
            Vec b[V];
            each(std::make_integer_sequence<int, V>{}, [&](auto v) __attribute__((always_inline)) { b[v] = load(w + v * VL); });
            each(std::make_integer_sequence<int, M>{}, [&](auto i) __attribute__((always_inline)) {
                const Vec x = splat(a[i][k]);
                each(std::make_integer_sequence<int, V>{}, [&](auto v) __attribute__((always_inline)) { acc[i][v] += x * b[v]; });
            });
        }
    }
    if (t.write) {
        // What `write` does, one choice for all vectors instead of three for each.
        const WriteArgs w = *t.write;  // a copy that no store can alias
        if (w.extra)
            all([&](auto i, auto v) __attribute__((always_inline)) { acc[i][v] += load(w.extra + i * w.stride + v * VL); });
        all([&](auto i, auto v) __attribute__((always_inline)) { acc[i][v] = load(w.bias + v * VL) + acc[i][v]; });
        if (w.z)
            all([&](auto i, auto v) __attribute__((always_inline)) { store(w.z + i * w.stride + v * VL, acc[i][v]); });
        if (w.clamp) {
            const Vec low = splat(w.low), high = splat(w.high);
            all([&](auto i, auto v) __attribute__((always_inline)) { acc[i][v] = min(max(acc[i][v], low), high); });
        }
        all([&](auto i, auto v) __attribute__((always_inline)) { store(w.value + i * w.stride + v * VL, acc[i][v]); });
        return;
    }
    all([&](auto i, auto v) __attribute__((always_inline)) { store(t.out + i * t.row + v * VL, acc[i][v]); });
}

template <int V>
void tile_of(int pixels, const TileArgs& t) {
    switch (pixels) {
        case 1: return tile<1, V>(t);
        case 2: return tile<2, V>(t);
        case 3: return tile<3, V>(t);
        case 4: return tile<4, V>(t);
#if !defined(__x86_64__) || defined(__AVX2__)
        case 5: return tile<5, V>(t);
        case 6: return tile<6, V>(t);
#endif
        default: return;
    }
}

void tile_any(int pixels, int vectors, const TileArgs& t) {
    switch (vectors) {
        case 1: return tile_of<1>(pixels, t);
        case 2: return tile_of<2>(pixels, t);
#if defined(__AVX512F__) || defined(__aarch64__)
        case 3: return tile_of<3>(pixels, t);
        case 4: return tile_of<4>(pixels, t);
#endif
        default: return;
    }
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
    float* out = r.scratch;
    const int32_t* bound = r.bound;
    for (int i = 0; i < r.runs; ++i, out += r.advance, bound += r.step) {
        if (bound[0] == bound[1]) continue;
        Vec acc[T] = {};
        gather_run<T>(acc, r, bound[0], bound[1]);
        for (int t = 0; t < T; ++t) store(out + slot[t], load(out + slot[t]) + acc[t]);
    }
}

// 3x3, stride 1: neighbouring runs share two of three columns of sums, so a window of three columns slides along the row and
// each column goes to scratch once. Runs without events pass through: cheaper than a branch that cannot be foreseen.
void runs_3x3(const RunArgs& args, ptrdiff_t row) {
    const RunArgs r = args;
    float* out = r.scratch + r.slot[8];  // the last tap has the smallest offset
    const int32_t* bound = r.bound;
    Vec left[3] = {}, middle[3] = {}, right[3] = {};
    for (int i = 0; i < r.runs; ++i, out += VL, bound += r.step) {
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

bool is_3x3(const RunArgs& r) {
    if (r.slots != 9 || r.advance != VL) return false;
    const int32_t row = r.slot[5] - r.slot[8];
    for (int y = 0; y < 3; ++y)
        for (int x = 0; x < 3; ++x)
            if (r.slot[8 - 3 * y - x] != r.slot[8] + y * row + x * VL) return false;
    return true;
}

void runs(const RunArgs& r) {
    if (is_3x3(r)) return runs_3x3(r, r.slot[5] - r.slot[8]);
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
inline void depthwise_of(const DepthwiseArgs& d, const float* const* a, float* out, int c) {
    Vec acc[V] = {};
    const float* w = d.w + c;
    for (int s = 0; s < d.segments; ++s, w += d.stride)
        for (int v = 0; v < V; ++v) acc[v] += load(a[s] + c + v * VL) * load(w + v * VL);
    if (d.write)
        for (int v = 0; v < V; ++v) write(*d.write, 0, c + v * VL, acc[v]);
    else
        for (int v = 0; v < V; ++v) store(out + c + v * VL, acc[v]);
}

void depthwise(const DepthwiseArgs& d) {
    constexpr int V = 4;
    for (int i = 0; i < d.pixels; ++i) {
        const float* const* a = d.a + ptrdiff_t(i) * d.segments;
        int c = 0;
        for (; c + V * VL <= d.stride; c += V * VL) depthwise_of<V>(d, a, d.out[i], c);
        for (; c + 2 * VL <= d.stride; c += 2 * VL) depthwise_of<2>(d, a, d.out[i], c);
        for (; c < d.stride; c += VL) depthwise_of<1>(d, a, d.out[i], c);
    }
}

// P outputs side by side share columns of inputs and all weights. Channels are the inner loop: inputs are then read in the order in
// which they lie, which is what brings them near in time.
template <int K, int S, int P>
void depthwise_tile(const DepthwiseRowArgs& d, const float* const (&row)[K], float* to, const WriteArgs* written) {
    constexpr int COLUMNS = (P - 1) * S + K;
    const ptrdiff_t stride = d.stride;
    for (ptrdiff_t c = 0; c < stride; c += VL) {
        Vec sum[P] = {};
        const float* w = d.w + c;
#pragma GCC unroll 1
        for (int y = 0; y < K; ++y) {
            const float* in = row[y] + c;
            Vec x[COLUMNS];
            for (int j = 0; j < COLUMNS; ++j, in += stride) x[j] = load(in);
            for (int k = 0; k < K; ++k, w += stride) {
                const Vec weight = load(w);
                for (int i = 0; i < P; ++i) sum[i] += x[i * S + k] * weight;
            }
        }
        if (written) {
            for (int i = 0; i < P; ++i) __builtin_prefetch(written->value + (i + AHEAD) * written->stride + c, 1);
            for (int i = 0; i < P; ++i) write(*written, i * written->stride, c, sum[i]);
            continue;
        }
        float* out = to + c;
        for (int i = 0; i < P; ++i, out += stride) store(out, sum[i]);
    }
}

template <int K, int S>
void depthwise_row_of(const DepthwiseRowArgs& d) {
    constexpr int P = 4;
    static_assert((P - 1) * S + K <= DEPTHWISE_COLUMNS);
    const float* row[K];
    for (int y = 0; y < K; ++y) row[y] = d.rows[y];
    float* out = d.out;
    WriteArgs place = d.write ? *d.write : WriteArgs{};
    const WriteArgs* written = d.write ? &place : nullptr;
    const auto step = [&](int pixels) {
        for (int y = 0; y < K; ++y) row[y] += pixels * S * ptrdiff_t(d.advance[y]);
        out += pixels * ptrdiff_t(d.stride);
        place.value += pixels * place.stride;
        if (place.z) place.z += pixels * place.stride;
        if (place.extra) place.extra += pixels * place.stride;
    };
    int left = d.pixels;
    for (; left >= P; left -= P, step(P)) depthwise_tile<K, S, P>(d, row, out, written);
    if (left == 3) depthwise_tile<K, S, 3>(d, row, out, written);
    if (left == 2) depthwise_tile<K, S, 2>(d, row, out, written);
    if (left == 1) depthwise_tile<K, S, 1>(d, row, out, written);
}

void depthwise_row(const DepthwiseRowArgs& d) {
    if (d.taps == 3) return d.step == 1 ? depthwise_row_of<3, 1>(d) : depthwise_row_of<3, 2>(d);
    d.step == 1 ? depthwise_row_of<5, 1>(d) : depthwise_row_of<5, 2>(d);
}

}  // namespace

namespace sparsetime {

extern const Encoders SPARSETIME_ENCODERS;
extern const FrameKernels SPARSETIME_FRAMES;
extern const RowKernels SPARSETIME_ROWS;
extern const IntKernels SPARSETIME_INTEGERS;
extern const Kernels SPARSETIME_TABLE;
const Kernels SPARSETIME_TABLE = {SPARSETIME_NAME, VL, TILE_M, TILE_V, GROUP, tile_any, runs, depthwise, depthwise_row, &SPARSETIME_ENCODERS,
                                  &SPARSETIME_FRAMES,        &SPARSETIME_ROWS, &SPARSETIME_INTEGERS};

}  // namespace sparsetime
