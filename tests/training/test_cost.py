"""Operations and memory of a step, from two rows of its batch; the peaks of cards; the same with less memory."""

from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from brewclip.benchmarks.steps import count_flops, forward_and_backward
from brewclip.factory import build_autocast
from brewclip.training.cost import PeakRate, StepCost, find_peak, peak_memory_bytes, peak_tflops
from tests.training.tiny import build_tiny, tiny_batch, tiny_config

CPU = torch.device("cpu")
ROWS = 16


def cost_of(config, recompute=False):
    config = replace(config, model=replace(config.model, recompute=recompute))
    model = build_tiny(config, num_layers=6)
    return config, model, StepCost(model, lambda: build_autocast(config, CPU), ROWS)


@pytest.mark.parametrize("variant", ["brewclip", "acoustic", "pipeline"])
def test_operations_are_those_of_the_whole_step(variant):
    batch, _ = tiny_batch(ROWS)
    config, model, cost = cost_of(tiny_config(ROWS, variant))
    assert cost.flops(batch) == pytest.approx(count_flops(config, model, batch), rel=0.02)
    assert all(parameter.grad is not None for parameter in model.trained_parameters().values())  # of count_flops
    _, model, recomputing = cost_of(config, recompute=True)
    assert recomputing.flops(batch) == cost.flops(batch)
    assert all(parameter.grad is None for parameter in model.trained_parameters().values())
    assert model.clip.recompute


def test_a_shape_is_counted_once(monkeypatch):
    _, _, cost = cost_of(tiny_config(ROWS))
    counted = []
    monkeypatch.setattr(cost, "_count", lambda batch: counted.append(batch) or len(counted))
    lengths = [(7, 9), (7, 60), (7, 65), (8, 9), (7, 9)]
    assert [cost.flops(tiny_batch(ROWS, *shape)[0]) for shape in lengths] == [1, 1, 2, 3, 1]


def test_memory_of_a_batch_is_estimated_from_two_rows():
    """Against what the whole step keeps; a batch that is computed again keeps a fraction."""
    batch, _ = tiny_batch(ROWS, num_tokens=30)
    config, model, cost = cost_of(tiny_config(ROWS))
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        forward_and_backward(config, model, batch)
    measured = sum(size for pointer, (size, _) in kept.items() if pointer not in own)
    assert cost.kept_bytes(batch) == pytest.approx(measured, rel=0.15)
    _, _, recomputing = cost_of(config, recompute=True)
    assert recomputing.kept_bytes(batch) < cost.kept_bytes(batch) / 2


def test_recomputed_gradients_are_the_same():
    batch, _ = tiny_batch(ROWS)
    gradients = []
    for recompute in (False, True):
        config, model, _ = cost_of(tiny_config(ROWS), recompute)
        forward_and_backward(config, model, batch)
        gradients.append({name: parameter.grad for name, parameter in model.trained_parameters().items()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", PeakRate(312, 19.5)),
        ("NVIDIA H100 PCIe", PeakRate(756, 51)),
        ("NVIDIA H100 80GB HBM3", PeakRate(989, 67)),
        ("NVIDIA L40S", PeakRate(362, 91.6)),
        ("NVIDIA A10G", PeakRate(70, 35)),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_are_found_by_name(name, peak):
    assert find_peak(name) == peak


def test_a_cpu_has_no_known_peak_but_memory():
    assert peak_tflops(CPU, build_autocast(tiny_config(ROWS), CPU)) is None
    assert peak_memory_bytes(CPU) > 2**25
