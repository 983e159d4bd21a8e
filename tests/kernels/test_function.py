"""Functions for tracers and for eager calls are one function."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mixtura.kernels.function import Function, is_traced


class Cube(Function):
    @staticmethod
    def forward(x, power):
        return x**power

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])
        ctx.power = inputs[1]

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * ctx.power * x ** (ctx.power - 1), None


def cube(x):
    return Cube.call(x, 3).sum()


def test_eager_traced_and_transformed_calls_agree():
    x = torch.randn(4, dtype=torch.float64, requires_grad=True)
    expected = 3 * x.detach().square()
    assert torch.autograd.gradcheck(cube, x)
    for run in (cube, torch.compile(cube, backend="aot_eager", fullgraph=True)):
        torch.testing.assert_close(torch.autograd.grad(run(x), x)[0], expected)
    torch.testing.assert_close(torch.func.grad(cube)(x.detach()), expected)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(cube))(x.detach()[:, None]), expected[:, None])


def test_what_counts_as_traced():
    assert not is_traced(torch.zeros(1))
    assert not is_traced(torch.nn.Parameter(torch.zeros(1)))
    with FakeTensorMode():
        assert is_traced(torch.zeros(1))
    seen = []
    torch.func.vmap(lambda x: seen.append(is_traced(x)) or x)(torch.zeros(2))
    torch.func.grad(lambda x: seen.append(is_traced(x)) or x)(torch.zeros(()))
    assert seen == [True, True]
    assert torch.compile(lambda x: x + is_traced(x), backend="eager", fullgraph=True)(torch.zeros(())) == 1
