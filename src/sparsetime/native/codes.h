// Vectors of codes: bytes, as many as four vectors of 32 bits pack to. Everything is in an anonymous namespace, as in vec.h.

#pragma once

#include <cstring>

#include "vec.h"

namespace {

// An instruction of x86 by its name behind the width.
#if defined(__AVX512BW__)
#define PER_WIDTH(name) _mm512_##name
#elif defined(__AVX2__)
#define PER_WIDTH(name) _mm256_##name
#else
#define PER_WIDTH(name) _mm_##name
#endif

constexpr int CODES = 4 * VL;

typedef uint8_t Codes __attribute__((vector_size(CODES)));
typedef uint8_t CodesU __attribute__((vector_size(CODES), aligned(1), may_alias));

inline Codes load_codes(const uint8_t* p) { return *reinterpret_cast<const CodesU*>(p); }
inline void store_codes(uint8_t* p, Codes x) { *reinterpret_cast<CodesU*>(p) = x; }

// One truth a code, as the instruction set keeps it, and as bits.
#if defined(__AVX512BW__)
using CodeMask = __mmask64;
inline CodeMask every() { return ~CodeMask(0); }
inline __m512i raw(Codes x) { return reinterpret_cast<__m512i>(x); }
inline Codes codes_of(__m512i x) { return reinterpret_cast<Codes>(x); }
inline CodeMask first_codes(int n) { return n >= CODES ? every() : (CodeMask(1) << n) - 1; }
inline Codes choose(CodeMask m, Codes a, Codes b) { return codes_of(_mm512_mask_blend_epi8(m, raw(b), raw(a))); }
inline CodeMask above(Codes a, Codes b) { return _mm512_cmpgt_epu8_mask(raw(a), raw(b)); }
inline CodeMask differ(Codes a, Codes b) { return _mm512_cmpneq_epu8_mask(raw(a), raw(b)); }
inline uint64_t truths(CodeMask m) { return m; }
inline Codes larger(Codes a, Codes b) { return codes_of(_mm512_max_epu8(raw(a), raw(b))); }
inline Codes distance(Codes a, Codes b) {
    return codes_of(_mm512_or_si512(_mm512_subs_epu8(raw(a), raw(b)), _mm512_subs_epu8(raw(b), raw(a))));
}
#else
using CodeMask = Codes;
inline CodeMask every() { return ~CodeMask{}; }
inline CodeMask first_codes(int n) {
    static constexpr struct Steps {
        uint8_t of[2 * CODES] = {};
        constexpr Steps() {
            for (int i = 0; i < CODES; ++i) of[i] = 255;
        }
    } steps;
    return load_codes(steps.of + (n < CODES ? CODES - n : 0));
}
inline Codes larger(Codes a, Codes b) { return a > b ? a : b; }
inline CodeMask differ(Codes a, Codes b) { return reinterpret_cast<Codes>(a != b); }
#if defined(__AVX2__)
inline __m256i raw(Codes x) { return reinterpret_cast<__m256i>(x); }
inline Codes codes_of(__m256i x) { return reinterpret_cast<Codes>(x); }
inline Codes choose(CodeMask m, Codes a, Codes b) { return codes_of(_mm256_blendv_epi8(raw(b), raw(a), raw(m))); }
inline Codes less(Codes a, Codes b) { return codes_of(_mm256_subs_epu8(raw(a), raw(b))); }
inline uint64_t truths(CodeMask m) { return unsigned(_mm256_movemask_epi8(raw(m))); }
#elif defined(__SSE2__)
inline __m128i raw(Codes x) { return reinterpret_cast<__m128i>(x); }
inline Codes codes_of(__m128i x) { return reinterpret_cast<Codes>(x); }
inline Codes choose(CodeMask m, Codes a, Codes b) { return (m & a) | (~m & b); }
inline Codes less(Codes a, Codes b) { return codes_of(_mm_subs_epu8(raw(a), raw(b))); }
inline uint64_t truths(CodeMask m) { return unsigned(_mm_movemask_epi8(raw(m))); }
#else
inline Codes choose(CodeMask m, Codes a, Codes b) { return (m & a) | (~m & b); }
inline Codes less(Codes a, Codes b) { return a > b ? a - b : Codes{}; }
inline uint64_t truths(CodeMask m) {
    uint64_t bits = 0;
    for (int i = 0; i < CODES; ++i) bits |= uint64_t(m[i] & 1) << i;
    return bits;
}
#endif
inline Codes distance(Codes a, Codes b) { return less(a, b) | less(b, a); }
inline CodeMask above(Codes a, Codes b) { return reinterpret_cast<Codes>(less(a, b) != Codes{}); }
#endif
inline int how_many(CodeMask m) { return int(__builtin_popcountll(truths(m))); }

// Bytes of a row from code c on that a vector may hold: no byte of the next row. c is a multiple of VL.
inline int part_of_row(int c, int stride) { return stride - c < CODES ? stride - c : CODES; }

// Such a part, zeros behind it; and back.
inline Codes load_part(const uint8_t* p, int bytes) {
#if defined(__AVX512BW__)
    return codes_of(_mm512_maskz_loadu_epi8(first_codes(bytes), p));
#else
    if (bytes == CODES) return load_codes(p);
#if defined(__AVX2__)
    const auto eight = [](const uint8_t* from) { return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)); };
    if (bytes == 8) return codes_of(_mm256_zextsi128_si256(eight(p)));
    if (bytes >= 16) {
        const __m256i first = _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
        return codes_of(bytes == 16 ? first : _mm256_inserti128_si256(first, eight(p + 16), 1));
    }
    int32_t four;  // a narrow row
    std::memcpy(&four, p, sizeof four);
    return codes_of(_mm256_zextsi128_si256(_mm_cvtsi32_si128(four)));
