"""What a training costs on GPUs: hours by the arithmetic of docs/scaling.md, times prices that you give.

    python k8s/costs.py --gpu-price 2.5 --head-price 0.2

An estimate for the paper's presets at their global batch size: no waiting, no restarts, storage that keeps up.
"""

from dataclasses import dataclass
from typing import Annotated

from brewclip.config import exit_on_user_error, parse_options, preset
from brewclip.config.ranges import Range

NUM_GPUS = (1, 4, 8)
PRICE = Range(0.0, 1e6)


@dataclass(frozen=True)
class Prices:
    """Prices per hour, in a currency of yours."""

    gpu_price: Annotated[float, PRICE] = 1.0
    """One GPU with its share of the machine."""
    head_price: Annotated[float, PRICE] = 0.1
    """Machine of the head."""


def cost_table(prices: Prices) -> str:
    """Return a Markdown table: hours, GPU hours and price of a training by the number of GPUs."""
    from brewclip.benchmarks.gpu_scaling import GPU, PAPER
    from brewclip.benchmarks.traffic import step_time

    lines = ["| preset | steps | GPUs | hours | GPU hours | price |", "|---|---|---|---|---|---|"]
    for workload in PAPER:
        config = preset(workload.name)
        steps, pairs = config.optim.total_steps, config.run.global_batch_size
        for num_gpus in NUM_GPUS:
            hours = steps * step_time(workload, GPU, num_gpus, pairs // num_gpus).seconds / 3600
            price = hours * (num_gpus * prices.gpu_price + prices.head_price)
            lines.append(
                f"| {workload.name} | {steps:,} | {num_gpus} | {hours:.2f} | {num_gpus * hours:.2f} | {price:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Parse the prices and print the table."""
    with exit_on_user_error():
        prices = parse_options(__doc__, Prices)
    print(cost_table(prices), flush=True)


if __name__ == "__main__":
    main()
