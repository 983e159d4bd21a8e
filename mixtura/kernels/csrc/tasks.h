// The tasks: each computes one block of one result of one expert, alone and from packed operands.
#pragma once
#include "activation.h"
#include "few.h"

namespace MIXTURA_VARIANT {

template <class T>
struct Operands {
  const MixturaProblem& p;
  const Task& t;
  int64_t D, F, U, e;

  Operands(const MixturaProblem& problem, const Task& task)
      : p(problem), t(task), D(problem.dim), F(problem.hidden), U(is_gated(problem.activation) ? 2 * F : F), e(task.expert) {}
  Matrix<T> up() const { return matrix((const T*)p.up, U, D, p.layout & MIXTURA_UP_TRANSPOSED); }
  Matrix<T> down() const { return matrix((const T*)p.down, D, F, p.layout & MIXTURA_DOWN_TRANSPOSED); }
  Matrix<T> matrix(const T* base, int64_t rows, int64_t width, bool transposed) const {
    return {base + e * rows * width, transposed ? width : rows, transposed ? rows : width, transposed};
  }
  Rows<T> x() const { return {(const T*)p.x, D, p.token}; }
  Rows<T> dy() const { return {(const T*)p.dy, D, p.dy_by_token ? p.token : nullptr}; }
  Rows<T> a() const { return {(const T*)p.a, F, nullptr}; }
  const T* keep(int64_t n) const { return p.keep ? (const T*)p.keep + n * F + t.c0 : nullptr; }
  Rows<T> dz() const { return {(const T*)p.dz, U, nullptr}; }
};

constexpr int64_t LARGE_BYTES = 16 << 20;  // a result that no cache holds

// z = x up^T + bias, kept; a = activation(z) * weight. x is gathered while it is packed.
template <class T, int KIND>
static void run_up(const Operands<T>& o, float* scratch) {
  constexpr bool gated = is_gated(KIND);
  const Task& t = o.t;
  const bool woven = gated && o.p.layout & MIXTURA_WOVEN;
  const int64_t F = o.F, columns = t.c1 - t.c0;
  // Woven columns stand side by side in memory, so they are multiplied as they stand; halves are two parts.
  const int parts = gated && !woven ? 2 : 1, step = woven ? 2 : 1;
  const int64_t wide = step * columns, half = panels_of(wide), first = step * t.c0;
  const T* bias = o.p.up_bias ? (const T*)o.p.up_bias + o.e * o.U + first : nullptr;
  const Matrix<T> up = o.up();
  auto pack_b = [&](float* to, int64_t k, int64_t words) {
    for (int part = 0; part < parts; part++)
      pack_matrix(to + part * half * NR * words, up, !up.transposed, k, words, part * F + first, wide);
  };
  auto pack_a = [&](float* to, int64_t i0, int64_t i1, int64_t k, int64_t words) {
    pack_rows(to, o.x(), t.r0 + i0, t.r0 + i1, k, words);
  };
  auto done = [&](const float* c, int64_t ldc, int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++, c += ldc) {
      const int64_t n = t.r0 + i;
      const V weight = splat(o.p.weight[n]);
      T* z = o.p.z ? (T*)o.p.z + n * o.U + first : nullptr;
      T* a = (T*)o.p.a + n * F + t.c0;
      const T* keep = o.keep(n);
      for (int64_t j = 0; j < columns; j += W) {
        const int64_t left = columns - j;
        V gate, other, slope, value;
        if (gated) {
          load_pair(c, j, half * NR, woven, W, &gate, &other);
          if (bias) {
            V gate_bias, other_bias;
            load_pair(bias, j, F, woven, left, &gate_bias, &other_bias);
            gate += gate_bias;
            other += other_bias;
          }
          gate = rounded(gate, a);  // what backward will read
          other = rounded(other, a);
          if (z) store_pair(z, j, F, woven, left, gate, other);
          value = activate<KIND>(gate, &slope) * weight;
          value *= gated_by<KIND>(other, &slope);
        } else {
          gate = load(c + j);
          if (bias) gate += load(bias + j, left);
          gate = rounded(gate, a);
          if (z) store(z + j, gate, left);
          value = activate<KIND>(gate, &slope) * weight;
        }
        if (keep) value *= load(keep + j, left);
        store(a + j, value, left);
      }
    }
  };
  const int64_t m = t.r1 - t.r0;
  if (t.few) return few_product(o.x(), t.r0, m, up, !up.transposed, parts, F, first, wide, scratch, done);
  product<T, false>(m, words_of<T>(o.D), parts * half, scratch, Direct{}, pack_a, pack_b, done);
}

