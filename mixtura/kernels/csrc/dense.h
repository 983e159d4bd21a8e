// What a caller fills in for the dense parts of a Transformer: RMS normalisation, causal attention with rotary
// positions, and cross-entropy. fp32, dense and row-major.
//
// Letters: B batch, L length, H heads, d width of a head, N rows, D width, V vocabulary.
#pragma once
#include <stdint.h>

extern "C" {

enum {
  MIXTURA_NORM,           // x (N, D), weight (D) -> y, inverse (N)
  MIXTURA_NORM_GRAD,      // and dy, inverse -> dx (N, D), parts (tasks, D): sums over each task's rows for dweight
  MIXTURA_ATTEND,         // x (B, L, 3H, d): queries, keys, values -> y (B, L, H, d), inverse (B, H, L): log of each sum
  MIXTURA_ATTEND_GRAD,    // and y, inverse, dy -> dx
  MIXTURA_CROSS_ENTROPY,  // x = y (N, V) logits, target (N) -> inverse (N): nats; y: gradient of x, times `scale`
};

typedef struct {
  int64_t batch, length, heads, width;  // norm and cross-entropy: length = N, width = D or V
  int32_t kind, threads;
  float epsilon, scale;
  const float* x;
  const float* weight;
  const float* cos;  // (L, d / 2)
  const float* sin;
  const int64_t* target;
  const float* dy;
  float* y;
  float* inverse;
  float* dx;
  float* parts;
} MixturaDense;

}  // extern "C"

constexpr int64_t ROWS_OF_DENSE_TASKS = 128;
