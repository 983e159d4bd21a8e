"""Long inputs in chunks: the same results, and memory that does not grow with the input."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mixtura import UserError
from tests.test_layer import make_layer


class Largest(TorchDispatchMode):
    """The largest number of rows of any fresh matrix of width 6."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.ndim == 2 and result.shape[1] == 6:
            self.rows = max(self.rows, result.shape[0])
        return result


class TestChunks:
    @pytest.mark.parametrize("size", [1, 7, 19, 100])
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"router": "switch", "k": None, "shared_hidden": 4, "shared_gate": "softmax"},
            {"router_options": {"order": "softmax_topk", "null_experts": {"copy": 1}}},
            {"dropout": 0.5},
        ],
    )
    def test_chunks_change_nothing(self, size, options):
        if options.get("dropout") and size < 19:
            return  # each chunk draws its own
        whole = make_layer(**options, losses={"load_balance": 0.1})
        parts = make_layer(**options, losses={"load_balance": 0.1}, chunk_tokens=size)
        parts.load_state_dict(whole.state_dict())
        mask, results = torch.rand(19) < 0.8, []
        x = torch.randn(19, 6)
        for layer in (whole, parts):
            given = x.clone().requires_grad_()
            torch.manual_seed(1)
            y = layer(given, mask=mask)
            y.square().sum().backward()
            results.append([y.detach(), given.grad, *(p.grad for p in layer.parameters())])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)

    def test_what_is_beside_the_input_does_not_grow_with_it(self):
        layer, rows = make_layer(chunk_tokens=5).eval(), []
        for tokens in (10, 40):
            x = torch.randn(tokens, 6)
            with torch.no_grad(), Largest() as largest:
                layer(x)
            rows.append(largest.rows - tokens)
        assert rows[0] == rows[1] == 0  # the output itself; without chunks there are two rows for each token

    @pytest.mark.parametrize("options", [{"chunk_tokens": 0}, {"chunk_tokens": 4, "capacity_factor": 1.0}])
    def test_refused(self, options):
        with pytest.raises(UserError, match="expected chunk_tokens of at least 1 and no capacity"):
            make_layer(**options)

    def test_experts_on_other_ranks_are_refused(self):
        layer = make_layer(chunk_tokens=2)
        layer.experts.runs_beside = True
        with pytest.raises(UserError, match="expected no chunk_tokens with experts on other ranks"):
            layer(torch.randn(8, 6))

    def test_a_router_without_a_number_of_choices_is_refused(self):
        layer = make_layer(router="expert_choice", chunk_tokens=2)
        with pytest.raises(UserError, match="K choices"):
            layer(torch.randn(8, 6))
