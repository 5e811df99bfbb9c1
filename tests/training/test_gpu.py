"""The training step on a GPU: the same as on a CPU, without a wait of the host; run wherever CUDA is found."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from brewclip.benchmarks.steps import Unattended, forward_and_backward
from brewclip.data.batches import Batch, Pair, collate
from brewclip.data.transfer import CopyStream
from brewclip.losses import brewclip_loss
from brewclip.training.compiled import compile_encoders
from brewclip.training.guard import StepGuard
from brewclip.training.loop import train
from brewclip.training.optimizer import build_optimizer, load_optimizer_state, optimizer_state
from brewclip.training.state import TrainState
from tests.training.tiny import build_tiny, tiny_batch, tiny_config

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU for torch")]
CPU, GPU = torch.device("cpu"), torch.device("cuda")
ROWS = 8
LENGTHS = [(7, 9), (12, 30), (7, 130)]


@pytest.fixture(autouse=True)
def exact_products():
    """Compute float32 products in float32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def on_gpu(batch: Batch) -> Batch:
    return replace(
        batch, **{name: part.to(GPU) for name, part in vars(batch).items() if isinstance(part, torch.Tensor)}
    )


def gradients_of(model, batch):
    model.zero_grad()
    forward_and_backward(tiny_config(ROWS), model, batch)
    return {name: parameter.grad.cpu() for name, parameter in model.trained_parameters().items()}


def iter_batches():
    for number in itertools.count():
        batch, positions = tiny_batch(ROWS, *LENGTHS[number % len(LENGTHS)])
        yield on_gpu(batch), positions.to(GPU) + ROWS * number


def steps(num_steps, model=None, optimizer=None, state=None, batches=None, total_steps=6):
    """Take steps of a run of six on the GPU; return model and optimiser."""
    config = tiny_config(ROWS)
    config = replace(config, optim=replace(config.optim, total_steps=total_steps, peak_lr=1e-3))
    model = build_tiny(config).to(GPU) if model is None else model
    optimizer = optimizer or build_optimizer(model.trained_parameters(), config.optim)
    state = state or TrainState()
    hooks = Unattended(config, GPU)
    hooks.stop_requested = lambda: state.step + 1 >= num_steps
    train(config, model, optimizer, batches or itertools.islice(iter_batches(), state.step, None), state, hooks)
    assert state.step == num_steps
    return model, optimizer


