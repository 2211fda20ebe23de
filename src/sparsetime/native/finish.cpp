// From sums to values and events: activations, codecs, lists. Compiled once per instruction set like kernels.cpp, but without
// contracting a product and a sum into one operation: v' = q n is rounded before v' - v is taken, or an unchanged code would
// send the rounding error as an event.

#include <type_traits>

#include "activate.h"
#include "kernels.h"
#include "vec.h"

namespace {

using namespace sparsetime;

// ---- from sums to events ------------------------------------------------------------------------------------------------

// Channels in groups of as many vectors as registers allow, the rest in ever smaller ones: group(vectors, first channel).
// Conv::pack arranges weights in the same way.
template <int B = GROUP, class Group>
[[gnu::always_inline]] inline void for_groups(int channels, const Group& group, int c = 0) {
    for (; (channels - c + VL - 1) / VL >= B; c += B * VL) group(std::integral_constant<int, B>{}, c);
    if constexpr (B > 1) for_groups<B / 2>(channels, group, c);
}

// How many events a group of vectors has cannot be foreseen, and a branch that is not costs more than FEW events: so many are
// written without asking.
constexpr int FEW = 4;

// Appends the events of `B` vectors of changes, whose nonzero lanes are the bits of `lanes`.
template <int B>
[[gnu::always_inline]] inline int append_group(uint64_t lanes, const Vec* d, uint32_t first, uint32_t* places,
                                               float* changes) {
    const int total = __builtin_popcountll(lanes);
    if (COMPRESSES && total > FEW) {
        for (int b = 0, n = 0; b < B; ++b, first += VL, lanes >>= VL)
            n += append(unsigned(lanes) & ((1u << VL) - 1), first, d[b], places + n, changes + n);
        return total;
    }
    float lane[B * VL];
    for (int b = 0; b < B; ++b) store(lane + b * VL, d[b]);
    const auto write = [&](int n) {
        const int i = __builtin_ctzll(lanes | uint64_t(1) << (B * VL - 1));
        places[n] = first + uint32_t(i);
        changes[n] = lane[i];
        lanes &= lanes - 1;
    };
    for (int n = 0; n < FEW; ++n) write(n);
    for (int n = FEW; n < total; ++n) write(n);
    return total;
}

// Where the state of one pixel is.
struct Pixel {
    const float* extra;
    float* z;
    float* value;
    const float* step;
    float* row;
    uint32_t place;
    ptrdiff_t later;  // floats to the state of a pixel that will soon be wanted
};

// Of the pixel at place i of the list, and of the one `ahead` of it.
inline Pixel pixel_at(const FinishArgs& f, int i, int ahead) {
    const ptrdiff_t p = f.pixel[i], at = p * f.stride;
    const ptrdiff_t later = f.pixel[i + ahead < f.pixels ? i + ahead : f.pixels - 1];
    return {f.extra && (!f.extra_mask || f.extra_mask[p]) ? f.extra + at : nullptr,
            f.z ? f.z + at : nullptr,
            f.value + at,
            f.step_map ? f.step + at : f.step,
            f.rows ? f.rows + at : nullptr,
            uint32_t(p) << f.shift,
            (later - p) * f.stride};
}

// `B` vectors of one pixel from channel c on, of which `valid` channels exist; s are their sums. Returns how many changed. Values are
// written only where some did: at low density most of them stay, and a line that is not written need not go back to memory.
template <Act A, Encode E, int B>
[[gnu::always_inline]] inline int finish_group(const FinishArgs& f, const Pixel& p, Vec (&s)[B], int c, int valid,
                                               int64_t event) {
    Vec d[B], to[B], v[B];
    Mask sent[B];
    for (int b = 0; b < B; ++b) {
        v[b] = load(p.value + c + b * VL);
        if (b * VL % LANE) continue;
        // Accumulators and values come from afar: ask for those of a later pixel now.
        if (E != Encode::linear) __builtin_prefetch(p.z + p.later + c + b * VL, 1);
        __builtin_prefetch(p.value + p.later + c + b * VL, 1);
    }
    if (p.extra)
        for (int b = 0; b < B; ++b) s[b] += load(p.extra + c + b * VL);
    if (f.replace)
        for (int b = 0; b < B; ++b) s[b] += load(f.bias + c + b * VL);
    else if (E != Encode::linear)
        for (int b = 0; b < B; ++b) s[b] += load(p.z + c + b * VL);
    if (E != Encode::linear && f.z)
        for (int b = 0; b < B; ++b) store(p.z + c + b * VL, s[b]);
    for (int b = 0; b < B; ++b) {
        const Vec y = activate<A>(s[b], f.act, f.act_a, f.act_b), q = steps_of<E>(p.step, c + b * VL);
        const bool added = E == Encode::linear && !f.replace;  // y is the change itself
        to[b] = added ? v[b] + y : encode<E>(y, v[b], q, f.low, f.high);
        d[b] = added ? y : to[b] - v[b];
        sent[b] = sends<E>(d[b], q);
    }
    if (valid < B * VL) sent[B - 1] = both(sent[B - 1], first_lanes(valid - (B - 1) * VL));
    uint64_t all = 0;
    for (int b = 0; b < B; ++b) all |= uint64_t(lanes(sent[b])) << (b * VL);
    if (p.row)
        for (int b = 0; b < B; ++b) store(p.row + c + b * VL, choose(sent[b], d[b], Vec{}));
    if (!all) return 0;
    for (int b = 0; b < B; ++b) store(p.value + c + b * VL, choose(sent[b], to[b], v[b]));
    if (f.place) return append_group<B>(all, d, p.place + uint32_t(c), f.place + event, f.change + event);
    return __builtin_popcountll(all);
}

// Sends all of pixel p, whose new values are at y, `block` floats from vector to vector. Returns how many changed.
[[gnu::always_inline]] inline int send_pixel(const FinishArgs& f, ptrdiff_t p, const float* y, ptrdiff_t block,
                                             int64_t events) {
    const int64_t before = events;
    float* value = f.value + p * f.stride;
    float* row = f.rows ? f.rows + p * f.stride : nullptr;
    const auto send = [&](auto vectors, int c) __attribute__((always_inline)) {
        constexpr int B = vectors.value;
        Vec d[B];
        uint64_t changed = 0;
        for (int b = 0; b < B; ++b) {
            const int at = c + b * VL, valid = f.channels - at;
            Vec to = load(y + at / VL * block);
            if (valid < VL) to = choose(first_lanes(valid), to, Vec{});
            d[b] = to - load(value + at);
            store(value + at, to);
            if (row) store(row + at, d[b]);
            changed |= uint64_t(differing(d[b], Vec{})) << (b * VL);
        }
        if (!f.place) events += __builtin_popcountll(changed);
        else
            events +=
                append_group<B>(changed, d, uint32_t(p) << f.shift | uint32_t(c), f.place + events, f.change + events);
    };
    for_groups(f.channels, send);
    return int(events - before);
}

// `pixel`: whether anything is sent is known when all channels have been seen. They wait in f.room, and where nothing is sent
// nothing is written.
template <Act A, class Sums>
inline void finish_whole(FinishArgs& all, const Sums& from) {
    FinishArgs f = all;  // copies that no store can alias
    const Sums sums = from;
    const int ahead = 1 + 512 / f.stride;
    for (int i = 0; i < f.pixels; ++i) {
        const ptrdiff_t p = f.pixel[i];
        const Pixel pixel = pixel_at(f, i, ahead);
        Vec total{};
        const auto look = [&](auto vectors, int c) __attribute__((always_inline)) {
            constexpr int B = vectors.value;
            Vec s[B];
            sums(i, c, s);
            for (int b = 0; b < B; ++b, c += VL) {
                if (c % LANE == 0) {
                    if (pixel.z) __builtin_prefetch(pixel.z + pixel.later + c, 1);
                    __builtin_prefetch(pixel.value + pixel.later + c, 1);
                }
                if (pixel.extra) s[b] += load(pixel.extra + c);
                s[b] += load(f.replace ? f.bias + c : pixel.z + c);
                if (pixel.z) store(pixel.z + c, s[b]);
                const Vec y = activate<A>(s[b], f.act, f.act_a, f.act_b);
                store(f.room + c, y);
                const Vec far = distance(y, load(pixel.value + c), load(pixel.step + c));
                // Lanes behind the channels may hold anything, and times 0 it may be no number.
                const int valid = f.channels - c;
                total += valid < VL ? choose(first_lanes(valid), far, Vec{}) : far;
            }
        };
        for_groups(f.channels, look);
        if (sum(total) > float(f.channels)) f.add(p, send_pixel(f, p, f.room, VL, f.events));
    }
    all.active_count = f.active_count;
    all.events = f.events;
}

// The same where kernels have compared. Which pixels are sent cannot be foreseen: they are listed first.
void send(FinishArgs& all, const float* far) {
    const FinishArgs f = all;  // a copy that no store can alias
    int32_t *active = f.active + f.active_count, *tally = f.tally + f.active_count;
    int sent = 0;
    for (int i = 0; i < f.pixels; ++i) {
        const bool here = far[i] > float(f.channels);
        f.mask[f.pixel[i]] = here;
        active[sent] = f.pixel[i];
        tally[sent] = i;
        sent += here;
    }
    for (int k = 0; k < sent; ++k) {
        tally[k] = send_pixel(f, active[k], f.sum + f.at[tally[k]], f.block, all.events);
        all.events += tally[k];
    }
    all.active_count += sent;
}

// sums(i, c, s) gives the sums of the pixel at place i of the list, from channel c on.
template <Act A, Encode E, class Sums>
inline void finish_pixels(FinishArgs& all, const Sums& from) {
    if constexpr (E == Encode::pixel) return finish_whole<A>(all, from);
    FinishArgs f = all;  // copies that no store can alias
    const Sums sums = from;
    const int ahead = 1 + 512 / f.stride;
    for (int i = 0; i < f.pixels; ++i) {
        const ptrdiff_t p = f.pixel[i];
        const Pixel pixel = pixel_at(f, i, ahead);
        int64_t events = f.events;
        const auto group = [&](auto vectors, int c) __attribute__((always_inline)) {
            Vec s[vectors.value];
            sums(i, c, s);
            events += finish_group<A, E>(f, pixel, s, c, f.channels - c, events);
        };
        for_groups(f.channels, group);
        f.add(p, int(events - f.events));
    }
    all.active_count = f.active_count;
    all.events = f.events;
}

template <Act A, Encode E>
void finish_rows(FinishArgs& f) {
    const auto sums = [sum = f.sum, at = f.at, block = f.block, clear = f.clear](int i, int c, auto& s)
        __attribute__((always_inline)) {
        float* from = sum + at[i] + c / VL * block;
        constexpr int B = sizeof(s) / sizeof(Vec);
        for (int b = 0; b < B; ++b) s[b] = load(from + b * block);
        if (clear)
            for (int b = 0; b < B; ++b) store(from + b * block, Vec{});
    };
    finish_pixels<A, E>(f, sums);
}

// Sums of a pixel's own events, in registers.
template <Act A, Encode E>
void finish_events(FinishArgs& f, const EventArgs& args) {
    finish_pixels<A, E>(f, [e = args](int i, int c, auto& s) __attribute__((always_inline)) {
        constexpr int B = sizeof(s) / sizeof(Vec);
        const float* w = e.w + ptrdiff_t(c) * e.depth;
        Vec more[B] = {};  // a second set hides the latency of an addition
        for (Vec& x : s) x = Vec{};
        int n = e.bound[i];
        const int end = e.bound[i + 1];
        for (; n + 2 <= end; n += 2) {
            const float *a = w + ptrdiff_t(e.place[n] & e.channel_mask) * (B * VL),
                        *b = w + ptrdiff_t(e.place[n + 1] & e.channel_mask) * (B * VL);
            const Vec x = splat(e.change[n]), y = splat(e.change[n + 1]);
            for (int v = 0; v < B; ++v) {
                s[v] = fma(x, load(a + v * VL), s[v]);
                more[v] = fma(y, load(b + v * VL), more[v]);
            }
        }
        if (n < end) {
            const float* a = w + ptrdiff_t(e.place[n] & e.channel_mask) * (B * VL);
            const Vec x = splat(e.change[n]);
            for (int v = 0; v < B; ++v) s[v] = fma(x, load(a + v * VL), s[v]);
        }
        for (int v = 0; v < B; ++v) s[v] += more[v];
    });
}

// Maps of at most NARROW channels are not padded to vectors: one channel at a time.
template <Encode E>
void finish_narrow(FinishArgs& f) {
    for (int i = 0; i < f.pixels; ++i) {
        const ptrdiff_t p = f.pixel[i];
        const float* extra = f.extra && (!f.extra_mask || f.extra_mask[p]) ? f.extra + p * f.stride : nullptr;
        int any = 0;
        float to[NARROW], d[NARROW], far = 0.0f;
        for (int c = 0; c < f.channels; ++c) {
            // Sums lie in vectors of this instruction set, the last one padded.
            float& place = f.sum[f.at[i] + (c / VL) * f.block + c % VL];
            const float sum = place + (extra ? extra[c] : 0.0f);
            if (f.clear) place = 0.0f;
            const ptrdiff_t e = p * f.stride + c;
            const float v = f.value[e];
            if (E == Encode::linear) {
                to[c] = f.replace ? f.bias[c] + sum : v + sum;
                d[c] = f.replace ? to[c] - v : sum;
                continue;
            }
            const float next = (f.replace ? f.bias[c] : f.z[e]) + sum;
            if (f.z) f.z[e] = next;
            const Vec all = f.act == Act::none ? splat(next)
                            : f.act == Act::clamp
                                ? activate<Act::clamp>(splat(next), f.act, f.act_a, f.act_b)
                                : activate<Act::leaky_relu>(splat(next), f.act, f.act_a, f.act_b);
            const float y = all[0];
            const float q = f.step ? f.step[f.step_map ? e : c] : 0.0f;
            to[c] = encode<E>(splat(y), splat(v), splat(q), f.low, f.high)[0];
            d[c] = to[c] - v;
            if (E == Encode::hold && !(__builtin_fabsf(d[c]) > q)) d[c] = 0.0f;
            if (E == Encode::pixel) far += distance(y, v, q);
        }
        // Lanes behind the channels have products with zeros, which are no zeros where a change is infinite.
        for (int c = f.channels; f.clear && c % VL; ++c) f.sum[f.at[i] + (c / VL) * f.block + c % VL] = 0.0f;
        const bool sent = E != Encode::pixel || far > float(f.channels);
        for (int c = 0; c < f.channels; ++c) {
            const ptrdiff_t e = p * f.stride + c;
            if (!sent) d[c] = 0.0f;
            if (E == Encode::linear || d[c] != 0.0f) f.value[e] = to[c];
            if (f.rows) f.rows[e] = d[c];
            if (d[c] == 0.0f) continue;
            if (f.place) {
                f.place[f.events + any] = uint32_t(p) << f.shift | uint32_t(c);
                f.change[f.events + any] = d[c];
            }
            ++any;
        }
        f.add(p, any);
    }
}

// Calls body with activation and codec as types' values.
template <class Body>
void by_codec(const FinishArgs& f, const Body& body) {
    const auto act = [&](auto encode) {
        if (f.act == Act::none) return body(std::integral_constant<Act, Act::none>{}, encode);
        if (f.act == Act::clamp) return body(std::integral_constant<Act, Act::clamp>{}, encode);
        // leaky_relu stands for all that are chosen at run time.
        return body(std::integral_constant<Act, Act::leaky_relu>{}, encode);
    };
    switch (f.encode) {
        case Encode::linear:
            return body(std::integral_constant<Act, Act::none>{}, std::integral_constant<Encode, Encode::linear>{});
        case Encode::change: return act(std::integral_constant<Encode, Encode::change>{});
        case Encode::exact: return act(std::integral_constant<Encode, Encode::exact>{});
        case Encode::hold: return act(std::integral_constant<Encode, Encode::hold>{});
        case Encode::residual: return act(std::integral_constant<Encode, Encode::residual>{});
        case Encode::pixel: return act(std::integral_constant<Encode, Encode::pixel>{});
    }
}

// ---- from sums to values ------------------------------------------------------------------------------------------------

// How many lanes were true.
#if defined(__AVX512F__)
struct Count {
    int n = 0;
    void add(Mask m) { n += __builtin_popcount(m); }
    int sum() const { return n; }
};
#else
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
            const Vec v = load(value + c), q = steps_of<E>(step, c);
            Vec to = encode<E>(activate<A>(next, f.act, f.act_a, f.act_b), v, q, f.low, f.high);
            Mask changed = differ(to, v);
            if constexpr (E == Encode::hold) {
                changed = sends<E>(to - v, q);
                to = choose(changed, to, v);
            }
            if (rest && b == whole) {
                changed = both(changed, first_lanes(rest));
                to = choose(first_lanes(rest), to, Vec{});
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
        f.add(p, count.sum());
    }
    all.active_count = f.active_count;
    all.events = f.events;
}

