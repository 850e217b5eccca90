"""Codes into words and back, as the formats' readers expect them. Words are int32, filled from the lowest bit.

Dense packing without padding (32 codes of b bits in b words) is compressed-tensors' and, along the other axis,
AutoGPTQ's, three bits included; AWQ permutes eight nibbles; FP4 puts two codes into a byte.
"""

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from torch import Tensor

from compressor.numbers.floats import from_codes, to_codes

# Nibble k of an AWQ word holds column AWQ_ORDER[k] of eight.
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def pack_bits(codes_RC: Tensor, bits: int) -> Tensor:
    """Unsigned codes [R, C] to words [R, ceil(C · bits / 32)]."""
    shifted = codes_RC - 2 ** (bits - 1)  # the library packs signed codes and adds this back
    packed: Tensor = pack_to_int32(shifted.to(torch.int8), bits)
    return packed.contiguous()


def unpack_bits(words_RW: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse of `pack_bits`, int32 [R, columns]."""
    shape = torch.Size((words_RW.shape[0], columns))
    unpacked: Tensor = unpack_from_int32(words_RW, bits, shape)
    return unpacked.int() + 2 ** (bits - 1)


def pack_awq(codes_RC: Tensor) -> Tensor:
    """Four-bit codes [R, C], C a multiple of 8, to AWQ's words [R, C/8]."""
    return pack_bits(codes_RC.unflatten(1, (-1, 8))[..., list(AWQ_ORDER)].flatten(1), 4)


def unpack_awq(words_RW: Tensor) -> Tensor:
    """The inverse of `pack_awq`, int32."""
    permuted = unpack_bits(words_RW, 4, words_RW.shape[1] * 8).unflatten(1, (-1, 8))
    places = torch.tensor(AWQ_ORDER, device=words_RW.device).argsort()
    return permuted[..., places].flatten(1)


def pack_fp4(values_OI: Tensor) -> Tensor:
    """Values of E2M1 [O, I], I even, to bytes [O, I/2]: the first in the lower half; minus zero becomes zero."""
    codes_OI = to_codes(values_OI + 0.0, "e2m1")
    return codes_OI[:, ::2] | codes_OI[:, 1::2] << 4


def unpack_fp4(bytes_OB: Tensor) -> Tensor:
    """The inverse of `pack_fp4`, float32."""
    return from_codes(torch.stack([bytes_OB & 0xF, bytes_OB >> 4], 2).flatten(1), "e2m1")
