"""Loss and gradients on two and three processes against one, with unequal shares of the batch."""

import math
from dataclasses import replace

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from brewclip.benchmarks.steps import Unattended
from brewclip.distributed import GradientSum, RowGather, agree_on_problem, gather_to_first, sum_own_rows
from brewclip.errors import UserError
from brewclip.losses import brewclip_loss
from brewclip.models.brewclip import BrewCLIP
from brewclip.models.clip import PromptedCLIP
from brewclip.models.whisper_encoder import WhisperEncoder
from brewclip.training import loop
from brewclip.training.optimizer import build_optimizer
from brewclip.training.state import STOP_REQUESTED, TrainState
from tests.models.tiny_encoders import make_waveforms, tiny_whisper
from tests.training.tiny import build_tiny, tiny_batch, tiny_config

VARIANTS = ("brewclip", "speechclip")
IMAGE_IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])  # image 1 comes twice, on two workers


def build_model(variant):
    encoder = WhisperEncoder(tiny_whisper()) if variant == "speechclip" else None
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        text_cfg={"context_length": 12, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
    )
    model = BrewCLIP(PromptedCLIP(clip), variant=variant, audio_dim=10, ff_dim=32, dropout=0.2, speech_encoder=encoder)
    return model.train()


def make_batch(variant):
    torch.manual_seed(1)
    tokens = torch.randint(1, 48, (8, 12))
    tokens[torch.arange(8), torch.arange(3, 11)] = 49
    mask = torch.arange(9) < torch.arange(2, 10)[:, None]
    images, frames = torch.randn(8, 3, 16, 16), torch.randn(8, 9, 10)
    if variant == "speechclip":
        frames, mask = make_waveforms(tuple(range(400, 4400, 500)))
    return images, tokens, frames, mask, torch.arange(100, 108)


def step(rows, variant):
    """Return losses and gradients of a step on this worker's rows, and the ids of all rows."""
    model = build_model(variant)
    gather, gradients = RowGather(rows.stop - rows.start, torch.device("cpu")), GradientSum(model.gradient_groups())
    shared = gather.start(IMAGE_IDS[rows], raised=rows.start == 0)
    features = model(*(part[rows] for part in make_batch(variant)))
    losses = brewclip_loss(
        features, IMAGE_IDS[rows], model.logit_scale, 0.1, gather, all_ids=shared.numbers(), first_row=gather.first_row
    )
    losses["loss"].backward()
    gradients.finish()
    gradients.close()
    assert shared.anyone_raised()
    return losses, {name: one.grad for name, one in model.trained_parameters().items()}, shared.numbers()


def check_transfers(rank, shares):
    """Both ways to sum own rows are the same; nobody raised a flag; what has no gradient counts as zero."""
    gather = RowGather(shares[rank], torch.device("cpu"))
    assert not gather.start(torch.arange(shares[rank]), raised=False).anyone_raised()
    everything = torch.arange(24.0).view(8, 3) * (rank + 1)
    one, other = (sum_own_rows(everything, gather.counts, scatter=scatter) for scatter in (False, True))
    assert torch.equal(one, other) and one.shape == (shares[rank], 3)
    of_first, of_others, of_nobody = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
    gradients = GradientSum([[of_first, of_others], [of_nobody]])
    (of_others if rank else of_first).sum().backward()
    gradients.finish()
    for parameter, count in ((of_first, 1), (of_others, len(shares) - 1), (of_nobody, 0)):
        assert parameter.grad.tolist() == [count] * 2
    gradients.close()


def train_three_steps(world_size, spoil=lambda number, batch: batch, stop_after=math.inf):
    """Return how a run of three steps ends on this worker, whose batches `spoil` may change or refuse."""
    config = tiny_config(4 * world_size)
    config = replace(config, optim=replace(config.optim, total_steps=3))
    model, state, hooks = build_tiny(config), TrainState(), Unattended(config, torch.device("cpu"))
    hooks.stop_requested = lambda: state.step >= stop_after
    optimizer = build_optimizer(model.trained_parameters(), config.optim)
    pairs = (tiny_batch(4) for _ in range(3))
    batches = ((spoil(number, batch), positions) for number, (batch, positions) in enumerate(pairs))
    loop.train(config, model, optimizer, batches, state, hooks)
    return state.step, state.problem, model.trained_state()["acoustic.cls"]


def check_agreement(rank, world_size):
    """What one worker meets ends the run of all of them at the same step: the last batch, a stop, a bad gradient."""
    is_last = rank == world_size - 1

    def refuse(number, batch):
        if is_last and number == 2:
            raise UserError("its last batch is missing")
        return batch

    def spoil(number, batch):
        return replace(batch, images=batch.images * math.nan) if is_last and number == 1 else batch

    *end, weights = train_three_steps(world_size, refuse)
    assert end == [2, "its last batch is missing"]
    *end, stopped_weights = train_three_steps(world_size, stop_after=1 if rank == 0 else math.inf)
    assert end == [2, STOP_REQUESTED] and torch.equal(weights, stopped_weights)
    step, problem, _ = train_three_steps(world_size, spoil)
    assert step == 1 and problem.startswith("the gradient is nan at step 1")


def run_worker(rank, splits, folder):
    torch.set_num_threads(1)
    world_size = len(splits[0])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    results = []
    for shares in splits:
        start = sum(shares[:rank])
        rows = slice(start, start + shares[rank])
        results += [step(rows, variant) for variant in VARIANTS]
    check_transfers(rank, splits[-1])
    check_agreement(rank, world_size)
    assert agree_on_problem("") == ""
    assert agree_on_problem(f"worker {rank} is broken" if rank else "") == "worker 1 is broken"
    assert gather_to_first(rank) == (list(range(world_size)) if rank == 0 else [])
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("splits", [[(4, 4), (5, 3)], [(2, 5, 1), (6, 2, 0)]], ids=["2 processes", "3 processes"])
def test_loss_and_gradients_equal_one_process(splits, tmp_path):
    mp.spawn(run_worker, (splits, tmp_path), nprocs=len(splits[0]))
    by_rank = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(len(splits[0]))]
    expected = [step(slice(0, 8), variant) for variant in VARIANTS] * len(splits)
    for (expected_losses, expected_gradients, _), *results in zip(expected, *by_rank, strict=True):
        for name, alone in expected_losses.items():
            total = sum(losses[name] for losses, *_ in results)
            torch.testing.assert_close(total, alone, rtol=1e-5, atol=1e-5)
        for _, gradients, ids in results:
            assert torch.equal(ids, IMAGE_IDS)
            assert gradients.keys() == expected_gradients.keys()
            for name, alone in expected_gradients.items():
                torch.testing.assert_close(gradients[name], alone, rtol=1e-5, atol=1e-5, msg=name)


def test_without_a_process_group_everything_is_the_identity():
    x = torch.randn(3, 2)
    parameter = torch.nn.Parameter(torch.ones(2))
    gather, gradients = RowGather(3, x.device), GradientSum([[parameter]])
    gradients.finish()
    assert gather(x) is x and gather.first_row == 0
    assert parameter.grad is None and gather_to_first(3) == [3]
    for raised in (False, True):
        assert gather.start(torch.arange(3), raised).anyone_raised() == raised
    assert gather.start(torch.arange(3), False).numbers().tolist() == [0, 1, 2]