// da = dy down; from it and z: dz (times weight), a (times weight), and this block's part of dweight = <da, a>.
template <class T, int KIND>
static void run_hidden(const Operands<T>& o, float* scratch) {
  constexpr bool gated = is_gated(KIND);
  const Task& t = o.t;
  const bool woven = gated && o.p.layout & MIXTURA_WOVEN;
  const int64_t F = o.F, columns = t.c1 - t.c0, first = woven ? 2 * t.c0 : t.c0;
  float* part = o.p.parts + t.block * o.p.rows;
  const Matrix<T> down = o.down();
  auto pack_b = [&](float* to, int64_t k, int64_t words) {
    pack_matrix(to, down, down.transposed, k, words, t.c0, columns);
  };
  auto pack_a = [&](float* to, int64_t i0, int64_t i1, int64_t k, int64_t words) {
    pack_rows(to, o.dy(), t.r0 + i0, t.r0 + i1, k, words);
  };
  auto done = [&](const float* c, int64_t ldc, int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1; i++, c += ldc) {
      const int64_t n = t.r0 + i;
      const V weight = splat(o.p.weight[n]);
      const T* z = (const T*)o.p.z + n * o.U + first;
      T* dz = (T*)o.p.dz + n * o.U + first;
      T* a = (T*)o.p.a + n * F + t.c0;
      const T* keep = o.keep(n);
      V dweight = {};
      for (int64_t j = 0; j < columns; j += W) {
        const int64_t left = columns - j;
        // Lanes past the block's last column must not reach dweight.
        const V kept = keep ? load(keep + j, left) : splat(1.0f);
        const V da = load(c + j, left) * kept;
        const V scaled = da * weight;
        V slope, value;
        if (gated) {
          V gate, other, other_slope;
          load_pair(z, j, F, woven, left, &gate, &other);
          value = activate<KIND>(gate, &slope);
          const V factor = gated_by<KIND>(other, &other_slope);
          store_pair(dz, j, F, woven, left, scaled * slope * factor, scaled * value * other_slope);
          value *= factor;
        } else {
          value = activate<KIND>(load(z + j, left), &slope);
          store(dz + j, scaled * slope, left);
        }
        store(a + j, value * weight * kept, left);
        dweight += da * value;
      }
      part[n] = sum(dweight);
    }
  };
  const int64_t m = t.r1 - t.r0;
  if (t.few) return few_product(o.dy(), t.r0, m, down, down.transposed, 1, 0, t.c0, columns, scratch, done);
  product<T, false>(m, words_of<T>(o.D), panels_of(columns), scratch, Direct{}, pack_a, pack_b, done);
}

// Finished strips go to rows of a matrix, plus a bias times the row's weight where there is one.
template <class T>
MIXTURA_INLINE void store_strip(const float* c, int64_t ldc, int64_t i0, int64_t i1, T* out, int64_t width, int64_t columns,
                                const T* bias, const float* weight) {
  for (int64_t i = i0; i < i1; i++, c += ldc)
    for (int64_t j = 0; j < columns; j += W) {
      V value = load(c + j);
      if (bias) value += load(bias + j, columns - j) * splat(weight[i]);
      store(out + i * width + j, value, columns - j);
    }
}

template <class T>
MIXTURA_INLINE bool is_aligned(const T* p, int64_t width, int64_t columns) {
  return (uintptr_t)p % 64 == 0 && width * sizeof(T) % 64 == 0 && columns % NR == 0;
}

MIXTURA_INLINE Direct direct(float* out, int64_t width, int64_t columns, bool large) {
  if (columns % NR) return {};
  return {out, width, large && is_aligned(out, width, columns)};
}
MIXTURA_INLINE Direct direct(Bf16*, int64_t, int64_t, bool) { return {}; }

// y = a down^T + weight * bias.
template <class T>
static void run_down(const Operands<T>& o, float* scratch) {
  const Task& t = o.t;
  const int64_t columns = t.c1 - t.c0;
  const T* bias = o.p.down_bias ? (const T*)o.p.down_bias + o.e * o.D + t.c0 : nullptr;
  T* out = (T*)o.p.y + t.r0 * o.D + t.c0;
  const auto done = [&](const float* c, int64_t ldc, int64_t i0, int64_t i1) {
    store_strip(c, ldc, i0, i1, out, o.D, columns, bias, o.p.weight + t.r0);
  };
  const Matrix<T> down = o.down();
  const int64_t m = t.r1 - t.r0;
  if (t.few) return few_product(o.a(), t.r0, m, down, !down.transposed, 1, 0, t.c0, columns, scratch, done);
  product<T, false>(
      m, words_of<T>(o.F), panels_of(columns), scratch, bias ? Direct{} : direct(out, o.D, columns, false),
      [&](float* to, int64_t i0, int64_t i1, int64_t k, int64_t words) { pack_rows(to, o.a(), t.r0 + i0, t.r0 + i1, k, words); },
      [&](float* to, int64_t k, int64_t words) { pack_matrix(to, down, !down.transposed, k, words, t.c0, columns); }, done);
}

