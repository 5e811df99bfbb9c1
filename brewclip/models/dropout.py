"""Per-sample dropout: the same mask on any worker, in any batch, under any padding.

torch draws dropout masks from a stream that every rank and batch shares, so results would depend on the number
of workers. Here a mask bit is a hash of (sample seed, site, position): a counter-based
generator without state. Source for the idea: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
3".
"""

import torch
from torch import Tensor

_MASK_32 = 0xFFFFFFFF
_MULTIPLIER = 0x45D9F3B  # 27 bits: a 32-bit value times it fits into int64 without overflow
_MAX_ELEMENTS = 1 << 24  # hashed at once; bounds the memory of int64 scratch


def _mix(x: Tensor) -> Tensor:
    """Scramble 32-bit values held in int64, in place (two rounds of xor-shift and multiply)."""
    for _ in range(2):
        x.bitwise_xor_(x >> 16).mul_(_MULTIPLIER).bitwise_and_(_MASK_32)  # new memory costs more than the arithmetic
    return x.bitwise_xor_(x >> 16)


class SampleDropout:
    """Dropout masks of a batch, by site.

    Args:
        seeds: (B,) int64, one per sample; equal seeds give equal masks.
        probability: of an element to be dropped, in [0, 1).
    """

    def __init__(self, seeds: Tensor, probability: float) -> None:
        low, high = seeds & _MASK_32, (seeds >> 32) & _MASK_32
        self._keys = _mix(_mix(low) ^ high)
        self._threshold = int(probability * 2**32)
        self._scale = 1.0 / (1.0 - probability)

    def scale(self, site: int, positions: Tensor) -> Tensor:
        """Return the factors of one site, 0 or 1 / (1 - probability).

        Args:
            site: number of the dropout layer; every layer needs its own.
            positions: int64 of any shape, unique for each element of this site within its sample.

        Returns:
            (B, *positions.shape) float32.
        """
        keys = _mix(self._keys ^ (site * 0x9E3779B1 & _MASK_32))
        counters = _mix(positions.flatten() & _MASK_32)
        per_chunk = max(1, _MAX_ELEMENTS // max(1, len(counters)))
        kept = [_mix(counters ^ chunk[:, None]) >= self._threshold for chunk in keys.split(per_chunk)]
        return (torch.cat(kept).float() * self._scale).view(len(keys), *positions.shape)
