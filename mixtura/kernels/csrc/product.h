// The product that everything is made of: strips of MR packed rows times panels of NR packed columns.
//
// A strip's chunk of KC words of depth stays in the first-level cache, the panels (KS deep) in the second; a tile's sums
// stay in registers over a chunk. Every element is summed along the depth in one order, whatever the blocks are, so
// results do not depend on threads or on how work was cut.
#pragma once
#include "pack.h"

namespace MIXTURA_VARIANT {

enum Mode { SET, ADD, STREAM };  // what a tile does with c; STREAM sets it past the caches

// c (ROWS, NR) (+)= a (ROWS, depth) b (depth, NR). Packed strips lie by row (STRIPS false) or by depth (true).
template <class T, bool STRIPS, int ROWS>
static void tile(const float* a, const float* b, int64_t depth, float* c, int64_t ldc, Mode mode) {
  constexpr int64_t by_row = STRIPS ? 1 : AR, by_depth = STRIPS ? SW : 1;
  V acc[ROWS][NV];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) acc[i][j] = mode == ADD ? load(c + i * ldc + j * W) : V{};
  for (int64_t k = 0; k < depth; k++) {
    V row[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++) row[j] = *(const Vu*)(b + k * NR + j * W);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; i++) {
      const float value = a[i * by_row + k * by_depth];
#pragma GCC unroll 4
      for (int j = 0; j < NV; j++) acc[i][j] = Words<T>::multiply_add(value, row[j], acc[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; i++)
#pragma GCC unroll 4
    for (int j = 0; j < NV; j++)
      if (mode == STREAM)
        stream(c + i * ldc + j * W, acc[i][j]);
      else
        store(c + i * ldc + j * W, acc[i][j]);
}

typedef void (*Tile)(const float*, const float*, int64_t, float*, int64_t, Mode);

// The tile for each number of rows, filled by recursion: table[r] handles r rows.
template <class T, bool STRIPS, int ROWS = MR>
struct Tiles {
  static void fill(Tile* table) {
    table[ROWS] = tile<T, STRIPS, ROWS>;
    Tiles<T, STRIPS, ROWS - 1>::fill(table);
  }
};
template <class T, bool STRIPS>
struct Tiles<T, STRIPS, 0> {
  static void fill(Tile*) {}
};

MIXTURA_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Where sums may go as they are, without a strip in between: an fp32 result with nothing to add. `out` may be null.
struct Direct {
  float* out;
  int64_t width;
  bool stream;
};

// m rows times `panels` panels over `depth` words. pack_b(to, k, words) packs all panels, pack_a(to, i0, i1, k, words) one
// strip; done(c, ldc, i0, i1) takes each finished strip while it is in the cache, unless sums go to `direct`.
template <class T, bool STRIPS, class PackA, class PackB, class Done>
MIXTURA_INLINE void product(int64_t m, int64_t depth, int64_t panels, float* scratch, Direct direct, PackA pack_a, PackB pack_b,
                            Done done) {
  Tile tiles[MR + 1];
  Tiles<T, STRIPS>::fill(tiles);
  float *b = scratch, *a = b + B_WORDS, *c = a + A_WORDS;
  const int64_t ldc = direct.out ? direct.width : panels * NR, strips = (m + MR - 1) / MR;
  const bool one_pass = depth <= KS && !direct.out;
  const Mode first = direct.stream && depth <= KC ? STREAM : SET;
  for (int64_t k0 = 0; k0 < depth; k0 += KS) {
    const int64_t kn = smaller(KS, depth - k0);
    pack_b(b, k0, kn);
    for (int64_t s = 0; s < strips; s++) {
      const int64_t i0 = m * s / strips, i1 = m * (s + 1) / strips;
      float* sums = direct.out ? direct.out + i0 * ldc : one_pass ? c : c + i0 * ldc;
      for (int64_t k = 0; k < kn; k += KC) {
        const int64_t n = smaller(KC, kn - k);
        pack_a(a, i0, i1, k0 + k, n);
        for (int64_t p = 0; p < panels; p++)
          tiles[i1 - i0](a, b + (p * kn + k) * NR, n, sums + p * NR, ldc, k0 + k > 0 ? ADD : first);
      }
      if (k0 + kn == depth && !direct.out) done(sums, ldc, i0, i1);
    }
  }
  if (first == STREAM) stream_fence();
}

template <class T>
MIXTURA_INLINE int64_t words_of(int64_t elements) {
  return (elements + Words<T>::PER - 1) / Words<T>::PER;
}

MIXTURA_INLINE int64_t panels_of(int64_t columns) { return (columns + NR - 1) / NR; }

}  // namespace MIXTURA_VARIANT
