// Cuts the work of a pass into tasks, largest first.
#pragma once
#include <vector>

#include "problem.h"

// Experts [begin, end) and the first row of theirs: what is worked on at a time.
struct Chunk {
  int64_t begin, end, first, rows;
};

// Consecutive experts whose rows together stay below `most_rows`, at least one each.
std::vector<Chunk> chunks(const MixturaProblem& p, int64_t most_rows);

std::vector<Task> forward_up(const MixturaProblem& p, const Variant& v, const Chunk& chunk);
std::vector<Task> forward_down(const MixturaProblem& p, const Variant& v, const Chunk& chunk);
std::vector<Task> backward_hidden(const MixturaProblem& p, const Variant& v, const Chunk& chunk);
std::vector<Task> backward_rest(const MixturaProblem& p, const Variant& v, const Chunk& chunk);
std::vector<Task> backward_tokens(const MixturaProblem& p, const Variant& v);

// Blocks of columns in which backward leaves partial sums of dweight.
int64_t hidden_blocks(const MixturaProblem& p, const Variant& v);

int64_t up_columns(const MixturaProblem& p);
int64_t assigned_rows(const MixturaProblem& p);
