"""Sampling with a generator for each row: what Whisper draws alone, in any batch."""

import pytest
import torch
from whisper.decoding import GreedyDecoder

from brewclip.models.decoding import _SeededDecoder

EOT = 3


def draw(decoder, logits, steps=12):
    """Tokens and log probabilities of rows whose logits (B, steps, V) are given."""
    tokens, total = torch.zeros(len(logits), 1, dtype=torch.long), torch.zeros(len(logits))
    for step in range(steps):
        tokens, is_over = decoder.update(tokens, logits[:, step].clone(), total)
        if is_over:
            break
    return tokens, total


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_rows_draw_together_what_each_draws_alone_from_whisper_s_own(temperature):
    logits = 2 * torch.randn(5, 12, 9, generator=torch.Generator().manual_seed(0))
    generators = [torch.Generator().manual_seed(seed) for seed in range(5)]
    state = torch.get_rng_state()
    tokens, total = draw(_SeededDecoder(temperature, EOT, generators), logits)
    assert torch.equal(torch.get_rng_state(), state)
    ends = set()
    for row in range(5):
        with torch.random.fork_rng():
            torch.manual_seed(row)
            alone, alone_total = draw(GreedyDecoder(temperature, EOT), logits[row : row + 1])
        length = alone.shape[1]
        ends.add(length)
        assert tokens[row, :length].tolist() == alone[0].tolist()
        assert (tokens[row, length:] == EOT).all()
        assert total[row].item() == pytest.approx(alone_total.item(), rel=1e-5)
    assert len(ends) > 1, "rows that all end together show nothing"
