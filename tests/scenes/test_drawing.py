"""Images: everything can be drawn, and what a caption may say can be seen."""

from dataclasses import replace

import numpy as np
import pytest

from brewclip.scenes.drawing import PALETTE, draw_scene
from brewclip.scenes.world import BACKGROUNDS, COLOURS, SIZES, THINGS, Item, Scene, sample_scene

CAR = next(thing for thing in THINGS if thing.name == "car")
RED_CAR = Item(CAR, "red", "medium", 1, 1, 1, ((0.0, 0.0),))


def draw(item: Item, background: str = "snow") -> np.ndarray:
    return np.asarray(draw_scene(Scene((item,), background), 96)).astype(int)


@pytest.mark.parametrize("size_px", [96, 224])
def test_image_is_square_rgb(size_px):
    image = draw_scene(sample_scene(0, 0), size_px)
    assert (image.mode, image.size) == ("RGB", (size_px, size_px))


def test_same_scene_gives_the_same_pixels():
    first, second = (np.asarray(draw_scene(sample_scene(0, 1))) for _ in range(2))
    assert (first == second).all()


def test_every_thing_can_be_seen_at_every_size():
    empty = np.asarray(draw_scene(Scene((), "snow"), 96)).astype(int)
    for thing in THINGS:
        colour = "red" if thing.body else None
        areas = [
            int((np.abs(draw(Item(thing, colour, size, 1, 1, 1, ((0.0, 0.0),))) - empty).max(axis=2) > 30).sum())
            for size in SIZES
        ]
        assert areas[0] > 25, thing.name
        assert areas[0] < areas[1] < areas[2], thing.name


def test_every_coloured_thing_looks_different_in_every_colour():
    for thing in (thing for thing in THINGS if thing.body):
        images = [draw(Item(thing, colour, "large", 1, 1, 1, ((0.0, 0.0),))) for colour in COLOURS]
        for first in range(len(images)):
            for second in range(first):
                changed = np.abs(images[first] - images[second]).max(axis=2) > 20
                assert changed.sum() >= 8, (thing.name, COLOURS[first], COLOURS[second])


@pytest.mark.parametrize("colour", COLOURS)
def test_a_car_of_a_colour_shows_that_colour(colour):
    wanted = [int(PALETTE[colour][0][i : i + 2], 16) for i in (1, 3, 5)]
    image = draw(replace(RED_CAR, colour=colour, size="large"))
    assert (np.abs(image - wanted).max(axis=2) < 12).sum() > 40


def test_count_and_place_move_the_thing_and_nothing_else():
    empty = np.asarray(draw_scene(Scene((), "snow"), 96)).astype(int)
    for changed, cells in (
        (RED_CAR, {(1, 1)}),
        (replace(RED_CAR, row=0, column=2), {(0, 2)}),
        (replace(RED_CAR, row=2, column=0, count=2, offsets=((0.0, 0.0),) * 2), {(2, 0), (2, 1)}),
    ):
        differs = np.abs(draw(changed) - empty).max(axis=2) > 30
        blocks = differs.reshape(3, 32, 3, 32).any(axis=(1, 3))
        assert {(int(r), int(c)) for r, c in np.argwhere(blocks)} == cells


def test_backgrounds_differ():
    means = [tuple(draw(RED_CAR, name)[:, :, c].mean().round() for c in range(3)) for name in BACKGROUNDS]
    assert len(set(means)) == len(BACKGROUNDS)


def test_too_small_an_image_is_refused():
    with pytest.raises(ValueError, match="at least 48"):
        draw_scene(sample_scene(0, 0), 20)
