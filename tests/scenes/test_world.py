"""Scenes: a function of the seed, without overlap, apart from each other by use."""

from collections import Counter

import numpy as np
import pytest

from brewclip.scenes.world import GRID, GROUPS, THINGS, sample_scene, scene_generator, world_seed


def test_world_is_as_large_as_promised():
    assert len(THINGS) >= 60
    assert len({thing.name for thing in THINGS}) == len(THINGS)
    assert {thing.group for thing in THINGS} == set(GROUPS)
    assert sum(bool(thing.body) for thing in THINGS) >= 20  # things that come in several colours


def test_no_name_stands_for_two_things():
    names = Counter(name for thing in THINGS for name in thing.names)
    assert [name for name, count in names.items() if count > 1] == []


def test_same_seed_and_index_give_the_same_scene():
    scenes = [sample_scene(7, index) for index in range(50)]
    assert [sample_scene(7, index) for index in reversed(range(50))] == scenes[::-1]
    assert len(set(scenes)) == 50


def test_scene_is_pinned():
    """A changed world would silently part the shipped CLIP and everyone's data from this code."""
    scene = sample_scene(world_seed("pinned"), 0)
    assert scene.signature == (
        "night",
        ("clock", "", "small", 1, 1, 0),
        ("dog", "", "large", 3, 2, 0),
        ("saw", "", "large", 1, 0, 1),
        ("turtle", "", "large", 1, 1, 2),
    )


def test_things_do_not_overlap_and_stay_inside():
    for index in range(500):
        items = sample_scene(3, index).items
        cells = [(item.row, item.column + copy) for item in items for copy in range(item.count)]
        assert len(set(cells)) == len(cells)
        assert all(0 <= row < GRID and 0 <= column < GRID for row, column in cells)
        assert all(len(item.offsets) == item.count for item in items)
        assert len({item.thing for item in items}) == len(items) in (2, 3, 4)


def test_only_things_that_can_be_coloured_are():
    for index in range(300):
        assert all((item.colour is not None) == bool(item.thing.body) for item in sample_scene(4, index).items)


def test_everything_of_the_world_turns_up():
    scenes = [sample_scene(5, index) for index in range(3000)]
    items = [item for scene in scenes for item in scene.items]
    assert {item.thing for item in items} == set(THINGS)
    assert {item.count for item in items} == {1, 2, 3}
    assert len({item.size for item in items}) == 3
    assert len({(item.row, item.column) for item in items}) == GRID * GRID
    assert len({scene.background for scene in scenes}) >= 6


def test_namespaces_do_not_share_scenes():
    first, second = (
        {sample_scene(world_seed(name), index) for index in range(2000)} for name in ("scenes/train", "scenes/test")
    )
    assert not first & second


def test_signature_leaves_out_what_no_viewer_can_name():
    scene = sample_scene(1, 0)
    assert scene.items[0].offsets[0] not in scene.signature
    assert hash(scene.signature) == hash(sample_scene(1, 0).signature)


def test_purposes_have_their_own_randomness():
    first, second = (scene_generator(1, 2, purpose).random(4) for purpose in ("captions", "voice"))
    assert not np.allclose(first, second)


def test_negative_index_is_refused():
    with pytest.raises(ValueError, match="index=-1"):
        sample_scene(0, -1)
