// Vectors as wide as the instruction set that the including file is compiled for; GCC's and Clang's extensions.
//
// Everything is in an anonymous namespace: code compiled for a wide instruction set must not be merged by the linker into
// what narrow machines run.

#pragma once

#include <cstdint>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int VL = 16, GROUP = 4;
#elif defined(__AVX2__)
constexpr int VL = 8, GROUP = 4;
#elif defined(__aarch64__)
constexpr int VL = 4, GROUP = 4;
#else
constexpr int VL = 4, GROUP = 4;
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
#if defined(SPARSETIME_EMULATED)
    (void)v;  // no register has so many lanes
#elif defined(__x86_64__)
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

// a > b ? a : b and a < b ? a : b, also of NaN and zeros; compilers that must keep these apart do not find the one instruction.
#if defined(__AVX512F__)
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Half max(Half a, Half b) { return _mm256_max_ps(a, b); }
inline Half min(Half a, Half b) { return _mm256_min_ps(a, b); }
#elif defined(__AVX2__)
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
#else
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
#endif

inline float sum(Vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(v);
#elif defined(__AVX2__)
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
#else
    float total = 0.0f;
    for (int i = 0; i < VL; ++i) total += v[i];
    return total;
#endif
}

#if defined(__AVX512F__)
inline float sum(Half v) { return _mm512_reduce_add_ps(_mm512_zextps256_ps512(v)); }
#endif

// The numbers of the lanes.
inline Int iota() {
    Int v;
    for (int i = 0; i < VL; ++i) v[i] = i;
    return v;
}

// One truth a lane, as the instruction set keeps it, and as bits.
#if defined(__AVX512F__)
using Mask = __mmask16;
inline Vec choose(Mask m, Vec a, Vec b) { return _mm512_mask_blend_ps(m, b, a); }
inline Mask above(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Mask differ(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
inline Mask first_lanes(int n) { return Mask((1u << n) - 1); }
inline Mask both(Mask a, Mask b) { return a & b; }
inline unsigned lanes(Mask m) { return m; }
// From bits.
inline Mask mask_of(unsigned set) { return Mask(set); }
// 1 in the lanes whose bits are set, else 0.
inline Int ones(unsigned set) { return reinterpret_cast<Int>(_mm512_maskz_set1_epi32(Mask(set), 1)); }
#else
using Mask = Int;
inline Vec choose(Mask m, Vec a, Vec b) { return m ? a : b; }
inline Mask above(Vec a, Vec b) { return a > b; }
inline Mask differ(Vec a, Vec b) { return a != b; }
inline Mask first_lanes(int n) { return iota() < n; }
inline Mask both(Mask a, Mask b) { return a & b; }
inline unsigned lanes(Mask m) {
#if defined(__AVX2__)
    return unsigned(_mm256_movemask_ps(reinterpret_cast<__m256>(m)));
#else
    unsigned bits = 0;
    for (int i = 0; i < VL; ++i) bits |= unsigned(m[i] & 1) << i;
    return bits;
#endif
}
inline Mask mask_of(unsigned set) { return (int32_t(set) & (1 << iota())) != 0; }
inline Int ones(unsigned set) { return -mask_of(set); }
#endif

// Lanes of a and b that differ, as bits.
inline unsigned differing(Vec a, Vec b) { return lanes(differ(a, b)); }

// The numbers of the lanes that are set, one after the other, and lanes of v by their numbers: what is wanted comes to the front. Where a
// machine can do so without asking for each lane.
#if defined(__AVX512F__)
constexpr bool COMPRESSES = true;
inline Int order_of(unsigned set) {
    return reinterpret_cast<Int>(_mm512_maskz_compress_epi32(__mmask16(set), reinterpret_cast<__m512i>(iota())));
}
inline Vec permuted(Vec v, Int order) { return _mm512_permutexvar_ps(reinterpret_cast<__m512i>(order), v); }
inline Int permuted(Int v, Int order) {
    return reinterpret_cast<Int>(_mm512_permutexvar_epi32(reinterpret_cast<__m512i>(order), reinterpret_cast<__m512i>(v)));
}
#elif defined(__AVX2__)
constexpr bool COMPRESSES = true;
struct Orders {
    uint64_t of[256] = {};  // byte k: the number of the k-th lane that is set
    constexpr Orders() {
        for (int set = 0; set < 256; ++set)
            for (int lane = 0, k = 0; lane < 8; ++lane)
                if (set >> lane & 1) of[set] |= uint64_t(lane) << (8 * k++);
    }
};
constexpr Orders ORDERS;
inline Int order_of(unsigned set) {
    return reinterpret_cast<Int>(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(ORDERS.of[set]))));
}
inline Vec permuted(Vec v, Int order) { return _mm256_permutevar8x32_ps(v, reinterpret_cast<__m256i>(order)); }
inline Int permuted(Int v, Int order) {
    return reinterpret_cast<Int>(_mm256_permutevar8x32_epi32(reinterpret_cast<__m256i>(v), reinterpret_cast<__m256i>(order)));
}
#else
constexpr bool COMPRESSES = false;
inline Int order_of(unsigned) { return Int{}; }
inline Vec permuted(Vec v, Int) { return v; }
inline Int permuted(Int v, Int) { return v; }
#endif
typedef int32_t IntAt __attribute__((vector_size(VL * 4), aligned(4), may_alias));
inline void store(int32_t* p, Int v) { *reinterpret_cast<IntAt*>(p) = v; }
inline void store(uint32_t* p, Int v) { *reinterpret_cast<IntAt*>(p) = v; }

#if defined(__AVX2__)
// The bits of VL lanes as bytes of 0 or 1.
inline void store_bits(uint8_t* p, unsigned set) {
    for (int i = 0; i < VL; i += 8) {
        const uint64_t bytes = _pdep_u64(set >> i, 0x0101010101010101);
        __builtin_memcpy(p + i, &bytes, sizeof bytes);
    }
}
#endif

// Appends the events of a vector of changes, those of `lanes`. What is written behind the last is written over by the next. Returns how many.
inline int append(unsigned lanes, uint32_t first, Vec d, uint32_t* places, float* changes) {
    if constexpr (COMPRESSES) {
        // Into a register and whole vectors from there: compressing stores are microcoded on some machines.
        const Int order = order_of(lanes);
        store(places, order + int32_t(first));
        store(changes, permuted(d, order));
        return __builtin_popcount(lanes);
    }
    int n = 0;
    for (; lanes; lanes &= lanes - 1, ++n) {
        const int i = __builtin_ctz(lanes);
        places[n] = first + uint32_t(i);
        changes[n] = d[i];
    }
    return n;
}

}  // namespace
