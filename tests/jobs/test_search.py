"""`make search`: the demo's images and model are served from its files, without the demo's services."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import brewclip
from brewclip.audio import encode_flac
from brewclip.data.schema import Sample
from brewclip.data.shards import finish_split, shard_name, write_shard
from brewclip.data.storage import open_storage
from tests.service.spoken_scenes import save_untrained_run
from tests.training.features import make_features

pytestmark = [pytest.mark.services, pytest.mark.slow]

CHECKOUT = Path(__file__).parents[2]
NUM_IMAGES = 7


def test_the_demo_is_served_until_ctrl_c(tmp_path):
    bucket = tmp_path / "s3" / "brewclip"
    write_recordings(f"{bucket.as_uri()}/scenes/test")
    save_untrained_run(bucket.as_uri())
    with search(tmp_path) as process:
        address = address_of(process)
        assert address.startswith("http://127.0.0.1:")
        client = brewclip.Client(address)
        assert len(client.search(text="a dog")["results"]) == NUM_IMAGES
        with urllib.request.urlopen(f"{address}v1/examples") as answer:
            examples = json.load(answer)["examples"]
        assert len(examples) == 6 and all(" " in one["title"] for one in examples)  # words, no file names
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0


def test_without_a_demo_one_line_says_what_to_do(tmp_path):
    with search(tmp_path) as process:
        out, error = process.communicate(timeout=120)
    assert (process.returncode, out) == (2, "")
    assert "make demo" in error and error.count("\n") == 1


def write_recordings(url: str) -> None:
    """Write a split with two recordings of each image, as the demo's recipe does."""
    storage, records = open_storage(url), []
    for number in range(2):
        samples = (make_recording(image, number) for image in range(NUM_IMAGES))
        records.append(write_shard(storage, shard_name("test", number, 0), number, samples))
    finish_split(storage, records, corpus="scenes", split="test", kind="recordings", num_images=NUM_IMAGES)


def make_recording(image: int, number: int) -> Sample:
    drawn = make_features("test", number, image)
    waveform = np.random.default_rng([image, number]).normal(0, 0.1, 1600).astype(np.float32)
    return drawn._replace(audio=encode_flac(waveform), features=None)


@contextlib.contextmanager
def search(state: Path) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "jobs/search.py", "--state", str(state)]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=CHECKOUT, env=environment, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


def address_of(process: subprocess.Popen) -> str:
    for line in process.stdout:
        if found := re.search(r"serving at (\S+)", line):
            return found[1]
    raise AssertionError(process.stderr.read())
