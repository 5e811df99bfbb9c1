"""Small speech encoders with random weights: HuBERT in the forms of base and large, and Whisper."""

import torch
from whisper.model import ModelDimensions, Whisper

# What distinguishes the published sizes besides their width and depth.
FORMS = {
    "base": {"feat_extract_norm": "group", "do_stable_layer_norm": False, "conv_bias": False},
    "large": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
}


def tiny_hubert(form: str):
    """Return a `transformers.HubertModel` of 3 layers and width 32 whose weights are far from their start."""
    from transformers import HubertConfig, HubertModel

    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, conv_dim=(16, 16, 24),
        conv_kernel=(10, 3, 2), conv_stride=(5, 4, 4), num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        **FORMS[form],
    )  # fmt: skip
    model = HubertModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def tiny_whisper(num_layers: int = 2, width: int = 16) -> Whisper:
    """Return a Whisper with a small encoder."""
    torch.manual_seed(0)
    model = Whisper(ModelDimensions(80, 1500, width, 2, num_layers, 51865, 8, 8, 1, 1)).eval()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def make_waveforms(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return recordings of noise, each the same in every batch, and their mask; padding holds no zeros."""
    generator = torch.Generator().manual_seed(3)
    waveforms = torch.full((len(lengths), max(lengths)), 0.7)
    for row, length in zip(waveforms, lengths, strict=True):
        row[:length] = (0.1 * torch.randn(max(1, length), generator=generator) + 0.05)[:length]
    return waveforms, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
