// The dense parts, a block of rows or one head of one sequence at a time, each by one thread alone.
#pragma once
#include <math.h>

#include "activation.h"
#include "dense.h"

namespace MIXTURA_VARIANT {

MIXTURA_INLINE V maximum(V a, V b) { return choose(a > b, a, b); }

MIXTURA_INLINE float largest(V value) {
  float part[W];
  store(part, value);
#pragma GCC unroll 4
  for (int half = W / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; i++) part[i] = part[i] > part[i + half] ? part[i] : part[i + half];
  return part[0];
}

MIXTURA_INLINE float dot(const float* a, const float* b, int64_t n) {
  V total = {};
  for (int64_t i = 0; i < n; i += W) total += load(a + i, n - i) * load(b + i, n - i);
  return sum(total);
}

static void norm(const MixturaDense& p, int64_t r0, int64_t r1) {
  const int64_t D = p.width;
  for (int64_t r = r0; r < r1; r++) {
    const float *x = p.x + r * D, inverse = 1 / sqrtf(dot(x, x, D) / D + p.epsilon);
    p.inverse[r] = inverse;
    for (int64_t i = 0; i < D; i += W)
      store(p.y + r * D + i, load(x + i, D - i) * splat(inverse) * load(p.weight + i, D - i), D - i);
  }
}

// dx = inverse (g - x <g, x> inverse^2 / D), g = dy weight.
static void norm_grad(const MixturaDense& p, int64_t r0, int64_t r1, float* part) {
  const int64_t D = p.width;
  memset(part, 0, D * sizeof(float));
  for (int64_t r = r0; r < r1; r++) {
    const float *x = p.x + r * D, *dy = p.dy + r * D, inverse = p.inverse[r];
    V along = {};
    for (int64_t i = 0; i < D; i += W) {
      const V product = load(x + i, D - i) * load(dy + i, D - i);
      along += product * load(p.weight + i, D - i);
      store(part + i, load(part + i, D - i) + product * splat(inverse), D - i);
    }
    const V back = splat(sum(along) * inverse * inverse / D);
    for (int64_t i = 0; i < D; i += W) {
      const V g = load(dy + i, D - i) * load(p.weight + i, D - i);
      store(p.dx + r * D + i, (g - load(x + i, D - i) * back) * splat(inverse), D - i);
    }
  }
}

MIXTURA_INLINE V load_or(const float* p, int64_t n, float fill) {
  if (n >= W) return load(p);
  V value = splat(fill);
  memcpy(&value, p, n * sizeof(float));
  return value;
}

static void cross_entropy(const MixturaDense& p, int64_t r0, int64_t r1) {
  const int64_t D = p.width;
  const float nothing = -__builtin_inff();
  for (int64_t r = r0; r < r1; r++) {
    float* row = p.y + r * D;
    const float asked = row[p.target[r]];
    V most = splat(nothing), total = {};
    for (int64_t i = 0; i < D; i += W) most = maximum(most, load_or(row + i, D - i, nothing));
    const float top = largest(most);
    for (int64_t i = 0; i < D; i += W) {
      const V value = exponential(load_or(row + i, D - i, nothing) - splat(top));
      store(row + i, value, D - i);
      total += value;
    }
    const float all = sum(total);
    p.inverse[r] = top + logf(all) - asked;
    const V share = splat(p.scale / all);
    for (int64_t i = 0; i < D; i += W) store(row + i, load(row + i, D - i) * share, D - i);
    row[p.target[r]] -= p.scale;
  }
}

constexpr int QUERIES = 4;  // worked on at a time
constexpr int KEYS = 2 * W;

MIXTURA_INLINE int64_t fewer(int64_t a, int64_t b) { return a < b ? a : b; }
MIXTURA_INLINE int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// One head of one sequence. Keys and values lie by key (L, dp) and transposed (d, Lp), padded with zeros.
struct Head {
  const MixturaDense& p;
  int64_t b, h, L, d, Lp, dp;
  float *key, *value, *key_t, *value_t, *dkey, *dvalue, *score, *dscore, *query, *dmixed;

  Head(const MixturaDense& problem, int64_t task, float* scratch)
      : p(problem), b(task / problem.heads), h(task % problem.heads), L(problem.length), d(problem.width), Lp(padded(L, KEYS)),
        dp(padded(d, W)) {
    float** const by_key[] = {&key, &value, &dkey, &dvalue};
    for (float** part : by_key) *part = scratch, scratch += Lp * dp;
    float** const by_dim[] = {&key_t, &value_t};
    for (float** part : by_dim) *part = scratch, scratch += d * Lp;
    float** const by_query[] = {&score, &dscore};
    for (float** part : by_query) *part = scratch, scratch += QUERIES * Lp;
    query = scratch, dmixed = scratch + QUERIES * dp;
  }

