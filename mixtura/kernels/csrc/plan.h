// Cuts the work of a pass into tasks, largest first.
#pragma once
#include <vector>

#include "problem.h"

std::vector<Task> forward_up(const MixturaProblem& p, const Variant& v);
std::vector<Task> forward_down(const MixturaProblem& p, const Variant& v);
std::vector<Task> backward_hidden(const MixturaProblem& p, const Variant& v);
std::vector<Task> backward_rest(const MixturaProblem& p, const Variant& v);
std::vector<Task> backward_tokens(const MixturaProblem& p, const Variant& v);

// Blocks of columns in which backward leaves partial sums of dweight.
int64_t hidden_blocks(const MixturaProblem& p, const Variant& v);

bool is_gated(int activation);
int64_t up_columns(const MixturaProblem& p);
int64_t assigned_rows(const MixturaProblem& p);
