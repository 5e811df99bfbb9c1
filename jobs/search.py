"""Search the images of `make demo` by voice: page and API on this machine, until Ctrl-C.

    make search
    python jobs/search.py --port 8080

Serves the test images and the best model. Needs no S3 server, Ray or MLflow: the demo's objects are files.
"""

import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from brewclip.config import exit_on_user_error, parse_options
from brewclip.config.ranges import Range
from brewclip.errors import UserError

if TYPE_CHECKING:
    from brewclip.data.manifest import Manifest
    from brewclip.data.schema import Sample

CHECKOUT = Path(__file__).resolve().parents[1]
RUN = "scenes-brewclip-adapter-confidence-asr_mean-0"  # see jobs/demo.py
_EXAMPLES = 6


@dataclass(frozen=True)
class SearchOptions:
    """Options of the search in the demo's images."""

    state: Path = CHECKOUT / ".state"
    """Folder of the demo."""
    port: Annotated[int, Range(0, 65_535, note="0 takes a free one")] = 0
    """Port to listen on, of this machine only."""


def main() -> None:
    """Make the index where it is missing or old, serve it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with exit_on_user_error():
        options = parse_options(__doc__, SearchOptions)
        try:
            serve_demo(options)
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            raise SystemExit(130) from None


def serve_demo(options: SearchOptions) -> None:
    """Serve the demo's images until an interrupt.

    Raises:
        UserError: if there was no demo.
    """
    from brewclip.data.manifest import open_manifest
    from brewclip.data.storage import exists, open_storage
    from brewclip.local.services import BUCKET
    from brewclip.service.command import serve

    bucket = options.state.absolute() / "s3" / BUCKET
    split = f"{bucket.as_uri()}/scenes/test"
    run = bucket / "runs" / RUN
    if not run.is_dir() or not exists(open_storage(split), "manifest.json"):
        raise UserError(f"--state {options.state} has no finished demo: run `make demo` first")
    folder = options.state.absolute() / "search"
    write_media(open_manifest(split), folder)
    index = build(run.as_uri(), folder)
    words = ["--index", str(index), "--checkpoint", run.as_uri(), "--examples", str(folder / "examples")]
    serve([*words, "--no-ray", "--port", str(options.port)])


def build(checkpoint: str, folder: Path) -> Path:
    """Index the images, or only what is new of them; returns the folder of the index."""
    import brewclip

    index = folder / "index"
    _, report = brewclip.load(checkpoint).build_index([folder / "images"], index)
    print(f"{report.num_images} images in {index}", flush=True)
    return index


def write_media(manifest: "Manifest", folder: Path) -> None:
    """Write the images of a split, and some of its recordings with their words, as files; those of earlier ones go."""
    for name in ("images", "examples"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(parents=True)
    seen: set[str] = set()
    for sample in iter_samples(manifest):
        image_id = sample.metadata["image_id"]
        if image_id in seen or sample.image is None or sample.audio is None:
            continue
        seen.add(image_id)
        (folder / "images" / f"{image_id}.jpg").write_bytes(sample.image)
        if len(seen) <= _EXAMPLES:
            (folder / "examples" / f"{image_id}.flac").write_bytes(sample.audio)
            (folder / "examples" / f"{image_id}.txt").write_text(sample.metadata["text"])


def iter_samples(manifest: "Manifest") -> Iterator["Sample"]:
    """Yield the samples of a split in stored order; the first recording of an image is the clear one."""
    from brewclip.data.reader import Rejections, SplitReader, iter_split
    from brewclip.data.schema import Sample

    for _, sample in iter_split(SplitReader(manifest), Sample.copied, Rejections(manifest.url)):
        yield sample


if __name__ == "__main__":
    main()
