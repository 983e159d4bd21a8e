// Copies of operands in the order in which the register tile reads them. Rows are gathered here, so no gathered copy of
// the input ever exists as a whole.
#pragma once
#include "simd.h"

namespace MIXTURA_VARIANT {

// Rows of a matrix, through an index where there is one.
template <class T>
struct Rows {
  const T* base;
  int64_t width;
  const int64_t* index;
  MIXTURA_INLINE const T* at(const Rows& rows, int64_t n) {
    return rows.base + (rows.index ? rows.index[n] : n) * rows.width;
  }
};

// Rows [r0, r1) with the depth along them: row i at dst + i * AR. Elements from `begin`, as many as `words` hold; past
// the row's end there are zeros.
constexpr int64_t AHEAD = 4;  // rows, or lines of one row, that are asked for in advance

MIXTURA_INLINE void prefetch(const void* begin, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char*)begin + i);
}

template <class T>
static void pack_rows(float* dst, const Rows<T>& src, int64_t r0, int64_t r1, int64_t k0, int64_t words) {
  const int64_t begin = k0 * Words<T>::PER, left = src.width - begin;
  for (int64_t n = r0; n < r1; n++, dst += AR) {
    const T* row = Rows<T>::at(src, n) + begin;
    for (int64_t k = 0; k < words; k += W) *(Vu*)(dst + k) = Words<T>::load(row + k * Words<T>::PER, left - k * Words<T>::PER);
  }
}

// One row, zeros up to `words`.
template <class T>
static void pack_row(float* dst, const T* row, int64_t width, int64_t words) {
  for (int64_t k = 0; k < words; k += W) *(Vu*)(dst + k) = Words<T>::load(row + k * Words<T>::PER, width - k * Words<T>::PER);
}

// Interleave rows that are neighbours along the depth where words hold two elements.
template <class T, bool PAIRS = Words<T>::PER == 2>
struct Depth {
  MIXTURA_INLINE V load(const T* row, const T*, int64_t n) { return MIXTURA_VARIANT::load(row, n); }
};
template <class T>
struct Depth<T, true> {
  MIXTURA_INLINE U half(const T* row, int64_t n) {
    if (n >= W) return __builtin_convertvector(*(const Hu*)row, U);
    T part[W] = {};
    memcpy(part, row, n * sizeof(T));
    return __builtin_convertvector(*(const Hu*)part, U);
  }
  MIXTURA_INLINE V load(const T* row, const T* next, int64_t n) {
    const U low = half(row, n);
    return (V)(next ? low | (half(next, n) << 16) : low);
  }
};

