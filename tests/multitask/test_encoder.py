"""Rows of tables."""

import pytest
import torch

from mixtura.errors import UserError
from mixtura.multitask import TableEncoder


def test_each_column_has_a_part_of_the_embeddings():
    encoder = TableEncoder([3, 2], numbers=1, width=4)
    got = encoder(torch.tensor([[2, 1]]), torch.tensor([[0.5]]))
    table = encoder.embedding.weight
    torch.testing.assert_close(got, torch.cat([table[2], table[3 + 1], torch.tensor([0.5])]).unsqueeze(0))


def test_categories_or_numbers_alone():
    none = torch.zeros(2, 0)
    assert TableEncoder([3], width=4)(torch.zeros(2, 1, dtype=torch.int64), none).shape == (2, 4)
    assert TableEncoder([], numbers=3)(none.long(), torch.zeros(2, 3)).shape == (2, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TableEncoder([]), "expected at least one column, got 0 categorical, 0 numeric"),
        (lambda: TableEncoder([3], width=0), "expected width and cardinalities of at least 1, got 0"),
        (lambda: TableEncoder([3, 0]), "at least 1, got 8 and .3, 0."),
        (
            lambda: TableEncoder([3])(torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 0)),
            r"expected 1 categorical and 0 numeric columns, got \(2, 0\)",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(UserError, match=message):
        make()
