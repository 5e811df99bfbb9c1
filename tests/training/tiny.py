"""A model of a few thousand parameters and batches for it, for tests of the step."""

import open_clip
import torch

from brewclip.config import Config, ModelConfig, OptimConfig, RunConfig
from brewclip.data.batches import Batch
from brewclip.factory import build_model
from brewclip.models.brewclip import BrewCLIP
from brewclip.models.clip import PromptedCLIP

AUDIO_DIM, EMBED_DIM, CONTEXT, END = 10, 16, 40, 49


def tiny_config(global_batch_size: int, variant: str = "brewclip", **run: object) -> Config:
    """Return settings in float32 that log, evaluate and save at the last step only."""
    cadence = {"log_every_steps": 99, "eval_every_steps": 99, "checkpoint_every_steps": 99} | run
    return Config(
        model=ModelConfig(variant=variant, ff_dim=32),
        optim=OptimConfig(warmup_steps=0),
        run=RunConfig(global_batch_size=global_batch_size, precision="float32", **cadence),
    )


def build_tiny(config: Config, num_layers: int = 2) -> BrewCLIP:
    """Build a model with towers of one more layer for images than for texts, in training mode."""
    torch.manual_seed(0)
    clip = open_clip.CLIP(
        embed_dim=EMBED_DIM,
        vision_cfg={"image_size": 16, "layers": num_layers + 1, "width": 16, "head_width": 8, "patch_size": 8},
        text_cfg={"context_length": CONTEXT, "vocab_size": END + 1, "width": 16, "heads": 2, "layers": num_layers},
    )
    return build_model(config, PromptedCLIP(clip, recompute=config.model.recompute), AUDIO_DIM).train()


def tiny_batch(num_rows: int, num_tokens: int = 7, num_frames: int = 9) -> tuple[Batch, torch.Tensor]:
    """Return a batch of random numbers and the positions of its samples."""
    random = torch.Generator().manual_seed(num_tokens * num_frames)
    tokens = torch.zeros(num_rows, CONTEXT, dtype=torch.long)
    tokens[:, : num_tokens - 1] = torch.randint(1, END, (num_rows, num_tokens - 1), generator=random)
    tokens[:, num_tokens - 1] = END
    names, ids = [""] * num_rows, torch.arange(num_rows)
    images = torch.randn(num_rows, 3, 16, 16, generator=random)
    audio = torch.randn(num_rows, num_frames, AUDIO_DIM, generator=random)
    mask = torch.arange(num_frames) < (num_frames - ids % 3)[:, None]
    return Batch(names, names, names, images, tokens, audio, mask, ids, torch.ones(num_rows), num_tokens), ids
