"""The BrewCLIP model: image features, and speech features from two channels, transcript and audio."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from brewclip.models.acoustic import AcousticEncoder
from brewclip.models.adapter import EmbeddingAdapter
from brewclip.models.clip import PromptedCLIP
from brewclip.models.fusion import Fusion
from brewclip.models.prompts import SharedPrompts
from brewclip.models.speech_encoders import SpeechEncoder
from brewclip.models.speechclip import SpeechCLIPEncoder

VARIANTS = ("brewclip", "acoustic", "pipeline", "zero_shot", "speechclip")
_OF_TEXT = ("brewclip", "pipeline", "zero_shot")
_PROMPTED = ("brewclip", "acoustic", "pipeline")
CHANNELS = ("acoustic", "text")
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


class Encoders(NamedTuple):
    """Encoders of the three inputs, such as compiled ones.

    Attributes:
        text: tokens (B, L) and their number -> F_T.
        image: images -> F_V.
        audio: audio, its mask, seeds of dropout -> F_A, or None without acoustic channel.
    """

    text: Callable[[Tensor, int], Tensor]
    image: Callable[[Tensor], Tensor]
    audio: Callable[[Tensor, Tensor, Tensor | None], Tensor | None]


class BrewCLIP(nn.Module):
    """The model of the paper, its three ablations, and the baseline that it is compared with.

    - `brewclip`: F_L = F_A + F_T, both channels and the images prompted.
    - `acoustic`: F_L = F_A; the transcript is not used.
    - `pipeline`: F_L = F_T, prompted; the audio is not used.
    - `zero_shot`: F_L = F_T of plain CLIP. It takes no prompts whatever `prompt_length` is (untrained
      prompts only shift the tokens), and nothing is trained.
    - `speechclip`: F_L = F_A of `SpeechCLIPEncoder`, which hears waveforms; no transcript, and no prompts anywhere.

    Nothing is prompted with an `EmbeddingAdapter`; `images` and `tokens` are then CLIP's embeddings, (B, E), unless it
    has towers. With another fusion than `sum`, F_L = `Fusion`(F_T, F_A) in `brewclip`.

    Source: BrewCLIP, section 3.3.

    Args:
        clip: frozen CLIP that takes prompts, or an adapter over CLIP's embeddings.
        variant: one of `VARIANTS`.
        audio_dim: width of Whisper's frames; not used by `speechclip`.
        fusion: one of `fusion.FUSIONS`.
        prompt_length: number M of prompts.
        num_layers: of the acoustic encoder.
        num_heads: of the acoustic encoder.
        ff_dim: of the acoustic encoder.
        dropout: of the acoustic encoder.
        cls_std: of the acoustic encoder.
        init_logit_scale: log of the initial 1 / tau.
        learn_logit_scale: whether tau is trained.
        speech_encoder: of `speechclip`, which needs one.

    Attributes:
        channel: one of `CHANNELS`, to have F_L be that channel alone; empty for both.
        encoders: that `forward` calls instead of its own; None for those.

    Raises:
        ValueError: if the variant is unknown or a size does not fit.
    """

    logit_scale: Tensor
    encoders: Encoders | None = None

    def __init__(
        self,
        clip: PromptedCLIP | EmbeddingAdapter,
        *,
        variant: str,
        audio_dim: int,
        fusion: str = "sum",
        prompt_length: int = 4,
        num_layers: int = 1,
        num_heads: int = 8,
        ff_dim: int = 4096,
        dropout: float = 0.1,
        cls_std: float = 0.02,
        init_logit_scale: float = math.log(1 / 0.07),
        learn_logit_scale: bool = True,
        speech_encoder: SpeechEncoder | None = None,
    ) -> None:
        super().__init__()
        _check_parts(variant, speech_encoder)
        trained, prompted = variant != "zero_shot", variant in _PROMPTED
        if prompted and prompt_length > max(0, clip.context_length - 2):
            raise ValueError(f"prompt length is {prompt_length}; at most {clip.context_length - 2} fit into the text")
        self.variant, self.channel = variant, ""
        self.clip = clip
        if isinstance(clip, EmbeddingAdapter):
            clip.residual.requires_grad_(variant in ("brewclip", "pipeline"))
        self.fusion = Fusion(fusion).requires_grad_(variant == "brewclip")
        self.prompts = SharedPrompts(prompt_length if prompted else 0, clip.text_width, clip.vision_width)
        self.acoustic: AcousticEncoder | None = None
        if variant in ("brewclip", "acoustic"):
            self.acoustic = AcousticEncoder(
                audio_dim, clip.text_width, clip.embed_dim, num_layers, num_heads, ff_dim, dropout, cls_std
            )
        elif speech_encoder is not None:
            self.acoustic = SpeechCLIPEncoder(
                speech_encoder, clip.embed_dim, num_layers, num_heads, ff_dim, dropout, cls_std
            )
        logit_scale = torch.tensor(float(init_logit_scale))
        if learn_logit_scale and trained:
            self.logit_scale = nn.Parameter(logit_scale)
        else:
            self.register_buffer("logit_scale", logit_scale)

    @property
    def reads_text(self) -> bool:
        """Whether `tokens` are used."""
        return self.variant in _OF_TEXT

    def encode_image(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) to F_V (B, embed_dim)."""
        _, vision_prompts = self.prompts()
        return self.clip.encode_image(images, vision_prompts)

    def encode_speech(
        self,
        tokens: Tensor,
        audio: Tensor,
        audio_mask: Tensor,
        sample_seeds: Tensor | None = None,
        confidence: Tensor | None = None,
        num_tokens: int = 0,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Encode recordings.

        Args:
            tokens: (B, L) int64 transcripts, or (B, W, L) in chunks; unused by `acoustic` and `speechclip`.
            audio: (B, T, audio_dim) Whisper frames, or (B, T) waveforms for `speechclip`; unused by `pipeline` and
                `zero_shot`.
            audio_mask: (B, T) bool, True for a real frame or sample.
            sample_seeds: (B,) int64, see `AcousticEncoder.forward`.
            confidence: (B,) of the transcripts, see `Fusion.forward`.
            num_tokens: of the longest transcript, see `PromptedCLIP.encode_text`.

        Returns:
            F_L, and F_A and F_T where the variant has them.
        """
        text = self.encode_text(tokens, num_tokens) if self.reads_text else None
        return self._join_channels(text, self.encode_audio(audio, audio_mask, sample_seeds), confidence)

    def encode_audio(self, audio: Tensor, audio_mask: Tensor, sample_seeds: Tensor | None = None) -> Tensor | None:
        """Encode speech to F_A (B, embed_dim), None without acoustic channel; arguments as in `encode_speech`."""
        if self.acoustic is None:
            return None
        return self.acoustic(audio, audio_mask, self.prompts.text_prompts, sample_seeds)

    def _join_channels(
        self, text: Tensor | None, acoustic: Tensor | None, confidence: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return F_L, F_A and F_T."""
        if acoustic is None:
            assert text is not None
            return text, None, text
        if text is None or self.channel == "acoustic":
            return acoustic, acoustic, text
        return (text if self.channel == "text" else self.fusion(text, acoustic, confidence)), acoustic, text

    def encode_channels(
        self, tokens: Tensor, audio: Tensor, audio_mask: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Encode recordings for a choice of the weights on dev; arguments as in `encode_speech`.

        Returns:
            F_T without the adapter, F_T as trained, and F_A, where the variant has them. Without an adapter, the first
            is the second.
        """
        text = plain = None
        if self.reads_text and isinstance(self.clip, EmbeddingAdapter):
            plain, change = self.clip.encode_text_parts(tokens)
            text = plain + change
        elif self.reads_text:
            text = plain = self.encode_text(tokens)
        return plain, text, self.encode_audio(audio, audio_mask)

    def encode_text(self, tokens: Tensor, num_tokens: int = 0) -> Tensor:
        """Encode texts to F_T (B, embed_dim); arguments as in `encode_speech`. Not of use to `acoustic`.

        Of texts in chunks (B, W, L) it is the mean over chunks; a chunk of zeros is empty, and the host waits for them.
        """
        prompts = self.prompts.text_prompts
        if tokens.ndim == 2:
            return self.clip.encode_text(tokens, prompts, num_tokens)
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
        confidence: Tensor | None = None,
        num_tokens: int = 0,
    ) -> Features:
        """Encode B pairs; arguments as in `encode_image` and `encode_speech`.

        Sound comes last, so that the backward pass has its gradients first: they are the most, and are summed over
        workers while the towers' backward runs.
        """
        encoders = self.encoders or Encoders(self.encode_text, self.encode_image, self.encode_audio)
        text = encoders.text(tokens, num_tokens) if self.reads_text else None
        image = encoders.image(images)
        acoustic = encoders.audio(audio, audio_mask, sample_seeds)
        return Features(image, *self._join_channels(text, acoustic, confidence))

    def clamp_logit_scale(self) -> None:
        """Keep 1 / tau at 100 or below; call after each optimiser step."""
        with torch.no_grad():
            self.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Return prompts, projections, acoustic layer and logit scale by name; empty for `zero_shot`."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def gradient_groups(self) -> list[list[nn.Parameter]]:
        """Return the trained parameters in the groups that the backward pass completes one after the other.

        Those of the acoustic layer and the logit scale are complete before the towers' backward; the rest are prompts,
        which are behind it. Without sound, or without prompts, all are one group.
        """
        trained = self.trained_parameters()
        late = [one for name, one in trained.items() if name.startswith("prompts.") and self.acoustic is not None]
        early = [one for one in trained.values() if all(one is not other for other in late)]
        return [group for group in (early, late) if group]

    def chosen_weights(self) -> dict[str, Tensor]:
        """Return the weights that are chosen on dev instead of trained, by name: of the fusion, and of the adapter."""
        chosen = {}
        if self.fusion.kind == "confidence" and self.variant == "brewclip":
            chosen["fusion.weights"] = self.fusion.weights
        if self.fusion.kind == "confidence" and self.reads_text and isinstance(self.clip, EmbeddingAdapter):
            chosen["clip.strength"] = self.clip.strength
        return chosen

    def described_weights(self) -> dict[str, float]:
        """Return the weights of adapter and fusion by names for metrics."""
        chosen, named = self.chosen_weights(), {}
        if self.fusion.kind == "gate" and self.variant == "brewclip":
            chosen["fusion.weights"] = self.fusion.weights
        if "clip.strength" in chosen:
            named["adapter_strength"] = chosen["clip.strength"].item()
        if "fusion.weights" in chosen:
            named["acoustic_weight"], named["acoustic_weight_of_doubt"] = chosen["fusion.weights"].tolist()
        return named

    def trained_state(self) -> dict[str, Tensor]:
        """Return a copy of the trained parameters and the weights chosen on dev, as a checkpoint stores it."""
        return {name: tensor.detach().clone() for name, tensor in self._stored().items()}

    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Load a state returned by `trained_state`.

        Raises:
            ValueError: if a key is missing, unknown, or of another shape; nothing is loaded then.
        """
        stored = self._stored()
        for name in sorted(stored.keys() | state.keys()):
            here = tuple(stored[name].shape) if name in stored else "absent"
            there = tuple(state[name].shape) if name in state else "absent"
            if here != there:
                raise ValueError(
                    f"the checkpoint does not fit the {self.variant} model: {name} is {there} in the "
                    f"checkpoint and {here} in the model; use the model settings it was trained with"
                )
        with torch.no_grad():
            for name, tensor in stored.items():
                tensor.copy_(state[name])

    def _stored(self) -> dict[str, Tensor]:
        return self.trained_parameters() | self.chosen_weights()


def _check_parts(variant: str, speech_encoder: SpeechEncoder | None) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    if (variant == "speechclip") != (speech_encoder is not None):
        raise ValueError(f"variant is {variant!r}; speechclip takes a speech encoder, and no other does")
