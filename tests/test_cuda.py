"""A GPU that Ray grants and torch cannot use: which of image, device plugin and driver is named."""

from dataclasses import replace

import pytest
import torch

from brewclip.cuda import Machine, check_cuda, describe_missing, driver_cuda_version
from brewclip.errors import UserError

GOOD = Machine("13.0", ("/dev/nvidia0",), 13000, 1)
NONE = replace(GOOD, num_devices=0)


@pytest.mark.parametrize(
    ("machine", "line"),
    [
        (GOOD, ""),
        (replace(NONE, torch_cuda=None), "the image: its torch is built without CUDA"),
        (replace(NONE, device_files=()), "the device plugin: there is no /dev/nvidia"),
        (replace(NONE, driver_cuda=None), "libcuda.so.1 is not found; on GKE set LD_LIBRARY_PATH"),
        (
            replace(NONE, driver_cuda=12040),
            "it knows CUDA 12.4, torch is built for 13.0; install driver R580 or later",
        ),
        (replace(NONE, torch_cuda="14.2", driver_cuda=13010), "install driver of that CUDA or later"),
        (NONE, "reports no device; look at `nvidia-smi`"),
    ],
)
def test_one_line_names_what_is_missing(machine, line):
    found = describe_missing(machine)
    assert line in found
    assert bool(found) == bool(line)
    assert "\n" not in found


def test_the_driver_says_what_it_knows():
    class Driver:
        def cuDriverGetVersion(self, version):  # noqa: N802  # of NVIDIA's library
            version._obj.value = 13000
            return 0

    def no_library(name):
        raise OSError(name)

    assert driver_cuda_version(lambda name: Driver()) == 13000
    assert driver_cuda_version(no_library) is None


@pytest.mark.services
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU that torch can use")
def test_a_machine_of_the_cluster_is_asked(ray_head):
    import ray

    ray.init(ignore_reinit_error=True, logging_level="error")
    with pytest.raises(
        UserError, match="training asks for GPUs and Ray grants one, but torch cannot use it; missing is"
    ):
        check_cuda("training", num_gpus=0)
