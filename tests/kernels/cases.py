"""Inputs of the kernels: an index for given choices, and random operands to go with it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mixtura.kernels import reference
from mixtura.kernels.activations import StackedMLP, find
from mixtura.kernels.rows import RowIndex

NAMES = ("x", "weight", "up", "down", "up_bias", "down_bias")
EVEN = [[t % 4, (t + 1) % 4] for t in range(24)]
INDICES = {
    "one choice": ([[(5 * t) % 4] for t in range(20)], True),
    "two choices": (EVEN, True),
    "three choices": ([[t % 4, (t + 1) % 4, (t + 3) % 4] for t in range(10)], True),
    "first expert empty": ([[1 + t % 3] for t in range(9)], True),
    "middle expert empty": ([[(0, 1, 3)[t % 3]] for t in range(9)], True),
    "last expert empty": ([[t % 3] for t in range(9)], True),
    "all but one empty": ([[2]] * 7, True),
    "no rows at all": ([[-1, -1]] * 5, True),
    "some dropped": ([[t % 4, -1 if t % 3 else (t + 1) % 4] for t in range(12)], True),
    "first choice dropped": ([[-1, t % 4] for t in range(12)], True),
    "different numbers of choices": ([[t % 4, -1 if t % 3 else (t + 1) % 4] for t in range(12)], False),
    "tokens without rows, no slots": ([[-1], [0], [-1], [3], [3]], False),
    "one token": ([[3, 1]], True),
    "no tokens": ([], True),
    "very uneven": ([[0]] * 40 + [[1], [2], [3]], True),
}


def make_index(choices: list[list[int]], *, num_experts: int, regular: bool = True) -> RowIndex:
    """Group choices[t][k], an expert or -1 for a dropped one, by expert; in plain Python, as a second opinion.

    Dropped choices form the tail.

    Without `regular` the slots are left out, as for routers that give tokens different numbers of choices.
    """
    token, counts = [], [0] * num_experts
    slots = [[-1] * len(row) for row in choices]
    for e in range(num_experts):
        for t, row in enumerate(choices):
            for k, choice in enumerate(row):
                if choice == e:
                    slots[t][k] = len(token)
                    token.append(t)
                    counts[e] += 1
    token += [t for t, row in enumerate(choices) for choice in row if choice < 0]
    width = len(choices[0]) if choices else 1
    return RowIndex(
        torch.tensor(token, dtype=torch.int64),
        torch.tensor(counts),
        torch.tensor(slots, dtype=torch.int64).view(-1, width) if regular else None,
        len(choices),
        not any(slot < 0 for row in slots for slot in row),
    )


@dataclass(kw_only=True)
class Operands:
    """What a kernel takes beside the index."""

    x: Tensor
    weight: Tensor
    up: Tensor
    down: Tensor
    up_bias: Tensor | None
    down_bias: Tensor | None
    activation: str
    keep: Tensor | None = None

    @classmethod
    def random(
        cls, index: RowIndex, *, activation: str, bias: bool, dim: int = 5, hidden: int = 7, dropout: float = 0.0
    ) -> "Operands":
        """Leaves that require gradients."""
        E, N = index.num_experts, index.token_N.shape[0]
        columns = 2 * hidden if find(activation).gated else hidden
        return cls(
            x=torch.randn(index.num_tokens, dim, requires_grad=True),
            weight=torch.rand(N, requires_grad=True),
            up=torch.randn(E, columns, dim, requires_grad=True),
            down=torch.randn(E, dim, hidden, requires_grad=True),
            up_bias=torch.randn(E, columns, requires_grad=True) if bias else None,
            down_bias=torch.randn(E, dim, requires_grad=True) if bias else None,
            activation=activation,
            keep=(torch.rand(N, hidden) >= dropout) / (1 - dropout) if dropout else None,
        )

    def leaves(self) -> dict[str, Tensor]:
        """The tensors that a gradient is wanted of, by name."""
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor) and name != "keep"}

    def cast(self, dtype: torch.dtype) -> "Operands":
        """Fresh leaves in another dtype; the rows' weights stay as they are, since routers work in fp32."""
        values = {
            name: value.detach().to(value.dtype if name == "weight" else dtype).requires_grad_()
            for name, value in self.leaves().items()
        }
        return Operands(**{**vars(self), **values})

    def run(self, kernel, index: RowIndex) -> Tensor:
        """The kernel's output."""
        return kernel(self.x, self.weight, index, experts=self.stacked(), keep_NF=self.keep)

    def stacked(self) -> StackedMLP:
        """The experts."""
        return StackedMLP(self.up, self.down, self.up_bias, self.down_bias, self.activation)

    def results(self, kernel, index: RowIndex, dy_ND: Tensor) -> dict[str, Tensor]:
        """The output and the gradient of every leaf."""
        leaves = self.leaves()
        y_ND = self.run(kernel, index)
        grads = torch.autograd.grad(y_ND, list(leaves.values()), dy_ND.to(y_ND.dtype))
        return {"output": y_ND.detach(), **dict(zip(leaves, grads, strict=True))}


def error(got: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected; 0 where both vanish."""
    difference = (got.double() - expected.double()).norm()
    return (difference / expected.double().norm().clamp(min=1e-30)).item()


def compare(kernel, operands: Operands, index: RowIndex) -> None:
    """Assert that output and every gradient are the loop reference's."""
    dy_ND = torch.randn(index.token_N.shape[0], operands.x.shape[1])
    expected = operands.results(reference.grouped_mlp, index, dy_ND)
    got = operands.results(kernel, index, dy_ND)
    for name, value in expected.items():
        assert got[name].shape == value.shape
        assert got[name].dtype == value.dtype
        assert error(got[name], value) < 1e-5, name


def compare_rounded(kernel, operands: Operands, index: RowIndex) -> None:
    """Assert that in a narrow dtype the kernel is not much worse than the loop reference in that dtype."""
    dy_ND = torch.randn(index.token_N.shape[0], operands.x.shape[1]).to(operands.x.dtype)
    # The truth takes the rounded operands in full precision, so that only the kernels' own rounding is compared.
    truth = operands.cast(torch.float32).results(reference.grouped_mlp, index, dy_ND.float())
    loop = operands.results(reference.grouped_mlp, index, dy_ND)
    got = operands.results(kernel, index, dy_ND)
    for name, value in truth.items():
        assert got[name].dtype == loop[name].dtype
        assert error(got[name], value) <= 2 * error(loop[name], value) + 1e-6, name
        # The clamps' derivative jumps at +-7, where bf16 is 0.03 wide: rows on the edge fall on either side.
        assert error(got[name], value) < (6e-2 if operands.activation == "clamped_swiglu" else 2e-2), name
