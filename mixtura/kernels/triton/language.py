"""The one file that imports triton, for the kernels beside it.

Under `TRITON_INTERPRET=1`, set before triton is imported for the first time, the kernels run on a CPU, slowly.
"""

from mixtura.errors import UserError

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError as error:
    raise UserError("the triton kernels need the package triton: pip install 'mixtura[gpu]'") from error

__all__ = ["INTERPRETED", "dot", "narrow", "tl", "triton"]

# Whether kernels run in Python on a CPU. Decided once: a kernel is one or the other from its definition on.
INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def dot(left, right, acc):
    """The product of two tiles added to the third: tensor cores for 16 bits, never TF32 for float32."""
    if _INTERPRETED:
        # The interpreter of triton 3.9 multiplies the bit patterns of bfloat16 as if they were integers.
        left = left.to(tl.float32)
        right = right.to(tl.float32)
    return tl.dot(left, right, acc, input_precision="ieee")


@triton.jit
def narrow(tile, dtype: tl.constexpr):
    """A tile of float32 in the dtype in which it is stored, rounded to the nearest."""
    if _INTERPRETED and dtype == tl.bfloat16:
        # The interpreter of triton 3.9 cuts bits off instead of rounding; a GPU rounds by itself.
        bits = tile.to(tl.int32, bitcast=True)
        tile = (bits + 0x7FFF + ((bits >> 16) & 1)).to(tl.float32, bitcast=True)
    return tile.to(dtype)
