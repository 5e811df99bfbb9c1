"""The training step of open_clip on the same shapes: its model, loss and optimiser, with the same prompts trained.

Prompts are put in by hooks on open_clip's own modules, so that it computes what `PromptedCLIP` does: features are the
same, up to rounding. All else is as open_clip does it: texts in the full context, every position of the last block,
attention by `nn.MultiheadAttention`, `ClipLoss` with local loss and gathered features, AdamW.
"""

import copy
import itertools
import time
from collections.abc import Sequence
from typing import Any, cast

import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.nn import functional as F

from brewclip.benchmarks.steps import Trainee
from brewclip.data.batches import Batch
from brewclip.factory import build_autocast
from brewclip.training.cost import kept_bytes


class OpenClipStep:
    """open_clip with trained prompts, a frozen model otherwise.

    Args:
        trainee: of variant `pipeline`, which trains the same; its prompts are copied.
    """

    def __init__(self, trainee: Trainee) -> None:
        self.config = trainee.config
        self.model = cast(Any, copy.deepcopy(trainee.clip.model))
        prompts: Any = copy.deepcopy(trainee.model.prompts)
        self._num_prompts = prompts.length
        text: Any = getattr(self.model, "text", self.model)
        text.token_embedding.register_forward_hook(
            lambda module, inputs, x: torch.cat([x[:, :1], _expand(prompts.text, x), x[:, 1 + prompts.length :]], dim=1)
        )
        visual: Any = self.model.visual
        visual.ln_pre.register_forward_pre_hook(
            lambda module, inputs: (torch.cat([inputs[0], _expand(prompts.to_vision(prompts.text), inputs[0])], dim=1),)
        )
        scale = self.model.logit_scale.requires_grad_(True)
        scale.data.copy_(trainee.model.logit_scale.detach())
        self.trained: list[nn.Parameter] = [*prompts.parameters(), scale]
        self.loss = ClipLoss(local_loss=True, gather_with_grad=True)
        optim = self.config.optim
        self.optimizer = torch.optim.AdamW(self.trained, lr=optim.peak_lr, weight_decay=optim.weight_decay)

    def encode(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return the features of images and texts, normalised, and the logit scale.

        Args:
            batch: captions must leave room for the prompts.
        """
        missing = self.model.context_length - batch.tokens.shape[1]
        tokens = F.pad(batch.tokens, (0, missing))
        places = tokens.new_zeros(len(tokens), self._num_prompts)  # their embeddings are replaced
        tokens = torch.cat([tokens[:, :1], places, tokens[:, 1 : tokens.shape[1] - self._num_prompts]], dim=1)
        image, text, scale = self.model(batch.images, tokens)
        return image, text, scale

    def compute_loss(self, batch: Batch) -> Tensor:
        """Return the loss of a batch."""
        with build_autocast(self.config, batch.images.device):
            return self.loss(*self.encode(batch))

    def rate(self, batches: Sequence[Batch]) -> float:
        """Train for the configured steps; return pairs per second."""
        started, steps = time.perf_counter(), self.config.optim.total_steps
        for batch in itertools.islice(itertools.cycle(batches), steps):
            self.optimizer.zero_grad(set_to_none=True)
            self.compute_loss(batch).backward()
            norm = torch.nn.utils.clip_grad_norm_(self.trained, self.config.optim.grad_clip_norm)
            self.optimizer.step()
        norm.item()  # waits for a GPU
        return steps * len(batches[0].keys) / (time.perf_counter() - started)

    def kept_bytes(self, batch: Batch) -> int:
        """Return the bytes that are kept for the backward pass of a batch."""
        return kept_bytes(lambda: self.compute_loss(batch), self.model)


def _expand(prompts: Tensor, x: Tensor) -> Tensor:
    return prompts.to(x.dtype).expand(len(x), -1, -1)
