"""Measure how fast the workers of a cluster reach each other: sums over all of them, as training does.

    ray job submit --working-dir . -- python jobs/network.py --num-workers 16
    python jobs/network.py --num-workers 2 --use-gpu False --megabytes 8

Each worker takes a GPU if the cluster has any (NCCL; otherwise gloo on CPUs). Prints the latency of a small sum, and of
large ones GB/s as `nccl-tests` counts them (busbw: 2 (W - 1)/W of the bytes over the time), which must come near the
slowest link between two workers: hundreds of GB/s by NVLink within a pod, the network card's between pods.
docs/scaling.md assumes 25 GB/s.
"""

from dataclasses import dataclass
from typing import Annotated

from brewclip.config import ClusterConfig, exit_on_user_error, parse_options
from brewclip.config.ranges import COUNT
from brewclip.config.settings import UseGpu


@dataclass(frozen=True)
class NetworkOptions:
    """Size of the measurement."""

    num_workers: Annotated[int, COUNT] = 2
    """Workers, of one CPU each."""
    use_gpu: UseGpu = "auto"
    """One GPU for each worker; `auto` uses GPUs if the cluster has any."""
    megabytes: Annotated[int, COUNT] = 256
    """Bytes of the largest sum; a fourth and a sixteenth of it are measured too."""
    repeats: Annotated[int, COUNT] = 20
    """Sums of each size."""


def main() -> None:
    """Parse the options, connect to Ray, measure and print."""
    with exit_on_user_error():
        options = parse_options(__doc__, NetworkOptions)
        from brewclip.benchmarks.network import describe_network, measure_network
        from brewclip.cluster import check_resources, connect, demand_of

        connect()
        demand = demand_of("the network test", ClusterConfig(use_gpu=options.use_gpu), options.num_workers, "--")
        check_resources(demand)
        found = measure_network(options.num_workers, demand.gpus > 0, options.megabytes, options.repeats)
        print(describe_network(found), flush=True)


if __name__ == "__main__":
    main()