#else
    Codes x{};
    std::memcpy(&x, p, size_t(bytes));
    return x;
#endif
#endif
}
inline void store_part(uint8_t* p, Codes x, int bytes) {
#if defined(__AVX512BW__)
    // Not under a mask of bytes, which is slow on some machines.
    if (bytes > 48) return _mm512_storeu_si512(p, raw(x));
    if (bytes < 16) return _mm_mask_storeu_epi8(p, __mmask16(first_codes(bytes)), _mm512_castsi512_si128(raw(x)));
    if (bytes == 16) return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_castsi512_si128(raw(x)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_castsi512_si256(raw(x)));
    if (bytes > 32) _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 32), _mm512_extracti32x4_epi32(raw(x), 2));
#else
    if (bytes == CODES) return store_codes(p, x);
#if defined(__AVX2__)
    const auto eight = [](uint8_t* to, __m128i half) { _mm_storel_epi64(reinterpret_cast<__m128i*>(to), half); };
    const __m128i first = _mm256_castsi256_si128(raw(x));
    if (bytes == 8) return eight(p, first);
    if (bytes >= 16) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p), first);
        if (bytes > 16) eight(p + 16, _mm256_extracti128_si256(raw(x), 1));
        return;
    }
    const int32_t four = _mm_cvtsi128_si32(first);  // a narrow row
    std::memcpy(p, &four, sizeof four);
#else
    std::memcpy(p, &x, size_t(bytes));
#endif
#endif
}

