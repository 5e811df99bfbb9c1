"""Building an index on a Ray cluster: each worker embeds images and writes parts, the driver merges them."""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from brewclip.config import ClusterConfig, Config
from brewclip.corpora.actors import num_places, run_on_actors, start_actor
from brewclip.errors import UserError
from brewclip.progress import ProgressReporter
from brewclip.serving.index.build import BuildReport, IndexBuild, embed_to_parts
from brewclip.serving.index.nearby import Approximate
from brewclip.serving.index.place import IndexPlace
from brewclip.serving.index.sources import ImageFile

_TASK_IMAGES = 512  # a worker that is lost loses its work on as many


class ImageWorker:
    """Ray actor that embeds images with one system.

    Args:
        num_threads: of torch.
        checkpoint, clip: of the system, see `brewclip.load`.
    """

    def __init__(self, num_threads: int, checkpoint: str, clip: str) -> None:
        import torch

        torch.set_num_threads(num_threads)
        self._name, self._clip = checkpoint, clip
        self._embedder: Any = None

    def embed(self, identity: dict[str, Any], location: str, files: list[ImageFile]) -> int:
        """Embed files, write them as parts of an index, and return how many they are.

        Raises:
            UserError: if the system is not the driver's, or storage cannot be reached.
        """
        if self._embedder is None:
            from brewclip import load

            self._embedder = load(self._name, clip=self._clip)
            if self._embedder.identity != identity:
                raise UserError(f"{self._name} is another system on a worker than on the driver: was it replaced?")
        return sum(embed_to_parts(self._embedder, files, IndexPlace(location).storage))


def build_on_ray(
    encoder: Any,
    clip: str,
    files: Sequence[ImageFile],
    out: str,
    cluster: ClusterConfig,
    approximate: Approximate = "auto",
) -> BuildReport:
    """Build an index, or bring it up to date, with as many workers as the connected cluster has room for.

    Args:
        encoder: the system, an `Embedder`; the workers load it by its name.
        clip: CLIP of zero_shot.
        files: those that the index shall hold, see `list_images`; all workers must reach them.
        out: `s3://` prefix, or a folder that all workers share.
        cluster: resources of a worker.
        approximate: see `build_index`.

    Raises:
        UserError: as `build_index`.
    """
    import ray

    place, config = IndexPlace(out), Config(cluster=cluster)
    with place.locked(), TemporaryDirectory() as scratch:
        build = IndexBuild(place, encoder.identity, encoder.name, files, Path(scratch))
        tasks = list(_tasks(build.todo, num_places(config)))
        num_workers = min(len(tasks), num_places(config))
        actors = [start_actor(ImageWorker, config, encoder.name, clip) for _ in range(num_workers)]
        progress = ProgressReporter(f"index with {num_workers} workers", len(build.todo), "images")
        try:
            for finished, _ in run_on_actors(
                actors, tasks, lambda actor, task: actor.embed.remote(encoder.identity, place.url, task)
            ):
                for _, count in finished:
                    progress.advance(count)
        finally:
            for actor in actors:
                ray.kill(actor)
        return build.save(encoder, approximate)[1]


def _tasks(files: Sequence[ImageFile], num_places: int) -> Iterator[list[ImageFile]]:
    """Yield files in groups: at least one for each worker, and of few enough that a lost one costs little."""
    size = min(_TASK_IMAGES, max(1, math.ceil(len(files) / num_places)))
    rest = iter(files)
    while task := list(islice(rest, size)):
        yield task