// The first frame of a stream: values are written and nothing is read.
template <Act A, Encode E>
void write_rows(FinishArgs& f) {
    const int whole = f.channels / VL, rest = f.channels % VL;
    for (int i = 0; i < f.pixels; ++i) {
        const ptrdiff_t p = f.pixel[i];
        const float* sum = f.sum + f.at[i];
        float* value = f.value + p * f.stride;
        float* z = f.z ? f.z + p * f.stride : nullptr;
        const float* step = f.step_map ? f.step + p * f.stride : f.step;
        const float* extra = f.extra ? f.extra + p * f.stride : nullptr;
        const auto write = [&](int b) {
            const int c = b * VL;
            Vec y = load(f.bias + c) + (extra ? load(sum + b * f.block) + load(extra + c) : load(sum + b * f.block));
            if (z) store(z + c, y);
            y = encode<E>(apply<A>(y, f.act_a, f.act_b), Vec{}, steps_of<E>(step, c), f.low, f.high);
            store(value + c, rest && b == whole ? choose(first_lanes(rest), y, Vec{}) : y);
        };
        for (int b = 0; b < whole; ++b) write(b);
        if (rest) write(whole);
        f.add(p, f.channels);
    }
}

// New values in place of sums, and accumulators where they are kept: an activation of many operations is chosen once for all rows, instead of
// for each vector.
template <Act A>
void activate_rows(const FinishArgs& all) {
    const FinishArgs f = all;  // a copy that no store can alias
    for (int i = 0; i < f.pixels; ++i) {
        const ptrdiff_t p = f.pixel[i];
        float* sum = f.sum + f.at[i];
        float* z = f.z ? f.z + p * f.stride : nullptr;
        const float* extra = f.extra && (!f.extra_mask || f.extra_mask[p]) ? f.extra + p * f.stride : nullptr;
        for (int c = 0; c < f.channels; c += VL, sum += f.block) {
            const Vec next = load(f.bias + c) + (extra ? load(sum) + load(extra + c) : load(sum));
            if (z) store(z + c, next);
            store(sum, apply<A>(next, f.act_a, f.act_b));
        }
    }
}

