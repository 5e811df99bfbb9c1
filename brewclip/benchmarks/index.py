"""Benchmark the index of images: exact search against faiss, opening, memory, and indexing against the plain way.

    python jobs/benchmark.py index
    python jobs/benchmark.py index --num-images 100000 --num-files 12

Search is compared with faiss' flat float16 index of the same vectors with as many threads; what both find is compared,
too. A fresh process opens the index and searches; its memory includes the pages of the mapped vectors. The plain way of
indexing opens, preprocesses and encodes one image after another, as rclip and most scripts do, with the same weights;
both sides may use all cores. The files are JPEGs of 12 megapixels, made of a photograph that scikit-learn ships.
"""

import functools
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional as F

from brewclip.benchmarks.measure import BenchmarkOptions, Comparison, Limit, compare_in_turn, print_limit
from brewclip.benchmarks.memory import watch
from brewclip.config.extras import check_installed
from brewclip.config.ranges import THREADS, Range
from brewclip.serving.index.image_index import ImageIndex
from brewclip.serving.index.layout import IMAGES, IndexFacts
from brewclip.serving.index.place import IndexPlace
from brewclip.serving.index.save import with_sizes

_LEAST_SEARCH_RATIO, _LEAST_INDEXING_RATIO = 1.0, 1.5
_MOST_SECONDS_TO_OPEN, _MOST_GB = 1.0, 2.0
_TOP = 10
_BLOCK_ROWS = 65_536
_SIDES = 4000, 3000
_SEARCH = """
import time
import numpy as np
from brewclip.serving.index.image_index import ImageIndex
started = time.perf_counter()
index = ImageIndex.open({folder!r})
print(time.perf_counter() - started)
queries = np.array(index.vectors[:16], np.float32)
assert all(found[0].score > 0.99 for found in index.nearest(queries, 10) + index.nearest(queries[:1], 10))
"""


@dataclass(frozen=True)
class Options(BenchmarkOptions):
    """Sizes, and number of runs."""

    num_images: Annotated[int, Range(16, 10**8)] = 1_000_000
    """Images of the index that is searched."""
    num_dimensions: Annotated[int, Range(1, 4096)] = 768
    """Dimensions of its vectors."""
    queries: tuple[Annotated[int, Range(1, 1000)], ...] = (1, 16)
    """Numbers of queries that are answered together."""
    num_threads: Annotated[int, THREADS] = 1
    """CPU threads of either search."""
    num_files: Annotated[int, Range(0, 10**6)] = 48
    """Photographs that are indexed; 0 skips it."""
    clip: str = "ViT-B-32/random"
    """CLIP of that; its speed does not depend on the weights."""
    num_pairs: Annotated[int, Range(1, 1000)] = 3
    """Measured runs of each side."""


def run(options: Options) -> dict[str, Any]:
    """Run the benchmark, print the results, and return them for the JSON file.

    Raises:
        UserError: if faiss is not installed.
    """
    check_installed("faiss", "the benchmark's baseline")
    with tempfile.TemporaryDirectory() as folder:
        index = make_index(Path(folder) / "large", options.num_images, options.num_dimensions)
        comparisons, differences = _compare_search(options, index)
        limits = _measure_opening(options, Path(folder) / "large")
        if options.num_files:
            comparisons.append(_compare_indexing(options, Path(folder)))
    return {
        "comparisons": [comparison.record() for comparison in comparisons],
        "limits": [limit.record() for limit in limits],
        "results_that_differ": differences,
    }


def make_index(folder: Path, num_images: int, embed_dim: int) -> ImageIndex:
    """Write an index of random unit vectors, with a row for each image but no files of images."""
    folder.mkdir(parents=True)
    vectors = np.lib.format.open_memmap(folder / "vectors-0.npy", "w+", np.float16, (num_images, embed_dim))
    rng = np.random.default_rng(0)
    for start in range(0, num_images, _BLOCK_ROWS):
        rows = rng.standard_normal((min(_BLOCK_ROWS, num_images - start), embed_dim), np.float32)
        vectors[start : start + len(rows)] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    vectors.flush()
    numbers, zeros = np.arange(num_images), np.zeros(num_images, np.int64)
    columns = {
        "id": numbers,
        "name": [f"/photos/{number // 1000:04d}/IMG_{number % 1000:04d}.jpg" for number in numbers],
        "sha256": [int(number).to_bytes(32, "big") for number in numbers],
    }
    others = {field.name: zeros for field in IMAGES if field.name not in columns}
    with pa.OSFile(str(folder / "images-0.arrow"), "wb") as file, pa.ipc.new_file(file, IMAGES) as writer:
        writer.write_table(pa.table(columns | others, schema=IMAGES))
    (folder / "unusable-0.json").write_text("[]")
    facts = IndexFacts(
        {}, "random", "0", num_images, embed_dim, "vectors-0.npy", "images-0.arrow", "unusable-0.json", []
    )
    IndexPlace(folder).publish(with_sizes(folder, facts))
    return ImageIndex.open(folder)


