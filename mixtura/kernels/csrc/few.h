// Products of few rows: what they cost is the reading of a matrix and the writing of its gradient, so both are done once, in
// place and in memory's own order, without panels.
#pragma once
#include "product.h"

namespace MIXTURA_VARIANT {

constexpr int64_t FEW_ROWS = 24;  // up to here reading takes longer than multiplying

constexpr int DOTS = W == 16 ? 4 : 2;  // rows of x in one block of dot products: W / DOTS rows of the matrix

// For few rows: m rows of x (packed, `lda` words apart) times `columns` rows of a matrix that is read once and in place.
// c (m, columns) = x matrix^T.
template <class T>
static void dot_products(const float* x, int64_t lda, int64_t m, const T* matrix, int64_t width, int64_t columns, float* c,
                         int64_t ldc) {
  constexpr int ROWS = W / DOTS, PER = Words<T>::PER;
  // Each of the rows that are read together walks through a part of its own, so that memory sees a few long streams.
  const int64_t apart = (columns + ROWS - 1) / ROWS;
  for (int64_t j = 0; j < apart; j++) {
    const T* rows[ROWS];
    for (int r = 0; r < ROWS; r++) rows[r] = matrix + smaller(j + r * apart, columns - 1) * width;
    for (int64_t i = 0; i < m; i += DOTS) {
      const float* xs[DOTS];
      for (int d = 0; d < DOTS; d++) xs[d] = x + smaller(i + d, m - 1) * lda;
      V acc[W];
#pragma GCC unroll 16
      for (int v = 0; v < W; v++) acc[v] = V{};
      const auto step = [&](int64_t k, int64_t left) {
        V row[ROWS];
#pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) row[r] = Words<T>::load(rows[r] + k * PER, left);
#pragma GCC unroll 4
        for (int d = 0; d < DOTS; d++) {
          const V value = *(const Vu*)(xs[d] + k);
#pragma GCC unroll 4
          for (int r = 0; r < ROWS; r++) acc[d * ROWS + r] = Words<T>::multiply_add(row[r], value, acc[d * ROWS + r]);
        }
      };
      int64_t k = 0;
      for (; (k + W) * PER <= width; k += W) step(k, W * PER);
      if (k * PER < width) step(k, width - k * PER);
      transpose(acc);
      V total = acc[0];
      for (int v = 1; v < W; v++) total += acc[v];
      for (int d = 0; d < DOTS && i + d < m; d++)
        for (int r = 0; r < ROWS && j + r * apart < columns; r++) c[(i + d) * ldc + j + r * apart] = total[d * ROWS + r];
    }
  }
}

constexpr int DEEP = 4;                   // words of depth that are read together
constexpr int TOGETHER = W == 8 ? 2 : 4;  // rows of c that share what is read

// c (ROWS, columns) += x (ROWS, DEEP words) times DEEP words of depth, whose elements are rows of a matrix.
template <class T, int ROWS>
static void add_products(const float* x, const T* const* rows, int64_t columns, float* c, int64_t ldc) {
  constexpr int PER = Words<T>::PER;
  V factor[ROWS][DEEP];
#pragma GCC unroll 4
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int r = 0; r < DEEP; r++) factor[i][r] = splat_word(x[i * DEEP + r]);
  for (int64_t v = 0; v < columns; v += W) {
    V values[DEEP];
#pragma GCC unroll 4
    for (int r = 0; r < DEEP; r++) values[r] = Depth<T>::load(rows[r * PER] + v, rows[r * PER + PER - 1] + v, columns - v);
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; i++) {
      V sum = load(c + i * ldc + v);
#pragma GCC unroll 4
      for (int r = 0; r < DEEP; r++) sum = Words<T>::multiply_add(factor[i][r], values[r], sum);
      store(c + i * ldc + v, sum);
    }
  }
}

// c (m, columns) = x times columns of a matrix whose `depth` rows are the depth. They too are read as a few long streams.
template <class T>
static void row_products(const Rows<T>& x, int64_t r0, int64_t m, const T* matrix, int64_t width, int64_t depth, int64_t columns,
                         float* c, int64_t ldc) {
  constexpr int PER = Words<T>::PER, STREAMS = DEEP * PER;
  const int64_t apart = (depth + STREAMS - 1) / STREAMS;
  for (int64_t i = 0; i < m; i++) memset(c + i * ldc, 0, (columns + W - 1) / W * W * sizeof(float));
  for (int64_t k = 0; k < apart; k++) {
    const T* rows[STREAMS];
    for (int s = 0; s < STREAMS; s++) rows[s] = matrix + smaller(k + s * apart, depth - 1) * width;
    for (int64_t i = 0, n; i < m; i += n) {
      n = m - i >= TOGETHER ? TOGETHER : m - i >= 2 ? 2 : 1;
      T part[TOGETHER * STREAMS] = {};  // zero past the last row of the matrix
      for (int64_t j = 0; j < n; j++)
        for (int64_t s = 0; s < STREAMS && k + s * apart < depth; s++) part[j * STREAMS + s] = Rows<T>::at(x, r0 + i + j)[k + s * apart];
      float words[TOGETHER * DEEP];
      for (int w = 0; w < TOGETHER * DEEP; w++) words[w] = Words<T>::word(part + w * PER);
      const auto add = n == TOGETHER ? add_products<T, TOGETHER> : n == 2 ? add_products<T, 2> : add_products<T, 1>;
      add(words, rows, columns, c + i * ldc, ldc);
    }
  }
}

// Few rows of x times columns [c0, c0 + columns) of what a matrix gives (its rows where the depth lies along them), and
// of `parts` such blocks `apart` from each other. done(c, ldc, 0, m) takes all.
template <class T, class Done>
static void few_product(const Rows<T>& x, int64_t r0, int64_t m, const Matrix<T>& matrix, bool along, int parts, int64_t apart,
                        int64_t c0, int64_t columns, float* scratch, Done done) {
  // One vector more than there are columns: rows a power of two apart would want the same place of the cache.
  const int64_t lda = (words_of<T>(x.width) + W - 1) / W * W, wide = panels_of(columns) * NR, ldc = parts * wide + W;
  float* c = scratch + B_WORDS;
  for (int64_t i = 0; along && i < m; i++) pack_row(scratch + i * lda, Rows<T>::at(x, r0 + i), x.width, lda);
  for (int part = 0; part < parts; part++) {
    const int64_t first = part * apart + c0;
    if (along)
      dot_products(scratch, lda, m, matrix.base + first * matrix.width, matrix.width, columns, c + part * wide, ldc);
    else
      row_products(x, r0, m, matrix.base + first, matrix.width, matrix.rows, columns, c + part * wide, ldc);
  }
  done(c, ldc, 0, m);
}

// Are they few, and is there room for them? `depth` of rows that are packed, 0 where they are read as they lie.
template <class T>
static bool is_few(int64_t m, int64_t depth) {
  return m <= FEW_ROWS && m * (words_of<T>(depth) + W) <= B_WORDS;
}

}  // namespace MIXTURA_VARIANT
