// AVX-512 a lane at a time, for machines that lack it: of its instructions those that kernels use, under the same names, so that their
// sources compile for AVX2 and compute what they would compute. Slow; for tests. CMakeLists.txt includes it in front of them.

#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

namespace emulated {

using u8 = uint8_t;
using i8 = int8_t;
using u16 = uint16_t;
using i16 = int16_t;
using i32 = int32_t;

template <class T>
struct Vector {
    typedef T type __attribute__((vector_size(64)));
};
template <class T>
constexpr int LANES = 64 / sizeof(T);

template <class T, class From>
inline T at(From x, int lane) {
    return reinterpret_cast<typename Vector<T>::type>(x)[lane];
}
// A vector of body(lane).
template <class T, class Body>
inline auto each(const Body& body) {
    typename Vector<T>::type r;
    for (int i = 0; i < LANES<T>; ++i) r[i] = T(body(i));
    if constexpr (std::is_same_v<T, float>) return reinterpret_cast<__m512>(r);
    else return reinterpret_cast<__m512i>(r);
}
template <int N, class Body>
inline uint64_t mask(const Body& body) {
    uint64_t bits = 0;
    for (int i = 0; i < N; ++i) bits |= uint64_t(bool(body(i))) << i;
    return bits;
}
// Parts of a vector, and what lies behind a part: anything.
template <class Part, class From>
inline Part part(const From& x, int number) {
    Part p;
    std::memcpy(&p, reinterpret_cast<const char*>(&x) + number * sizeof p, sizeof p);
    return p;
}
template <class Part>
inline __m512i with(__m512i x, Part p, int number) {
    std::memcpy(reinterpret_cast<char*>(&x) + number * sizeof p, &p, sizeof p);
    return x;
}
template <class Part>
inline __m512i wide(Part p) {
    return with(each<u8>([](int) { return 0x5a; }), p, 0);
}
// Bytes of memory that a mask leaves out are not touched.
template <class Whole, class T>
inline Whole masked_load(uint64_t m, const void* from) {
    T lane[sizeof(Whole) / sizeof(T)] = {};
    for (size_t i = 0; i < sizeof(Whole) / sizeof(T); ++i)
        if (m >> i & 1) std::memcpy(lane + i, static_cast<const T*>(from) + i, sizeof(T));
    return part<Whole>(lane, 0);
}
template <class T, class Whole>
inline void masked_store(void* to, uint64_t m, Whole x) {
    for (size_t i = 0; i < sizeof(Whole) / sizeof(T); ++i)
        if (m >> i & 1) std::memcpy(static_cast<T*>(to) + i, reinterpret_cast<const T*>(&x) + i, sizeof(T));
}
template <class T>
inline T clamped(int x) {
    constexpr int low = std::numeric_limits<T>::min(), high = std::numeric_limits<T>::max();
    return T(x < low ? low : x > high ? high : x);
}
// Lanes of x and y in turn, of the lower or upper half of every 16 bytes.
template <class T>
inline __m512i unpack(__m512i x, __m512i y, bool upper) {
    constexpr int PER = 16 / sizeof(T);
    return each<T>([&](int i) {
        const int from = i / PER * PER + (upper ? PER / 2 : 0) + i % PER / 2;
        return i % 2 ? at<T>(y, from) : at<T>(x, from);
    });
}
// Two vectors of From as one of narrower To, 16 bytes by 16 bytes.
template <class From, class To>
inline __m512i pack(__m512i x, __m512i y) {
    constexpr int PER = 16 / sizeof(To);
    return each<To>([&](int i) {
        const int lane = i % PER, from = i / PER * PER / 2 + lane % (PER / 2);
        return clamped<To>(lane < PER / 2 ? at<From>(x, from) : at<From>(y, from));
    });
}

// ---- by their names -----------------------------------------------------------------------------------------------------

inline __m512i loadu_si512(const void* p) { return masked_load<__m512i, u8>(~uint64_t(0), p); }
inline void storeu_si512(void* p, __m512i x) { std::memcpy(p, &x, sizeof x); }
inline __m512 maskz_loadu_ps(__mmask16 m, const void* p) { return masked_load<__m512, float>(m, p); }
inline __m512i maskz_loadu_epi8(__mmask64 m, const void* p) { return masked_load<__m512i, u8>(m, p); }
inline __m128i maskz_loadu_epi8_128(__mmask16 m, const void* p) { return masked_load<__m128i, u8>(m, p); }
inline void mask_storeu_ps(void* p, __mmask16 m, __m512 x) { masked_store<float>(p, m, x); }
inline void mask_storeu_epi8_128(void* p, __mmask16 m, __m128i x) { masked_store<u8>(p, m, x); }

inline __m512i setzero_si512() { return __m512i{}; }
inline __m512i set1_epi16(i16 x) { return each<i16>([&](int) { return x; }); }
inline __m512i set1_epi32(i32 x) { return each<i32>([&](int) { return x; }); }
inline __m512i maskz_set1_epi32(__mmask16 m, i32 x) { return each<i32>([&](int i) { return m >> i & 1 ? x : 0; }); }
template <class... T>
inline __m512i setr_epi32(T... x) {
    const i32 lane[] = {x...};
    return each<i32>([&](int i) { return lane[i]; });
}
inline __m512i broadcast_i32x4(__m128i x) { return each<i32>([&](int i) { return part<i32>(x, i % 4); }); }

inline __m512i add_epi32(__m512i x, __m512i y) { return each<i32>([&](int i) { return at<i32>(x, i) + at<i32>(y, i); }); }
inline __m512i sub_epi32(__m512i x, __m512i y) { return each<i32>([&](int i) { return at<i32>(x, i) - at<i32>(y, i); }); }
inline __m512i and_si512(__m512i x, __m512i y) { return x & y; }
inline __m512i or_si512(__m512i x, __m512i y) { return x | y; }
inline __m512i srli_epi16(__m512i x, int n) { return each<u16>([&](int i) { return at<u16>(x, i) >> n; }); }
inline __m512i srai_epi16(__m512i x, int n) { return each<i16>([&](int i) { return at<i16>(x, i) >> n; }); }
inline __m512i slli_epi16(__m512i x, int n) { return each<u16>([&](int i) { return at<u16>(x, i) << n; }); }
inline __m512i subs_epu8(__m512i x, __m512i y) { return each<u8>([&](int i) { return clamped<u8>(at<u8>(x, i) - at<u8>(y, i)); }); }
inline __m512i max_epu8(__m512i x, __m512i y) { return each<u8>([&](int i) { return std::max(at<u8>(x, i), at<u8>(y, i)); }); }
inline __m512i madd_epi16(__m512i x, __m512i y) {
    return each<i32>([&](int i) {
        return at<i16>(x, 2 * i) * at<i16>(y, 2 * i) + at<i16>(x, 2 * i + 1) * at<i16>(y, 2 * i + 1);
    });
}
inline __m512i dpbusd_epi32(__m512i sum, __m512i x, __m512i y) {
    return each<i32>([&](int i) {
        i32 total = at<i32>(sum, i);
        for (int k = 4 * i; k < 4 * i + 4; ++k) total += at<u8>(x, k) * at<i8>(y, k);
        return total;
    });
}
inline i32 reduce_add_epi32(__m512i x) {
    i32 total = 0;
    for (int i = 0; i < 16; ++i) total += at<i32>(x, i);
    return total;
}

inline __m512 fmadd_ps(__m512 x, __m512 y, __m512 z) {
    return each<float>([&](int i) { return std::fma(at<float>(x, i), at<float>(y, i), at<float>(z, i)); });
}
inline __m512 max_ps(__m512 x, __m512 y) {
    return each<float>([&](int i) { return at<float>(x, i) > at<float>(y, i) ? at<float>(x, i) : at<float>(y, i); });
}
inline __m512 min_ps(__m512 x, __m512 y) {
    return each<float>([&](int i) { return at<float>(x, i) < at<float>(y, i) ? at<float>(x, i) : at<float>(y, i); });
}
inline __m512 roundscale_ps(__m512 x, int) { return each<float>([&](int i) { return std::nearbyint(at<float>(x, i)); }); }
inline float reduce_add_ps(__m512 x) {
    float lane[16];
    std::memcpy(lane, &x, sizeof lane);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
}

inline __m512i cvtps_epi32(__m512 x) { return each<i32>([&](int i) { return _mm_cvtss_si32(_mm_set_ss(at<float>(x, i))); }); }
inline __m512i cvtepu8_epi32(__m128i x) { return each<i32>([&](int i) { return part<u8>(x, i); }); }
inline __m256i cvtepi16_epi8(__m512i x) { return part<__m256i>(each<u8>([&](int i) { return i < 32 ? at<u16>(x, i) : 0; }), 0); }
inline __m512i packs_epi32(__m512i x, __m512i y) { return pack<i32, i16>(x, y); }
inline __m512i packus_epi16(__m512i x, __m512i y) { return pack<i16, u8>(x, y); }
inline __m512i unpacklo_epi8(__m512i x, __m512i y) { return unpack<u8>(x, y, false); }
inline __m512i unpackhi_epi8(__m512i x, __m512i y) { return unpack<u8>(x, y, true); }
inline __m512i unpacklo_epi16(__m512i x, __m512i y) { return unpack<u16>(x, y, false); }
inline __m512i unpackhi_epi16(__m512i x, __m512i y) { return unpack<u16>(x, y, true); }

inline __m512i permutexvar_epi32(__m512i order, __m512i x) { return each<i32>([&](int i) { return at<i32>(x, at<i32>(order, i) & 15); }); }
inline __m512 permutexvar_ps(__m512i order, __m512 x) { return each<float>([&](int i) { return at<float>(x, at<i32>(order, i) & 15); }); }
inline __m512 permutex2var_ps(__m512 x, __m512i order, __m512 y) {
    return each<float>([&](int i) {
        const int from = at<i32>(order, i);
        return from & 16 ? at<float>(y, from & 15) : at<float>(x, from & 15);
    });
}
inline __m512i shuffle_epi8(__m512i x, __m512i order) {
    return each<u8>([&](int i) { return at<u8>(order, i) & 128 ? 0 : at<u8>(x, i / 16 * 16 + (at<u8>(order, i) & 15)); });
}
inline __m512i alignr_epi32(__m512i high, __m512i low, int n) {
    return each<i32>([&](int i) { return i + n < 16 ? at<i32>(low, i + n) : at<i32>(high, i + n - 16); });
}
inline __m512i maskz_compress_epi32(__mmask16 m, __m512i x) {
    i32 lane[16] = {};
    for (int i = 0, n = 0; i < 16; ++i)
        if (m >> i & 1) lane[n++] = at<i32>(x, i);
    return part<__m512i>(lane, 0);
}
inline __m512 mask_i32gather_ps(__m512 otherwise, __mmask16 m, __m512i index, const void* from, int scale) {
    return each<float>([&](int i) {
        return m >> i & 1 ? part<float>(*(static_cast<const char*>(from) + ptrdiff_t(at<i32>(index, i)) * scale), 0) : at<float>(otherwise, i);
    });
}
inline __m512 mask_blend_ps(__mmask16 m, __m512 x, __m512 y) { return each<float>([&](int i) { return m >> i & 1 ? at<float>(y, i) : at<float>(x, i); }); }
inline __m512 mask_mov_ps(__m512 x, __mmask16 m, __m512 y) { return mask_blend_ps(m, x, y); }
inline __m512i mask_blend_epi8(__mmask64 m, __m512i x, __m512i y) { return each<u8>([&](int i) { return m >> i & 1 ? at<u8>(y, i) : at<u8>(x, i); }); }

inline __mmask16 cmp_ps_mask(__m512 x, __m512 y, int how) {
    return __mmask16(mask<16>([&](int i) {
        if (how != _CMP_GT_OQ && how != _CMP_NEQ_UQ) std::abort();
        return how == _CMP_GT_OQ ? at<float>(x, i) > at<float>(y, i) : at<float>(x, i) != at<float>(y, i);
    }));
}
inline __mmask16 cmpgt_epi32_mask(__m512i x, __m512i y) { return __mmask16(mask<16>([&](int i) { return at<i32>(x, i) > at<i32>(y, i); })); }
inline __mmask16 cmpge_epi32_mask(__m512i x, __m512i y) { return __mmask16(mask<16>([&](int i) { return at<i32>(x, i) >= at<i32>(y, i); })); }
inline __mmask64 cmpgt_epu8_mask(__m512i x, __m512i y) { return mask<64>([&](int i) { return at<u8>(x, i) > at<u8>(y, i); }); }
inline __mmask64 cmpneq_epu8_mask(__m512i x, __m512i y) { return mask<64>([&](int i) { return at<u8>(x, i) != at<u8>(y, i); }); }
inline __mmask16 test_epi8_mask_128(__m128i x, __m128i y) { return __mmask16(mask<16>([&](int i) { return part<u8>(x, i) & part<u8>(y, i); })); }

inline __m128i castsi512_si128(__m512i x) { return part<__m128i>(x, 0); }
inline __m256i castsi512_si256(__m512i x) { return part<__m256i>(x, 0); }
inline __m512i castsi256_si512(__m256i x) { return wide(x); }
inline __m512 zextps256_ps512(__m256 x) { return reinterpret_cast<__m512>(with(__m512i{}, x, 0)); }
inline __m512i inserti64x4(__m512i x, __m256i y, int number) { return with(x, y, number); }
inline __m128i extracti32x4_epi32(__m512i x, int number) { return part<__m128i>(x, number); }

}  // namespace emulated

