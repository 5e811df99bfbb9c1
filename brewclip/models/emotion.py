"""Linear emotion classifier on BrewCLIP's speech features, and the parameters finetuned with it."""

import torch
from torch import Tensor, nn

from brewclip.models.brewclip import BrewCLIP


def channels_of(model: BrewCLIP) -> tuple[str, ...]:
    """Return the distinct features of a variant: F_A (`acoustic`), F_L (`speech`), F_T (`text`), and `pooled`.

    The last are Whisper's frames pooled by the acoustic channel's attention, in front of its projection, which is
    narrower than they are with a small CLIP.
    """
    if model.acoustic is None:
        return ("text",)
    return ("acoustic", "speech", "text", "pooled") if model.reads_text else ("acoustic", "pooled")


class EmotionClassifier(nn.Module):
    """BrewCLIP's features of one channel with a linear head.

    Trained are the head, the prompts if the channel takes them, and the last acoustic layer if it uses audio. All else
    is frozen, in place.

    Source: BrewCLIP, section 5 "Speech Emotion Recognition": a linear classifier on the trained audio encoder,
        alone or with finetuning.

    Args:
        model: a trained model, changed in place when this one is trained.
        channel: one of `channels_of(model)`.
        num_classes: emotions, at least 2.

    Raises:
        ValueError: if the variant has no such channel, or there are fewer than 2 classes.
    """

    def __init__(self, model: BrewCLIP, channel: str, num_classes: int) -> None:
        super().__init__()
        if channel not in channels_of(model):
            there = ", ".join(channels_of(model))
            raise ValueError(f"a {model.variant} model has no channel {channel!r}; it has {there}")
        if num_classes < 2:
            raise ValueError(f"{num_classes} emotions cannot be classified; at least 2 are needed")
        self.model, self.channel = model, channel
        self.model.requires_grad_(False)
        width = model.clip.embed_dim
        if channel == "pooled" and model.acoustic is not None:
            width = model.acoustic.audio_dim
        self.head = nn.Linear(width, num_classes)
        if model.prompts.length:
            model.prompts.text.requires_grad_(True)
        if model.acoustic is not None and channel != "text":
            model.acoustic.layers[-1].requires_grad_(True)

    def features(self, tokens: Tensor, audio: Tensor, audio_mask: Tensor, sample_seeds: Tensor | None = None) -> Tensor:
        """Compute the features of the channel, (B, embed_dim), not normalised; of `pooled`, (B, audio_dim).

        A sentence that several recordings share is encoded once: in such corpora a few are spoken by all.

        Args:
            tokens: (B, L) int64; unused by `acoustic`.
            audio: (B, T, audio_dim) Whisper frames; unused by `text`.
            audio_mask: (B, T) bool, True for a real frame.
            sample_seeds: (B,) int64 of dropout in training, see `AcousticEncoder.forward`.
        """
        prompts, _ = self.model.prompts()
        if self.channel == "pooled":
            assert self.model.acoustic is not None
            return self.model.acoustic.pool_frames(audio, audio_mask, prompts)
        parts = []
        if self.channel != "text":
            assert self.model.acoustic is not None
            parts.append(self.model.acoustic(audio, audio_mask, prompts, sample_seeds))
        if self.channel != "acoustic":
            sentences, rows = torch.unique(tokens, dim=0, return_inverse=True)
            parts.append(self.model.clip.encode_text(sentences, prompts)[rows])
        return sum(parts[1:], parts[0])

    def forward(self, tokens: Tensor, audio: Tensor, audio_mask: Tensor, sample_seeds: Tensor | None = None) -> Tensor:
        """Compute the logits (B, num_classes); arguments as in `features`."""
        return self.head(self.features(tokens, audio, audio_mask, sample_seeds))

    def finetuned_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters trained with the head, by name; empty if nothing of the model is trained."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}
