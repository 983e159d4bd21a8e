// Vectors of 32-bit words for whatever instructions this file is compiled for, and the two element types.
//
// GCC and Clang vector extensions carry all arithmetic, so one source gives every variant; only the bf16 dot product
// needs an intrinsic. Nothing of the standard library's templates is used below: a copy compiled for AVX-512 could
// otherwise be the one that the linker keeps for everybody.
#pragma once
#include <stdint.h>
#include <string.h>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace MIXTURA_VARIANT {

#if defined(__AVX512F__)
constexpr int W = 16, MR = 14;
#elif defined(__AVX2__)
constexpr int W = 8, MR = 6;
#elif defined(__aarch64__)
constexpr int W = 4, MR = 14;
#else
constexpr int W = 4, MR = 6;
#endif
constexpr int NV = 2, NR = NV * W;                 // a register tile is MR rows of NV vectors
constexpr int SW = (MR + W - 1) / W * W;           // words of one depth step of a packed strip, MR rounded up
constexpr int64_t KC = 256;                        // depth that is packed and multiplied in one go: a strip stays in L1
constexpr int64_t AR = KC + 16;                    // row stride of a packed strip; odd in cache lines, so no set conflicts
constexpr int64_t KS = 1024;                       // depth of the packed panels, which stay in L2
constexpr int64_t B_WORDS = 128 * 1024;            // packed panels
constexpr int64_t A_WORDS = MR * AR > KC * SW ? MR * AR : KC * SW;
constexpr int64_t MAX_ROWS = 1024;                 // rows of one task
constexpr int64_t C_WORDS = MAX_ROWS * (B_WORDS / KS) + 64 * W;

typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t H __attribute__((vector_size(2 * W)));
typedef V Vu __attribute__((aligned(4), may_alias));
typedef H Hu __attribute__((aligned(2), may_alias));

struct Bf16 {
  uint16_t bits;
};

#define MIXTURA_INLINE static inline __attribute__((always_inline))

MIXTURA_INLINE V splat(float value) { return value - V{}; }  // not V{} + value, which is another number for -0
MIXTURA_INLINE V splat_word(float word) {  // whatever its bits mean
  uint32_t bits;
  memcpy(&bits, &word, 4);
  return (V)(bits - U{});
}
MIXTURA_INLINE V choose(I mask, V yes, V no) { return (V)(((I)yes & mask) | ((I)no & ~mask)); }
MIXTURA_INLINE V widen(H bits) { return (V)(__builtin_convertvector(bits, U) << 16); }

MIXTURA_INLINE H narrow(V value) {  // round to nearest even; a NaN stays one
#if defined(__AVX512BF16__)
  return (H)_mm512_cvtneps_pbh((__m512)value);  // what is below every normal number becomes 0
#else
  const U bits = (U)value;
  const U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const U nan = (bits >> 16) | 0x40;
  const U is_nan = (U)(value != value);
  return __builtin_convertvector((nan & is_nan) | (rounded & ~is_nan), H);
#endif
}

MIXTURA_INLINE V load(const float* p) { return *(const Vu*)p; }
MIXTURA_INLINE V load(const Bf16* p) { return widen(*(const Hu*)p); }
MIXTURA_INLINE void store(float* p, V value) { *(Vu*)p = value; }
MIXTURA_INLINE void store(Bf16* p, V value) { *(Hu*)p = narrow(value); }

// Past the caches: what is written once and is larger than they are would only push other data out, after having been
// read for nothing. Wants addresses that are multiples of a vector; the writer ends with `stream_fence`.
MIXTURA_INLINE void stream(float* p, V value) {
#if defined(__AVX512F__)
  _mm512_stream_ps(p, (__m512)value);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, (__m256)value);
#else
  store(p, value);
#endif
}
MIXTURA_INLINE void stream(Bf16* p, V value) {
#if defined(__AVX512F__)
  _mm256_stream_si256((__m256i*)p, (__m256i)narrow(value));
#elif defined(__AVX2__)
  _mm_stream_si128((__m128i*)p, (__m128i)narrow(value));
#else
  store(p, value);
#endif
}
MIXTURA_INLINE void stream_fence() {
#if defined(__AVX512F__) || defined(__AVX2__)
  _mm_sfence();
#endif
}

// The first n of W elements; the other lanes are zero.
template <class T>
MIXTURA_INLINE V load(const T* p, int64_t n) {
  if (n >= W) return load(p);
  T part[W] = {};
  memcpy(part, p, n * sizeof(T));
  return load(part);
}

template <class T>
MIXTURA_INLINE void store(T* p, V value, int64_t n) {
  if (n >= W) return store(p, value);
  T part[W];
  store(part, value);
  memcpy(p, part, n * sizeof(T));
}

MIXTURA_INLINE V rounded(V value, const float*) { return value; }
MIXTURA_INLINE V rounded(V value, const Bf16*) { return widen(narrow(value)); }

MIXTURA_INLINE float to_float(float value) { return value; }
MIXTURA_INLINE float to_float(Bf16 value) {
  const uint32_t bits = (uint32_t)value.bits << 16;
  float result;
  memcpy(&result, &bits, 4);
  return result;
}

MIXTURA_INLINE float sum(V value) {  // in a fixed order, by halves
  float part[W];
  store(part, value);
#pragma GCC unroll 4
  for (int half = W / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; i++) part[i] += part[i + half];
  return part[0];
}

// How elements become the 32-bit words that products are made of: fp32 as it is; bf16 two along the depth in one word
// where the machine multiplies such pairs, else widened to fp32.
template <class T>
struct Words {
  static constexpr int PER = 1;  // elements in one word
  MIXTURA_INLINE float word(const T* p) { return to_float(*p); }
  MIXTURA_INLINE V load(const T* p) { return MIXTURA_VARIANT::load(p); }
  MIXTURA_INLINE V load(const T* p, int64_t n) { return MIXTURA_VARIANT::load(p, n); }
  MIXTURA_INLINE V multiply_add(float a, V b, V c) { return c + b * a; }
  MIXTURA_INLINE V multiply_add(V a, V b, V c) { return c + b * a; }
};

#if defined(__AVX512BF16__)
template <>
struct Words<Bf16> {
  static constexpr int PER = 2;
  MIXTURA_INLINE float word(const Bf16* p) {
    float bits;
    memcpy(&bits, p, 4);
    return bits;
  }
  MIXTURA_INLINE V load(const Bf16* p) { return *(const Vu*)p; }
  MIXTURA_INLINE V load(const Bf16* p, int64_t n) {
    if (n >= 2 * W) return load(p);
    Bf16 part[2 * W] = {};
    memcpy(part, p, n * sizeof(Bf16));
    return load(part);
  }
  MIXTURA_INLINE V multiply_add(float a, V b, V c) {
    return (V)_mm512_dpbf16_ps((__m512)c, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
  }
  MIXTURA_INLINE V multiply_add(V a, V b, V c) {
    return (V)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
  }
};
#endif

}  // namespace MIXTURA_VARIANT