#undef _mm512_add_epi32
#define _mm512_add_epi32 emulated::add_epi32
#undef _mm512_alignr_epi32
#define _mm512_alignr_epi32 emulated::alignr_epi32
#undef _mm512_and_si512
#define _mm512_and_si512 emulated::and_si512
#undef _mm512_broadcast_i32x4
#define _mm512_broadcast_i32x4 emulated::broadcast_i32x4
#undef _mm512_castsi256_si512
#define _mm512_castsi256_si512 emulated::castsi256_si512
#undef _mm512_castsi512_si128
#define _mm512_castsi512_si128 emulated::castsi512_si128
#undef _mm512_castsi512_si256
#define _mm512_castsi512_si256 emulated::castsi512_si256
#undef _mm512_cmp_ps_mask
#define _mm512_cmp_ps_mask emulated::cmp_ps_mask
#undef _mm512_cmpge_epi32_mask
#define _mm512_cmpge_epi32_mask emulated::cmpge_epi32_mask
#undef _mm512_cmpgt_epi32_mask
#define _mm512_cmpgt_epi32_mask emulated::cmpgt_epi32_mask
#undef _mm512_cmpgt_epu8_mask
#define _mm512_cmpgt_epu8_mask emulated::cmpgt_epu8_mask
#undef _mm512_cmpneq_epu8_mask
#define _mm512_cmpneq_epu8_mask emulated::cmpneq_epu8_mask
#undef _mm512_cvtepi16_epi8
#define _mm512_cvtepi16_epi8 emulated::cvtepi16_epi8
#undef _mm512_cvtepu8_epi32
#define _mm512_cvtepu8_epi32 emulated::cvtepu8_epi32
#undef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32 emulated::cvtps_epi32
#undef _mm512_dpbusd_epi32
#define _mm512_dpbusd_epi32 emulated::dpbusd_epi32
#undef _mm512_extracti32x4_epi32
#define _mm512_extracti32x4_epi32 emulated::extracti32x4_epi32
#undef _mm512_fmadd_ps
#define _mm512_fmadd_ps emulated::fmadd_ps
#undef _mm512_inserti64x4
#define _mm512_inserti64x4 emulated::inserti64x4
#undef _mm512_loadu_si512
#define _mm512_loadu_si512 emulated::loadu_si512
#undef _mm512_madd_epi16
#define _mm512_madd_epi16 emulated::madd_epi16
#undef _mm512_mask_blend_epi8
#define _mm512_mask_blend_epi8 emulated::mask_blend_epi8
#undef _mm512_mask_blend_ps
#define _mm512_mask_blend_ps emulated::mask_blend_ps
#undef _mm512_mask_i32gather_ps
#define _mm512_mask_i32gather_ps emulated::mask_i32gather_ps
#undef _mm512_mask_mov_ps
#define _mm512_mask_mov_ps emulated::mask_mov_ps
#undef _mm512_mask_storeu_ps
#define _mm512_mask_storeu_ps emulated::mask_storeu_ps
#undef _mm512_maskz_compress_epi32
#define _mm512_maskz_compress_epi32 emulated::maskz_compress_epi32
#undef _mm512_maskz_loadu_epi8
#define _mm512_maskz_loadu_epi8 emulated::maskz_loadu_epi8
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps emulated::maskz_loadu_ps
#undef _mm512_maskz_set1_epi32
#define _mm512_maskz_set1_epi32 emulated::maskz_set1_epi32
#undef _mm512_max_epu8
#define _mm512_max_epu8 emulated::max_epu8
#undef _mm512_max_ps
#define _mm512_max_ps emulated::max_ps
#undef _mm512_min_ps
#define _mm512_min_ps emulated::min_ps
#undef _mm512_or_si512
#define _mm512_or_si512 emulated::or_si512
#undef _mm512_packs_epi32
#define _mm512_packs_epi32 emulated::packs_epi32
#undef _mm512_packus_epi16
#define _mm512_packus_epi16 emulated::packus_epi16
#undef _mm512_permutex2var_ps
#define _mm512_permutex2var_ps emulated::permutex2var_ps
#undef _mm512_permutexvar_epi32
#define _mm512_permutexvar_epi32 emulated::permutexvar_epi32
#undef _mm512_permutexvar_ps
#define _mm512_permutexvar_ps emulated::permutexvar_ps
#undef _mm512_reduce_add_epi32
#define _mm512_reduce_add_epi32 emulated::reduce_add_epi32
#undef _mm512_reduce_add_ps
#define _mm512_reduce_add_ps emulated::reduce_add_ps
#undef _mm512_roundscale_ps
#define _mm512_roundscale_ps emulated::roundscale_ps
#undef _mm512_set1_epi16
#define _mm512_set1_epi16 emulated::set1_epi16
#undef _mm512_set1_epi32
#define _mm512_set1_epi32 emulated::set1_epi32
#undef _mm512_setr_epi32
#define _mm512_setr_epi32 emulated::setr_epi32
#undef _mm512_setzero_si512
#define _mm512_setzero_si512 emulated::setzero_si512
#undef _mm512_shuffle_epi8
#define _mm512_shuffle_epi8 emulated::shuffle_epi8
#undef _mm512_slli_epi16
#define _mm512_slli_epi16 emulated::slli_epi16
#undef _mm512_srai_epi16
#define _mm512_srai_epi16 emulated::srai_epi16
#undef _mm512_srli_epi16
#define _mm512_srli_epi16 emulated::srli_epi16
#undef _mm512_storeu_si512
#define _mm512_storeu_si512 emulated::storeu_si512
#undef _mm512_sub_epi32
#define _mm512_sub_epi32 emulated::sub_epi32
#undef _mm512_subs_epu8
#define _mm512_subs_epu8 emulated::subs_epu8
#undef _mm512_unpackhi_epi16
#define _mm512_unpackhi_epi16 emulated::unpackhi_epi16
#undef _mm512_unpackhi_epi8
#define _mm512_unpackhi_epi8 emulated::unpackhi_epi8
#undef _mm512_unpacklo_epi16
#define _mm512_unpacklo_epi16 emulated::unpacklo_epi16
#undef _mm512_unpacklo_epi8
#define _mm512_unpacklo_epi8 emulated::unpacklo_epi8
#undef _mm512_zextps256_ps512
#define _mm512_zextps256_ps512 emulated::zextps256_ps512
#undef _mm_maskz_loadu_epi8
#define _mm_maskz_loadu_epi8 emulated::maskz_loadu_epi8_128
#undef _mm_mask_storeu_epi8
#define _mm_mask_storeu_epi8 emulated::mask_storeu_epi8_128
#undef _mm_test_epi8_mask
#define _mm_test_epi8_mask emulated::test_epi8_mask_128

#define __AVX512F__ 1
#define __AVX512BW__ 1
#define __AVX512VL__ 1
#define __AVX512DQ__ 1
#define __AVX512CD__ 1
#if defined(SPARSETIME_EMULATED_VNNI)
#define __AVX512VNNI__ 1
#endif
