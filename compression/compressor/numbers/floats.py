"""Small floats by tables: their code points, rounding to them, and weights encoded with one scale a block.

Element formats as in "OCP Microscaling Formats (MX) Specification v1.0": bias 2^(e-1) - 1, subnormals
m/2^M · 2^(1-bias), normals (1 + m/2^M) · 2^(E-bias). E4M3 is the "fn" dialect: its top code is NaN, it has no infinity
and ends at 448. E5M2 keeps IEEE's infinity and ends at 57344. The others have neither.
"""

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from compressor.numbers.encoded import FloatWeight
from compressor.numbers.grids import Element, FloatGrid, ScaleKind

# Exponent bits, mantissa bits, codes at the top that are no numbers.
_LAYOUT: dict[Element, tuple[int, int, int]] = {
    "e4m3": (4, 3, 1),
    "e5m2": (5, 2, 4),
    "e3m2": (3, 2, 0),
    "e2m3": (2, 3, 0),
    "e2m1": (2, 1, 0),
}
_DTYPES: dict[ScaleKind, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
_E8M0_LIMIT = 127
_E4M3_MAX = 448.0


@cache
def code_points(element: Element) -> Tensor:
    """The non-negative values in rising order, float32: the index of a value is its code without the sign bit."""
    exponents, mantissas, unused = _LAYOUT[element]
    code = torch.arange(2 ** (exponents + mantissas) - unused)
    exponent, fraction = code >> mantissas, (code & (2**mantissas - 1)).double() / 2**mantissas
    power = torch.exp2(exponent.clamp(min=1).double() - (2 ** (exponents - 1) - 1))
    return torch.where(exponent == 0, fraction * power, (1 + fraction) * power).float()


def largest(element: Element) -> float:
    """What everything larger saturates to."""
    return float(code_points(element)[-1])


def round_to(values: Tensor, element: Element) -> Tensor:
    """The nearest values of the format, float32: ties to the even code, saturating, NaN stays NaN."""
    if element == "e4m3":  # torch's own cast is the same and many times faster: inputs of every linear come this way
        return values.float().clamp(-_E4M3_MAX, _E4M3_MAX).to(torch.float8_e4m3fn).float()
    return round_by_table(values, element)


def round_by_table(values: Tensor, element: Element) -> Tensor:
    """`round_to` for any element, by searching its code points."""
    magnitude = values.float().abs().contiguous()  # views, as of keys and values, are looked up at half the speed
    table = code_points(element).to(values.device)
    rounded = table[torch.bucketize(magnitude, _boundaries(element).to(values.device))]
    return torch.copysign(torch.where(magnitude.isnan(), magnitude, rounded), values.float())


def to_codes(values: Tensor, element: Element) -> Tensor:
    """Bit patterns of values that are code points, uint8: the sign above the magnitude's code."""
    table = code_points(element).to(values.device)
    exponents, mantissas, _ = _LAYOUT[element]
    sign = torch.signbit(values).to(torch.uint8) << (exponents + mantissas)
    return torch.bucketize(values.abs(), table).to(torch.uint8) | sign


def from_codes(codes: Tensor, element: Element) -> Tensor:
    """The values behind bit patterns, float32."""
    exponents, mantissas, _ = _LAYOUT[element]
    sign = 1 << (exponents + mantissas)
    magnitude = code_points(element).to(codes.device)[(codes & (sign - 1)).long()]
    return torch.where((codes & sign).bool(), -magnitude, magnitude)


def pack_six(codes_OI: Tensor) -> Tensor:
    """Six-bit codes [O, I], I a multiple of 4, into bytes [O, 3·I/4]: the first code in the lowest bits."""
    word = sum(codes_OI[:, place::4].int() << (6 * place) for place in range(4))
    assert isinstance(word, Tensor)
    return torch.stack([word >> shift & 0xFF for shift in (0, 8, 16)], 2).flatten(1).to(torch.uint8)


def unpack_six(bytes_OB: Tensor) -> Tensor:
    """The inverse of `pack_six`, uint8."""
    word = sum(bytes_OB[:, place::3].int() << (8 * place) for place in range(3))
    assert isinstance(word, Tensor)
    return torch.stack([word >> shift & 0x3F for shift in (0, 6, 12, 18)], 2).flatten(1).to(torch.uint8)


def fit(w_OI: Tensor, grid: FloatGrid, global_scale: Tensor | None = None) -> Tensor:
    """Scales [ceil(O/rows), ceil(I/inputs)], float32, that put each block's largest weight on the largest code point,
    rounded to what `grid.scale` can say; 1 where a block is all zero."""
    amax = block_max(w_OI, grid.block)
    if grid.scale == "e8m0":
        return _power_of_two(amax, grid.element)
    wanted = amax / largest(grid.element)
    return _round_scale(wanted if global_scale is None else wanted / global_scale, grid.scale)


def fit_global(*weights: Tensor) -> Tensor:
    """NVFP4's scale of a whole tensor, float32 scalar: the largest group scale becomes E4M3's 448. Linears that engines
    fuse (q, k, v) must share one: give them together. Engines read its inverse, 448 · 6 / max|w|."""
    amax = torch.stack([w.abs().amax().float() for w in weights]).amax()
    stored = largest("e4m3") * largest("e2m1") / torch.where(amax > 0, amax, torch.ones_like(amax))
    return 1 / stored


def encode(
    w_OI: Tensor, grid: FloatGrid, scale: Tensor | None = None, global_scale: Tensor | None = None
) -> FloatWeight:
    """Each weight at the nearest code point of its block's scale; scales are fitted where none are given."""
    if grid.has_global_scale and global_scale is None:
        global_scale = fit_global(w_OI)
    if scale is None:
        scale = fit(w_OI, grid, global_scale)
    spread = FloatWeight(grid, w_OI, scale).spread()
    if global_scale is not None:
        spread = spread * global_scale
    return FloatWeight(grid, round_to(w_OI.float() / spread, grid.element), scale, global_scale)


def block_max(w_OI: Tensor, block: tuple[int | None, int | None]) -> Tensor:
    """The largest magnitude in each block, float32 [ceil(O/rows), ceil(I/inputs)]; the last ones may be smaller."""
    outs, ins = w_OI.shape
    rows, columns = block[0] or outs, block[1] or ins
    padded = functional.pad(w_OI.float().abs(), (0, -ins % columns, 0, -outs % rows))
    return padded.reshape(padded.shape[0] // rows, rows, -1, columns).amax((1, 3))


@cache
def _boundaries(element: Element) -> Tensor:
    """Above boundary i the code is more than i: the midpoints, those after an odd code a float lower, so that the tie
    goes up to the even one."""
    table = code_points(element)
    middle = (table[:-1] + table[1:]) / 2
    lower = torch.nextafter(middle, torch.zeros(()))
    return torch.where(torch.arange(len(middle)) % 2 == 1, lower, middle)


def _round_scale(wanted: Tensor, kind: ScaleKind) -> Tensor:
    if kind == "e4m3":
        rounded, least = round_to(wanted, "e4m3"), float(code_points("e4m3")[1])
    else:
        info = torch.finfo(_DTYPES[kind])
        rounded, least = wanted.to(_DTYPES[kind]).float(), info.tiny * info.eps
    return torch.where(wanted > 0, rounded.clamp(min=least), torch.ones_like(wanted))


def _power_of_two(amax: Tensor, element: Element) -> Tensor:
    """E8M0: amax's exponent less that of the largest code point, where the specification stops. A block whose maximum
    would round up to the next power of two if it had the element's mantissa takes the next scale, as compressed-tensors
    and engines do: it saturates less."""
    _, mantissas, _ = _LAYOUT[element]
    fraction, exponent = torch.frexp(amax)
    exponent = exponent - 1 + (fraction >= 1 - 2.0 ** -(mantissas + 2))
    top = int(torch.frexp(torch.tensor(largest(element)))[1]) - 1
    power = (exponent - top).clamp(-_E8M0_LIMIT, _E8M0_LIMIT).float()
    return torch.where(amax > 0, torch.exp2(power), torch.ones_like(amax))