// Columns [c0, c0 + columns) of a matrix whose rows are the depth, in panels of WIDTH: word (k, j) of panel p lies at
// dst[(p * words + k) * WIDTH + j]. Lanes past the last column hold whatever stands beside it, zero past the row's end.
// `end` is the depth in rows.
template <int WIDTH, class T>
static void pack_panels(float* dst, const Rows<T>& src, int64_t first, int64_t end, int64_t k0, int64_t words, int64_t c0,
                        int64_t columns) {
  for (int64_t k = 0; k < words; k++) {
    const int64_t n = (k0 + k) * Words<T>::PER;
    const T* row = Rows<T>::at(src, first + n) + c0;
    const T* next = Words<T>::PER == 2 && n + 1 < end ? Rows<T>::at(src, first + n + 1) + c0 : nullptr;
    if (n + AHEAD * Words<T>::PER < end) prefetch(Rows<T>::at(src, first + n + AHEAD * Words<T>::PER) + c0, columns * sizeof(T));
    if (Words<T>::PER == 2 && n + 2 * AHEAD + 1 < end) prefetch(Rows<T>::at(src, first + n + 2 * AHEAD + 1) + c0, columns * sizeof(T));
    float* to = dst + k * WIDTH;
    for (int64_t c = 0; c < columns; c += WIDTH, to += words * WIDTH)
      for (int v = 0; v < WIDTH; v += W) {
        const int64_t left = src.width - c0 - c - v;
        *(Vu*)(to + v) = left > 0 ? Depth<T>::load(row + c + v, next ? next + c + v : nullptr, left) : V{};
      }
  }
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define MIXTURA_SHUFFLE 1
#endif
#endif

#ifdef MIXTURA_SHUFFLE
template <int... I>
struct Lanes {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
  typedef Lanes<I...> type;
};

// One step of a transpose: lanes whose bit S is set change places between two vectors that are S apart.
template <int S, int... I>
MIXTURA_INLINE void exchange(V& low, V& high, Lanes<I...>) {
  const V a = low, b = high;
  low = __builtin_shufflevector(a, b, (I & S ? W + I - S : I)...);
  high = __builtin_shufflevector(a, b, (I & S ? W + I : I + S)...);
}

template <int S>
MIXTURA_INLINE void exchange_all(V* v) {
#pragma GCC unroll 16
  for (int i = 0; i < W; i++)
    if (!(i & S)) exchange<S>(v[i], v[i + S], typename Count<W>::type());
}

MIXTURA_INLINE void transpose(V* v) {
  exchange_all<1>(v);
  exchange_all<2>(v);
  if (W > 4) exchange_all<(W > 4 ? 4 : 1)>(v);
  if (W > 8) exchange_all<(W > 8 ? 8 : 1)>(v);
}

// a0 b0 a1 b1 ... of a and b, in two vectors, and back.
template <int... I>
MIXTURA_INLINE void weave(V& a, V& b, Lanes<I...>) {
  const V gate = a, other = b;
  a = __builtin_shufflevector(gate, other, (I % 2 ? W + I / 2 : I / 2)...);
  b = __builtin_shufflevector(gate, other, (I % 2 ? W + (W + I) / 2 : (W + I) / 2)...);
}
template <int... I>
MIXTURA_INLINE void unweave(V& a, V& b, Lanes<I...>) {
  const V low = a, high = b;
  a = __builtin_shufflevector(low, high, (2 * I)...);
  b = __builtin_shufflevector(low, high, (2 * I + 1)...);
}
MIXTURA_INLINE void weave(V& a, V& b) { weave(a, b, typename Count<W>::type()); }
MIXTURA_INLINE void unweave(V& a, V& b) { unweave(a, b, typename Count<W>::type()); }
#else
MIXTURA_INLINE void weave(V& a, V& b) {
  const V from[2] = {a, b};
  for (int i = 0; i < 2 * W; i++) (i < W ? a : b)[i % W] = from[i % 2][i / 2];
}
MIXTURA_INLINE void unweave(V& a, V& b) {
  const V from[2] = {a, b};
  for (int i = 0; i < 2 * W; i++) (i % 2 ? b : a)[i / 2] = from[i / W][i % W];
}
MIXTURA_INLINE void transpose(V* v) {
  for (int i = 0; i < W; i++)
    for (int j = 0; j < i; j++) {
      const float other = v[i][j];
      v[i][j] = v[j][i];
      v[j][i] = other;
    }
}
#endif

// Columns j.. of a row's gate and other half, `left` of them: by turns, or `half` apart.
template <class T>
MIXTURA_INLINE void load_pair(const T* row, int64_t j, int64_t half, bool woven, int64_t left, V* gate, V* other) {
  if (!woven) {
    *gate = load(row + j, left);
    *other = load(row + half + j, left);
    return;
  }
  *gate = load(row + 2 * j, 2 * left);
  *other = 2 * left > W ? load(row + 2 * j + W, 2 * left - W) : V{};
  unweave(*gate, *other);
}

template <class T>
MIXTURA_INLINE void store_pair(T* row, int64_t j, int64_t half, bool woven, int64_t left, V gate, V other) {
  if (!woven) {
    store(row + j, gate, left);
    store(row + half + j, other, left);
    return;
  }
  weave(gate, other);
  store(row + 2 * j, gate, 2 * left);
  if (2 * left > W) store(row + 2 * j + W, other, 2 * left - W);
}

// Rows [0, columns) of a matrix (columns, width) as the columns of panels: the depth lies along the rows.
template <class T>
static void pack_transposed(float* dst, const T* src, int64_t width, int64_t k0, int64_t words, int64_t columns) {
  const int64_t begin = k0 * Words<T>::PER, left = width - begin;
  for (int64_t c = 0; c < columns; c += W) {
    float* to = dst + c / NR * NR * words + c % NR;
    for (int64_t k = 0; k < words; k += W) {
      V v[W];
#pragma GCC unroll 16
      for (int i = 0; i < W; i++)
        v[i] = c + i < columns ? Words<T>::load(src + (c + i) * width + begin + k * Words<T>::PER, left - k * Words<T>::PER) : V{};
      for (int i = 0; i < W && c + i < columns; i++)
        __builtin_prefetch(src + (c + i) * width + begin + k * Words<T>::PER + AHEAD * 64 / (int64_t)sizeof(T));
      transpose(v);
      const int64_t lanes = words - k < W ? words - k : W;
      for (int64_t i = 0; i < lanes; i++) *(Vu*)(to + (k + i) * NR) = v[i];
    }
  }
}

// An expert's matrix as it lies in memory.
template <class T>
struct Matrix {
  const T* base;
  int64_t rows, width;
  bool transposed;
};

// Columns [c0, c0 + columns) of what a product multiplies with into panels: the matrix's rows where the depth lies
// along them, else its columns.
template <class T>
static void pack_matrix(float* dst, const Matrix<T>& m, bool along, int64_t k0, int64_t words, int64_t c0, int64_t columns) {
  if (along)
    pack_transposed(dst, m.base + c0 * m.width, m.width, k0, words, columns);
  else
    pack_panels<NR>(dst, Rows<T>{m.base, m.width, nullptr}, 0, m.rows, k0, words, c0, columns);
}

}  // namespace MIXTURA_VARIANT
