// Activations and what codecs are made of, on vectors. For files compiled without contracting a product and a sum into one operation.

#pragma once

#include <type_traits>

#include "kernels.h"
#include "vec.h"

namespace {

using sparsetime::Act;
using sparsetime::Encode;

inline Vec bits(Int v) { return reinterpret_cast<Vec>(v); }
inline Int bits(Vec v) { return reinterpret_cast<Int>(v); }

// ---- activations --------------------------------------------------------------------------------------------------------

inline Vec absolute(Vec x) { return bits(bits(x) & 0x7fffffff); }
inline Vec with_sign(Vec magnitude, Vec x) { return bits(bits(magnitude) | (bits(x) & int32_t(0x80000000))); }

inline Vec round_even(Vec x) {
#if defined(__AVX512F__)
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    // Adding 2^23 with x's sign leaves no bits behind the point; from 2^23 on there are none.
    const Vec big = with_sign(splat(8388608.0f), x);
    return absolute(x) < 8388608.0f ? with_sign((x + big) - big, x) : x;
#endif
}

inline Vec truncate(Vec x) {
    const Vec r = round_even(x);
    return absolute(r) > absolute(x) ? r - with_sign(splat(1.0f), x) : r;
}

// a b + c: in one rounding, unless the including file wants the same bits of every instruction set.
inline Vec madd(Vec a, Vec b, Vec c) {
#if defined(SPARSETIME_SAME_BITS)
    return a * b + c;
#else
    return fma(a, b, c);
#endif
}

// A polynomial by Horner's rule, the coefficient of the highest power first.
template <int N>
[[gnu::always_inline]] inline Vec polynomial(Vec x, const float (&coefficient)[N]) {
    Vec p = splat(coefficient[0]);
    for (int i = 1; i < N; ++i) p = madd(p, x, splat(coefficient[i]));
    return p;
}

// e^x = (q + 1) p, with p a power of two and q near 0; saturates outside [-87, 88]. Cody-Waite reduction, then the polynomial of degree 6
// whose largest relative error is least (4e-9), by Estrin's scheme: fewer terms wait for each other.
struct Exponential {
    Vec q, p;
};

inline Exponential exponential(Vec x) {
    constexpr float WHOLE = 12582912.0f;  // 1.5 2^23: a sum with it has no bits behind the point, and ends with those of an integer
    x = min(max(x, splat(-87.0f)), splat(88.0f));
    const Vec shifted = madd(x, splat(1.44269504088896341f), splat(WHOLE)), n = shifted - WHOLE;
    Vec r = madd(n, splat(-0.693145751953125f), x);
    r = madd(n, splat(-1.42860682030941723212e-6f), r);
    const Vec s = r * r;
    const Vec low = madd(r, splat(0.16666521f), splat(0.49999994f)), high = madd(r, splat(0.008368711f), splat(0.04166839f));
    const Vec p = madd(s, madd(s, splat(0.0013814608f), high), low);
    return {madd(p, s, r), bits((bits(shifted) + 127) << 23)};
}

// e^x, relative error below 1.3e-7.
inline Vec exp(Vec x) {
    const Exponential e = exponential(x);
    return madd(e.q, e.p, e.p);
}

// e^x - 1, which near 0 must not be the difference of numbers near 1.
inline Vec expm1(Vec x) {
    const Exponential e = exponential(x);
    return madd(e.q, e.p, e.p - 1.0f);
}

inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

inline Vec tanh(Vec x) {
    // Near 0 the quotient would cancel: odd polynomial below 0.625 (Cephes).
    const Vec magnitude = absolute(x);
    const Vec large = with_sign(1.0f - 2.0f / (exp(2.0f * magnitude) + 1.0f), x);
    const Vec s = x * x;
    const Vec p = polynomial(
        s, {-5.70498872745e-3f, 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f});
    const Vec small = x + x * s * p;
    return magnitude < 0.625f ? small : large;
}

// Error below 1.2e-7: within 3.92, beyond which float32 has only -1 and 1, the quotient of polynomials of degree 5 in x^2 whose largest
// error is least (2e-8 before rounding).
inline Vec erf(Vec x) {
    const Vec s = x * x;
    const Vec p = polynomial(s, {2.0346667497506132e-6f, 2.8746051248162985e-4f, 3.867941442877054e-3f,
                                 5.305929481983185e-2f, 1.9275648891925812e-1f, 1.128378987312317f});
    const Vec q = polynomial(s, {3.806893073488027e-5f, 1.1880015954375267e-3f, 1.5171544626355171e-2f,
                                 1.150813177227974e-1f, 5.041576623916626e-1f, 1.0f});
    return absolute(x) < 3.92f ? x * p / q : with_sign(splat(1.0f), x);
}

inline Vec erf_gelu(Vec x) { return 0.5f * x * (1.0f + erf(x * 0.70710678118654752f)); }

// x tanh(log(1 + e^x)): in float32 x from 20 on, and below -88 next to 0. What is no number stays none.
inline Vec mish(Vec x) {
    const Vec e = exp(min(x, splat(20.0f))), n = e * (e + 2.0f);
    return max(splat(-88.0f), x) * (n / (n + 2.0f));
}

template <Act A>
inline Vec apply(Vec x, float a, float b) {
    if constexpr (A == Act::none) return x;
    if constexpr (A == Act::clamp) {
        x = max(x, splat(a));
        return b < __builtin_inff() ? min(x, splat(b)) : x;
    }
    if constexpr (A == Act::leaky_relu) return x > 0.0f ? x : x * a;
    if constexpr (A == Act::hardswish) return x * min(max(x + 3.0f, Vec{}), splat(6.0f)) / 6.0f;
    if constexpr (A == Act::hardsigmoid) return min(max(x + 3.0f, Vec{}), splat(6.0f)) / 6.0f;
    if constexpr (A == Act::silu) return x / (1.0f + exp(-x));
    if constexpr (A == Act::gelu) return erf_gelu(x);
    if constexpr (A == Act::gelu_tanh)
        return 0.5f * x * (1.0f + tanh(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    if constexpr (A == Act::sigmoid) return sigmoid(x);
    if constexpr (A == Act::tanh) return tanh(x);
    if constexpr (A == Act::elu) return x > 0.0f ? x : a * expm1(x);
    if constexpr (A == Act::mish) return mish(x);
}

// Calls body with an activation as a type's value.
template <class Body>
[[gnu::always_inline]] inline auto by_activation(Act act, const Body& body) {
    switch (act) {
        case Act::clamp: return body(std::integral_constant<Act, Act::clamp>{});
        case Act::leaky_relu: return body(std::integral_constant<Act, Act::leaky_relu>{});
        case Act::hardswish: return body(std::integral_constant<Act, Act::hardswish>{});
        case Act::hardsigmoid: return body(std::integral_constant<Act, Act::hardsigmoid>{});
        case Act::silu: return body(std::integral_constant<Act, Act::silu>{});
        case Act::gelu: return body(std::integral_constant<Act, Act::gelu>{});
        case Act::gelu_tanh: return body(std::integral_constant<Act, Act::gelu_tanh>{});
        case Act::sigmoid: return body(std::integral_constant<Act, Act::sigmoid>{});
        case Act::tanh: return body(std::integral_constant<Act, Act::tanh>{});
        case Act::elu: return body(std::integral_constant<Act, Act::elu>{});
        case Act::mish: return body(std::integral_constant<Act, Act::mish>{});
        default: return body(std::integral_constant<Act, Act::none>{});
    }
}

// None, clamp, or what is chosen at run time, for which leaky_relu stands.
template <Act A>
inline Vec activate(Vec x, Act act, float a, float b) {
    if constexpr (A == Act::none || A == Act::clamp) return apply<A>(x, a, b);
    else return by_activation(act, [&](auto chosen) { return apply<decltype(chosen)::value>(x, a, b); });
}

// ---- codecs; docs/plan.md, "Encoding" -----------------------------------------------------------------------------------

// The steps of the channels from c on, where the codec has any.
template <Encode E>
inline Vec steps_of(const float* step, ptrdiff_t c) {
    if constexpr (E == Encode::linear || E == Encode::change) return Vec{};
    else return load(step + c);
}

// What takes the place of v if anything is sent, where the new value is y.
template <Encode E>
inline Vec encode(Vec y, Vec v, Vec step, float low, float high) {
    if constexpr (E == Encode::exact) return step * round_even(min(max(y / step, splat(low)), splat(high)));
    else if constexpr (E == Encode::residual) return v + step * truncate((y - v) / step);
    else return y;
}

// Whether so much of a change is sent.
template <Encode E>
inline Mask sends(Vec change, Vec step) {
    if constexpr (E == Encode::hold) return above(absolute(change), step);
    else return differ(change, Vec{});
}

// `pixel`: how far one channel is from what was sent. A pixel is sent if all together are farther than their number.
template <class T>
inline T distance(T y, T v, T inverse) {
    const T scaled = (y - v) * inverse;
    return scaled * scaled;
}

}  // namespace
