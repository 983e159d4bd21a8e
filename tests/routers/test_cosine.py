"""The cosine gate."""

import pytest
import torch

from mixtura import UserError
from mixtura.routers import CosineGate


class TestCosineGate:
    def test_by_hand(self):
        gate = CosineGate(2, 2, width=2, temperature=0.5)
        with torch.no_grad():
            gate.down.weight.copy_(torch.eye(2))
            gate.vectors.copy_(torch.tensor([[2.0, 0.0], [3.0, 3.0]]))
        half = 2**-0.5
        expected = torch.tensor([[2.0, 2 * half], [0.0, 2 * half]])
        torch.testing.assert_close(gate(torch.tensor([[7.0, 0.0], [0.0, 0.1]])), expected)

    def test_length_carries_no_score(self):
        gate, x_TD = CosineGate(6, 8), torch.randn(5, 6)
        torch.testing.assert_close(gate(x_TD), gate(100 * x_TD))
        assert gate(x_TD).abs().max() <= 1 / 0.3 + 1e-5

    def test_every_parameter_learns(self):
        gate = CosineGate(6, 8)
        gate(torch.randn(5, 6)).square().sum().backward()
        assert all(p.grad.norm() > 0 for p in gate.parameters())
        assert (gate.down.weight.shape, gate.vectors.shape) == ((4, 6), (8, 4))

    def test_a_token_of_zeros_is_finite(self):
        assert CosineGate(6, 8)(torch.zeros(2, 6)).isfinite().all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"width": 0}, "expected width of at least 1, got 0"),
            ({"temperature": 0.0}, "expected a temperature above 0, got 0.0"),
        ],
    )
    def test_bad_input(self, options, message):
        with pytest.raises(UserError, match=message):
            CosineGate(4, 3, **options)
