"""`make search`: the demo's images and model are served from its files, without the demo's services."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import brewclip
from tests.service.spoken_scenes import save_untrained_run

pytestmark = [pytest.mark.services, pytest.mark.slow]

CHECKOUT = Path(__file__).parents[2]
NUM_IMAGES = 7


def test_the_demo_is_served_until_ctrl_c(tmp_path):
    bucket = tmp_path / "s3" / "brewclip"
    sizes = f"--num-train 0 --num-dev 0 --num-test {NUM_IMAGES} --captions-per-image 2"
    command = [sys.executable, "datasets/scenes.py", "--dest", (bucket / "scenes").as_uri(), *sizes.split()]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
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


def search(state: Path) -> subprocess.Popen:
    command = [sys.executable, "jobs/search.py", "--state", str(state)]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=CHECKOUT, env=environment, **pipes)


def address_of(process: subprocess.Popen) -> str:
    for line in process.stdout:
        if found := re.search(r"serving at (\S+)", line):
            return found[1]
    raise AssertionError(process.stderr.read())