@pytest.mark.parametrize("variant", ["brewclip", "acoustic", "pipeline"])
def test_features_loss_and_gradients_are_those_of_a_cpu(variant):
    config, (batch, _) = tiny_config(ROWS, variant), tiny_batch(ROWS)
    expected = gradients_of(build_tiny(config), batch)
    found = gradients_of(build_tiny(config).to(GPU), on_gpu(batch))
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_bfloat16_is_near_float32():
    (batch, positions), model = tiny_batch(ROWS), build_tiny(tiny_config(ROWS)).eval()
    inputs = (batch.images, batch.tokens, batch.audio, batch.audio_mask, positions, batch.confidence)
    with torch.no_grad():
        expected = model(*inputs)
        model.to(GPU)
        with torch.autocast("cuda", torch.bfloat16):
            found = model(*(part.to(GPU) for part in inputs), num_tokens=batch.num_tokens)
        for one, other in zip(found, expected, strict=True):
            assert F.cosine_similarity(one.float().cpu(), other).min() > 0.99
        losses = [
            brewclip_loss(features, ids, model.logit_scale.to(ids.device), 0.1, lambda rows: rows)["loss"].item()
            for features, ids in ((found, batch.image_ids.to(GPU)), (expected, batch.image_ids))
        ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_step_makes_the_host_wait_for_nothing():
    """After the first steps, torch itself raises where the host would wait for the device."""

    def batches():
        ready = list(itertools.islice(iter_batches(), 6))
        try:
            for number, one in enumerate(ready):
                torch.cuda.set_sync_debug_mode("error" if 2 <= number < 5 else "default")
                yield one
        finally:
            torch.cuda.set_sync_debug_mode("default")

    steps(6, batches=batches())


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped():
    """The fused Adam keeps its step counts on the device; checkpoints hold them on the host."""
    whole, whole_optimizer = steps(6)
    half, half_optimizer = steps(3)
    names = list(half.trained_parameters())
    model, optimizer = build_tiny(tiny_config(ROWS)).to(GPU), None
    model.load_trained_state(half.trained_state())
    optimizer = build_optimizer(model.trained_parameters(), tiny_config(ROWS).optim)
    load_optimizer_state(optimizer, names, optimizer_state(half_optimizer, names))
    model, optimizer = steps(6, model, optimizer, TrainState(step=3))
    for name, tensor in whole.trained_state().items():
        torch.testing.assert_close(model.trained_state()[name], tensor, rtol=1e-4, atol=1e-6, msg=name)
    counts = [optimizer_state(one, names)[f"{names[0]}|step"].item() for one in (whole_optimizer, optimizer)]
    assert counts == [6, 6] and all(optimizer.defaults["fused"] for optimizer in (whole_optimizer, optimizer))


def test_a_step_is_skipped_on_the_device():
    parameter = torch.nn.Parameter(torch.ones(3, device=GPU))
    optimizer = torch.optim.Adam([parameter], lr=0.1, fused=True)
    guard = StepGuard(optimizer, GPU)
    for gradient in (1.0, float("inf"), 1.0):
        parameter.grad = torch.full_like(parameter, gradient)
        norm = parameter.grad.norm()
        torch.cuda.set_sync_debug_mode("error")
        guard.step(norm)
        torch.cuda.set_sync_debug_mode("default")
    assert guard.first_bad() == (1, float("inf"))
    assert optimizer.state[parameter]["step"].item() == 1
    torch.testing.assert_close(parameter.detach().cpu(), torch.full((3,), 0.9))


@pytest.mark.slow
def test_compiled_encoders_have_the_same_gradients():
    torch._dynamo.reset()
    model = build_tiny(tiny_config(ROWS)).to(GPU)
    batch = on_gpu(tiny_batch(ROWS)[0])
    expected = gradients_of(model, batch)
    compile_encoders(model)
    for name, gradient in gradients_of(model, batch).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)


def test_recomputed_blocks_have_the_same_gradients_in_less_memory():
    batch = on_gpu(tiny_batch(512, num_tokens=39)[0])
    gradients, peaks = [], []
    for recompute in (False, True):
        model = build_tiny(tiny_config(512), num_layers=8).to(GPU)
        model.clip.recompute = recompute
        torch.cuda.reset_peak_memory_stats()
        gradients.append(gradients_of(model, batch))
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 0.6 * peaks[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_batches_that_were_copied_aside_are_those_of_a_cpu():
    """Bit for bit, while the device is busy with other work in its own stream."""
    random = np.random.default_rng(0)
    images, frames = random.integers(0, 256, (ROWS, 3, 32, 32), np.uint8), random.normal(size=(ROWS, 50, 16))
    tokens = torch.arange(ROWS * 7).view(ROWS, 7)
    pairs = [
        Pair(str(row), str(row), images[row], tokens[row], frames[row, : 20 + row].astype(np.float16), "")
        for row in range(ROWS)
    ]
    numbers = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
    expected, copies = collate(pairs, *numbers, CPU), CopyStream(GPU)
    busy = torch.randn(2000, 2000, device=GPU)
    for _ in range(20):
        busy = busy @ busy / 2000
        found = copies.finish(copies.start(lambda: collate(pairs, *numbers, GPU)))
        for name, part in vars(expected).items():
            if isinstance(part, torch.Tensor):
                assert torch.equal(getattr(found, name).cpu(), part), name
