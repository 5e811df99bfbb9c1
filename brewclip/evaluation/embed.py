"""Embed a whole split, divided among workers, and rank it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from brewclip.data.batches import Batch, Pair
from brewclip.data.reader import Rejections, SplitReader, iter_split
from brewclip.data.schema import Sample
from brewclip.distributed import gather_to_first
from brewclip.metrics import RetrievalResult, retrieval
from brewclip.models.brewclip import BrewCLIP


class Channels(NamedTuple):
    """The channels of Q recordings, from which the weights of their fusion are chosen.

    Attributes:
        plain: (Q, E) float32, F_T without the adapter.
        text: (Q, E) float32, F_T as trained.
        acoustic: (Q, E) float32, F_A; (Q, 0) if the model has none.
        confidence: (Q,) float32, of the transcripts.
    """

    plain: np.ndarray
    text: np.ndarray
    acoustic: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a split, not normalised.

    Attributes:
        keys, texts, speech_image_ids: one per recording, in stored order.
        places: (shard, index) of each recording in its split.
        speech: (Q, E) float32.
        image_ids: one per image, in the order of first appearance.
        images: (G, E) float32.
        channels: of the recordings, if asked for.
    """

    keys: list[str]
    texts: list[str]
    speech_image_ids: list[str]
    places: list[tuple[int, int]]
    speech: np.ndarray
    image_ids: list[str]
    images: np.ndarray
    channels: Channels | None = None

    def rank(self) -> RetrievalResult:
        """Rank images for recordings and recordings for images."""
        return retrieval(self.speech, np.array(self.speech_image_ids), self.images, np.array(self.image_ids))

    def near_cosine(self) -> float:
        """Return the cosine that 95 % of the recordings reach with their own image: what is below it is not near."""
        row_of = {name: row for row, name in enumerate(self.image_ids)}
        own = self.images[[row_of[name] for name in self.speech_image_ids]]
        lengths = np.linalg.norm(self.speech, axis=1) * np.linalg.norm(own, axis=1)
        return float(np.quantile((self.speech * own).sum(axis=1) / np.maximum(lengths, 1e-12), 0.05))


def embed_split(
    model: BrewCLIP,
    reader: SplitReader,
    decode: Callable[[Sample], Pair],
    to_batch: Callable[[list[Pair]], Batch],
    rejections: Rejections,
    *,
    rank: int = 0,
    world_size: int = 1,
    batch_size: int = 64,
    num_threads: int = 4,
    progress: Callable[[int], None] = lambda count: None,
    keep_channels: bool = False,
) -> Embeddings:
    """Embed a worker's share of a split, each image once.

    Args:
        model: set to eval mode during the call.
        reader: reader of the extracted split.
        decode: sample -> pair.
        to_batch: pairs -> tensors on the model's device.
        rejections: counts samples that cannot be used.
        rank, world_size: select the share.
        batch_size: pairs per batch.
        num_threads: decoding threads.
        progress: called with the number of recordings after each batch.
        keep_channels: return the channels of the recordings, from which `choose.fuse_channels` makes F_L; `speech` is
            F_T, which the model must have.
    """
    keys: list[str] = []
    texts: list[str] = []
    names: list[str] = []
    speech: list[np.ndarray] = []
    channels: list[Channels] = []
    images: dict[str, np.ndarray] = {}
    places: list[tuple[int, int]] = []
    pending: list[Pair] = []
    was_training = model.training
    model.eval()

    def embed() -> None:
        batch = to_batch(pending)
        if keep_channels:
            channels.append(_channels_of(model, batch))
            speech.append(channels[-1].text)
        else:
            heard = batch.tokens, batch.audio, batch.audio_mask
            features, _, _ = model.encode_speech(*heard, confidence=batch.confidence)
            speech.append(features.float().cpu().numpy())
        first = {name: row for row, name in reversed(list(enumerate(batch.image_names))) if name not in images}
        if first:
            rows = torch.tensor(sorted(first.values()), device=batch.images.device)
            vectors = model.encode_image(batch.images[rows]).float().cpu().numpy()
            images.update({batch.image_names[row]: vector for row, vector in zip(rows.tolist(), vectors, strict=True)})
        keys.extend(batch.keys)
        texts.extend(batch.texts)
        names.extend(batch.image_names)
        progress(len(pending))
        pending.clear()

    share = iter_split(reader, decode, rejections, rank=rank, world_size=world_size, num_threads=num_threads)
    with torch.no_grad():
        for place, pair in share:
            places.append(place)
            pending.append(pair)
            if len(pending) == batch_size:
                embed()
        if pending:
            embed()
    model.train(was_training)
    return _pack(keys, texts, names, places, speech, images, channels)


def _channels_of(model: BrewCLIP, batch: Batch) -> Channels:
    plain, text, acoustic = model.encode_channels(batch.tokens, batch.audio, batch.audio_mask)
    assert plain is not None and text is not None
    acoustic = text[:, :0] if acoustic is None else acoustic
    return Channels(*(part.float().cpu().numpy() for part in (plain, text, acoustic, batch.confidence)))


def gather_embeddings(own: Embeddings) -> Embeddings | None:
    """Gather the shares of all workers on rank 0; return None on the others."""
    shares = gather_to_first(own)
    return join_embeddings(shares) if shares else None


def join_embeddings(shares: list[Embeddings]) -> Embeddings:
    """Concatenate shares in order, with each image once."""
    images: dict[str, np.ndarray] = {}
    for share in shares:
        for name, vector in zip(share.image_ids, share.images, strict=True):
            images.setdefault(name, vector)
    return _pack(
        [key for share in shares for key in share.keys],
        [text for share in shares for text in share.texts],
        [name for share in shares for name in share.speech_image_ids],
        [place for share in shares for place in share.places],
        [share.speech for share in shares if len(share.speech)],
        images,
        [share.channels for share in shares if share.channels is not None],
    )


def _pack(
    keys: list[str],
    texts: list[str],
    names: list[str],
    places: list[tuple[int, int]],
    speech: list[np.ndarray],
    images: dict[str, np.ndarray],
    channels: list[Channels],
) -> Embeddings:
    empty = np.zeros((0, 0), np.float32)
    return Embeddings(
        keys,
        texts,
        names,
        places,
        np.concatenate(speech) if speech else empty,
        list(images),
        np.stack(list(images.values())) if images else empty,
        Channels(*(np.concatenate(parts) for parts in zip(*channels, strict=True))) if channels else None,
    )
