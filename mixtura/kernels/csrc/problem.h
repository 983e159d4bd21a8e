// What a caller fills in, and what one task of the work is. Shared by Python (ctypes) and by every variant.
//
// Letters: T tokens, N rows (assignments grouped by expert), E experts, D width, F hidden width, U = 2F where the
// activation is gated (gate columns first, or, woven, gate and other by turns), else F. All matrices are dense and
// row-major; the experts' own and their gradients may each lie transposed. Rows past the sum of counts belong to no
// expert; their outputs are zero.
#pragma once
#include <stdint.h>

#include "dense.h"

extern "C" {

enum { MIXTURA_F32 = 0, MIXTURA_BF16 = 1 };
enum {
  MIXTURA_RELU = 0, MIXTURA_GELU, MIXTURA_GELU_TANH, MIXTURA_SILU,  // plain
  MIXTURA_SWIGLU, MIXTURA_GEGLU, MIXTURA_GEGLU_TANH, MIXTURA_CLAMPED_SWIGLU,  // gated
  MIXTURA_ACTIVATIONS
};
enum { MIXTURA_WOVEN = 1, MIXTURA_UP_TRANSPOSED = 2, MIXTURA_DOWN_TRANSPOSED = 4 };

// Pointers may be null where a part is not wanted; `rows` are T or N long as the index says.
typedef struct {
  int64_t tokens, rows, experts, dim, hidden, choices;
  int32_t dtype, activation, threads, layout;  // layout: a sum of the flags above
  const int64_t* token;   // (N) the token of each row
  const int64_t* count;   // (E) rows of each expert
  const int64_t* slot;    // (T, K) the row of each choice, negative: dropped
  const void* x;          // (T, D)
  const float* weight;    // (N)
  const void* up;         // (E, U, D), or (E, D, U) transposed
  const void* down;       // (E, D, F), or (E, F, D)
  const void* up_bias;    // (E, U) or null
  const void* down_bias;  // (E, D) or null
  const void* keep;       // (N, F) multiplied onto the activation (dropout), or null
  void* z;                // (N, U) pre-activation: written by forward (null: not kept), read by backward
  void* y;                // (N, D) out
  const void* dy;         // backward: (N, D), or (T, D) read through `token` where dy_by_token is set
  int64_t dy_by_token;
  void* dx_rows;          // (N, D), the gradient of x by row; null where dx is wanted, or nothing
  void* dx;               // (T, D)
  float* dweight;         // (N)
  void* dup;              // as up
  void* ddown;            // as down
  void* dup_bias;         // (E, U)
  void* ddown_bias;       // (E, D)
  // Scratch that the library finds itself; the row's own number counts, whatever chunk of rows is held.
  void* a;                // (N, F) activation times weight
  void* dz;               // (N, U)
  float* parts;           // (column blocks, N) partial sums of dweight
} MixturaProblem;

}  // extern "C"

constexpr bool is_gated(int activation) { return activation >= MIXTURA_SWIGLU; }

// A piece of work that one thread does alone: rows [r0, r1) and columns [c0, c1) of one product of one expert.
enum TaskKind { UP, DOWN, HIDDEN, INPUT, UP_GRAD, DOWN_GRAD, UP_BIAS, DOWN_BIAS, WEIGHT, SUM_TOKENS };

struct Task {
  int32_t kind, expert;
  int64_t first;   // the expert's first row
  int64_t count;   // its rows
  int64_t r0, r1;  // rows of the result: assignments, or (gradients of matrices) rows of the matrix
  int64_t c0, c1;  // columns of the result
  int64_t block;   // which block of columns
  bool few;        // few rows: the matrix is read once and in place
  double cost;     // multiply-adds, to hand out the largest first
};

// What a variant of the kernel (one set of machine instructions) offers.
struct Variant {
  const char* name;
  int64_t strip;                                 // rows of one register tile
  int64_t panel;                                 // columns of one register tile
  int64_t scratch_words;                         // 32-bit words that `run` wants as scratch, on 64 bytes
  int64_t (*columns)(int64_t depth, int dtype);  // columns of one task for products over `depth`
  bool (*few)(int64_t rows, int64_t depth, int dtype);  // read the matrix in place? depth: of rows that are packed
  void (*run)(const MixturaProblem& problem, const Task& task, float* scratch);
  int64_t (*dense_scratch)(const MixturaDense& problem);
  void (*run_dense)(const MixturaDense& problem, int64_t task, float* scratch);
};
