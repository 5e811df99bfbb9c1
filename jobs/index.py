"""Make an index of images with all workers of a Ray cluster, or bring it up to date.

    ray job submit --working-dir . -- python jobs/index.py s3://bucket/images --out s3://bucket/index
    python jobs/index.py s3://bucket/images 's3://bucket/more/*.jpg' --out s3://bucket/index --checkpoint s3://bucket/runs/NAME

The same as `brewclip index` does on one machine: only files that are new or changed are read, and an interrupted job
resumes where it stopped. Images, index and checkpoint must be where all workers reach them.
"""

from dataclasses import dataclass
from typing import Annotated

from brewclip.commands.index import IndexOptions, print_report, recorded_system
from brewclip.config import ClusterConfig, exit_on_user_error, parse_options
from brewclip.config.ranges import Range
from brewclip.config.settings import UseGpu


@dataclass(frozen=True)
class IndexJob(IndexOptions):
    """Settings of the job."""

    cpus_per_worker: Annotated[float, Range(0.01, 1024)] = 1.0
    """CPUs of a worker; there are as many workers as the cluster has room for."""
    use_gpu: UseGpu = "auto"
    """One GPU for each worker; `auto` uses GPUs if the cluster has any."""


def main() -> None:
    """Connect to Ray, embed what is new, write the index and print what was done."""
    with exit_on_user_error():
        options = parse_options(__doc__, IndexJob)
        from brewclip import load
        from brewclip.cluster import check_resources, connect, demand_of
        from brewclip.commands.index_on_ray import build_on_ray
        from brewclip.serving.index.sources import list_images

        files = list_images(options.images)  # fails before Ray starts
        checkpoint, clip = recorded_system(options.out, options.checkpoint, options.clip)
        embedder = load(checkpoint, clip=clip, device=options.device)
        connect()
        cluster = ClusterConfig(cpus_per_worker=options.cpus_per_worker, use_gpu=options.use_gpu)
        check_resources(demand_of("indexing", cluster, 1, "--"))
        report = build_on_ray(embedder, clip, files, options.out, cluster, options.approximate)
        print_report(report, options.out, as_json=options.json)


if __name__ == "__main__":
    main()
