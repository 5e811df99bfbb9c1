"""Verify a stored split against its manifest, and list all problems.

    python jobs/verify.py --url s3://bucket/flickr8k/train

Exit code 0 if the split is exactly as it was written, else 1.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

from brewclip.config import exit_on_user_error, parse_options
from brewclip.config.ranges import THREADS


@dataclass(frozen=True)
class VerifyOptions:
    """Options of the verification."""

    url: str
    """Folder of the split, s3://bucket/corpus/split or file:///folder."""
    num_threads: Annotated[int, THREADS] = 4
    """Shards checked in parallel; each takes 64 MiB of memory."""


def main() -> None:
    """Verify the split; print one line per problem, then a summary."""
    with exit_on_user_error():
        words = sys.argv[1:]
        if words and not words[0].startswith("-"):
            words = ["--url", *words]
        options = parse_options(__doc__, VerifyOptions, words)
        from brewclip.data.manifest import open_manifest
        from brewclip.data.storage import check_reachable
        from brewclip.data.verify import verify_split
        from brewclip.errors import ManifestError
        from brewclip.progress import ProgressReporter

        check_reachable(options.url)
        try:
            total = len(open_manifest(options.url, retry_seconds=10))
        except ManifestError:
            total = 0
        progress = ProgressReporter(f"verify {options.url}", total, "samples")
        problems = verify_split(options.url, num_threads=options.num_threads, progress=progress.advance)
    for problem in problems:
        print(problem)
    print(f"{options.url}: {len(problems)} problems in {total} samples" if problems else f"{options.url}: whole")
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
