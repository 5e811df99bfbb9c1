"""How a tokenizer frames a text: its start and end tokens, and what it pads with.

CLIP's own puts 49406 and 49407 around the words and zeros behind; others do not:

| tokenizer | start | end | padding |
|---|---|---|---|
| CLIP's, in open_clip (also of PE-Core, MobileCLIP, EVA, ConvNeXt, ResNet, CoCa, ViTamin) | 49406 | 49407 | 0 |
| SigLIP (T5) | none | 1 | 1, its end token |
| SigLIP 2 (Gemma), mT5 | none | 1 | 0 |
| CLIPA (BERT, without separator) | 101 | 0 | 0, its end token |
| RoBERTa, XLM-RoBERTa, XLM-V (worldwide) | 0, the padding of others | 2 | 1 |
| NLLB | the language | 2 | 1 |
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

_LONG_TEXTS = ("a " * 300, "b " * 300)


@dataclass(frozen=True)
class TokenLayout:
    """Tokens around the words of a text.

    Attributes:
        start: before the words.
        end: behind them; a truncated text keeps it.
        pad: what the rest of a row is filled with. It may be the end token, see `count`.
    """

    start: tuple[int, ...]
    end: tuple[int, ...]
    pad: int

    def count(self, tokens: Tensor) -> int:
        """Return the number of tokens (L,) of a text with start and end, without padding."""
        filled = (tokens != self.pad).nonzero()
        length = int(filled.max()) + 1 if len(filled) else 0
        # An end token that equals the padding was counted as padding.
        return min(length + sum(token == self.pad for token in self.end), len(tokens))

    def words(self, tokens: Tensor) -> Tensor:
        """Return the tokens (n,) between start and end of those of a text (L,)."""
        return tokens[len(self.start) : self.count(tokens) - len(self.end)]

    def frame(self, words: Tensor, length: int) -> Tensor:
        """Put start, end and padding around words (n,).

        Args:
            words: int64.
            length: of the row that is returned; at least n with start and end.
        """
        row = words.new_full((length,), self.pad)
        framed = [*self.start, *words.tolist(), *self.end]
        row[: len(framed)] = words.new_tensor(framed)
        return row


CLIP_LAYOUT = TokenLayout(start=(49406,), end=(49407,), pad=0)


def find_layout(tokenize: Callable[[list[str]], Tensor]) -> TokenLayout:
    """Find the layout of a tokenizer: what two long texts of different words share at their beginning and end.

    Args:
        tokenize: list of B strings -> (B, L) int64; truncates and pads.
    """
    first, second = tokenize(list(_LONG_TEXTS)).tolist()
    start = _shared(first, second)
    end = _shared(first[::-1], second[::-1])[::-1]
    return TokenLayout(tuple(start), tuple(end), int(tokenize(["a"])[0, -1]))


def _shared(first: list[int], second: list[int]) -> list[int]:
    """Return the tokens that two rows have in common from their beginning on."""
    differs = (place for place, (one, other) in enumerate(zip(first, second, strict=True)) if one != other)
    return first[: next(differs)]
