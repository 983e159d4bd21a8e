#include "plan.h"

#include <algorithm>

namespace {

// Tasks per thread that balance is worth: more would pack the same matrices more often.
constexpr double TASKS_PER_THREAD = 8;
constexpr int64_t MAX_ROWS = 1024;
constexpr int64_t COLUMNS_OF_FEW = 1024;  // where few rows read a matrix in place: long pieces, and tasks for many threads
constexpr int64_t ROWS_OF_SMALL_TASKS = 256;  // where there is no product: rows or tokens of one task

struct Planner {
  const MixturaProblem& p;
  const Variant& v;
  Chunk chunk;
  std::vector<Task> tasks = {};
  double target = 0;

  // One product of every expert: (rows, depth) x (depth, columns), rows or depth being the expert's count.
  struct Shape {
    TaskKind kind;
    int64_t rows, depth, columns;  // negative: the expert's count
    int64_t factor;                // products in one (gate and up)
    bool along;                    // of a matrix that is read: the depth lies along its rows
  };

  double cost(const Shape& s, int64_t count) const {
    const double rows = s.rows < 0 ? count : s.rows, depth = s.depth < 0 ? count : s.depth;
    return rows * depth * s.columns * s.factor;
  }

  int64_t block(const Shape& s, int64_t depth) const {
    const int64_t most = v.columns(depth, p.dtype) / s.factor / v.panel * v.panel;
    const int64_t room = std::max(most, v.panel);
    const int64_t blocks = (s.columns + room - 1) / room;
    return ((s.columns + blocks - 1) / blocks + v.panel - 1) / v.panel * v.panel;
  }

  bool is_few(const Shape& s, int64_t count) const {
    return s.rows < 0 && v.few(count, s.along ? s.depth : 0, p.dtype);
  }

  // Columns of one task. They do not depend on the number of threads, since sums of dweight are cut there.
  int64_t width(const Shape& s, int64_t count) const {
    const int64_t usual = block(s, s.depth < 0 ? count : s.depth);
    return s.along || !is_few(s, count) ? usual : std::max(usual, COLUMNS_OF_FEW);
  }

  int64_t blocks(const Shape& s, int64_t count) const { return (s.columns + width(s, count) - 1) / width(s, count); }

  // An expert without rows still writes its matrices' gradients: zeros.
  void add(const Shape& s, int64_t expert, int64_t first, int64_t count) {
    const int64_t rows = s.rows < 0 ? count : s.rows, depth = s.depth < 0 ? count : s.depth;
    if (rows == 0) return;
    const int64_t width = this->width(s, count);
    const bool few = is_few(s, count);
    const double by_row = double(std::max<int64_t>(depth, 1)) * std::min(width, s.columns) * s.factor;
    int64_t most = std::clamp<int64_t>(int64_t(target / by_row), 4 * v.strip, MAX_ROWS);
    most = most / v.strip * v.strip;
    const int64_t chunks = (rows + most - 1) / most;
    const int64_t start = s.rows < 0 ? first : 0;
    for (int64_t c = 0, i = 0; c < s.columns; c += width, i++)
      for (int64_t k = 0; k < chunks; k++) {
        const int64_t r0 = rows * k / chunks, r1 = rows * (k + 1) / chunks;
        const int64_t end = std::min(c + width, s.columns);
        const double work = double(r1 - r0) * depth * (end - c) * s.factor;
        tasks.push_back({s.kind, int32_t(expert), first, count, start + r0, start + r1, c, end, i, few, work});
      }
  }

  // Work that is not a product, in blocks of rows of each expert.
  void add_rows(TaskKind kind, int64_t expert, int64_t first, int64_t count, int64_t blocks) {
    for (int64_t r = 0; r < count; r += ROWS_OF_SMALL_TASKS) {
      const int64_t end = std::min(r + ROWS_OF_SMALL_TASKS, count);
      tasks.push_back({kind, int32_t(expert), first, count, first + r, first + end, 0, p.dim, blocks, false, double(end - r) * p.dim});
    }
  }

  void add_bias(TaskKind kind, int64_t expert, int64_t first, int64_t count, int64_t columns) {
    tasks.push_back({kind, int32_t(expert), first, count, 0, 1, 0, columns, 0, false, double(count) * columns});
  }

  template <class Add>
  void each_expert(Add add_expert) {
    int64_t first = chunk.first;
    for (int64_t e = chunk.begin; e < chunk.end; e++) {
      add_expert(e, first, p.count[e]);
      first += p.count[e];
    }
  }