// VL codes as numbers.
inline Int wide(const uint8_t* p) {
#if defined(__AVX512F__)
    return reinterpret_cast<Int>(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
    return reinterpret_cast<Int>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
    typedef uint8_t Few __attribute__((vector_size(VL)));
    Few x;
    std::memcpy(&x, p, sizeof x);
    return __builtin_convertvector(x, Int);
#endif
}

// Four vectors of numbers as codes, and back, in the order in which instructions do it that work inside of 16 bytes: number l of
// vector v is code 16 (l / 4) + 4 v + l % 4. Where PACKS, what no code is becomes the nearest one.
#if defined(__SSE2__)
constexpr bool PACKS = true;
using Raw = decltype(raw(Codes{}));
inline Codes pack(Int a, Int b, Int c, Int d) {
    const Raw first = PER_WIDTH(packs_epi32)(reinterpret_cast<Raw>(a), reinterpret_cast<Raw>(b)),
              second = PER_WIDTH(packs_epi32)(reinterpret_cast<Raw>(c), reinterpret_cast<Raw>(d));
    return codes_of(PER_WIDTH(packus_epi16)(first, second));
}
inline void unpack(const uint8_t* p, Int (&x)[4]) {
    const Raw bytes = raw(load_codes(p)), none{};
    const Raw low = PER_WIDTH(unpacklo_epi8)(bytes, none), high = PER_WIDTH(unpackhi_epi8)(bytes, none);
    x[0] = reinterpret_cast<Int>(PER_WIDTH(unpacklo_epi16)(low, none));
    x[1] = reinterpret_cast<Int>(PER_WIDTH(unpackhi_epi16)(low, none));
    x[2] = reinterpret_cast<Int>(PER_WIDTH(unpacklo_epi16)(high, none));
    x[3] = reinterpret_cast<Int>(PER_WIDTH(unpackhi_epi16)(high, none));
}
#else
constexpr bool PACKS = false;
inline Codes pack(Int a, Int b, Int c, Int d) {
    const Int x[4] = {a, b, c, d};
    Codes code;
    for (int v = 0; v < 4; ++v)
        for (int l = 0; l < VL; ++l) code[16 * (l / 4) + 4 * v + l % 4] = uint8_t(x[v][l]);
    return code;
}
inline void unpack(const uint8_t* p, Int (&x)[4]) {
    for (int v = 0; v < 4; ++v)
        for (int l = 0; l < VL; ++l) x[v][l] = p[16 * (l / 4) + 4 * v + l % 4];
}
#endif

// The same with vectors one behind the other.
inline Codes pack_plain(Int a, Int b, Int c, Int d) {
    const Codes code = pack(a, b, c, d);
#if defined(__AVX512BW__)
    return codes_of(_mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), raw(code)));
#elif defined(__AVX2__)
    return codes_of(_mm256_permutevar8x32_epi32(raw(code), _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
#else
    return code;  // there is one part of 16 bytes alone
#endif
}

// Every second of twice as many.
inline Codes every_second(const uint8_t* p) {
#if defined(__AVX512BW__)
    const __m256i first = _mm512_cvtepi16_epi8(raw(load_codes(p))), second = _mm512_cvtepi16_epi8(raw(load_codes(p + CODES)));
    return codes_of(_mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1));
#elif defined(__AVX2__)
    const __m256i low = _mm256_set1_epi16(255);
    const __m256i both = _mm256_packus_epi16(_mm256_and_si256(raw(load_codes(p)), low), _mm256_and_si256(raw(load_codes(p + CODES)), low));
    return codes_of(_mm256_permute4x64_epi64(both, 0xd8));
#else
    Codes x;
    for (int i = 0; i < CODES; ++i) x[i] = p[2 * i];
    return x;
#endif
}

// Squares of codes, four added in each lane.
inline Int squares(Codes x) {
#if defined(__AVX512BW__)
    const __m512i even = _mm512_and_si512(raw(x), _mm512_set1_epi16(255)), odd = _mm512_srli_epi16(raw(x), 8);
    return reinterpret_cast<Int>(_mm512_add_epi32(_mm512_madd_epi16(even, even), _mm512_madd_epi16(odd, odd)));
#elif defined(__AVX2__)
    const __m256i even = _mm256_and_si256(raw(x), _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(raw(x), 8);
    return reinterpret_cast<Int>(_mm256_add_epi32(_mm256_madd_epi16(even, even), _mm256_madd_epi16(odd, odd)));
#else
    const Int four = reinterpret_cast<Int>(x), a = four & 255, b = (four >> 8) & 255, c = (four >> 16) & 255,
              d = (four >> 24) & 255;
    return a * a + b * b + c * c + d * d;
#endif
}

// All lanes together.
inline int32_t total(Int x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32(reinterpret_cast<__m512i>(x));
#elif defined(__AVX2__)
    const __m256i wide = reinterpret_cast<__m256i>(x);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    const __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
#else
    int32_t sum = 0;
    for (int l = 0; l < VL; ++l) sum += x[l];
    return sum;
#endif
}

}  // namespace
