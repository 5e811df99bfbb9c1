"""Measure how fast the workers of a cluster reach each other: sums over all of them, as training does.

    ray job submit --working-dir . -- python jobs/network.py --num-workers 16
    python jobs/network.py --num-workers 2 --use-gpu False --megabytes 8

Each worker takes a GPU (NCCL; without, gloo on CPUs). Prints the latency of a small sum, and for large ones GB/s as
`nccl-tests` counts them (busbw: 2 (W - 1)/W of the bytes over the time), which must come near the slowest link between
two workers: hundreds of GB/s by NVLink within a pod, the network card's between pods. docs/scaling.md assumes 25 GB/s.
"""

from dataclasses import dataclass
from typing import Annotated

from brewclip.config import exit_on_user_error, parse_options
from brewclip.config.ranges import COUNT


@dataclass(frozen=True)
class NetworkOptions:
    """Size of the measurement."""

    num_workers: Annotated[int, COUNT] = 2
    """Workers, one GPU each."""
    use_gpu: bool = True
    """One GPU per worker; otherwise one CPU."""
    megabytes: Annotated[int, COUNT] = 256
    """Bytes of the largest sum; a fourth and a sixteenth of it are measured too."""
    repeats: Annotated[int, COUNT] = 20
    """Sums of each size."""


def main() -> None:
    """Parse the options, connect to Ray, measure and print."""
    with exit_on_user_error():
        options = parse_options(__doc__, NetworkOptions)
        from brewclip.benchmarks.network import describe_network, measure_network
        from brewclip.cluster import Demand, check_resources, connect

        connect()
        check_resources(Demand("the network test", options.num_workers, 1, 1 if options.use_gpu else 0))
        found = measure_network(options.num_workers, options.use_gpu, options.megabytes, options.repeats)
        print(describe_network(found), flush=True)


if __name__ == "__main__":
    main()
