"""A temperature that changes as training goes on."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from mixtura.errors import UserError

Shape = Literal["linear", "exponential", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Annealing:
    """A temperature for every step, from `start` to `end`: high and undecided first, low and sharp later.

    Build the routers with a `temperature`, and before each step call `set_temperature(model, schedule(step))`.

    Attributes:
        start: temperature at step 0.
        end: temperature from step `steps` on.
        steps: length of the way.
        shape: "linear"; "exponential": by equal factors; "cosine": half a wave, slow at both ends.

    Raises:
        UserError: a temperature that is not positive, fewer than 1 step, an unknown shape, a negative step.

    Example:
        >>> from mixtura.routers import TopK, set_temperature
        >>> schedule = Annealing(start=2.0, end=0.5, steps=100, shape="exponential")
        >>> schedule(0), schedule(50), schedule(1000)
        (2.0, 1.0, 0.5)
        >>> router = TopK(8, num_experts=4, temperature=1.0)
        >>> set_temperature(router, schedule(50))
    """

    start: float
    end: float
    steps: int
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        for name in ("start", "end"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"expected {name} above 0 and finite, got {getattr(self, name)}")
        if self.steps < 1:
            raise UserError(f"expected steps of at least 1, got {self.steps}")
        if self.shape not in get_args(Shape):
            raise UserError(f"expected a shape among {', '.join(get_args(Shape))}, got {self.shape!r}")

    def __call__(self, step: int) -> float:
        """Give the temperature of a step, counted from 0."""
        if step < 0:
            raise UserError(f"expected a step of at least 0, got {step}")
        if step >= self.steps:
            return self.end
        done = step / self.steps
        if self.shape == "exponential":
            return self.start * math.exp(done * math.log(self.end / self.start))
        if self.shape == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return self.start + (self.end - self.start) * done