  // part: 0 query, 1 key, 2 value
  int64_t at(int64_t i, int64_t part) const { return (((b * L + i) * 3 + part) * p.heads + h) * d; }
  int64_t out(int64_t i) const { return ((b * L + i) * p.heads + h) * d; }

  // Normalise a query or key, times `scale`, and turn its pairs by their place's angles.
  void turn(const float* __restrict x, int64_t i, float* __restrict to, float scale) const {
    const float inverse = scale / sqrtf(dot(x, x, d) / d + p.epsilon), *cos = p.cos + i * (d / 2), *sin = p.sin + i * (d / 2);
    for (int64_t j = 0; j < d / 2; j++) {
      const float first = x[j] * inverse, second = x[j + d / 2] * inverse;
      to[j] = first * cos[j] - second * sin[j];
      to[j + d / 2] = first * sin[j] + second * cos[j];
    }
  }

  // The gradient of x from that of what `turn` made of it.
  void turn_back(const float* __restrict grad, const float* __restrict x, int64_t i, float* __restrict dx) const {
    const float inverse = 1 / sqrtf(dot(x, x, d) / d + p.epsilon), *cos = p.cos + i * (d / 2), *sin = p.sin + i * (d / 2);
    for (int64_t j = 0; j < d / 2; j++) {
      dx[j] = grad[j] * cos[j] + grad[j + d / 2] * sin[j];
      dx[j + d / 2] = grad[j + d / 2] * cos[j] - grad[j] * sin[j];
    }
    const float back = dot(dx, x, d) * inverse * inverse / d;
    for (int64_t j = 0; j < d; j++) dx[j] = (dx[j] - x[j] * back) * inverse;
  }

  void transpose(const float* from, float* to) const {
    for (int64_t i = 0; i < Lp; i++)
      for (int64_t j = 0; j < d; j++) to[j * Lp + i] = from[i * dp + j];
  }

  void pack(bool backward) {
    memset(key, 0, 2 * Lp * dp * sizeof(float));
    for (int64_t i = 0; i < L; i++) {
      turn(p.x + at(i, 1), i, key + i * dp, 1);
      memcpy(value + i * dp, p.x + at(i, 2), d * sizeof(float));
    }
    transpose(key, key_t);
    if (!backward) return;
    transpose(value, value_t);
    memset(dkey, 0, 2 * Lp * dp * sizeof(float));
  }

  // The queries from place i on, scaled; past the last one the last again. Returns how many keys they see, padded.
  int64_t load_queries(int64_t i) {
    memset(query, 0, QUERIES * dp * sizeof(float));
    const float scale = 1 / sqrtf(float(d));
    for (int64_t r = 0; r < QUERIES; r++) turn(p.x + at(fewer(i + r, L - 1), 0), fewer(i + r, L - 1), query + r * dp, scale);
    return padded(fewer(i + QUERIES, L), KEYS);
  }

  // to (QUERIES, keys) = rows (QUERIES, d) times a transposed matrix (d, Lp).
  void against(const float* rows, const float* matrix_t, int64_t keys, float* to) const {
    for (int64_t j = 0; j < keys; j += KEYS) {
      V acc[QUERIES][2] = {};
      for (int64_t k = 0; k < d; k++) {
        const V low = load(matrix_t + k * Lp + j), high = load(matrix_t + k * Lp + j + W);
#pragma GCC unroll 4
        for (int r = 0; r < QUERIES; r++) {
          const float x = rows[r * dp + k];
          acc[r][0] += low * x, acc[r][1] += high * x;
        }
      }
#pragma GCC unroll 4
      for (int r = 0; r < QUERIES; r++) store(to + r * Lp + j, acc[r][0]), store(to + r * Lp + j + W, acc[r][1]);
    }
  }

  // to (QUERIES, dp) = shares (QUERIES, keys) times rows (keys, dp).
  void mix(const float* shares, const float* rows, int64_t keys, float* to) const {
    for (int64_t c = 0; c < dp; c += W) {
      V acc[QUERIES] = {};
      for (int64_t j = 0; j < keys; j++) {
        const V row = load(rows + j * dp + c);
#pragma GCC unroll 4
        for (int r = 0; r < QUERIES; r++) acc[r] += row * shares[r * Lp + j];
      }
#pragma GCC unroll 4
      for (int r = 0; r < QUERIES; r++) store(to + r * dp + c, acc[r]);
    }
  }

  // rows (keys, dp) += shares^T (keys, QUERIES) times what each query adds (QUERIES, dp).
  void spread(const float* shares, const float* added, int64_t keys, float* rows) const {
    for (int64_t c = 0; c < dp; c += W) {
      V add[QUERIES];
#pragma GCC unroll 4
      for (int r = 0; r < QUERIES; r++) add[r] = load(added + r * dp + c);
      for (int64_t j = 0; j < keys; j++) {
        V row = load(rows + j * dp + c);
#pragma GCC unroll 4
        for (int r = 0; r < QUERIES; r++) row += add[r] * shares[r * Lp + j];
        store(rows + j * dp + c, row);
      }
    }
  }