void finish_rows_of(FinishArgs& f) {
    by_codec(f, [&](auto act, auto encode) {
        constexpr Act A = decltype(act)::value;
        constexpr Encode E = decltype(encode)::value;
        if (f.channels <= NARROW) finish_narrow<E>(f);
        else if constexpr (A == Act::leaky_relu) finish_rows<A, E>(f);  // whole sums have had such an activation
        else if (f.flush) write_rows<A, E == Encode::exact ? E : Encode::change>(f);
        else if constexpr (E == Encode::pixel) finish_rows<A, E>(f);
        else if (f.replace && !f.rows && !f.place) settle_rows<A, E == Encode::linear ? Encode::change : E>(f);
        else finish_rows<A, E>(f);
    });
}

void finish(FinishArgs& all) {
    const bool chosen = all.act != Act::none && all.act != Act::clamp;
    if (!chosen || !all.replace || all.channels <= NARROW) return finish_rows_of(all);
    if (all.flush && all.encode != Encode::exact)
        return by_activation(all.act, [&](auto act) { write_rows<decltype(act)::value, Encode::change>(all); });
    by_activation(all.act, [&](auto act) { activate_rows<decltype(act)::value>(all); });
    FinishArgs f = all;
    f.act = Act::none;
    f.bias = f.zeros;
    f.extra = nullptr;
    f.z = nullptr;
    finish_rows_of(f);
    all.active_count = f.active_count;
    all.events = f.events;
}

void finish_with_events(FinishArgs& f, const EventArgs& args) {
    by_codec(f, [&](auto act, auto encode) { finish_events<decltype(act)::value, decltype(encode)::value>(f, args); });
}

int64_t events_of_rows(const float* rows, const int32_t* pixel, int pixels, int channels, int stride, int shift,
                       uint32_t* place, float* change) {
    int64_t n = 0;
    for (int i = 0; i < pixels; ++i) {
        const float* row = rows + ptrdiff_t(pixel[i]) * stride;
        const uint32_t base = uint32_t(pixel[i]) << shift;
        if (channels <= NARROW) {
            for (int c = 0; c < channels; ++c) {
                place[n] = base | uint32_t(c);
                change[n] = row[c];
                n += row[c] != 0.0f;
            }
            continue;
        }
        for (int c = 0; c < channels; c += VL) {  // padding lanes are zero
            const Vec d = load(row + c);
            n += append(differing(d, Vec{}), base + uint32_t(c), d, place + n, change + n);
        }
    }
    return n;
}

}  // namespace

namespace sparsetime {

extern const Encoders SPARSETIME_ENCODERS;
const Encoders SPARSETIME_ENCODERS = {finish, send, finish_with_events, events_of_rows};

}  // namespace sparsetime
