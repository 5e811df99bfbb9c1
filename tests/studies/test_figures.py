"""Figures: a gallery row per query with the correct image framed, and relevance maps over image and spectrogram."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from brewclip.config import preset
from brewclip.evaluation.queries import QuerySamples
from brewclip.studies.figures import TILE_PIXELS, GalleryRow, RelevanceMaps, draw_gallery, draw_relevance, overlay
from brewclip.studies.visualize import best_and_worst, draw_attention, gallery_rows
from tests.evaluation.results import evaluate_here, system_of
from tests.evaluation.spoken import write_spoken

GREEN = (26, 143, 74)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    url = tmp_path_factory.mktemp("storage").as_uri()
    write_spoken(f"{url}/scenes", "test", 12)
    return replace(preset("scenes"), storage=url)


@pytest.fixture(scope="module")
def results(config):
    return [evaluate_here(system_of(config, variant), "test") for variant in ("zero_shot", "brewclip")]


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def plain(colour: tuple[int, int, int], size: tuple[int, int] = (30, 20)) -> Image.Image:
    return Image.new("RGB", size, colour)


def test_the_correct_image_is_framed():
    red, blue = plain((200, 0, 0)), plain((0, 0, 200))
    found = [blue, red, blue]
    without = pixels(draw_gallery("title", [GalleryRow(["text"], red, found, -1)]))
    framed = pixels(draw_gallery("title", [GalleryRow(["text"], red, found, 1)]))
    assert without.shape == framed.shape
    assert not (without == GREEN).all(axis=2).any()
    columns = np.flatnonzero((framed == GREEN).all(axis=2).any(axis=0))
    assert np.ptp(columns) == TILE_PIXELS + 7
    inside = framed[:, columns.min() + 4 : columns.max() - 3]
    assert (inside == (200, 0, 0)).all(axis=2).any()
    assert not (inside == (0, 0, 200)).all(axis=2).any()


def test_best_and_worst_are_those_by_rank(results):
    for one in results:
        ranks = one.result.speech_to_image_rank
        best, worst = best_and_worst(one, 4)
        assert sorted(ranks[best]) == sorted(ranks)[:4]
        assert sorted(ranks[worst]) == sorted(ranks)[-4:]
        assert ranks[worst[0]] == ranks.max()


def test_a_gallery_shows_the_nearest_images(config, results):
    one = results[0]
    best, worst = best_and_worst(one, 3)
    rows = gallery_rows(one, QuerySamples(config, "test"), best + worst)
    for row, number in zip(rows, best + worst, strict=True):
        rank = one.result.speech_to_image_rank[number]
        assert row.lines[0].startswith(f"rank {rank}, margin")
        assert row.lines[1] == f"said: {one.embeddings.texts[number].removeprefix('a ').replace('of number ', '')}"
        assert row.right_place == (rank - 1 if rank <= 5 else -1)
    image = pixels(draw_gallery("zero_shot", rows))
    assert image.shape[0] == 40 + 6 * (TILE_PIXELS + 12)


def test_relevance_is_drawn_at_its_position():
    relevance = np.zeros((2, 2), np.float32)
    relevance[0, 1] = 1
    heat = np.asarray(overlay(plain((128, 128, 128), (80, 80)), relevance), int).sum(axis=2)
    assert heat[:30, 50:].mean() > heat[:30, :30].mean() + 150
    assert heat[:30, 50:].mean() > heat[50:, 50:].mean() + 150


def test_relevance_maps_with_and_without_an_acoustic_channel(config, results):
    keys = [results[0].embeddings.keys[number] for number in (2, 7)]
    maps = draw_attention(config, results, QuerySamples(config, "test"), keys)
    assert len(maps) == 2
    for png in maps:
        image = pixels(png)
        assert image.shape[0] >= 3 * TILE_PIXELS
        spectrum, deaf, hears = (
            image[-(3 - row) * (TILE_PIXELS + 12) : -(3 - row) * (TILE_PIXELS + 12) + TILE_PIXELS, 400:-20]
            for row in range(3)
        )
        assert spectrum.std() > 10
        assert (deaf == 255).mean() > 0.99
        assert (hears.max(axis=2).astype(int) - hears.min(axis=2)).max() > 30, "relevance in colour"


def test_relevance_is_drawn_without_the_recording():
    maps = [RelevanceMaps("a", 1, np.ones((2, 2), np.float32), np.linspace(0, 1, 9, dtype=np.float32))]
    image = pixels(draw_relevance(["key"], plain((9, 9, 9)), np.zeros((80, 0), np.float32), maps))
    last = image[-60, -800:-20]
    assert last[-1].astype(int).sum() > last[0].astype(int).sum() + 100