  void hide_later_keys(int64_t i, int64_t keys) const {
    for (int64_t r = 0; r < QUERIES; r++)
      for (int64_t j = fewer(i + r, L - 1) + 1; j < keys; j++) score[r * Lp + j] = -__builtin_inff();
  }

  void forward() {
    pack(false);
    for (int64_t i = 0; i < L; i += QUERIES) {
      const int64_t keys = load_queries(i);
      against(query, key_t, keys, score);
      hide_later_keys(i, keys);
      float share[QUERIES];
      for (int64_t r = 0; r < QUERIES; r++) {
        V most = load(score + r * Lp), total = {};
        for (int64_t j = W; j < keys; j += W) most = maximum(most, load(score + r * Lp + j));
        const float top = largest(most);
        for (int64_t j = 0; j < keys; j += W) {
          const V value = exponential(load(score + r * Lp + j) - splat(top));
          store(score + r * Lp + j, value);
          total += value;
        }
        const float all = sum(total);
        share[r] = 1 / all;
        if (i + r < L) p.inverse[(b * p.heads + h) * L + i + r] = top + logf(all);
      }
      mix(score, value, keys, dmixed);
      for (int64_t r = 0; r < QUERIES && i + r < L; r++)
        for (int64_t j = 0; j < d; j++) p.y[out(i + r) + j] = dmixed[r * dp + j] * share[r];
    }
  }

  // The softmax's gradient: shares from the scores, and in `dscore` share (dscore - <dy, y>). Rows past the last get none.
  void softmax_grad(int64_t i, int64_t keys) {
    for (int64_t r = 0; r < QUERIES; r++) {
      float *s = score + r * Lp, *ds = dscore + r * Lp;
      if (i + r >= L) {
        memset(s, 0, keys * sizeof(float)), memset(ds, 0, keys * sizeof(float));
        continue;
      }
      const V log_sum = splat(p.inverse[(b * p.heads + h) * L + i + r]);
      const V along = splat(dot(p.dy + out(i + r), p.y + out(i + r), d));
      for (int64_t j = 0; j < keys; j += W) {
        const V share = exponential(load(s + j) - log_sum);
        store(s + j, share);
        store(ds + j, share * (load(ds + j) - along));
      }
    }
  }

  void backward() {
    pack(true);
    const float scale = 1 / sqrtf(float(d));
    for (int64_t i = 0; i < L; i += QUERIES) {
      const int64_t keys = load_queries(i);
      memset(dmixed, 0, QUERIES * dp * sizeof(float));
      for (int64_t r = 0; r < QUERIES && i + r < L; r++) memcpy(dmixed + r * dp, p.dy + out(i + r), d * sizeof(float));
      against(query, key_t, keys, score);
      hide_later_keys(i, keys);
      against(dmixed, value_t, keys, dscore);
      softmax_grad(i, keys);
      spread(dscore, query, keys, dkey);
      spread(score, dmixed, keys, dvalue);
      mix(dscore, key, keys, dmixed);
      for (int64_t r = 0; r < QUERIES && i + r < L; r++) {
        for (int64_t j = 0; j < d; j++) dmixed[r * dp + j] *= scale;
        turn_back(dmixed + r * dp, p.x + at(i + r, 0), i + r, p.dx + at(i + r, 0));
      }
    }
    for (int64_t i = 0; i < L; i++) {
      turn_back(dkey + i * dp, p.x + at(i, 1), i, p.dx + at(i, 1));
      memcpy(p.dx + at(i, 2), dvalue + i * dp, d * sizeof(float));
    }
  }
};

static int64_t dense_scratch(const MixturaDense& p) {
  const int64_t Lp = padded(p.length, KEYS), dp = padded(p.width, W);
  return p.kind == MIXTURA_ATTEND || p.kind == MIXTURA_ATTEND_GRAD ? 4 * Lp * dp + 2 * p.width * Lp + 2 * QUERIES * (Lp + dp) : 0;
}

static void run_dense(const MixturaDense& p, int64_t task, float* scratch) {
  const int64_t r0 = task * ROWS_OF_DENSE_TASKS, end = r0 + ROWS_OF_DENSE_TASKS, r1 = end < p.length ? end : p.length;
  switch (p.kind) {
    case MIXTURA_NORM:
      return norm(p, r0, r1);
    case MIXTURA_NORM_GRAD:
      return norm_grad(p, r0, r1, p.parts + task * p.width);
    case MIXTURA_CROSS_ENTROPY:
      return cross_entropy(p, r0, r1);
    case MIXTURA_ATTEND:
      return Head(p, task, scratch).forward();
    case MIXTURA_ATTEND_GRAD:
      return Head(p, task, scratch).backward();
  }
}

}  // namespace MIXTURA_VARIANT
