"""One engine of rules over named tensors: which name becomes which, what happens to the values, and where they go.

A rule is (regex, replacement, transform). `rename` gives new names to a stream of tensors; `fill` writes such a stream
into tensors that exist already, so that a checkpoint passes shard by shard and no second copy of a model is made. In
both a name that no rule matches is an error, and in `fill` also a target that is left unfilled.

Example:
    >>> rules = [
    ...     Rule(r"mlp\\.(\\d+)\\.gate", r"experts.up_proj[\\1:0/2]"),
    ...     Rule(r"mlp\\.(\\d+)\\.up", r"experts.up_proj[\\1:1/2]"),
    ... ]
    >>> stacked = torch.zeros(1, 2, 3)
    >>> fill({"experts.up_proj": stacked}, {"mlp.0.gate": torch.ones(1, 3), "mlp.0.up": torch.zeros(1, 3)}, rules=rules)
    >>> stacked.sum(-1).tolist()
    [[3.0, 0.0]]
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mixtura.errors import UserError

Named = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in a target tensor values go.

    Attributes:
        index: the slice along the first dimension (an expert's number); None: the whole tensor.
        part: (n, of): of what the index leaves, the n-th of so many equal blocks of rows, counted from 0.

    Example:
        >>> Place(index=1, part=(0, 2)).view(torch.arange(8).view(2, 4), rows=2).tolist()
        [4, 5]
    """

    index: int | None = None
    part: tuple[int, int] = (0, 1)

    def view(self, target: Tensor, *, rows: int) -> Tensor:
        """The place itself, as a view; `rows` is the height of the block that is to go there."""
        if self.index is not None:
            target = target[self.index]
        return target if self.part[1] == 1 else target.narrow(0, self.part[0] * rows, rows)


class Piece(NamedTuple):
    """What one rule makes of one tensor.

    Example:
        >>> translate("a", torch.zeros(2), rules=[Rule("a", "b")])[0].name
        'b'
    """

    name: str
    value: Tensor
    place: Place


@dataclass(frozen=True)
class Rule:
    r"""One rule: names that match the pattern get this name, their values this change and this place.

    Every rule that matches a name is applied, so that one tensor can become several.

    Args:
        pattern: a regular expression that the whole name must match.
        replacement: the new name, with `\1` for the pattern's groups; None: the tensor is left out on purpose.
            `name[\2]` is the slice of that number along the first dimension (an expert), `name[\2:0/2]` the first half
            of its rows, `name[:1/2]` the second half of all rows. With `{}` in it the values are taken apart along
            their first dimension, each part named by its number.
        transform: what is done to the values first; None: nothing.

    Raises:
        UserError: when it is applied, a place in brackets that is none of these.

    Example:
        >>> rule = Rule(r"h\.(\d+)\.w", r"blocks.\1.weight", torch.t)
        >>> [(piece.name, piece.value.shape) for piece in translate("h.3.w", torch.zeros(2, 5), rules=[rule])]
        [('blocks.3.weight', torch.Size([5, 2]))]
    """

    pattern: str
    replacement: str | None
    transform: Callable[[Tensor], Tensor] | None = None

    def pieces(self, match: re.Match[str], value: Tensor) -> list[Piece]:
        """What becomes of a tensor whose name matched."""
        if self.replacement is None:
            return []
        value = value if self.transform is None else self.transform(value)
        name, place = _place(match.expand(self.replacement))
        if "{}" not in name:
            return [Piece(name, value, place)]
        return [Piece(name.format(number), part, place) for number, part in enumerate(value.unbind())]


def _place(name: str) -> tuple[str, Place]:
    found = re.fullmatch(r"([^\[\]]+)(?:\[(\d+)?(?::(\d+)/(\d+))?\])?", name)
    if found is None:
        raise UserError(f"expected a replacement like name, name[3], name[3:0/2] or name[:0/2], got {name!r}")
    name, index, part, of = found.groups()
    return name, Place(index=None if index is None else int(index), part=(0, 1) if of is None else (int(part), int(of)))