def _compare_search(options: Options, index: ImageIndex) -> tuple[list[Comparison], int]:
    """Compare search for each number of queries; return also how many results differ from faiss'."""
    import faiss

    torch.set_num_threads(options.num_threads)
    faiss.omp_set_num_threads(options.num_threads)
    flat = faiss.IndexScalarQuantizer(index.embed_dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    for start in range(0, len(index), _BLOCK_ROWS):
        flat.add(index.vectors[start : start + _BLOCK_ROWS].astype(np.float32))
    comparisons, differences = [], 0
    for count in options.queries:
        noise = np.random.default_rng(count).standard_normal((count, index.embed_dim), np.float32)
        queries = noise / np.linalg.norm(noise, axis=1, keepdims=True)
        ours = [[match.row for match in found] for found in index.nearest(queries, _TOP)]
        differences += int((np.array(ours) != flat.search(queries, _TOP)[1]).sum())
        what = f"exact search of {count} quer{'ies' if count > 1 else 'y'} in {len(index):,} x {index.embed_dim}"
        comparisons.append(
            compare_in_turn(
                f"{what}, against faiss' flat float16 index",
                functools.partial(_rate, functools.partial(index.nearest, queries, _TOP), count),
                functools.partial(_rate, functools.partial(flat.search, queries, _TOP), count),
                num_pairs=options.num_pairs,
                unit="queries/s",
                target=_LEAST_SEARCH_RATIO,
            )
        )
    print(f"results that differ from faiss': {differences}", flush=True)
    return comparisons, differences


def _measure_opening(options: Options, folder: Path) -> list[Limit]:
    """Return the time to open the index, and the peak memory of a process that opens and searches it."""
    peaks = [watch(_SEARCH.format(folder=str(folder))) for _ in range(options.num_pairs)]
    name = f"an index of {options.num_images:,} x {options.num_dimensions}"
    seconds = Limit(f"opening {name}", tuple(float(peak.output) for peak in peaks), "s", _MOST_SECONDS_TO_OPEN)
    memory = Limit(f"peak memory of searching {name}", tuple(peak.rss_bytes / 1e9 for peak in peaks), "GB", _MOST_GB)
    return [print_limit(seconds), print_limit(memory)]


def _compare_indexing(options: Options, folder: Path) -> Comparison:
    """Compare `Embedder.build_index` with opening, preprocessing and encoding one image after another."""
    from brewclip import load

    torch.set_num_threads(os.cpu_count() or 1)
    images = make_photographs(folder / "images", options.num_files)
    embedder, encode = load("zero_shot", clip=options.clip), plain_encoder(options.clip)

    def ours() -> float:
        shutil.rmtree(folder / "index", ignore_errors=True)
        return _rate(lambda: embedder.build_index([folder / "images"], folder / "index"), len(images))

    def theirs() -> float:
        return _rate(lambda: [encode(path) for path in images], len(images))

    return compare_in_turn(
        f"indexing of 12-megapixel JPEGs with {options.clip}, against one image after another",
        ours,
        theirs,
        num_pairs=options.num_pairs,
        unit="images/s",
        target=_LEAST_INDEXING_RATIO,
    )


def make_photographs(folder: Path, count: int) -> list[Path]:
    """Write JPEGs of 12 megapixels: crops of a photograph, enlarged; each has another content."""
    from sklearn.datasets import load_sample_image

    photograph = Image.fromarray(load_sample_image("china.jpg"))
    folder.mkdir()
    paths = []
    for number in range(count):
        crop = (number % 64, number // 64, 500 + number % 64, 375 + number // 64)
        paths.append(folder / f"{number}.jpg")
        photograph.resize(_SIDES, Image.Resampling.BICUBIC, box=crop).save(paths[-1], quality=90)
    return paths


def plain_encoder(name: str) -> Callable[[Path], NDArray[np.float32]]:
    """Return a function that encodes one image file to a vector (E,), as scripts do it with open_clip."""
    import open_clip

    from brewclip.pretrained.load import load_clip

    clip = load_clip(name)
    model: Any = clip.model
    transform: Any = open_clip.image_transform(clip.image_size, is_train=False, mean=clip.mean, std=clip.std)

    @torch.inference_mode()
    def encode(path: Path) -> NDArray[np.float32]:
        image = transform(Image.open(path))
        return F.normalize(model.encode_image(image[None]), dim=-1)[0].numpy()

    return encode


def _rate(work: Callable[[], Any], count: int) -> float:
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)
