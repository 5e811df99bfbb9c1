"""The BrewCLIP model: image features, and speech features from two channels, transcript and audio."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from brewclip.models.acoustic import AcousticEncoder
from brewclip.models.clip import PromptedCLIP
from brewclip.models.prompts import SharedPrompts

VARIANTS = ("brewclip", "acoustic", "pipeline", "zero_shot")
MAX_LOGIT_SCALE = math.log(100.0)  # as in CLIP


class Features(NamedTuple):
    """Features of a batch, each (B, embed_dim) and not normalised.

    Attributes:
        image: F_V.
        speech: F_L, compared with images.
        acoustic: F_A, or None if the variant has no acoustic channel.
        text: F_T, or None if the variant takes no transcript.
    """

    image: Tensor
    speech: Tensor
    acoustic: Tensor | None
    text: Tensor | None


class BrewCLIP(nn.Module):
    """The model of the paper and its three ablations.

    - `brewclip`: F_L = F_A + F_T, both channels and the images prompted.
    - `acoustic`: F_L = F_A; the transcript is not used.
    - `pipeline`: F_L = F_T, prompted; the audio is not used.
    - `zero_shot`: F_L = F_T of plain CLIP. It takes no prompts whatever `prompt_length` is (untrained
      prompts only shift the tokens), and nothing is trained.

    Source: BrewCLIP, section 3.3.

    Args:
        clip: frozen CLIP.
        variant: one of `VARIANTS`.
        audio_dim: width of Whisper's frames.
        prompt_length: number M of prompts.
        num_layers: of the acoustic encoder.
        num_heads: of the acoustic encoder.
        ff_dim: of the acoustic encoder.
        dropout: of the acoustic encoder.
        cls_std: of the acoustic encoder.
        init_logit_scale: log of the initial 1 / tau.
        learn_logit_scale: whether tau is trained.

    Raises:
        ValueError: if the variant is unknown or a size does not fit.
    """

    logit_scale: Tensor

    def __init__(
        self,
        clip: PromptedCLIP,
        *,
        variant: str,
        audio_dim: int,
        prompt_length: int = 4,
        num_layers: int = 1,
        num_heads: int = 8,
        ff_dim: int = 4096,
        dropout: float = 0.1,
        cls_std: float = 0.02,
        init_logit_scale: float = math.log(1 / 0.07),
        learn_logit_scale: bool = True,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}")
        trained = variant != "zero_shot"
        if trained and prompt_length > clip.context_length - 2:
            raise ValueError(f"prompt length is {prompt_length}; at most {clip.context_length - 2} fit into the text")
        self.variant = variant
        self.clip = clip
        self.prompts = SharedPrompts(prompt_length if trained else 0, clip.text_width, clip.vision_width)
        self.acoustic: AcousticEncoder | None = None
        if variant in ("brewclip", "acoustic"):
            self.acoustic = AcousticEncoder(
                audio_dim, clip.text_width, clip.embed_dim, num_layers, num_heads, ff_dim, dropout, cls_std
            )
        logit_scale = torch.tensor(float(init_logit_scale))
        if learn_logit_scale and trained:
            self.logit_scale = nn.Parameter(logit_scale)
        else:
            self.register_buffer("logit_scale", logit_scale)

    @property
    def reads_text(self) -> bool:
        """Whether `tokens` are used."""
        return self.variant != "acoustic"

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) to F_V (B, embed_dim)."""
        _, vision_prompts = self.prompts()
        return self.clip.encode_image(images, vision_prompts)

    def encode_speech(
        self, tokens: Tensor, audio: Tensor, audio_mask: Tensor, sample_seeds: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Encode recordings.

        Args:
            tokens: (B, L) int64 transcripts, or (B, W, L) in chunks; unused by `acoustic`.
            audio: (B, T, audio_dim) Whisper frames; unused by `pipeline` and `zero_shot`.
            audio_mask: (B, T) bool, True for a real frame.
            sample_seeds: (B,) int64, see `AcousticEncoder.forward`.

        Returns:
            F_L, and F_A and F_T where the variant has them.
        """
        text_prompts, _ = self.prompts()
        text = self._encode_text(tokens, text_prompts) if self.reads_text else None
        if self.acoustic is None:
            assert text is not None
            return text, None, text
        acoustic = self.acoustic(audio, audio_mask, text_prompts, sample_seeds)
        return (acoustic if text is None else acoustic + text), acoustic, text

    def _encode_text(self, tokens: Tensor, prompts: Tensor | None) -> Tensor:
        """Encode transcripts (B, L), or (B, W, L) as the mean over chunks; a chunk of zeros is empty."""
        if tokens.ndim == 2:
            return self.clip.encode_text(tokens, prompts)
        is_chunk = tokens.any(dim=2)  # (B, W)
        features = self.clip.encode_text(tokens[is_chunk], prompts)
        rows = is_chunk.nonzero()[:, 0]
        summed = features.new_zeros(len(tokens), features.shape[1]).index_add(0, rows, features)
        return summed / is_chunk.sum(dim=1, keepdim=True)

    def forward(
        self,
        images: Tensor,
        tokens: Tensor,
        audio: Tensor,
        audio_mask: Tensor,
        sample_seeds: Tensor | None = None,
    ) -> Features:
        """Encode B pairs; arguments as in `encode_image` and `encode_speech`."""
        return Features(self.encode_image(images), *self.encode_speech(tokens, audio, audio_mask, sample_seeds))

    def clamp_logit_scale(self) -> None:
        """Keep 1 / tau at 100 or below; call after each optimiser step."""
        with torch.no_grad():
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return prompts, projections, acoustic layer and logit scale by name; empty for `zero_shot`."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def trained_state(self) -> dict[str, Tensor]:
        """Return a copy of the trained parameters, as a checkpoint stores it."""
        return {name: parameter.detach().clone() for name, parameter in self.trained_parameters().items()}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Load a state returned by `trained_state`.

        Raises:
            ValueError: if a key is missing, unknown, or of another shape; nothing is loaded then.
        """
        parameters = self.trained_parameters()
        for name in sorted(parameters.keys() | state.keys()):
            here = tuple(parameters[name].shape) if name in parameters else "absent"
            there = tuple(state[name].shape) if name in state else "absent"
            if here != there:
                raise ValueError(
                    f"the checkpoint does not fit the {self.variant} model: {name} is {there} in the "
                    f"checkpoint and {here} in the model; use the model settings it was trained with"
                )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state[name])
