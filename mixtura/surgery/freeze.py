"""Freeze some experts of a stack, so that nothing can move them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mixtura.errors import UserError
from mixtura.surgery.layers import mixtures
from mixtura.surgery.select import Numbers, check_numbers, numbers_of


class _Partly(nn.Module):
    """A stack of which some rows are constants: no optimizer, decay or momentum can move what is no parameter."""

    constant: Tensor
    order: Tensor

    def __init__(self, whole: Tensor, numbers: Sequence[int]) -> None:
        super().__init__()
        self.free = [number for number in range(whole.shape[0]) if number not in set(numbers)]
        self.register_buffer("constant", whole.detach()[list(numbers)].clone())
        self.register_buffer("order", torch.tensor([*numbers, *self.free]).argsort().to(whole.device))

    def forward(self, learned: Tensor) -> Tensor:
        return torch.cat([self.constant, learned]).index_select(0, self.order)

    def right_inverse(self, whole: Tensor) -> Tensor:
        return whole[self.free]


_PARTS = ("up_proj", "down_proj", "up_bias", "down_bias")
_ROUTER_PARTS = ("weight", "noise_weight")


def freeze_experts(model: nn.Module, experts: Numbers) -> None:
    """Keep some experts of every stack, and their rows of the router's matrix, exactly as they are; others learn.

    Only the other rows are parameters from now on, so that weight decay and momentum cannot reach the frozen ones
    either; build the optimizer afterwards. Each forward puts the two together, a copy of the stack. Keys of the state
    dict change until `unfreeze_experts`. The rest of the model: `mixtura.freeze`.

    Raises:
        UserError: numbers that do not exist, none left to learn, or some experts are frozen already.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=4).build()
        >>> freeze_experts(layer, [0, 1, 2])
        >>> [tuple(parameter.shape) for parameter in layer.parameters()]
        [(1, 4), (1, 16, 4), (1, 4, 8)]
    """
    for name, layer in mixtures(model).items():
        numbers = numbers_of(experts, name)
        check_numbers(layer, numbers, name=name)
        if not numbers:
            continue
        if len(numbers) == layer.router.num_experts:
            raise UserError("expected some experts that learn, got all of them to freeze; see mixtura.freeze")
        for module, parts in ((layer.router, _ROUTER_PARTS), (layer.experts, _PARTS)):
            if parametrize.is_parametrized(module):
                raise UserError("expected no frozen or adapted experts, got some; unfreeze_experts, or merge_lora")
            for part in parts:
                whole = getattr(module, part, None)
                if isinstance(whole, nn.Parameter):
                    parametrize.register_parametrization(module, part, _Partly(whole, numbers), unsafe=True)


@torch.no_grad()
def unfreeze_experts(model: nn.Module) -> None:
    """Undo `freeze_experts`: whole stacks of parameters again, with what was learned.

    Example:
        >>> import mixtura as mx
        >>> layer = mx.MoEConfig(dim=4, hidden=8, num_experts=4).build()
        >>> freeze_experts(layer, [0]); unfreeze_experts(layer); layer.experts.up_proj.shape
        torch.Size([4, 16, 4])
    """
    for layer in mixtures(model).values():
        for module, parts in ((layer.router, _ROUTER_PARTS), (layer.experts, _PARTS)):
            for part in parts:
                if parametrize.is_parametrized(module, part) and _is_partly(module, part):
                    whole = getattr(module, part).clone()
                    parametrize.remove_parametrizations(module, part, leave_parametrized=False)
                    setattr(module, part, nn.Parameter(whole))


def _is_partly(module: nn.Module, part: str) -> bool:
    return isinstance(module.parametrizations[part][0], _Partly)  # type: ignore[index]  # a ModuleDict
