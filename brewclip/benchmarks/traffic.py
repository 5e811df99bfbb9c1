"""Analytical step time and traffic of a training run on many GPUs.

Every worker encodes its own pairs; then features of all workers are gathered (forward), the gradients of the gathered
features are summed and scattered (backward), and the gradients of trained parameters are summed: those of the acoustic
layer while the towers' backward pass runs, those of the prompts behind it. Meanwhile the next pairs are read from
storage, and image ids travel during the forward pass.
"""

from dataclasses import dataclass

_FLOAT_BYTES = 4
_FEATURES = 4  # image, speech, acoustic and text features of a pair
_LOSSES = 4  # logit matrices: outer and inner, both ways


@dataclass(frozen=True)
class Tower:
    """A transformer of CLIP: width, blocks, positions of a sample."""

    width: int
    num_layers: int
    num_tokens: int

    def flops(self) -> float:
        """Return the operations of one sample, forward and backward: as weights are frozen, both cost the same.

        The last block computes one position, and keys and values of all.
        """
        products = 24 * self.width**2 * self.num_tokens  # 12 W^2 weights, a multiplication and an addition each
        attention = 4 * self.num_tokens**2 * self.width
        last = 4 * self.width**2 * self.num_tokens + 20 * self.width**2 + 4 * self.num_tokens * self.width
        return 2.0 * ((self.num_layers - 1) * (products + attention) + last)


@dataclass(frozen=True)
class Workload:
    """Cost of one pair.

    Attributes:
        name: of the preset.
        vision, text: CLIP's towers.
        patch_flops: of the image's first convolution; it has no backward.
        embed_dim: of the features.
        trained_parameters: whose gradients are summed over workers.
        late_parameters: of them, those whose gradients are complete at the end of the backward pass only.
        pair_bytes: read from storage: image and Whisper features.
    """

    name: str
    vision: Tower
    text: Tower
    patch_flops: float
    embed_dim: int
    trained_parameters: int
    late_parameters: int
    pair_bytes: int

    def flops(self) -> float:
        """Return the operations of one pair, without the acoustic layer's single row."""
        return self.vision.flops() + self.text.flops() + self.patch_flops


@dataclass(frozen=True)
class Machine:
    """Speed of a worker and its link.

    Attributes:
        flops_per_second: achieved by a step, not the data sheet's peak.
        bytes_per_second: of one worker's link in a ring.
        latency_seconds: of one hop of a ring.
    """

    flops_per_second: float
    bytes_per_second: float
    latency_seconds: float


@dataclass(frozen=True)
class StepTime:
    """Time and traffic of a step.

    Attributes:
        compute_seconds: towers, forward and backward.
        loss_seconds: one worker's rows of the logits.
        gather_seconds: features forward, their gradients backward.
        reduce_seconds: gradients of trained parameters, without what the towers' backward pass hides.
        gather_bytes, reduce_bytes: sent by one worker.
        read_bytes_per_second: from storage, by all workers together, so as not to delay them.
    """

    compute_seconds: float
    loss_seconds: float
    gather_seconds: float
    reduce_seconds: float
    gather_bytes: float
    reduce_bytes: float
    read_bytes_per_second: float

    @property
    def seconds(self) -> float:
        """Total time of the step."""
        return self.compute_seconds + self.loss_seconds + self.gather_seconds + self.reduce_seconds


def step_time(workload: Workload, machine: Machine, num_workers: int, pairs_per_worker: int) -> StepTime:
    """Return the time of a step of `num_workers` times `pairs_per_worker` pairs.

    Rings: a gather and a reduce-scatter send the other workers' share once, a sum twice; each pass takes as many hops
    as there are other workers. Half of the towers' time is their backward pass.
    """
    others = (num_workers - 1) / num_workers
    rows = num_workers * pairs_per_worker
    feature_bytes = _FEATURES * workload.embed_dim * _FLOAT_BYTES * rows
    gather_bytes = 2 * others * feature_bytes  # once forward, once backward
    late_bytes = 2 * others * workload.late_parameters * _FLOAT_BYTES
    early_bytes = 2 * others * workload.trained_parameters * _FLOAT_BYTES - late_bytes
    compute = workload.flops() * pairs_per_worker / machine.flops_per_second
    loss = 3 * _LOSSES * 2 * pairs_per_worker * rows * workload.embed_dim / machine.flops_per_second
    hops = (num_workers - 1) * machine.latency_seconds
    gather = gather_bytes / machine.bytes_per_second + 2 * hops
    early, late = (part / machine.bytes_per_second + 2 * hops for part in (early_bytes, late_bytes))
    reduce = max(0.0, early - compute / 2) + late
    read = rows * workload.pair_bytes / (compute + loss + gather + reduce)
    return StepTime(compute, loss, gather, reduce, gather_bytes, early_bytes + late_bytes, read)


def weak_efficiency(workload: Workload, machine: Machine, num_workers: int, pairs_per_worker: int) -> float:
    """Return the speed of a worker among `num_workers`, relative to one alone."""
    alone = step_time(workload, machine, 1, pairs_per_worker).seconds
    return alone / step_time(workload, machine, num_workers, pairs_per_worker).seconds
