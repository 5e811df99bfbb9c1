"""What a step costs: operations counted on two rows of a batch, what is kept for the backward pass, a card's peak."""

import contextlib
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from brewclip.data.batches import Batch
from brewclip.models.brewclip import BrewCLIP
from brewclip.models.clip import PromptedCLIP
from brewclip.models.speech_encoders import SpeechEncoder
from brewclip.models.speechclip import SpeechCLIPEncoder

_ROWS = 2
_FRAMES_STEP = 64  # of lengths counted alike: a frame is a small part of the operations, as one row attends to it
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class PeakRate:
    """Peak of a card in TFLOP/s, dense: of bfloat16 with tensor cores, 0 without; and of float32 without them."""

    bfloat16: float
    float32: float


# From NVIDIA's data sheets; a name of torch.cuda.get_device_name contains the first key that fits.
_PEAKS = {
    "B200": PeakRate(2250, 75),
    "H200": PeakRate(989, 67),
    "H100 PCIe": PeakRate(756, 51),
    "H100 NVL": PeakRate(835, 60),
    "H100": PeakRate(989, 67),
    "A100": PeakRate(312, 19.5),
    "A10G": PeakRate(70, 35),
    "A10": PeakRate(125, 31.2),
    "L40S": PeakRate(362, 91.6),
    "L4": PeakRate(121, 30.3),
    "T4": PeakRate(0, 8.1),
    "V100": PeakRate(0, 15.7),
}


def peak_tflops(device: torch.device, autocast: torch.autocast) -> float | None:
    """Return the peak of a device in TFLOP/s at the precision of an autocast; None if it is not known."""
    if device.type != "cuda":
        return None
    with autocast:
        is_bfloat16 = torch.is_autocast_enabled(device.type)
    peak = find_peak(torch.cuda.get_device_name(device))
    return (peak.bfloat16 if is_bfloat16 else peak.float32) or None if peak else None


def find_peak(device_name: str) -> PeakRate | None:
    """Return the peak of a card by its name, such as `NVIDIA A100-SXM4-80GB`; None if it is not in the table."""
    words = set(device_name.replace("-", " ").split())
    return next((peak for name, peak in _PEAKS.items() if set(name.split()) <= words), None)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory that tensors on a GPU took at once; on a CPU, that this process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def kept_bytes(compute: Callable[[], Tensor], model: nn.Module) -> int:
    """Return the bytes that are kept for a backward pass, without the model's own.

    Args:
        compute: returns what the backward pass starts from.
        model: whose parameters and buffers do not count.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        graph = compute()  # as long as it lives, no storage takes the place of another
    del graph
    return sum(storages.values())


class StepCost:
    """Operations of forward and backward of this worker's rows, counted once for each shape of a batch.

    Two rows are counted and scaled, as rows are independent up to the loss, whose products are added. What
    `--model.recompute` computes again is not counted, so that a share of a card's peak is one of useful operations.

    Args:
        model: that is trained.
        autocast: context of the arithmetic.
        num_columns: rows of all workers.
    """

    def __init__(self, model: BrewCLIP, autocast: Callable[[], torch.autocast], num_columns: int) -> None:
        self._model, self._autocast, self._num_columns = model, autocast, num_columns
        self._flops: dict[tuple[int, ...], float] = {}

    def flops(self, batch: Batch) -> float:
        """Return the operations of a step with this batch, a multiplication and an addition being two."""
        key = (*batch.tokens.shape, batch.num_tokens, -(-batch.audio.shape[1] // _FRAMES_STEP))
        if key not in self._flops:
            self._flops[key] = self._count(batch)
        return self._flops[key]

    def kept_bytes(self, batch: Batch) -> int:
        """Return the bytes kept for the backward pass of a batch: activations, and the logits of the loss."""
        rows = kept_bytes(lambda: self._encode(batch), self._model)
        size = len(batch.image_ids)
        logits = 2 * self._num_losses() * min(size * self._num_columns, 1 << 24) * _FLOAT_BYTES
        return rows * size // min(_ROWS, size) + logits

    def _count(self, batch: Batch) -> float:
        parameters = [one for one in self._model.trained_parameters().values() if one.ndim]  # not the scale of the loss
        with _without_recomputation(self._model), _Operations() as operations:
            torch.autograd.grad(self._encode(batch), parameters, allow_unused=True)
        size, width = len(batch.image_ids), self._model.clip.embed_dim
        products = 3 * 2 * size * self._num_columns * width  # forward, and for queries and keys backward
        return operations.flops * size / min(_ROWS, size) + 2 * self._num_losses() * products

    def _num_losses(self) -> int:
        """Return how many losses of both directions a step has: outer and inner, or one for each channel."""
        return 2 if self._model.variant == "brewclip" else 1

    def _encode(self, batch: Batch) -> Tensor:
        """Return a number that depends on all features of the first rows."""
        rows = slice(_ROWS)
        with self._autocast(), _with_layers_read(self._model):
            speech = self._model.encode_speech(
                batch.tokens[rows], batch.audio[rows], batch.audio_mask[rows], torch.zeros_like(batch.image_ids[rows]),
                batch.confidence[rows], batch.num_tokens,
            )  # fmt: skip
            features = (self._model.encode_image(batch.images[rows]), *speech)
        return torch.stack([part.float().sum() for part in features if part is not None]).sum()


class _Operations(TorchDispatchMode):
    """Counts as `FlopCounterMode`, whose hooks on modules refuse `torch.autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        self.flops += count(*args, **(kwargs or {}), out_val=out) if count else 0
        return out


@contextlib.contextmanager
def _with_layers_read(model: BrewCLIP) -> Iterator[None]:
    """Replace the layer cache by one that returns zeros, so that the encoder is not counted; restore it afterwards."""
    acoustic = model.acoustic
    if not isinstance(acoustic, SpeechCLIPEncoder) or acoustic.layer_cache is None:
        yield
        return
    cache, acoustic.layer_cache = acoustic.layer_cache, _BlankLayers(acoustic.speech_encoder)
    try:
        yield
    finally:
        acoustic.layer_cache = cache


class _BlankLayers:
    """A cache with zeros for every recording."""

    def __init__(self, encoder: SpeechEncoder) -> None:
        self._encoder = encoder

    def get(self, waveform: NDArray[np.float32]) -> NDArray[np.float16]:
        num_frames = int(self._encoder.num_frames(torch.tensor([len(waveform)])))
        return np.zeros((self._encoder.num_layers, num_frames, self._encoder.width), np.float16)

    def put(self, waveform: NDArray[np.float32], layers: NDArray[np.float16]) -> None:
        raise AssertionError("it has all layers")


@contextlib.contextmanager
def _without_recomputation(model: BrewCLIP) -> Iterator[None]:
    clip = model.clip
    recompute = isinstance(clip, PromptedCLIP) and clip.recompute
    if recompute:
        clip.recompute = False
    try:
        yield
    finally:
        if recompute:
            clip.recompute = True
