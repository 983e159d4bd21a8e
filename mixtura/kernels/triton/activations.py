"""The activations of `mixtura.kernels.activations` for tiles in registers, in float32."""

from mixtura.kernels.triton.language import tl, triton

NAMES = ("clamped_swiglu", "geglu", "geglu_tanh", "gelu", "gelu_tanh", "relu", "silu", "swiglu")


@triton.jit
def halve(tile):
    """The left and the right half of a tile: an epilogue that works on pieces keeps fewer values in registers."""
    rows: tl.constexpr = tile.shape[0]
    half: tl.constexpr = tile.shape[1] // 2
    return tl.split(tl.permute(tl.reshape(tile, (rows, 2, half)), (0, 2, 1)))


@triton.jit
def _gelu_parts(z):
    """The normal distribution's cumulative probability and density at z."""
    return 0.5 * (1.0 + tl.math.erf(z * 0.7071067811865476)), tl.exp(-0.5 * z * z) * 0.3989422804014327


@triton.jit
def _sigmoid(z):
    return 1.0 / (1.0 + tl.exp(-z))


@triton.jit
def _gelu_tanh_parts(z):
    """The share of z that the tanh approximation of GELU lets pass, and the slope of that share."""
    # Beyond 80 the share is 0 or 1 in fp32 already, and exp would overflow.
    argument = 1.5957691216057308 * (z + 0.044715 * z * z * z)
    share = _sigmoid(tl.minimum(tl.maximum(argument, -80.0), 80.0))
    return share, share * (1.0 - share) * 1.5957691216057308 * (1.0 + 0.134145 * z * z)


@triton.jit
def activate(z, NAME: tl.constexpr):
    """The activation of one tile, of the gate half where there are two."""
    if NAME == "relu":
        # Written so that a NaN stays one, as it does in torch.
        return tl.where(z < 0.0, 0.0, z)
    elif NAME == "gelu" or NAME == "geglu":
        cdf, _ = _gelu_parts(z)
        return z * cdf
    elif NAME == "gelu_tanh" or NAME == "geglu_tanh":
        share, _ = _gelu_tanh_parts(z)
        return z * share
    else:
        return z * _sigmoid(z)


@triton.jit
def slope(z, NAME: tl.constexpr):
    """The derivative of `activate`."""
    if NAME == "relu":
        return tl.where(z <= 0.0, 0.0, 1.0)
    elif NAME == "gelu" or NAME == "geglu":
        cdf, density = _gelu_parts(z)
        return cdf + z * density
    elif NAME == "gelu_tanh" or NAME == "geglu_tanh":
        share, change = _gelu_tanh_parts(z)
        return share + z * change
    else:
        sigmoid = _sigmoid(z)
        return sigmoid * (1.0 + z * (1.0 - sigmoid))


@triton.jit
def gated_forward(gate, up, NAME: tl.constexpr):
    """A gated activation."""
    if NAME == "clamped_swiglu":
        # Written so that a NaN stays one, as it does in torch.
        clamped = tl.where(gate > 7.0, 7.0, gate)
        linear = tl.where(up > 7.0, 7.0, tl.where(up < -7.0, -7.0, up))
        return (linear + 1.0) * clamped * _sigmoid(1.702 * clamped)
    else:
        return activate(gate, NAME) * up


@triton.jit
def gated_backward(da, gate, up, NAME: tl.constexpr):
    """Of a gated activation: itself, and the gradients of the gate and of the up half."""
    if NAME == "clamped_swiglu":
        clamped = tl.where(gate > 7.0, 7.0, gate)
        linear = tl.where(up > 7.0, 7.0, tl.where(up < -7.0, -7.0, up))
        sigmoid = _sigmoid(1.702 * clamped)
        activated = clamped * sigmoid
        dgate = da * (linear + 1.0) * sigmoid * (1.0 + 1.702 * clamped * (1.0 - sigmoid))
        dgate = tl.where(gate > 7.0, 0.0, dgate)
        dup = tl.where((up > 7.0) | (up < -7.0), 0.0, da * activated)
        return (linear + 1.0) * activated, dgate, dup
    else:
        activated = activate(gate, NAME)
        return activated * up, da * up * slope(gate, NAME), da * activated