  void products(const std::vector<Shape>& shapes) {
    double total = 0;
    for (const Shape& s : shapes)
      for (int64_t e = chunk.begin; e < chunk.end; e++) total += cost(s, p.count[e]);
    target = total / (TASKS_PER_THREAD * std::max(p.threads, 1));
    for (const Shape& s : shapes) each_expert([&](int64_t e, int64_t first, int64_t count) { add(s, e, first, count); });
  }

  std::vector<Task> sorted() {
    std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.cost > b.cost; });
    return std::move(tasks);
  }
};

Planner::Shape hidden_shape(const MixturaProblem& p) {
  return {HIDDEN, -1, p.dim, p.hidden, 1, bool(p.layout & MIXTURA_DOWN_TRANSPOSED)};
}

}  // namespace

int64_t up_columns(const MixturaProblem& p) { return is_gated(p.activation) ? 2 * p.hidden : p.hidden; }

int64_t assigned_rows(const MixturaProblem& p) {
  int64_t rows = 0;
  for (int64_t e = 0; e < p.experts; e++) rows += p.count[e];
  return rows;
}

int64_t hidden_blocks(const MixturaProblem& p, const Variant& v) {
  const int64_t width = Planner{p, v, Chunk{}}.block(hidden_shape(p), p.dim);
  return (p.hidden + width - 1) / width;
}

std::vector<Chunk> chunks(const MixturaProblem& p, int64_t most_rows) {
  std::vector<Chunk> found;
  for (int64_t e = 0, first = 0; e < p.experts; first += p.count[e], e++) {
    if (found.empty() || found.back().rows + p.count[e] > most_rows) found.push_back({e, e, first, 0});
    found.back().end = e + 1;
    found.back().rows += p.count[e];
  }
  return found;
}

std::vector<Task> forward_up(const MixturaProblem& p, const Variant& v, const Chunk& chunk) {
  Planner plan{p, v, chunk};
  plan.products({{UP, -1, p.dim, p.hidden, is_gated(p.activation) ? 2 : 1, !(p.layout & MIXTURA_UP_TRANSPOSED)}});
  return plan.sorted();
}

std::vector<Task> forward_down(const MixturaProblem& p, const Variant& v, const Chunk& chunk) {
  Planner plan{p, v, chunk};
  plan.products({{DOWN, -1, p.hidden, p.dim, 1, !(p.layout & MIXTURA_DOWN_TRANSPOSED)}});
  return plan.sorted();
}

std::vector<Task> backward_hidden(const MixturaProblem& p, const Variant& v, const Chunk& chunk) {
  Planner plan{p, v, chunk};
  plan.products({hidden_shape(p)});
  return plan.sorted();
}

std::vector<Task> backward_rest(const MixturaProblem& p, const Variant& v, const Chunk& chunk) {
  Planner plan{p, v, chunk};
  const int64_t U = up_columns(p);
  std::vector<Planner::Shape> shapes;
  if (p.dx_rows) shapes.push_back({INPUT, -1, U, p.dim, 1, bool(p.layout & MIXTURA_UP_TRANSPOSED)});
  const auto add_grad = [&](TaskKind kind, bool transposed, int64_t rows, int64_t columns) {
    shapes.push_back({kind, transposed ? columns : rows, -1, transposed ? rows : columns, 1, false});
  };
  if (p.dup) add_grad(UP_GRAD, p.layout & MIXTURA_UP_TRANSPOSED, U, p.dim);
  if (p.ddown) add_grad(DOWN_GRAD, p.layout & MIXTURA_DOWN_TRANSPOSED, p.dim, p.hidden);
  plan.products(shapes);
  plan.each_expert([&](int64_t e, int64_t first, int64_t count) {
    if (p.dup_bias) plan.add_bias(UP_BIAS, e, first, count, U);
    if (p.ddown_bias) plan.add_bias(DOWN_BIAS, e, first, count, p.dim);
    if (p.dweight && count) plan.add_rows(WEIGHT, e, first, count, plan.blocks(hidden_shape(p), count));
  });
  return plan.sorted();
}

std::vector<Task> backward_tokens(const MixturaProblem& p, const Variant& v) {
  Planner plan{p, v, Chunk{}};
  plan.add_rows(SUM_TOKENS, 0, 0, p.tokens, 0);
  return plan.sorted();
}
