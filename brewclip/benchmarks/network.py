"""Bandwidth and latency of sums over the workers of a cluster."""

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brewclip.benchmarks.gpu_scaling import GPU


@dataclass(frozen=True)
class Network:
    """What was measured.

    Attributes:
        num_workers: that took part.
        backend: of torch.distributed: nccl or gloo.
        nodes: on which they ran.
        latency_seconds: of a sum of one number.
        seconds: of one sum, by its bytes.
    """

    num_workers: int
    backend: str
    nodes: int
    latency_seconds: float
    seconds: dict[int, float]

    def bus_bytes_per_second(self, num_bytes: int) -> float:
        """Return the bytes per second over the slowest link: a ring sends each byte 2 (W - 1)/W times."""
        return 2 * (self.num_workers - 1) / self.num_workers * num_bytes / self.seconds[num_bytes]


def measure_network(num_workers: int, use_gpu: bool, megabytes: int, repeats: int) -> Network:
    """Start workers on the connected cluster and return what their sums take."""
    import ray.train
    from ray.train.torch import TorchTrainer

    with tempfile.TemporaryDirectory(prefix="brewclip-network-") as folder:
        storage = Path(folder) / "result"
        trainer = TorchTrainer(
            measure_sums,  # type: ignore[arg-type]  # written before training functions could return
            train_loop_config={"bytes": [megabytes * 10**6 // part for part in (16, 4, 1)], "repeats": repeats},
            scaling_config=ray.train.ScalingConfig(num_workers=num_workers, use_gpu=use_gpu),
            run_config=ray.train.RunConfig(  # type: ignore[call-arg]  # seen by mypy as the old one of ray.air
                name="network", storage_path=str(storage), logging_config=ray.train.LoggingConfig(log_level="WARNING")
            ),
        )
        result: Any = trainer.fit()  # what workers report without a checkpoint may be lost
    return Network(**result.return_value)  # of rank 0


def measure_sums(settings: dict[str, Any]) -> dict[str, Any]:
    """Measure on one worker; returns a `Network` as plain values."""
    import ray.train
    import ray.train.torch
    import torch
    import torch.distributed as dist

    device = ray.train.torch.get_device()
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    hosts: list[str] = [""] * world_size
    if world_size > 1:
        dist.all_gather_object(hosts, ray.get_runtime_context().get_node_id())

    def seconds_of(num_bytes: int) -> float:
        values = torch.ones(max(1, num_bytes // 4), device=device)
        for number in range(settings["repeats"] + 2):  # two to warm up: NCCL connects at the first
            if number == 2:
                _wait(device)
                started = time.perf_counter()
            if world_size > 1:
                dist.all_reduce(values)
        _wait(device)
        return (time.perf_counter() - started) / settings["repeats"]

    backend = dist.get_backend() if world_size > 1 else "none"
    latency = seconds_of(4)
    seconds = {size: seconds_of(size) for size in settings["bytes"]}
    return asdict(Network(world_size, backend, len(set(hosts)), latency, seconds))


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_network(network: Network) -> str:
    """Return lines of text: latency, bandwidth by size, and what docs/scaling.md assumes."""
    lines = [
        f"{network.num_workers} workers on {network.nodes} nodes, {network.backend}: a sum of one number takes "
        f"{network.latency_seconds * 1e6:.0f} us"
    ]
    lines += [
        f"{size / 1e6:8.1f} MB in {seconds * 1e3:8.2f} ms: {network.bus_bytes_per_second(size) / 1e9:7.2f} GB/s"
        for size, seconds in network.seconds.items()
    ]
    return "\n".join([*lines, f"docs/scaling.md assumes {GPU.bytes_per_second / 1e9:g} GB/s for each GPU"])
