"""The scenes world: things, colours, sizes, counts, places, backgrounds, and scenes sampled by seed.

Defines the content of an image, not how it is drawn (drawing.py), described (captions.py) or spoken (voices.py).

A scene is a pure function of (seed, index). Each use has its own seed: `world_seed("clip-train")` is for training the
scenes CLIP, `world_seed("clip-heldout")` for its evaluation, and a corpus takes `world_seed("<corpus>/<split>")`,
for example "scenes/train" and "scenes/test". Two scenes from different seeds could still be equal by chance, so
`Scene.signature` gives what a viewer can distinguish, and the CLIP training excludes every signature of the held-out
splits.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

GROUPS = ("animal", "vehicle", "fruit", "food", "tool", "clothes", "household", "instrument", "toy", "plant")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "grey")
SIZES = ("small", "medium", "large")
BACKGROUNDS = ("meadow", "beach", "snow", "desert", "night", "room")
GRID = 3  # rows and columns of places

KINDS_WEIGHTS = {2: 0.35, 3: 0.40, 4: 0.25}  # how many different things a scene shows
COUNT_WEIGHTS = {1: 0.72, 2: 0.16, 3: 0.12}  # how many of one thing
SIZE_WEIGHTS = (0.3, 0.4, 0.3)
JITTER = 0.04  # maximum offset of a copy from the centre of its cell, as a fraction of the cell


@dataclass(frozen=True)
class Thing:
    """A thing that can be named, with its OpenMoji drawing.

    Args:
        name: the usual singular name.
        group: one of GROUPS.
        codepoint: file stem of the OpenMoji drawing.
        synonyms: other singular names.
        plural: plural of `name` where it is irregular, see `plural_of`.
        body: fills of the drawing that carry the thing's colour, light to dark; empty if it has fixed colours.
    """

    name: str
    group: str
    codepoint: str
    synonyms: tuple[str, ...] = ()
    plural: str = ""
    body: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All singular names, the usual one first."""
        return (self.name, *self.synonyms)

    def plural_of(self, name: str) -> str:
        """Return the plural of one of the thing's names: irregular, or by rule (bunnies, slices of pizza, boats)."""
        if self.plural and name == self.name:
            return self.plural
        first, of, rest = name.partition(" of ")
        return f"{first.removesuffix('y')}ies{of}{rest}" if first.endswith("nny") else f"{first}s{of}{rest}"


@dataclass(frozen=True)
class Item:
    """One or several copies of a thing, side by side in one row of the 3x3 places.

    Args:
        thing: what it is.
        colour: one of COLOURS, or None for a thing with fixed colours.
        size: one of SIZES.
        count: 1, 2 or 3 copies.
        row: 0 at the top, 2 at the bottom.
        column: place of the leftmost copy, 0 at the left.
        offsets: jitter per copy (x, y), as fractions of a cell; captions ignore it.
    """

    thing: Thing
    colour: str | None
    size: str
    count: int
    row: int
    column: int
    offsets: tuple[tuple[float, float], ...]

    @property
    def signature(self) -> tuple[str, str, str, int, int, int]:
        """Everything that a viewer can distinguish."""
        return (self.thing.name, self.colour or "", self.size, self.count, self.row, self.column)


@dataclass(frozen=True)
class Scene:
    """An image's contents: 2 to 4 items without overlap on a background."""

    items: tuple[Item, ...]
    background: str

    @property
    def signature(self) -> tuple[object, ...]:
        """Everything that a viewer can distinguish; equal for scenes that differ only in their jitter."""
        return (self.background, *sorted(item.signature for item in self.items))


def _things(group: str, *rows: str) -> tuple[Thing, ...]:
    """Read rows "name[/synonym..] codepoint [plural=x] [fill,fill..]" of one group."""
    things = []
    for row in rows:
        names, codepoint, *extras = row.split()
        name, *synonyms = names.replace("_", " ").split("/")
        plural = "".join(e.removeprefix("plural=").replace("_", " ") for e in extras if e.startswith("plural="))
        body = tuple(f"#{fill}" for e in extras if not e.startswith("plural=") for fill in e.split(","))
        things.append(Thing(name, group, codepoint, tuple(synonyms), plural, body))
    return tuple(things)


