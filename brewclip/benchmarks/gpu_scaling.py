"""Predicted scaling of the paper's presets on many GPUs: rows of figures, Markdown tables, and a figure.

`traffic` holds the arithmetic, `scaling` measures two workers against it.
"""

from dataclasses import asdict
from typing import Any

from brewclip.benchmarks.measure import show
from brewclip.benchmarks.traffic import Machine, Tower, Workload, step_time, weak_efficiency

# ViT-L-14 at 224 pixels and captions of 20 tokens; the images' 30 kB and 2 bytes x 512 a frame of speech.
_VISION, _TEXT, _PATCHES = Tower(1024, 24, 261), Tower(768, 12, 24), 2.0 * 256 * 3 * 14**2 * 1024
_TRAINED, _PROMPTS = 10_439_169, 790_528
PAPER = (
    Workload("flickr8k", _VISION, _TEXT, _PATCHES, 768, _TRAINED, _PROMPTS, 30_000 + 1024 * 50 * 4),
    Workload("localized_narratives", _VISION, _TEXT, _PATCHES, 768, _TRAINED, _PROMPTS, 30_000 + 1024 * 50 * 18),
)
GPU = Machine(flops_per_second=125e12, bytes_per_second=25e9, latency_seconds=1e-5)
"""An assumption: 40 % of 312 TFLOP/s in bfloat16, and 200 Gbit/s for each GPU."""
NUM_GPUS = (1, 8, 16, 32, 64, 128, 256)


def arithmetic_rows(pairs_per_worker: int = 32) -> list[dict[str, Any]]:
    """Return the predictions for the paper's presets, one row for each number of GPUs."""
    rows = []
    for workload in PAPER:
        for num_gpus in NUM_GPUS:
            step = step_time(workload, GPU, num_gpus, pairs_per_worker)
            efficiency = weak_efficiency(workload, GPU, num_gpus, pairs_per_worker)
            row = {"workload": workload.name, "num_gpus": num_gpus, "pairs_per_gpu": pairs_per_worker}
            rows.append(row | asdict(step) | {"seconds": step.seconds, "efficiency": efficiency})
    return rows


def scaling_tables(prediction: dict[str, float]) -> str:
    """Return the measured check and the predictions as Markdown tables."""
    check = {name: f"{show(1000 * value)} ms" for name, value in prediction.items() if name.endswith("_seconds")}
    lines = ["| a step on two CPU cores | |", "|---|---|"]
    lines += [f"| {name.removesuffix('_seconds').replace('_', ' ')} | {value} |" for name, value in check.items()]
    lines += [
        "",
        "| preset | GPUs | pairs per GPU | step | of it gather + sum | sent by a GPU | storage | efficiency |",
    ]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for row in [*arithmetic_rows(32), *arithmetic_rows(256)]:
        moved = 1000 * (row["gather_seconds"] + row["reduce_seconds"])
        sent = (row["gather_bytes"] + row["reduce_bytes"]) / 1e6
        lines.append(
            f"| {row['workload']} | {row['num_gpus']} | {row['pairs_per_gpu']} | {1000 * row['seconds']:.0f} ms | "
            f"{moved:.1f} ms | {sent:.0f} MB | {row['read_bytes_per_second'] / 1e9:.2f} GB/s | "
            f"{100 * row['efficiency']:.0f} % |"
        )
    return "\n".join(lines) + "\n"


def draw_scaling(path: str) -> None:
    """Draw efficiency and storage traffic over the number of GPUs, for two sizes of the batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for pairs, line in ((32, "-"), (256, "--")):
        for workload, colour in zip(PAPER, ("tab:blue", "tab:orange"), strict=True):
            steps = [step_time(workload, GPU, number, pairs) for number in NUM_GPUS]
            shares = [100 * weak_efficiency(workload, GPU, number, pairs) for number in NUM_GPUS]
            reads = [step.read_bytes_per_second / 1e9 for step in steps]
            right.plot(NUM_GPUS, reads, line, color=colour, marker="o", label=f"{workload.name}, {pairs} pairs per GPU")
        left.plot(NUM_GPUS, shares, line, color="black", marker="o", label=f"{pairs} pairs per GPU")
    left.set(xlabel="GPUs", ylabel="weak-scaling efficiency in %", ylim=(0, 105), xscale="log")
    right.set(xlabel="GPUs", ylabel="read from storage in GB/s", xscale="log", yscale="log")
    for axes in (left, right):
        axes.set_xticks(NUM_GPUS, [str(number) for number in NUM_GPUS], minor=False)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)
