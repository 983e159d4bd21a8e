"""Where the MLPs of any model are: what they compute, and how another module takes their place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from mixtura.errors import UserError
from mixtura.experts import GroupedMLP
from mixtura.kernels.activations import ACTIVATIONS, StackedMLP
from mixtura.layer import MoE
from mixtura.surgery.batches import evaluating

# Names of the matrices in one module: (gate, up, down), (gate and up in one, down), (up, down).
_GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("wi_0", "wi_1", "wo"))
_FUSED = (("gate_up_proj", "down_proj"),)
_PLAIN = (
    ("fc1", "fc2"),
    ("linear1", "linear2"),
    ("lin1", "lin2"),
    ("up_proj", "down_proj"),
    ("fc_in", "fc_out"),
    ("dense_h_to_4h", "dense_4h_to_h"),
    ("wi", "wo"),
)
_TORCH = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
_PROBES = 16


@dataclass(frozen=True, kw_only=True)
class Site:
    """One dense MLP of a model.

    Attributes:
        name: of the MLP, or of the layer whose parts it is.
        entry: name of the module that gets the MLP's input, and whose place a mixture takes.
        silenced: names of modules behind it that become identities then.
        mlp: the weights, as a stack of one expert.
        dropout: of the hidden units.

    Example:
        >>> find_mlps(nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))))[0].name
        '0'
    """

    name: str
    entry: str
    silenced: tuple[str, ...] = ()
    mlp: StackedMLP
    dropout: float = 0.0

    @property
    def dim(self) -> int:
        """D."""
        return self.mlp.down.shape[1]

    @property
    def hidden(self) -> int:
        """F."""
        return self.mlp.down.shape[2]

    def install(self, model: nn.Module, module: nn.Module) -> nn.Module:
        """Put a module in the MLP's place; returns the model, or the module where the model was the MLP."""
        if not self.entry:
            return module
        old = model.get_submodule(self.entry)
        places = [name for name, each in model.named_modules(remove_duplicate=False) if each is old]
        for place in places:
            _set(model, place, module)
        for name in self.silenced:
            _set(model, name, nn.Identity())
        _leave_fast_path(model, self.name)
        return model


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _leave_fast_path(model: nn.Module, name: str) -> None:
    """torch's Transformer layers read the matrices themselves in evaluation, unless this keeps them from it."""
    layer = model.get_submodule(name) if name else model
    if isinstance(layer, _TORCH):
        layer.activation_relu_or_gelu = 0
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and any(layer is part for part in module.layers):
            module.use_nested_tensor = False


def find_mlps(model: nn.Module, match: str = "*", *, dropout: float | None = None) -> list[Site]:
    """Every dense MLP of a model: D -> F -> D with one activation between, gated or not.

    Found are `mixtura.MLP`, `nn.Sequential` of two linear layers, torch's Transformer layers, layers with
    `intermediate` and `output` as BERT has them, and modules that hold nothing but linear layers of the customary names
    (gate_proj, up_proj, down_proj; w1, w2, w3; fc1, fc2; and so on). The activation is found by trying: that which
    gives the module's own output. So no MLP that does anything else passes for one.

    Args:
        model: any module. MLPs inside a mixture are left alone.
        match: a pattern with `*`, of names to look at; the layer's name where the MLP is parts of a layer.
        dropout: of the hidden units, for MLPs with dropout of their own; torch's layers and `mixtura.MLP` tell theirs.

    Raises:
        UserError: an MLP with another activation, with dropout and no `dropout` given, or with unfit matrices.

    Example:
        >>> [(site.name, site.entry) for site in find_mlps(nn.TransformerEncoderLayer(4, 1, 8))]
        [('', 'linear1')]
    """
    sites, seen = [], set()
    for name, module in _outside_mixtures(model):
        if fnmatch(name, match) and module not in seen:
            seen.add(module)
            site = _site(name, module, dropout=dropout)
            if site is not None:
                sites.append(site)
    return sites


