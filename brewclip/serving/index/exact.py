"""Exact search: the largest inner products of queries with float16 vectors, block by block.

The vectors stay float16, in memory-mapped pages: there is never a float32 copy of more than one block.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_BLOCK_ROWS = 2048  # of 768 dimensions: 6 MB of float32, about a core's cache
_SCORES_BYTES = 2**28  # of the scores that are held at once
_FEW_QUERIES = 3  # from here on, one float32 product for all costs less than a float16 product for each
# Half a unit in the last place of float16 for a query's components, the same for a score of up to 1, and something
# for float32 sums.
_HALF_ERROR = 2 * 2.0**-11 + 2e-5
_PROBES = 256  # rows on which the bound is checked


def nearest_rows(
    vectors: NDArray[np.float16], queries: NDArray[np.float32], top: int
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Find the rows of the largest inner products.

    Args:
        vectors: (N, E), unit length.
        queries: (n, E), unit length.
        top: number of rows for each query; all, if there are fewer.

    Returns:
        For each query its rows, nearest first, ties in the order of rows; and their products in float32.
    """
    table = torch.from_numpy(vectors)
    at_once = max(1, _SCORES_BYTES // (4 * max(1, len(vectors))))
    found = []
    for at in range(0, len(queries), at_once):
        part = torch.from_numpy(np.ascontiguousarray(queries[at : at + at_once], dtype=np.float32))
        if len(part) < _FEW_QUERIES:
            found += [_nearest_by_half(table, query, top) for query in part]
        else:
            found += [largest(scores, top) for scores in _scores(table, part).numpy()]
    return found


def products(vectors: NDArray[np.float16], rows: NDArray[np.int64], query: Tensor) -> NDArray[np.float32]:
    """Return the exact inner products of some rows with a query (E,) float32."""
    return (torch.from_numpy(vectors[rows]).float() @ query).numpy()


def largest(scores: NDArray[np.float32], top: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the positions of the largest scores, largest first, ties in order; and these scores.

    One that is not a number comes first, so that it is noticed.
    """
    if top < len(scores):
        limit = np.partition(scores, len(scores) - top)[len(scores) - top]
        candidates = np.flatnonzero(~(scores < limit))
    else:
        candidates = np.arange(len(scores))
    keys = np.nan_to_num(-scores[candidates], nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    places = candidates[np.argsort(keys, kind="stable")][:top]
    return places, scores[places]


@torch.inference_mode()
def _scores(table: Tensor, queries: Tensor) -> Tensor:
    """Return all inner products (n, N) in float32."""
    scores = torch.empty(len(queries), len(table))
    block = torch.empty(min(_BLOCK_ROWS, len(table)), table.shape[1])
    for start in range(0, len(table), _BLOCK_ROWS):
        part = table[start : start + _BLOCK_ROWS]
        rows = block[: len(part)].copy_(part)
        scores[:, start : start + len(part)] = (rows @ queries.T).T
    return scores


@torch.inference_mode()
def _nearest_by_half(table: Tensor, query: Tensor, top: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Find the nearest rows of one query: candidates by a product in float16, decided in float32.

    A product in float16 reads each page once and converts nothing. Its error has a bound where sums are in float32,
    as PyTorch's are on x86 and ARM; where the bound does not hold on a sample, all is computed in float32.
    """
    rough = torch.mv(table, query.half()).float().numpy()
    vectors = table.numpy()
    if top >= len(rough):
        return largest(_scores(table, query[None])[0].numpy(), top)
    limit = np.partition(rough, len(rough) - top)[len(rough) - top]
    candidates = np.flatnonzero(~(rough < limit - 2 * _HALF_ERROR))  # those that are not numbers, too
    probes = np.append(candidates[:_PROBES], np.linspace(0, len(rough) - 1, _PROBES, dtype=np.int64))
    with np.errstate(invalid="ignore"):  # of two infinities, which the comparison refuses
        errors = np.abs(products(vectors, probes, query) - rough[probes])
    if not (errors <= _HALF_ERROR).all():
        return largest(_scores(table, query[None])[0].numpy(), top)
    places, scores = largest(products(vectors, candidates, query), top)
    return candidates[places], scores
