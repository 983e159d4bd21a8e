"""The encoder of a table's rows: an embedding of each category beside the numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mixtura.errors import UserError


class TableEncoder(nn.Module):
    """Categorical columns by embeddings, numeric columns as they are, one beside the other.

    All columns share one table of embeddings, each a part of its own, so that one look-up serves them all.

    Args:
        cardinalities: number of categories of each categorical column.
        numbers: how many numeric columns; they should be scaled (mean 0, deviation 1).
        width: of one embedding.
        dropout: in training, the share of embeddings and numbers that is set to 0.

    Attributes:
        dim: width of what it gives.

    Shapes:
        embedding.weight: (sum of cardinalities, width).

    Raises:
        UserError: no column at all, a size below 1; in `forward`, another number of columns than promised.

    Example:
        >>> encoder = TableEncoder([3, 5], numbers=2, width=4)
        >>> encoder(torch.tensor([[0, 4]]), torch.zeros(1, 2)).shape, encoder.dim
        (torch.Size([1, 10]), 10)
    """

    def __init__(self, cardinalities: Sequence[int], *, numbers: int = 0, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        if numbers < 0 or not (cardinalities or numbers):
            raise UserError(f"expected at least one column, got {len(cardinalities)} categorical, {numbers} numeric")
        if min((width, *cardinalities)) < 1:
            raise UserError(f"expected width and cardinalities of at least 1, got {width} and {list(cardinalities)}")
        self.cardinalities, self.numbers, self.dropout = tuple(cardinalities), numbers, nn.Dropout(dropout)
        self.dim = width * len(cardinalities) + numbers
        starts = torch.tensor([0, *cardinalities]).cumsum(0)[:-1]
        self.register_buffer("starts", starts, persistent=False)
        self.starts: Tensor
        self.embedding = nn.Embedding(sum(cardinalities), width) if cardinalities else None
        if self.embedding is not None:
            nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def forward(self, categories_BC: Tensor, numbers_BM: Tensor) -> Tensor:
        """Encode rows: int64 (B, columns) and float32 (B, numbers) -> (B, dim)."""
        expected = (len(self.cardinalities), self.numbers)
        if (got := (categories_BC.shape[1], numbers_BM.shape[1])) != expected:
            raise UserError(f"expected {expected[0]} categorical and {expected[1]} numeric columns, got {got}")
        parts = [numbers_BM]
        if self.embedding is not None:
            parts.insert(0, self.embedding(categories_BC + self.starts).flatten(1))
        x_BD: Tensor = self.dropout(torch.cat(parts, 1))
        return x_BD

    def extra_repr(self) -> str:
        """Sizes, for print(model)."""
        return f"columns={len(self.cardinalities)}, numbers={self.numbers}, dim={self.dim}"
