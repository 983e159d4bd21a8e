// One set of machine instructions: compiled once for each, with -DMIXTURA_VARIANT=name and the compiler's flags for it.
#include "dense_tasks.h"
#include "tasks.h"

namespace MIXTURA_VARIANT {

template <class T, int KIND>
static void run_activated(const Operands<T>& o, float* scratch) {
  if (o.t.kind == UP) return run_up<T, KIND>(o, scratch);
  run_hidden<T, KIND>(o, scratch);
}

template <class T>
static void run_any(const Operands<T>& o, float* scratch) {
  typedef void (*Activated)(const Operands<T>&, float*);
  static const Activated activated[MIXTURA_ACTIVATIONS] = {
      run_activated<T, MIXTURA_RELU>,       run_activated<T, MIXTURA_GELU>,
      run_activated<T, MIXTURA_GELU_TANH>,  run_activated<T, MIXTURA_SILU>,
      run_activated<T, MIXTURA_SWIGLU>,     run_activated<T, MIXTURA_GEGLU>,
      run_activated<T, MIXTURA_GEGLU_TANH>, run_activated<T, MIXTURA_CLAMPED_SWIGLU>,
  };
  switch (o.t.kind) {
    case UP:
    case HIDDEN:
      return activated[o.p.activation](o, scratch);
    case DOWN:
      return run_down(o, scratch);
    case INPUT:
      return run_input(o, scratch);
    case UP_GRAD:
      return run_outer(o, o.p.layout & MIXTURA_UP_TRANSPOSED, o.dz(), o.x(), (T*)o.p.dup + o.e * o.U * o.D, scratch);
    case DOWN_GRAD:
      return run_outer(o, o.p.layout & MIXTURA_DOWN_TRANSPOSED, o.dy(), o.a(), (T*)o.p.ddown + o.e * o.D * o.F, scratch);
    case UP_BIAS:
      return run_bias(o.t, o.dz(), nullptr, (T*)o.p.dup_bias + o.e * o.U);
    case DOWN_BIAS:
      return run_bias(o.t, o.dy(), o.p.weight, (T*)o.p.ddown_bias + o.e * o.D);
    case WEIGHT:
      return run_weight(o);
    case SUM_TOKENS:
      return run_sum_tokens(o);
  }
}

static void run(const MixturaProblem& problem, const Task& task, float* scratch) {
  if (problem.dtype == MIXTURA_F32) return run_any(Operands<float>(problem, task), scratch);
  run_any(Operands<Bf16>(problem, task), scratch);
}

// As many as the packed panels' room allows, and few enough that a strip's sums stay in the first-level cache.
static int64_t columns(int64_t depth, int dtype) {
  const int64_t words = dtype == MIXTURA_F32 ? depth : words_of<Bf16>(depth);
  const int64_t room = B_WORDS / smaller(words < 1 ? 1 : words, KS) / NR;
  return smaller(room, 512 / NR) * NR;
}

static bool few(int64_t rows, int64_t depth, int dtype) {
  return (dtype == MIXTURA_F32 ? is_few<float> : is_few<Bf16>)(rows, depth);
}

extern const Variant variant;
const Variant variant = {MIXTURA_NAME, MR, NR, B_WORDS + A_WORDS + C_WORDS, columns, few, run, dense_scratch, run_dense};

}  // namespace MIXTURA_VARIANT
