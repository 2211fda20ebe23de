// Vectors as wide as the instruction set that the including file is compiled for; GCC's and Clang's extensions.
//
// Everything is in an anonymous namespace: code compiled for a wide instruction set must not be merged by the linker into
// what narrow machines run.

#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int VL = 16, TILE_M = 6, TILE_V = 4, GROUP = 4;
#elif defined(__AVX2__)
constexpr int VL = 8, TILE_M = 6, TILE_V = 2, GROUP = 4;
#elif defined(__aarch64__)
constexpr int VL = 4, TILE_M = 6, TILE_V = 4, GROUP = 4;
#else
constexpr int VL = 4, TILE_M = 4, TILE_V = 2, GROUP = 4;
#endif

typedef float Vec __attribute__((vector_size(VL * 4)));
typedef float VecU __attribute__((vector_size(VL * 4), aligned(4), may_alias));
typedef int32_t Int __attribute__((vector_size(VL * 4)));

inline Vec load(const float* p) { return *reinterpret_cast<const VecU*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<VecU*>(p) = v; }

// Half a vector, where one is wide enough for that to be worth while.
#if defined(__AVX512F__)
constexpr bool HALVES = true;
typedef float Half __attribute__((vector_size(VL * 2)));
typedef float HalfU __attribute__((vector_size(VL * 2), aligned(4), may_alias));
inline void store(float* p, Half v) { *reinterpret_cast<HalfU*>(p) = v; }
#else
constexpr bool HALVES = false;
using Half = Vec;
using HalfU = VecU;
#endif
template <class T>
inline T load_as(const float* p) {
    if constexpr (std::is_same_v<T, Vec>) return load(p);
    else return *reinterpret_cast<const HalfU*>(p);
}
template <class T>
inline T splat_as(float x) { return x - T{}; }
inline Vec splat(float x) { return x - Vec{}; }

// Compilers would load a vector again for each product that it is in.
inline void in_register(Vec& v) {
#if defined(__x86_64__)
    __asm__("" : "+v"(v));
#elif defined(__aarch64__)
    __asm__("" : "+w"(v));
#else
    (void)v;
#endif
}

// a b + c in one rounding where the machine can, in files too that do not contract by themselves.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}

inline float sum(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(v);
#else
    float total = 0.0f;
    for (int i = 0; i < VL; ++i) total += v[i];
    return total;
#endif
}

#if defined(__AVX512F__)
inline float sum(Half v) { return _mm512_reduce_add_ps(_mm512_zextps256_ps512(v)); }
#endif

}  // namespace
