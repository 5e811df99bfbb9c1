"""What travels to a device, and that a CPU has nothing to copy; streams and pinned memory are tested on GPUs."""

import numpy as np
import pytest
import torch

from brewclip.data import batches
from brewclip.data.batches import Pair, collate, collate_embeddings
from brewclip.data.transfer import CopyStream, to_device

CPU = torch.device("cpu")


def make_pair(frames: int, image: np.ndarray, tokens: torch.Tensor) -> Pair:
    return Pair("a", "a", image, tokens, np.ones((frames, 6), np.float16), "a scene")


def test_images_travel_as_bytes_and_frames_in_half_precision(monkeypatch):
    """They are widened on the device: of two pairs' images and frames, no float32 is copied."""
    sent = {}

    def record(tensor, device):
        sent.setdefault(tensor.dtype, []).append(tuple(tensor.shape))
        return to_device(tensor, device)

    monkeypatch.setattr(batches, "to_device", record)
    pairs = [make_pair(frames, np.zeros((3, 8, 8), np.uint8), torch.ones(5, dtype=torch.long)) for frames in (2, 4)]
    batch = collate(pairs, (0.5,) * 3, (0.5,) * 3, CPU)
    assert batch.images.dtype == batch.audio.dtype == torch.float32
    assert sent == {
        torch.uint8: [(2, 3, 8, 8)],
        torch.float16: [(2, 4, 6)],
        torch.int64: [(2, 5), (2,)],
        torch.bool: [(2, 4)],
        torch.float32: [(3,), (3,), (2,)],  # mean, deviation, confidence
    }
    sent.clear()
    collate_embeddings([make_pair(2, np.zeros(7, np.float32), torch.zeros(7))] * 2, CPU)
    assert sent[torch.float16] == [(2, 2, 6)] and sent[torch.float32] == [(2, 7), (2, 7), (2,)]


def test_a_cpu_has_no_stream():
    copies, item = CopyStream(CPU), (torch.ones(2), "text")
    assert copies.finish(copies.start(lambda: item)) is item
    with pytest.raises(ZeroDivisionError):
        copies.start(lambda: 1 / 0)
