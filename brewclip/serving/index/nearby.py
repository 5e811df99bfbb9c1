"""Approximate search above a million images, by faiss: inverted lists over 4-bit codes of the same vectors.

faiss finds candidates, and their order is decided by their float16 vectors, as in exact search. How many lists a query
looks into is chosen when the index is built: as few as give the wanted recall against exact search.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from brewclip.config.extras import check_installed
from brewclip.serving.index.exact import largest, nearest_rows, products

Approximate = Literal["auto", "always", "never"]
EXACT_LIMIT = 1_000_000  # images up to which `auto` builds none
_WANTED_RECALL = 0.95
_TOP = 10  # of the recall
_CANDIDATES_PER_RESULT, _LEAST_CANDIDATES = 10, 100
_POINTS_PER_LIST = 40  # for training; faiss warns below 39
_BLOCK_ROWS = 65_536
# Queries for the recall, of the kind that people ask: embeddings of texts lie apart from those of images.
_THINGS = (
    *("a dog", "a cat", "a horse", "a bird", "a child", "a man", "two women", "a group of people", "a crowd"),
    *("a car", "a bicycle", "a boat", "a train", "a plane", "a house", "a street", "a bridge", "a church"),
    *("a tree", "flowers", "a forest", "a mountain", "a beach", "the sea", "a river", "snow", "a sunset", "clouds"),
    *("food", "a cake", "fruit", "a cup of coffee", "a table", "a book", "a phone", "a guitar", "a ball", "a map"),
)
QUERY_TEXTS = tuple(form.format(thing) for form in ("a photo of {}", "{} at night", "{} in red") for thing in _THINGS)


class Nearby(NamedTuple):
    """What was measured of an approximate index.

    Attributes:
        num_lists, num_probes: of the inverted lists, and those that a query looks into.
        recall: share of the ten nearest images by exact search that are among its ten.
    """

    num_lists: int
    num_probes: int
    recall: float


def is_wanted(approximate: Approximate, num_images: int) -> bool:
    """Return whether an index of so many images gets an approximate one."""
    return approximate == "always" or (approximate == "auto" and num_images > EXACT_LIMIT)


def build_nearby(vectors: NDArray[np.float16], queries: NDArray[np.float32], path: Path) -> Nearby:
    """Build an approximate index, choose its probes, and write it.

    Args:
        vectors: (N, E), unit length.
        queries: (n, E), unit length, for the recall.
        path: of the file.
    """
    check_installed("faiss", "an approximate index")
    import faiss

    num_images, embed_dim = vectors.shape
    num_lists = max(1, int(2 * num_images**0.5))
    quantizer = faiss.IndexFlatIP(embed_dim)
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, embed_dim, num_lists, faiss.ScalarQuantizer.QT_4bit, faiss.METRIC_INNER_PRODUCT
    )
    index.cp.min_points_per_centroid = 1
    sample = np.linspace(0, num_images - 1, min(num_images, _POINTS_PER_LIST * num_lists), dtype=np.int64)
    index.train(vectors[sample].astype(np.float32))
    for start in range(0, num_images, _BLOCK_ROWS):
        index.add(vectors[start : start + _BLOCK_ROWS].astype(np.float32))
    exact = [rows for rows, _ in nearest_rows(vectors, queries, _TOP)]
    num_probes, recall = 1, 0.0
    while True:
        index.nprobe = num_probes
        found = [rows for rows, _ in nearest_nearby(index, vectors, queries, _TOP)]
        recall = float(np.mean([len(np.intersect1d(*pair)) / len(pair[1]) for pair in zip(found, exact, strict=True)]))
        if recall >= _WANTED_RECALL or num_probes == num_lists:
            break
        num_probes = min(2 * num_probes, num_lists)
    faiss.write_index(index, str(path))
    return Nearby(num_lists, num_probes, recall)


def read_nearby(path: Path) -> Any:
    """Open the file of an approximate index, mapped into memory."""
    check_installed("faiss", "an approximate index")
    import faiss

    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP)


def nearest_nearby(
    index: Any, vectors: NDArray[np.float16], queries: NDArray[np.float32], top: int
) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Find rows and scores of nearly the largest products; as `exact.nearest_rows`, but some rows may be missing."""
    import torch

    num_candidates = min(len(vectors), max(_CANDIDATES_PER_RESULT * top, _LEAST_CANDIDATES))
    _, candidates = index.search(np.ascontiguousarray(queries, np.float32), num_candidates)
    found = []
    for query, rows in zip(torch.from_numpy(np.ascontiguousarray(queries, np.float32)), candidates, strict=True):
        rows = np.sort(rows[rows >= 0])  # -1 where the lists held fewer
        places, scores = largest(products(vectors, rows, query), top)
        found.append((rows[places], scores))
    return found