// The input's gradient by row: dx_rows = dz up.
template <class T>
static void run_input(const Operands<T>& o, float* scratch) {
  const Task& t = o.t;
  const int64_t columns = t.c1 - t.c0, m = t.r1 - t.r0;
  T* out = (T*)o.p.dx_rows + t.r0 * o.D + t.c0;
  const Matrix<T> up = o.up();
  const auto done = [&](const float* c, int64_t ldc, int64_t i0, int64_t i1) {
    store_strip(c, ldc, i0, i1, out, o.D, columns, (const T*)nullptr, nullptr);
  };
  if (t.few) return few_product(o.dz(), t.r0, m, up, up.transposed, 1, 0, t.c0, columns, scratch, done);
  product<T, false>(
      m, words_of<T>(o.U), panels_of(columns), scratch, direct(out, o.D, columns, false),
      [&](float* to, int64_t i0, int64_t i1, int64_t k, int64_t words) { pack_rows(to, o.dz(), t.r0 + i0, t.r0 + i1, k, words); },
      [&](float* to, int64_t k, int64_t words) { pack_matrix(to, up, up.transposed, k, words, t.c0, columns); }, done);
}

// A matrix's gradient: out (rows of left, columns of right) = sum over the expert's rows of left^T right; transposed, the
// two change places.
template <class T>
static void run_outer(const Operands<T>& o, bool transposed, Rows<T> left, Rows<T> right, T* out, float* scratch) {
  const Task& t = o.t;
  if (transposed) {
    const Rows<T> other = left;
    left = right;
    right = other;
  }
  const int64_t columns = t.c1 - t.c0;
  out += t.r0 * right.width + t.c0;
  if (t.count == 0) {
    for (int64_t i = 0; i < t.r1 - t.r0; i++) memset(out + i * right.width, 0, columns * sizeof(T));
    return;
  }
  const bool large = o.p.experts * left.width * right.width * (int64_t)sizeof(T) >= LARGE_BYTES;
  product<T, true>(
      t.r1 - t.r0, words_of<T>(t.count), panels_of(columns), scratch, direct(out, right.width, columns, large),
      [&](float* to, int64_t i0, int64_t i1, int64_t k, int64_t words) {
        pack_panels<SW>(to, left, t.first, t.count, k, words, t.r0 + i0, i1 - i0);
      },
      [&](float* to, int64_t k, int64_t words) { pack_panels<NR>(to, right, t.first, t.count, k, words, t.c0, columns); },
      [&](const float* c, int64_t ldc, int64_t i0, int64_t i1) {
        if (!large || !is_aligned(out, right.width, columns))
          return store_strip(c, ldc, i0, i1, out, right.width, columns, (const T*)nullptr, nullptr);
        for (int64_t i = i0; i < i1; i++, c += ldc)
          for (int64_t j = 0; j < columns; j += W) stream(out + i * right.width + j, load(c + j));
        stream_fence();
      });
}

// Sums over the expert's rows of one column block: a bias's gradient.
template <class T>
static void run_bias(const Task& t, const Rows<T>& rows, const float* weight, T* out) {
  for (int64_t c = t.c0; c < t.c1; c += W) {
    V total = {};
    for (int64_t n = t.first; n < t.first + t.count; n++)
      total += load(Rows<T>::at(rows, n) + c, t.c1 - c) * splat(weight ? weight[n] : 1.0f);
    store(out + c, total, t.c1 - c);
  }
}

// dweight of rows [r0, r1): the hidden blocks' parts, and what the down bias adds.
template <class T>
static void run_weight(const Operands<T>& o) {
  const Task& t = o.t;
  const T* bias = o.p.down_bias ? (const T*)o.p.down_bias + o.e * o.D : nullptr;
  for (int64_t n = t.r0; n < t.r1; n++) {
    float total = 0;
    for (int64_t part = 0; part < t.block; part++) total += o.p.parts[part * o.p.rows + n];
    if (bias) {
      const T* dy = Rows<T>::at(o.dy(), n);
      V products = {};
      for (int64_t d = 0; d < o.D; d += W) products += load(dy + d, o.D - d) * load(bias + d, o.D - d);
      total += sum(products);
    }
    o.p.dweight[n] = total;
  }
}

// Tokens [r0, r1): the sum of each token's rows; a dropped choice adds nothing.
template <class T>
static void run_sum_tokens(const Operands<T>& o) {
  const int64_t K = o.p.choices, D = o.D;
  const T* rows = (const T*)o.p.dx_rows;
  for (int64_t token = o.t.r0; token < o.t.r1; token++) {
    const int64_t* slots = o.p.slot + token * K;
    T* out = (T*)o.p.dx + token * D;
    for (int64_t d = 0; d < D; d += W) {
      V total = {};
      for (int64_t k = 0; k < K; k++)
        if (slots[k] >= 0) total += load(rows + slots[k] * D + d, D - d);
      store(out + d, total, D - d);
    }
  }
}

}  // namespace MIXTURA_VARIANT
