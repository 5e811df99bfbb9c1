"""Visualize an evaluation: galleries of the best and worst queries, and relevance maps of single queries."""

from collections.abc import Sequence

import numpy as np
import torch
import whisper
from numpy.typing import NDArray
from PIL import Image

from brewclip.audio import UndecodableAudio, decode_audio
from brewclip.config import Config
from brewclip.data.batches import collate
from brewclip.data.images import open_image
from brewclip.data.schema import Sample
from brewclip.errors import UserError
from brewclip.evaluation.folders import file_name, open_folder, study_name
from brewclip.evaluation.pages import Page
from brewclip.evaluation.publish import Publication, publish
from brewclip.evaluation.queries import QuerySamples, evenly_spaced, image_places, nearest_images
from brewclip.evaluation.shares import evaluate_system
from brewclip.evaluation.systems import System, SystemResult, load_system
from brewclip.factory import audio_dim_of, build_decoder
from brewclip.models.audio_chunks import FRAME_SAMPLES
from brewclip.studies.attention import frame_relevance, patch_relevance
from brewclip.studies.figures import GalleryRow, RelevanceMaps, draw_gallery, draw_relevance

TOP = 5
_NUM_MELS = 80


def visualize_and_record(
    config: Config, systems: list[System], split: str, num_queries: int, keys: Sequence[str]
) -> list[str]:
    """Draw the galleries of every system and the relevance maps of some queries, and publish them.

    Args:
        config: settings of the evaluation.
        systems: systems with distinct names.
        split: split to evaluate on.
        num_queries: queries per gallery; also number of relevance maps if no keys are given, evenly spaced.
        keys: keys of the queries whose relevance maps are drawn.

    Returns:
        URLs of the PNG files.

    Raises:
        UserError: if a key is not in the split.
    """
    results = [evaluate_system(system, split) for system in systems]
    known = results[0].embeddings.keys
    keys = list(keys) or [known[row] for row in evenly_spaced(len(known), num_queries)]
    for key in keys:
        if not all(key in one.embeddings.keys for one in results):
            raise UserError(f"--keys {key!r} is not a recording of {config.data.corpus}/{split}, such as {known[0]!r}")
    samples = QuerySamples(config, split)
    files = {}
    for one in results:
        for which, rows in zip(("best", "worst"), best_and_worst(one, num_queries), strict=True):
            title = f"{one.system.name} on {config.data.corpus}/{split}: {which} queries"
            files[f"gallery-{file_name(one.system.name)}-{which}.png"] = draw_gallery(
                title, gallery_rows(one, samples, rows)
            )
    for key, png in zip(keys, draw_attention(config, results, samples, keys), strict=True):
        files[f"attention-{file_name(key)}.png"] = png
    settings = {"num_queries": num_queries, "keys": list(keys)}
    folder = open_folder(config, study_name(config, split, "visualize"), systems, [split], **settings)
    names = [system.name for system in systems]
    page = Page(
        f"{config.data.corpus}, {split}: {', '.join(names)}", "Galleries, and relevance maps of single queries."
    )
    record = {"systems": names, "split": split, "keys": list(keys), "figures": list(files)}
    publication = Publication("visualize", record, page, figures=files, params={"systems": ", ".join(names)})
    url = publish(config, folder, publication)
    return [f"{url}/{name}" for name in files]


def best_and_worst(one: SystemResult, count: int) -> tuple[list[int], list[int]]:
    """Return the rows of a system's best and worst queries, sorted by rank, then by margin."""
    ranks = one.result.speech_to_image_rank
    _, margins = nearest_images(one.embeddings, list(range(len(ranks))), TOP)
    order = np.lexsort((-margins, ranks))
    return order[:count].tolist(), order[::-1][:count].tolist()


def gallery_rows(one: SystemResult, samples: QuerySamples, rows: list[int]) -> list[GalleryRow]:
    """Build the gallery rows of some queries."""
    embeddings = one.embeddings
    nearest, margins = nearest_images(embeddings, rows, TOP)
    shown = {name for names in nearest for name in names} | {embeddings.speech_image_ids[row] for row in rows}
    place_of = {name: place for name, place in image_places(embeddings).items() if name in shown}
    places = [embeddings.places[row] for row in rows]
    found = dict(samples.iter_samples([*place_of.values(), *places]))
    images = {name: open_image(found[place].image) for name, place in place_of.items()}
    return [
        GalleryRow(
            lines=[
                f"rank {one.result.speech_to_image_rank[row]}, margin {margin:+.3f}",
                *_texts(found[place]),
            ],
            right=images[embeddings.speech_image_ids[row]],
            found=[images[name] for name in names],
            right_place=names.index(own) if (own := embeddings.speech_image_ids[row]) in names else -1,
        )
        for row, place, names, margin in zip(rows, places, nearest, margins, strict=True)
    ]


def draw_attention(
    config: Config, results: list[SystemResult], samples: QuerySamples, keys: Sequence[str]
) -> list[bytes]:
    """Draw for each query the relevance maps of its correct pair in every system; return PNGs."""
    first = results[0].embeddings
    places = [first.places[first.keys.index(key)] for key in keys]
    found = dict(samples.iter_samples(places))
    maps: list[list[RelevanceMaps]] = [[] for _ in keys]
    squares: list[Image.Image] = []
    for one in results:
        audio_dim = audio_dim_of(samples.features.manifest)
        model, clip = load_system(one.system, audio_dim)
        decode = build_decoder(one.system.config, clip, audio_dim=audio_dim)
        squares = []
        for number, (key, place) in enumerate(zip(keys, places, strict=True)):
            pair = decode(found[place])
            batch = collate([pair], clip.mean, clip.std, torch.device("cpu"))
            with torch.no_grad():
                image = model.encode_image(batch.images)[0]
                heard = batch.tokens, batch.audio, batch.audio_mask
                speech = model.encode_speech(*heard, confidence=batch.confidence)[0][0]
            own = RelevanceMaps(
                one.system.name,
                int(one.result.speech_to_image_rank[one.embeddings.keys.index(key)]),
                patch_relevance(model, batch.images[0], speech),
                frame_relevance(model, batch.tokens[0], batch.audio[0, : len(pair.audio)], image),
            )
            maps[number].append(own)
            squares.append(Image.fromarray(pair.image.transpose(1, 2, 0)))
    return [
        draw_relevance([key, *_texts(found[place])], square, _mel(samples.sound(place, key)), own)
        for key, place, square, own in zip(keys, places, squares, maps, strict=True)
    ]


def _mel(sound: bytes) -> NDArray[np.float32]:
    """Return the log-mel spectrogram (bands, columns of 10 ms) of a recording; no columns without a recording."""
    try:
        waveform = decode_audio(sound)
    except UndecodableAudio:
        return np.zeros((_NUM_MELS, 0), np.float32)
    # Pad to whole frames, so that spectrogram and relevance have the same length.
    padded = np.pad(waveform, (0, -len(waveform) % FRAME_SAMPLES))
    return whisper.log_mel_spectrogram(padded, _NUM_MELS).numpy()


def _texts(sample: Sample) -> list[str]:
    facts = sample.metadata
    heard = f"heard: {facts.get('transcript') or '(nothing)'}"
    return [f"said: {facts['text']}", heard] if isinstance(facts.get("text"), str) else [heard]