THINGS: tuple[Thing, ...] = (
    *_things(
        "animal",
        "dog 1F415",
        "cat 1F408",
        "horse 1F40E",
        "cow 1F404",
        "pig 1F416",
        "sheep 1F411 plural=sheep",
        "rabbit/bunny 1F407",
        "elephant 1F418",
        "tiger 1F405",
        "monkey 1F412",
        "camel 1F42A",
        "giraffe 1F992",
        "turtle 1F422",
        "snake 1F40D",
        "duck 1F986",
        "owl 1F989",
        "penguin 1F427",
        "bee 1F41D",
        "whale 1F433",
        "octopus 1F419 plural=octopuses",
        "butterfly 1F98B plural=butterflies 92d3f5",
        "fish 1F41F plural=fish 92d3f5,61b2e4",
    ),
    *_things(
        "vehicle",
        "car 1F697 ea5a47",
        "bus 1F68C plural=buses ea5a47",
        "train 1F682 ea5a47",
        "tractor 1F69C b1cc33",
        "bicycle/bike 1F6B2 ea5a47",
        "motorcycle/motorbike 1F3CD ea5a47,d22f27",
        "helicopter 1F681 ea5a47",
        "canoe/boat 1F6F6 61b2e4",
        "airplane/plane 2708",
    ),
    *_things(
        "fruit",
        "apple 1F34E",
        "banana 1F34C",
        "lemon 1F34B",
        "cherry 1F352 plural=cherries",
        "strawberry 1F353 plural=strawberries",
        "pineapple 1F34D",
        "watermelon 1F349",
        "peach 1F351 plural=peaches",
    ),
    *_things(
        "food",
        "loaf_of_bread 1F35E plural=loaves_of_bread",
        "piece_of_cheese 1F9C0 plural=pieces_of_cheese",
        "cake 1F382",
        "pizza/slice_of_pizza 1F355",
        "carrot 1F955",
        "mushroom 1F344",
        "cookie 1F36A",
    ),
    *_things(
        "tool",
        "hammer 1F528",
        "wrench 1F527 plural=wrenches",
        "saw 1FA9A",
        "axe 1FA93",
        "ladder 1FA9C",
        "broom 1F9F9",
        "bucket 1FAA3 92d3f5,61b2e4",
    ),
    *_things(
        "clothes",
        "shirt 1F455 92d3f5,61b2e4",
        "dress 1F457 plural=dresses 61b2e4",
        "boot 1F462 a57939,6a462f",
        "scarf 1F9E3 plural=scarves ea5a47,d22f27",
        "backpack 1F392 ea5a47,d22f27",
        "cap 1F9E2 b1cc33,5c9e31,186648",
        "crown 1F451",
    ),
    *_things(
        "household",
        "chair 1FA91 fcea2b,f1b31c",
        "umbrella 2602 b399c8,8967aa",
        "telephone/phone 260E ea5a47,d22f27",
        "teapot 1FAD6 d0cfce",
        "key 1F511",
        "clock/alarm_clock 23F0",
        "candle 1F56F",
        "bell 1F514",
    ),
    *_things(
        "instrument",
        "guitar 1F3B8 ea5a47",
        "drum 1F941 ea5a47,d22f27",
        "trumpet 1F3BA",
        "violin 1F3BB",
    ),
    *_things(
        "toy",
        "balloon 1F388 ea5a47,d22f27",
        "kite 1FA81 ffa7c0,e67a94",
        "ball 26BD",
        "gift/present 1F381 ea5a47,d22f27",
    ),
    *_things(
        "plant",
        "tree 1F333",
        "cactus 1F335 plural=cactuses",
        "tulip/flower 1F337 f4aa41,e27022",
        "sunflower 1F33B",
    ),
)


def world_seed(namespace: str) -> int:
    """Return the seed of a use of the world, such as "clip-train" or "demo/test": equal names, equal seeds."""
    return int.from_bytes(hashlib.sha256(namespace.encode()).digest()[:8], "big")


def scene_generator(seed: int, index: int, purpose: str = "scene") -> np.random.Generator:
    """Return a random generator that depends on (seed, index, purpose) only; for captions and voices, too.

    Raises:
        ValueError: if seed or index is negative.
    """
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must not be negative, got seed={seed}, index={index}")
    return np.random.default_rng([seed, index, world_seed(purpose)])


def sample_scene(seed: int, index: int) -> Scene:
    """Return scene `index` of the world with this seed, a pure function of both.

    Args:
        seed: at least 0, usually `world_seed(namespace)`.
        index: at least 0.

    Raises:
        ValueError: if seed or index is negative.
    """
    rng = scene_generator(seed, index)
    num_kinds = int(rng.choice(list(KINDS_WEIGHTS), p=list(KINDS_WEIGHTS.values())))
    kinds = rng.choice(len(THINGS), size=num_kinds, replace=False)
    counts = sorted(rng.choice(list(COUNT_WEIGHTS), size=num_kinds, p=list(COUNT_WEIGHTS.values())), reverse=True)
    free = np.ones((GRID, GRID), dtype=bool)
    items = []
    for kind, count in zip(kinds, counts, strict=True):
        if free.any():
            items.append(_place_item(THINGS[kind], int(count), free, rng))
    return Scene(items=tuple(items), background=str(rng.choice(BACKGROUNDS)))


def _place_item(thing: Thing, count: int, free: np.ndarray, rng: np.random.Generator) -> Item:
    """Place copies in a free run of cells in one row, fewer if no run is long enough, and mark the cells as taken."""
    runs: list[tuple[int, int]] = []
    while not runs:
        runs = [
            (row, column)
            for row in range(GRID)
            for column in range(GRID - count + 1)
            if free[row, column : column + count].all()
        ]
        count -= not runs
    row, column = runs[int(rng.integers(len(runs)))]
    free[row, column : column + count] = False
    return Item(
        thing=thing,
        colour=str(rng.choice(COLOURS)) if thing.body else None,
        size=str(rng.choice(SIZES, p=SIZE_WEIGHTS)),
        count=count,
        row=row,
        column=column,
        offsets=tuple((float(x), float(y)) for x, y in rng.uniform(-JITTER, JITTER, size=(count, 2))),
    )
