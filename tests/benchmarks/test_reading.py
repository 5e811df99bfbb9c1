"""The benchmark of reading: all loaders yield the same samples, and the link is as slow as it says."""

import itertools
import os
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
import pytest

from brewclip.benchmarks.measure import environment_set
from brewclip.benchmarks.reading import Options, feed, paper_step_seconds, run
from brewclip.benchmarks.reading_peers import iter_ray_data, iter_stateful_loader, iter_webdataset
from brewclip.benchmarks.samples import SampleSize, build_stream, decode_parts, decode_sample, write_split
from brewclip.benchmarks.slow_link import SlowLink
from brewclip.data.manifest import Manifest, open_manifest
from brewclip.errors import UserError

SIZE = SampleSize(32, 4, 8)
BODY = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def server_port() -> Iterator[int]:
    """The port of a server that answers every request with `BODY`, over connections that stay open."""

    class Answer(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(BODY)))
            self.end_headers()
            self.wfile.write(BODY)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_a_link_passes_everything_later(server_port: int) -> None:
    with SlowLink(server_port, latency_seconds=0.2, bytes_per_second=4 * len(BODY)) as link:
        for _ in range(2):
            started = time.monotonic()
            with urllib.request.urlopen(f"http://127.0.0.1:{link.port}/") as answer:
                assert answer.read() == BODY
            assert time.monotonic() - started > 0.2 + 0.25 - 0.05, "the latency, and the body at its bandwidth"


def test_a_link_to_nobody_closes_connections() -> None:
    with SlowLink(1, 0.0, 1e6) as link, pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{link.port}/", timeout=10)


@pytest.fixture
def manifest(bucket: str) -> Manifest:
    return write_split(f"{bucket}/split", SIZE, 24, 8)


def ids_of(batches: Iterator[Any]) -> list[str]:
    """Return the image ids of batches of samples, or of stacked ones, sorted."""
    batches = (batch["json"] if isinstance(batch, dict) else [one["json"] for one in batch] for batch in batches)
    return sorted(metadata["image_id"] for batch in batches for metadata in batch)


@pytest.mark.services
def test_all_loaders_yield_the_same_samples(manifest: Manifest) -> None:
    stream = build_stream(manifest, decode_sample, 8, memory_bytes=2**28, num_threads=2)
    ours = [batch for _, batch in itertools.islice(stream.iter_from(0), 3)]
    names = [f"{number:08d}" for number in range(24)]
    assert ids_of(iter(ours)) == names
    first = min((one for batch in ours for one in batch), key=lambda one: one["json"]["image_id"])
    for number_of_processes in (0, 1):
        assert ids_of(iter_stateful_loader(manifest, decode_parts, 8, number_of_processes)) == names
    theirs = [one for batch in iter_webdataset(manifest, decode_parts, 8) for one in batch]
    (same,) = (one for one in theirs if one["json"]["image_id"] == first["json"]["image_id"])
    assert np.array_equal(first["jpg"], same["jpg"]) and np.array_equal(first["npy"], same["npy"])
    assert first["jpg"].shape == (32, 32, 3) and first["npy"].shape == (4, 8)


@pytest.mark.services
def test_ray_data_yields_them_too(manifest: Manifest, ray_head: Any) -> None:
    from brewclip.cluster import connect

    connect()
    batches = list(iter_ray_data(manifest, decode_parts, 8))
    assert ids_of(iter(batches)) == [f"{number:08d}" for number in range(24)]
    assert batches[0]["jpg"].shape == (8, 32, 32, 3) and batches[0]["npy"].dtype == np.float16


@pytest.mark.services
def test_the_stream_reads_through_a_link(manifest: Manifest) -> None:
    port = int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2])
    with (
        SlowLink(port, 0.01, 1e8) as link,
        environment_set({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{link.port}"}),
    ):
        stream = build_stream(open_manifest(manifest.url), decode_sample, 8, memory_bytes=2**28, num_threads=1)
        assert len(ids_of(batch for _, batch in itertools.islice(stream.iter_from(0), 3))) == 24
        assert len(ids_of(iter_webdataset(manifest, decode_parts, 8))) == 24


@pytest.mark.services
def test_figures_of_a_short_run(capsys: pytest.CaptureFixture[str]) -> None:
    figures = run(
        Options(
            num_samples=32, num_slow_samples=32, samples_per_shard=8, batch_size=4, num_slow_steps=3, num_pairs=1,
            num_fed_steps=20, latency_seconds=0.001, pairs_per_second=100, num_threads=1, num_ray_tasks=0,
        )
    )  # fmt: skip
    peers = [one["name"].rpartition(", against ")[2] for one in figures["comparisons"]]
    assert peers == ["StatefulDataLoader over WebDataset", "WebDataset in one thread", "WebDataset in 1 processes"]
    assert [limit["unit"] for limit in figures["limits"]] == ["", "s"] * 3
    assert [limit["most"] for limit in figures["limits"]] == [0.03, 0, 0, 0, 0, 0]
    assert "over a link of 1 ms and 100 MB/s" in capsys.readouterr().out


def test_what_a_step_waits_for() -> None:
    def batches() -> Iterator[None]:
        for seconds in (0.2, 0.0, 0.0):
            time.sleep(seconds)
            yield

    share, first = feed(batches(), 0.05, 3)
    assert first >= 0.2, "the first batch is no part of the share"
    assert 0 <= share < 0.5
    assert feed(iter([None] * 2), 0.0, 2)[0] <= 1


def test_the_step_of_the_paper() -> None:
    assert 0.05 < paper_step_seconds(Options()) < 0.2


def test_options_without_meaning() -> None:
    with pytest.raises(UserError, match="--num-slow-samples 100 is too small: at least 512"):
        run(Options(num_slow_samples=100))
    with pytest.raises(UserError, match="--num-slow-steps 97 is more than an epoch has: at most 96"):
        run(Options(num_slow_steps=97))


def test_a_missing_peer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brewclip.config.extras.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs torchdata, .* pip install 'brewclip\[benchmark\]'"):
        run(Options())