def translate(name: str, value: Tensor, *, rules: Sequence[Rule]) -> list[Piece]:
    """What the rules make of one tensor; nothing where they leave it out.

    Raises:
        UserError: no rule matches the name.

    Example:
        >>> translate("c", torch.zeros(2), rules=[Rule("a", "b")])
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected only tensors that a rule names, got 'c' of shape (2,); from another model?
    """
    matches = [(rule, match) for rule in rules if (match := re.fullmatch(rule.pattern, name))]
    if not matches:
        raise UserError(
            f"expected only tensors that a rule names, got {name!r} of shape {tuple(value.shape)}; from another model?"
        )
    return [piece for rule, match in matches for piece in rule.pieces(match, value)]


def rename(source: Named, *, rules: Sequence[Rule]) -> Iterator[tuple[str, Tensor]]:
    """The tensors under their new names, one after another as they come.

    Raises:
        UserError: no rule matches a name, two tensors would get one name, or a rule has a place: that is for `fill`.

    Example:
        >>> dict(rename({"w": torch.tensor([[1.0], [2.0]])}, rules=[Rule("w", "experts.{}.w")]))
        {'experts.0.w': tensor([1.]), 'experts.1.w': tensor([2.])}
    """
    seen = set()
    for old, value in _items(source):
        for name, changed, place in translate(old, value, rules=rules):
            if place != Place():
                raise UserError(f"expected rules without a place to rename by, got {place} for {name!r}")
            if name in seen:
                raise UserError(f"expected one tensor for {name!r}, got a second one, {old!r}")
            seen.add(name)
            yield name, changed


@torch.no_grad()
def fill(target: Mapping[str, Tensor], source: Named, *, rules: Sequence[Rule]) -> None:
    """Copy a stream of tensors to their places in `target`, which is then filled completely.

    Args:
        target: what is filled, in its own dtype and on its own device: `dict(model.named_parameters())`, for instance.
        source: (name, tensor) pairs, consumed one by one.
        rules: each name must match one at least.

    Raises:
        UserError: no rule matches a name, a rule leads to no target or to a place of another shape, a place is filled
            twice, or something is left unfilled.

    Example:
        >>> fill({"b": torch.zeros(2)}, {}, rules=[])
        Traceback (most recent call last):
        ...
        mixtura.errors.UserError: expected tensors for everything, got none, or only a part, for b
    """
    missing = {name: tensor.numel() for name, tensor in target.items()}
    seen: set[tuple[str, Place]] = set()
    for old, value in _items(source):
        for name, changed, place in translate(old, value, rules=rules):
            if name not in target:
                raise UserError(f"expected a rule that leads to a tensor of the model, got {old!r} -> {name!r}")
            if (name, place) in seen:
                raise UserError(f"expected one tensor for {name!r} ({place}), got a second one, {old!r}")
            seen.add((name, place))
            _copy(target[name], changed, place, names=f"{old!r} -> {name!r}")
            missing[name] -= changed.numel()
    if left := [name for name, numel in missing.items() if numel]:
        raise UserError(f"expected tensors for everything, got none, or only a part, for {', '.join(left)}")


def _copy(target: Tensor, value: Tensor, place: Place, *, names: str) -> None:
    whole = target.shape if place.index is None else target.shape[1:]
    expected = (whole[0] // place.part[1], *whole[1:]) if place.part[1] > 1 else tuple(whole)
    if tuple(value.shape) != expected:
        raise UserError(f"expected shape {expected} for {names}, got {tuple(value.shape)}")
    if place.index is not None and not 0 <= place.index < target.shape[0]:
        raise UserError(f"expected an index below {target.shape[0]} for {names}, got {place.index}")
    place.view(target, rows=expected[0] if expected else 1).copy_(value)


def _items(source: Named) -> Iterable[tuple[str, Tensor]]:
    return source.items() if isinstance(source, Mapping) else source
