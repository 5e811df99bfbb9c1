"""Relevance maps: the contribution of each image patch and each speech frame to the similarity of a pair.

The paper shows "the gradient-updating direction of the penultimate layer of each module". Here that is gradient times
activation, summed over channels, with negative sums set to zero:
- per patch, at the attention input of the penultimate block of the image tower (its tokens after the first norm);
- per frame of 20 ms, at the input of the acoustic channel, Whisper's last layer.

The mean activation over the image or recording is subtracted first, as it is not specific to any position. On the
scenes world's dev split (50 captions; zero-shot and trained), named objects had 3.8 and 3.6 times the relevance of
their area, unnamed objects 0.6 times, and the maximum was in a named object for 88 and 92 %. With gradients averaged
over the patches first, as in Grad-CAM, the values were 2.4 and 1.9 times, 1.0 times, 70 and 64 %. The map was selected
among 15 on these captions, so these values are slightly optimistic.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from brewclip.models.brewclip import BrewCLIP
from brewclip.models.clip import PromptedCLIP


def patch_relevance(model: BrewCLIP, image: Tensor, speech_features: Tensor) -> NDArray[np.float32]:
    """Compute the relevance of each image patch for the similarity with a recording.

    Args:
        model: in eval mode.
        image: (3, S, S) float32, normalised.
        speech_features: (embed_dim,) F_L of the recording.

    Returns:
        (rows, columns), maximum 1; all 0 if no patch is relevant.

    Raises:
        ValueError: if the image tower has fewer than two blocks, or none that can be looked into.
    """
    if not isinstance(model.clip, PromptedCLIP):
        raise ValueError("an adapter has no towers to look into: visualize a model with --model.adaptation prompts")
    blocks = model.clip.clip.visual.transformer.resblocks
    if len(blocks) < 2:
        raise ValueError(f"the image tower has {len(blocks)} block; relevance is read at the last but one")
    captured: list[Tensor] = []

    def capture(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        captured.append(output)

    hook = blocks[-2].ln_1.register_forward_hook(capture)
    try:
        with torch.enable_grad():
            features = model.encode_image(image[None].detach().clone().requires_grad_())
    finally:
        hook.remove()
    rows, columns = model.clip.clip.visual.grid_size
    (tokens,) = captured  # (1, 1 + patches + M, Dv)
    similarity = F.cosine_similarity(features, speech_features[None].detach()).sum()
    (gradient,) = torch.autograd.grad(similarity, tokens)
    patches = slice(1, 1 + rows * columns)
    return _relevance(tokens[0, patches], gradient[0, patches]).reshape(rows, columns)


def frame_relevance(
    model: BrewCLIP, tokens: Tensor, audio: Tensor, image_features: Tensor
) -> NDArray[np.float32] | None:
    """Compute the relevance of each speech frame, through the acoustic channel, for the similarity with an image.

    Args:
        model: in eval mode.
        tokens: (L,) or (W, L) transcript.
        audio: (T, audio_dim) Whisper frames of the recording, without padding.
        image_features: (embed_dim,) F_V of the image.

    Returns:
        (T,), maximum 1; all 0 if no frame is relevant; None if the model has no acoustic channel or there is no frame.
    """
    if model.acoustic is None or not len(audio):
        return None
    frames = audio[None].detach().clone().requires_grad_()
    with torch.enable_grad():
        mask = torch.ones_like(frames[..., 0], dtype=torch.bool)
        speech, _, _ = model.encode_speech(tokens[None], frames, mask, confidence=frames.new_zeros(1))
        similarity = F.cosine_similarity(speech, image_features[None].detach()).sum()
        (gradient,) = torch.autograd.grad(similarity, frames)
    return _relevance(frames[0], gradient[0])


def _relevance(activations: Tensor, gradient: Tensor) -> NDArray[np.float32]:
    """Compute positive gradient times activation, (n, D) -> (n,), scaled to at most 1."""
    activations = activations.detach() - activations.detach().mean(dim=0)
    parts = (gradient * activations).sum(dim=1).relu()
    return (parts / parts.max().clamp(min=torch.finfo(parts.dtype).tiny)).float().cpu().numpy()
