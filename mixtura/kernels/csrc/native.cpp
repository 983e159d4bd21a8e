// The C interface: chooses a variant by what this machine can run, and works tasks off on torch's own threads.
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <numeric>

#include "plan.h"

// Each is the object of variant.cpp compiled for one set of instructions; build.py says which there are.
#define DECLARE(name)             \
  namespace name {                \
  extern const Variant variant;   \
  }
#ifdef MIXTURA_X86
DECLARE(avx512_bf16)
DECLARE(avx512)
DECLARE(avx2)
#endif
DECLARE(baseline)
#undef DECLARE

namespace {

bool runs_here(const char* name) {
#ifdef MIXTURA_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!strcmp(name, "avx2")) return avx2;
  if (!strcmp(name, "avx512")) return avx512;
  if (!strcmp(name, "avx512_bf16")) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
  return !strcmp(name, "baseline");
}

const Variant* const VARIANTS[] = {
#ifdef MIXTURA_X86
    &avx512_bf16::variant, &avx512::variant, &avx2::variant,
#endif
    &baseline::variant,
};

const Variant* find(const char* name) {
  for (const Variant* v : VARIANTS)
    if (runs_here(v->name) && (!name || !*name || !strcmp(name, v->name))) return v;
  return nullptr;
}

// Large fresh buffers in large pages: a page fault per 4 KiB costs more than writing it.
void prefer_large_pages(const void* begin, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  const uintptr_t page = 4096, from = ((uintptr_t)begin + page - 1) / page * page;
  const uintptr_t to = ((uintptr_t)begin + bytes) / page * page;
  if (begin && bytes >= (4 << 20)) madvise((void*)from, to - from, MADV_HUGEPAGE);
#else
  (void)begin, (void)bytes;
#endif
}

// A thread's scratch stays for its next task; about a megabyte.
struct Scratch {
  float* data = nullptr;
  ~Scratch() { free(data); }
  float* get(int64_t words) {
    const size_t large_page = 2 << 20, bytes = (words * sizeof(float) + large_page - 1) / large_page * large_page;
    if (!data) {
      data = static_cast<float*>(aligned_alloc(large_page, bytes));
      if (!data) abort();
      prefer_large_pages(data, bytes);
    }
    return data;
  }
};
thread_local Scratch scratch;

// Scratch of a whole call, kept for the next: fresh pages cost more than the work on them. What is larger than most
// calls want goes back.
struct Arena {
  char* data = nullptr;
  int64_t size = 0, used = 0;
  ~Arena() { free(data); }
  void reserve(int64_t bytes) {
    used = 0;
    if (bytes <= size) return;
    free(data);
    const int64_t large_page = 2 << 20;
    size = (bytes + large_page - 1) / large_page * large_page;
    data = static_cast<char*>(aligned_alloc(large_page, size));
    if (!data) abort();
    prefer_large_pages(data, size);
  }
  char* take(int64_t bytes) {
    char* begin = data + used;
    used += (bytes + 63) / 64 * 64;
    return begin;
  }
  void shrink() {
    if (size <= KEPT_BYTES) return;
    free(data);
    data = nullptr;
    size = 0;
  }
  static constexpr int64_t KEPT_BYTES = 128 << 20;
};
thread_local Arena arena;

// Hidden values of one chunk of experts: about what the last cache holds.
constexpr int64_t CHUNK_BYTES = 24 << 20;

template <class Run>
struct Work {
  const Variant& variant;
  const size_t tasks;
  const Run& run;
  std::atomic<size_t> next{0};
};

template <class Run>
void work_off(void* argument) {
  Work<Run>& work = *static_cast<Work<Run>*>(argument);
  float* memory = scratch.get(work.variant.scratch_words);
  for (size_t i; (i = work.next.fetch_add(1)) < work.tasks;) work.run(i, memory);
}

// Torch has loaded an OpenMP library for everybody to see; a second one would fight with it over the cores.
typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);
Parallel parallel() {
  static const Parallel found = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

// Hands out the numbers of the tasks; run(i, scratch) does one.
template <class Run>
void run_tasks(const Variant& v, size_t tasks, int32_t most_threads, const Run& run) {
  Work<Run> work{v, tasks, run};
  const size_t threads = std::min<size_t>(most_threads, tasks);
  if (threads > 1 && parallel())
    parallel()(work_off<Run>, &work, unsigned(threads), 0);
  else
    work_off<Run>(&work);
}

void run(const MixturaProblem& p, const Variant& v, const std::vector<Task>& tasks) {
  run_tasks(v, tasks.size(), p.threads, [&](size_t i, float* memory) { v.run(p, tasks[i], memory); });
}

int64_t element(const MixturaProblem& p) { return p.dtype == MIXTURA_F32 ? 4 : 2; }

void clear_tail(const MixturaProblem& p, void* rows, int64_t width) {
  const int64_t used = assigned_rows(p);
  if (rows && used < p.rows) memset(static_cast<char*>(rows) + used * width, 0, (p.rows - used) * width);
}

int64_t most_rows(const std::vector<Chunk>& parts) {
  int64_t most = 0;
  for (const Chunk& chunk : parts) most = std::max(most, chunk.rows);
  return most;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// The name of the i-th variant that this machine can run, best first; null past the last.
const char* mixtura_variant(int i) {
  for (const Variant* v : VARIANTS)
    if (runs_here(v->name) && i-- == 0) return v->name;
  return nullptr;
}

int mixtura_has_threads() { return parallel() != nullptr; }

// A hash of the sources, so that a library built from others is noticed.
const char* mixtura_sources() { return MIXTURA_SOURCES; }

int mixtura_forward(const MixturaProblem* problem, const char* name) {
  const Variant* v = find(name);
  if (!v) return 1;
  MixturaProblem p = *problem;
  const int64_t width = p.hidden * element(p);
  prefer_large_pages(p.z, p.rows * up_columns(p) * element(p));
  prefer_large_pages(p.y, p.rows * p.dim * element(p));
  clear_tail(p, p.y, p.dim * element(p));
  const auto parts = chunks(p, CHUNK_BYTES / width);
  arena.reserve(most_rows(parts) * width);
  for (const Chunk& chunk : parts) {
    p.a = arena.data - chunk.first * width;
    run(p, *v, forward_up(p, *v, chunk));
    run(p, *v, forward_down(p, *v, chunk));
  }
  arena.shrink();
  return 0;
}

int mixtura_backward(const MixturaProblem* problem, const char* name) {
  const Variant* v = find(name);
  if (!v) return 1;
  MixturaProblem p = *problem;
  const int64_t U = up_columns(p), width = p.hidden * element(p), dz_width = U * element(p);
  prefer_large_pages(p.dup, p.experts * p.dim * U * element(p));
  prefer_large_pages(p.ddown, p.experts * p.dim * width);
  const auto parts = chunks(p, CHUNK_BYTES / (width + dz_width));
  const int64_t rows = most_rows(parts), sums = hidden_blocks(p, *v) * p.rows * sizeof(float);
  const int64_t row_bytes = p.dx ? p.rows * p.dim * element(p) : 0;
  arena.reserve(rows * (width + dz_width) + sums + row_bytes + 4 * 64);
  char *a = arena.take(rows * width), *dz = arena.take(rows * dz_width);
  p.parts = reinterpret_cast<float*>(arena.take(sums));
  if (p.dx) p.dx_rows = arena.take(row_bytes);
  clear_tail(p, p.dx_rows, p.dim * element(p));
  clear_tail(p, p.dweight, sizeof(float));
  for (const Chunk& chunk : parts) {
    p.a = a - chunk.first * width;
    p.dz = dz - chunk.first * dz_width;
    run(p, *v, backward_hidden(p, *v, chunk));
    run(p, *v, backward_rest(p, *v, chunk));
  }
  if (p.dx) run(p, *v, backward_tokens(p, *v));
  arena.shrink();
  return 0;
}

// Each token's sum of its rows: y (T, D), from dx_rows (N, D), by slot.
int mixtura_sum_rows(const MixturaProblem* problem, const char* name) {
  const Variant* v = find(name);
  if (!v) return 1;
  run(*problem, *v, backward_tokens(*problem, *v));
  return 0;
}

// A stable counting sort of n numbers below `groups`; larger ones, and negative ones, come last and are not counted.
// order (n): what stands at each place; count (groups).
void mixtura_group(const int64_t* number, int64_t n, int64_t groups, int64_t* order, int64_t* count) {
  std::vector<int64_t> next(groups + 2);
  const auto group = [&](int64_t i) { return std::min<uint64_t>(number[i], groups); };
  for (int64_t i = 0; i < n; i++) next[group(i) + 1]++;
  std::copy_n(next.begin() + 1, groups, count);
  std::partial_sum(next.begin(), next.end(), next.begin());
  for (int64_t i = 0; i < n; i++) order[next[group(i)]++] = i;
}

// 0: done. 1: no such variant. 2: larger than a thread's scratch. 3: a target outside the vocabulary; nothing was done.
int mixtura_dense(const MixturaDense* problem, const char* name) {
  const Variant* v = find(name);
  const MixturaDense& p = *problem;
  if (!v) return 1;
  if (v->dense_scratch(p) > v->scratch_words) return 2;
  if (p.kind == MIXTURA_CROSS_ENTROPY)
    for (int64_t r = 0; r < p.length; r++)
      if (p.target[r] < 0 || p.target[r] >= p.width) return 3;
  const bool by_head = p.kind == MIXTURA_ATTEND || p.kind == MIXTURA_ATTEND_GRAD;
  const int64_t tasks = by_head ? p.batch * p.heads : (p.length + ROWS_OF_DENSE_TASKS - 1) / ROWS_OF_DENSE_TASKS;
  run_tasks(*v, size_t(tasks), p.threads, [&](size_t i, float* memory) { v->run_dense(p, int64_t(i), memory); });
  return 0;
}

}  // extern "C"
