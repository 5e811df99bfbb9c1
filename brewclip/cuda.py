"""Diagnosis of nodes where Ray grants a GPU that torch cannot use: driver, device plugin or image.

Ray counts a GPU as soon as Kubernetes grants one; torch needs its device files, the driver's library and a build for
CUDA that the driver knows. It is found out before workers start, on a machine that will run one.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from brewclip.errors import UserError

# The least branch of drivers for each CUDA, from NVIDIA's release notes; a later one works too.
_LEAST_DRIVER = {12: "R525", 13: "R580"}


@dataclass(frozen=True)
class Machine:
    """What a machine has for CUDA.

    Attributes:
        torch_cuda: CUDA version that torch was built for, None for a build without.
        device_files: as /dev/nvidia0.
        driver_cuda: version of CUDA that the driver's library knows, None if the library is not found, 0 if it is but
            does not start.
        num_devices: that torch can use.
    """

    torch_cuda: str | None
    device_files: tuple[str, ...]
    driver_cuda: int | None
    num_devices: int


def describe_missing(machine: Machine) -> str:
    """Return, in one line, what keeps torch from the GPU and what to do; empty if nothing does."""
    if machine.num_devices:
        return ""
    if machine.torch_cuda is None:
        return "the image: its torch is built without CUDA; use an image made without the build argument TORCH_INDEX"
    if not machine.device_files:
        return "the device plugin: there is no /dev/nvidia*; install NVIDIA's device plugin or its GPU operator"
    needed = int(machine.torch_cuda.partition(".")[0])
    if machine.driver_cuda is None:
        return (
            "the driver's library: libcuda.so.1 is not found; on GKE set LD_LIBRARY_PATH=/usr/local/nvidia/lib64, "
            "elsewhere NVIDIA_DRIVER_CAPABILITIES=compute,utility (k8s/components/gpu sets both)"
        )
    if machine.driver_cuda // 1000 < needed:
        known = f"{machine.driver_cuda // 1000}.{machine.driver_cuda % 1000 // 10}"
        return (
            f"the driver: it knows CUDA {known}, torch is built for {machine.torch_cuda}; install driver "
            f"{_LEAST_DRIVER.get(needed, 'of that CUDA')} or later on the nodes"
        )
    return "the driver: its library is found and new enough, but reports no device; look at `nvidia-smi` on the node"


def probe_machine() -> Machine:
    """Return what this machine has for CUDA."""
    import torch

    return Machine(
        torch.version.cuda,
        tuple(sorted(str(path) for path in Path("/dev").glob("nvidia[0-9]*"))),
        driver_cuda_version(),
        torch.cuda.device_count() if torch.cuda.is_available() else 0,
    )


def driver_cuda_version(load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> int | None:
    """Return the version of CUDA that the driver knows, as 13000 for 13.0; None without its library."""
    try:
        library = load("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    return version.value if library.cuDriverGetVersion(ctypes.byref(version)) == 0 else 0


def check_cuda(what: str, num_gpus: float = 1) -> None:
    """Refuse to go on where torch cannot use the GPU that Ray grants; one machine of the connected cluster is asked.

    Args:
        what: purpose of the GPUs, for the message.
        num_gpus: that the question takes.

    Raises:
        UserError: naming the driver, the device plugin or the image.
    """
    import ray

    probe = ray.remote(num_cpus=0, num_gpus=num_gpus, max_retries=0)(probe_machine)
    missing = describe_missing(ray.get(probe.remote()))
    if missing:
        raise UserError(f"{what} asks for GPUs and Ray grants one, but torch cannot use it; missing is {missing}")