def _outside_mixtures(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    if isinstance(model, MoE | GroupedMLP):
        return
    yield name, model
    for child, module in model.named_children():
        yield from _outside_mixtures(module, f"{name}.{child}".lstrip("."))


def _site(name: str, module: nn.Module, *, dropout: float | None) -> Site | None:
    prefix = f"{name}." if name else ""
    run: Callable[[Tensor], Tensor]
    if isinstance(module, _TORCH):
        matrices, run = [module.linear1, module.linear2], module._ff_block
        entry, silenced = prefix + "linear1", tuple(prefix + part for part in ("linear2", "dropout", "activation"))
        dropout = module.dropout.p if dropout is None else dropout
    elif (halves := _split_layer(module)) is not None:
        matrices, run = halves
        entry, silenced = prefix + "intermediate", (prefix + "output.dense",)
        dropout = dropout or 0.0  # what such layers drop is the output, behind the mixture
    else:
        found = _matrices(module)
        if found is None or found[0].in_features != found[-1].out_features:
            return None
        matrices, run, entry, silenced = found, module, name, ()
        if dropout is None and any(isinstance(part, nn.Dropout) and part.p for part in module.modules()):
            raise UserError(f"expected dropout= for the hidden units of {name!r}, which has dropout, got None")
    mlp = _weights(name, matrices, run, owner=module)
    return Site(name=name, entry=entry, silenced=silenced, mlp=mlp, dropout=dropout or 0.0)


def _split_layer(module: nn.Module) -> tuple[list[nn.Linear], nn.Module] | None:
    """The two matrices of a BERT-like layer, and its MLP as one module."""
    intermediate, output = getattr(module, "intermediate", None), getattr(module, "output", None)
    up, down = getattr(intermediate, "dense", None), getattr(output, "dense", None)
    if isinstance(intermediate, nn.Module) and isinstance(up, nn.Linear) and isinstance(down, nn.Linear):
        return [up, down], nn.Sequential(intermediate, down)
    return None


def _matrices(module: nn.Module) -> list[nn.Linear] | None:
    """The linear layers of a module that has nothing else to learn, in the order (gate, up, down)."""
    linear = {name: part for name, part in module.named_children() if isinstance(part, nn.Linear)}
    if sum(p.numel() for p in module.parameters()) != sum(p.numel() for m in linear.values() for p in m.parameters()):
        return None
    if isinstance(module, nn.Sequential):
        pair = list(linear.values())
        return pair if len(pair) == 2 and pair[0].out_features == pair[1].in_features else None
    for names in (*_GATED, *_FUSED, *_PLAIN):
        if linear.keys() == set(names):
            return [linear[name] for name in names]
    return None


def _weights(name: str, matrices: list[nn.Linear], run: Callable[[Tensor], Tensor], *, owner: nn.Module) -> StackedMLP:
    *ups, down = matrices
    up = torch.cat([matrix.weight for matrix in ups]).detach()
    gated = up.shape[0] == 2 * down.in_features
    if up.shape != ((1 + gated) * down.in_features, down.out_features):
        raise UserError(f"expected matrices of one MLP in {name!r}, got {[tuple(m.weight.shape) for m in matrices]}")
    biases = None
    if any(m.bias is not None for m in matrices):
        biases = [m.weight.new_zeros(m.out_features) if m.bias is None else m.bias.detach() for m in matrices]
    x_TD = torch.randn(_PROBES, down.out_features).to(up)
    with evaluating(owner):
        expected = run(x_TD.unsqueeze(0)).squeeze(0)
    known = [activation for activation, kind in ACTIVATIONS.items() if kind.gated == gated]
    mlps = [
        StackedMLP(
            up=up.unsqueeze(0),
            down=down.weight.detach().unsqueeze(0),
            up_bias=None if biases is None else torch.cat(biases[:-1]).unsqueeze(0),
            down_bias=None if biases is None else biases[-1].unsqueeze(0),
            activation=activation,
        )
        for activation in known
    ]
    errors = [float((dense_forward(mlp, x_TD) - expected).abs().max() / expected.abs().max()) for mlp in mlps]
    if min(errors) > (1e-5 if expected.dtype in (torch.float32, torch.float64) else 0.05):
        raise UserError(
            f"expected an MLP with the activation {', '.join(known)} in {name!r}, got a {type(owner).__name__} that "
            "computes something else; leave it out by match="
        )
    return mlps[errors.index(min(errors))]


def dense_forward(mlp: StackedMLP, x_TD: Tensor, *, expert: int = 0) -> Tensor:
    """One expert of a stack on all tokens: (T, D) -> (T, D).

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> dense_forward(StackedMLP(up=one, down=2 * one, activation="relu"), torch.tensor([[3.0]])).item()
        6.0
    """
    h_TF = hidden_units(mlp, x_TD, expert=expert)
    return nn.functional.linear(h_TF, mlp.down[expert], None if mlp.down_bias is None else mlp.down_bias[expert])


def hidden_units(mlp: StackedMLP, x_TD: Tensor, *, expert: int = 0) -> Tensor:
    """The activations of one expert's hidden units: (T, D) -> (T, F).

    Example:
        >>> one = torch.ones(1, 1, 1)
        >>> hidden_units(StackedMLP(up=-one, down=one, activation="relu"), torch.tensor([[3.0]])).item()
        0.0
    """
    bias = None if mlp.up_bias is None else mlp.up_bias[expert]
    return ACTIVATIONS[mlp.activation].forward(nn.functional.linear(x_TD, mlp.up[expert], bias))
