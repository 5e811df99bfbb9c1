"""Loss and gradients on two and three processes against one, with unequal shares of the batch."""

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from brewclip.distributed import agree_on_problem, gather_rows, gather_to_first, sum_gradients
from brewclip.losses import brewclip_loss
from brewclip.models.brewclip import BrewCLIP
from brewclip.models.clip import PromptedCLIP
from brewclip.models.whisper_encoder import WhisperEncoder
from tests.models.tiny_encoders import make_waveforms, tiny_whisper

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
    model = build_model(variant)
    features = model(*(part[rows] for part in make_batch(variant)))
    losses = brewclip_loss(features, IMAGE_IDS[rows], model.logit_scale, 0.1, gather_rows)
    losses["loss"].backward()
    parameters = model.trained_parameters()
    sum_gradients(parameters.values())
    return losses, {name: parameter.grad for name, parameter in parameters.items()}


def run_worker(rank, splits, folder):
    torch.set_num_threads(1)
    world_size = len(splits[0])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    results = []
    for shares in splits:
        start = sum(shares[:rank])
        rows = slice(start, start + shares[rank])
        results += [(*step(rows, variant), gather_rows(IMAGE_IDS[rows])) for variant in VARIANTS]
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
    for (expected_losses, expected_gradients), *results in zip(expected, *by_rank, strict=True):
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
    sum_gradients([parameter])
    assert gather_rows(x) is x and parameter.grad is None and gather_to_first(3) == [3]
