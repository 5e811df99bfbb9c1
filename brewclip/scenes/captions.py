"""Texts of scenes: read captions, spontaneous narratives, and the sentences spoken in four emotions.

Every statement about the image is true; captions are partial, narratives also digress and correct themselves. Words
are spelled as Whisper writes them, so that ground truth and transcript can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from brewclip.scenes.world import COLOURS, THINGS, Item, Scene

EMOTIONS = ("neutral", "happy", "sad", "angry")
EMOTION_SENTENCES = ("The children are talking by the door.", "The dogs are sitting by the window.")

MIN_WORDS, MAX_WORDS = 3, 15
NUMBERS = {2: ("two", "two", "a pair of", "a couple of"), 3: ("three", "three", "three", "a group of three")}
SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big", "huge")}
BACKGROUND_PHRASES = {
    "meadow": ("in a meadow", "on the grass", "in a grassy field"),
    "beach": ("on the beach", "by the sea", "at the seaside"),
    "snow": ("in the snow", "on a snowy day", "on snowy ground"),
    "desert": ("in the desert", "in a sandy desert", "in a dry desert"),
    "night": ("at night", "under the stars", "in the dark"),
    "room": ("in a room", "inside a room", "indoors"),
}
PLACES = {  # (row, column) of a single thing
    (0, 0): ("at the top left", "in the top left corner"),
    (0, 1): ("at the top", "at the top in the middle"),
    (0, 2): ("at the top right", "in the top right corner"),
    (1, 0): ("on the left", "on the left side"),
    (1, 1): ("in the middle", "in the center"),
    (1, 2): ("on the right", "on the right side"),
    (2, 0): ("at the bottom left", "in the bottom left corner"),
    (2, 1): ("at the bottom", "at the bottom in the middle"),
    (2, 2): ("at the bottom right", "in the bottom right corner"),
}
ROWS = ("at the top", "in the middle row", "at the bottom")  # place of several copies
# P(a caption mentions it | it could be mentioned)
SAYS_COLOUR, SAYS_SIZE, SAYS_PLACE, SAYS_SYNONYM, SAYS_BACKGROUND = 0.75, 0.35, 0.45, 0.3, 0.35
NAMES_WEIGHTS = {1: 0.22, 2: 0.50, 3: 0.28}  # how many things a caption names

MAX_MENTIONS = 3  # items that a narrative mentions; with four it would not fit CLIP's 77 tokens
RAMBLES_TWICE, NARRATES_BACKGROUND, FILLS = 0.15, 0.35, 0.5  # probabilities

GROUP_WORDS = {  # how a narrative refers to a thing without naming it: (one, several)
    "animal": ("some kind of animal", "animals of some kind"),
    "vehicle": ("something you travel in", "things you travel in"),
    "fruit": ("some piece of fruit", "pieces of fruit"),
    "food": ("something to eat", "things to eat"),
    "tool": ("some sort of tool", "tools of some sort"),
    "clothes": ("something to wear", "things to wear"),
    "household": ("something from the house", "things from the house"),
    "instrument": ("a musical instrument", "musical instruments"),
    "toy": ("something to play with", "things to play with"),
    "plant": ("some plant", "plants"),
}
FILLERS = ("um", "uh", "well", "so", "you know", "I mean", "like", "let me see")
OPENINGS = (
    "Okay, so, um,",
    "Right, let me see,",
    "Um, well,",
    "So, uh, what do we have here,",
    "Alright, uh, looking at this one,",
    "Oh, um, okay,",
)
REPAIRS = ("no,", "no wait,", "sorry,", "or rather,", "I mean,", "hang on,")
RAMBLES = (
    "it makes me think of my grandmother, who always had {a} around",
    "I was looking for my {b} all morning, but anyway",
    "my brother would say that is {a}, he is always wrong",
    "the last one I did had {a} in it, this one does not",
    "I have never been good at this, I once took {a} for {c}",
    "we used to have {a} when I was little",
    "I really should have had breakfast before doing this",
    "my neighbor has been talking about {a} all week",
    "there is no {b} here and no {d} either, as far as I can see",
    "I am not sure how much I am supposed to say",
)


def read_captions(scene: Scene, rng: np.random.Generator, count: int = 5) -> list[str]:
    """Return captions as written for reading aloud: partial, true, 3 to 15 words, all different.

    Args:
        scene: content of the image.
        rng: decides content and wording; the result is a function of scene and generator state alone.
        count: number of captions, at least 1.

    Raises:
        ValueError: if count is below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    captions: list[str] = []
    while len(captions) < count:
        caption = _caption(scene, rng)
        if caption not in captions and MIN_WORDS <= len(caption.split()) <= MAX_WORDS:
            captions.append(caption)
    return captions


def _caption(scene: Scene, rng: np.random.Generator) -> str:
    """Return one caption; its length is not bounded yet."""
    wanted = int(rng.choice(list(NAMES_WEIGHTS), p=list(NAMES_WEIGHTS.values())))
    chosen = rng.permutation(len(scene.items))[:wanted]
    items = [scene.items[i] for i in chosen]
    phrases = [noun_phrase(item, rng) for item in items]
    if len(items) < 3:
        phrases = [
            f"{phrase} {place_phrase(item, rng)}" if rng.random() < SAYS_PLACE else phrase
            for phrase, item in zip(phrases, items, strict=True)
        ]
    listing = _list(phrases, rng)
    verb = "is" if items[0].count == 1 else "are"
    where = _pick(BACKGROUND_PHRASES[scene.background], rng)
    forms: tuple[str, ...]
    if rng.random() < SAYS_BACKGROUND:
        forms = (f"{listing} {where}", f"{where}, there {verb} {listing}", f"there {verb} {listing} {where}")
    else:
        forms = (
            listing,
            listing,
            f"there {verb} {listing}",
            f"I can see {listing}",
            f"a picture of {listing}",
        )
    return sentence(_pick(forms, rng))


def noun_phrase(item: Item, rng: np.random.Generator) -> str:
    """Return a count or article, possibly a size and a colour, and one of the thing's names."""
    names = item.thing.names
    name = _pick(names[1:], rng) if len(names) > 1 and rng.random() < SAYS_SYNONYM else names[0]
    words = []
    if item.size in SIZE_WORDS and rng.random() < SAYS_SIZE:
        words.append(_pick(SIZE_WORDS[item.size], rng))
    if item.colour and rng.random() < SAYS_COLOUR:
        words.append(item.colour)
    words.append(name if item.count == 1 else item.thing.plural_of(name))
    if item.count > 1:
        return f"{_pick(NUMBERS[item.count], rng)} {' '.join(words)}"
    return with_article(" ".join(words))


def place_phrase(item: Item, rng: np.random.Generator) -> str:
    """Return where an item is: a corner, side or middle for a single thing, the row for several copies."""
    return _pick(PLACES[item.row, item.column], rng) if item.count == 1 else ROWS[item.row]


def with_article(words: str) -> str:
    """Return words after "a" or "an", by their first letter (no word of the world is an exception)."""
    return f"{'an' if words[0] in 'aeio' or words.startswith('umb') else 'a'} {words}"


def sentence(words: str) -> str:
    """Return words as a sentence, with a capital and a full stop."""
    return f"{words[0].upper()}{words[1:]}."


def _list(phrases: Sequence[str], rng: np.random.Generator) -> str:
    """Join one to three phrases."""
    if len(phrases) == 1:
        return phrases[0]
    head = ", ".join(phrases[:-1])
    return f"{head} {_pick(('and', 'and', 'with', 'together with'), rng)} {phrases[-1]}"


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def narrative(scene: Scene, rng: np.random.Generator) -> str:
    """Return a spontaneous description of the image: long, hesitant, with corrections and digressions.

    Up to three items of the image are mentioned, in part: by name, or by group and colour, count or place, sometimes
    wrong first and then corrected. Digressions name things that are not in the image. The truth can be inferred, but
    not by a model that takes every word literally.
    """
    absent = [thing.name for thing in THINGS if thing not in {item.thing for item in scene.items}]
    chosen = rng.permutation(len(scene.items))[:MAX_MENTIONS]
    parts = [_mention(scene.items[i], rng) for i in chosen]
    for _ in range(1 + int(rng.random() < RAMBLES_TWICE)):
        parts.insert(int(rng.integers(len(parts) + 1)), _ramble(absent, rng))
    if rng.random() < NARRATES_BACKGROUND:
        place = _pick(BACKGROUND_PHRASES[scene.background], rng)
        parts.append(f"and {_pick(FILLERS, rng)}, I guess it is {place}")
    return " ".join([f"{_pick(OPENINGS, rng)} {parts[0]}.", *(sentence(part) for part in parts[1:])])


def _mention(item: Item, rng: np.random.Generator) -> str:
    """Return one hesitant statement about one item."""
    said = (_said_plainly, _said_plainly, _said_vaguely, _said_with_repair)[int(rng.integers(4))](item, rng)
    verb = "is" if item.count == 1 else "are"
    opening = _pick((f"there {verb}", f"there {verb}", "I see", "and then", "I think I can make out"), rng)
    filler = f", {_pick(FILLERS, rng)}," if rng.random() < FILLS else ""
    return f"{opening}{filler} {said}"


def _said_plainly(item: Item, rng: np.random.Generator) -> str:
    filler = f", {_pick(FILLERS, rng)}," if rng.random() < FILLS else ""
    return f"{noun_phrase(item, rng)}{filler} {place_phrase(item, rng)}"


def _said_vaguely(item: Item, rng: np.random.Generator) -> str:
    """Return the group of the thing with its colour, if any, count and place."""
    one, several = GROUP_WORDS[item.thing.group]
    what = one if item.count == 1 else f"{NUMBERS[item.count][0]} {several}"
    colour = f", {item.colour} I would say," if item.colour else ""
    return f"{what}{colour} {place_phrase(item, rng)}"


def _said_with_repair(item: Item, rng: np.random.Generator) -> str:
    """Return a wrong word, then the correction."""
    name = item.thing.name if item.count == 1 else item.thing.plural_of(item.thing.name)
    repair = _pick(REPAIRS, rng)
    if item.colour and rng.random() < 0.5:
        wrong = _pick([colour for colour in COLOURS if colour != item.colour], rng)
        right = f"{item.colour} {name}"
        start = with_article(wrong) if item.count == 1 else f"{NUMBERS[item.count][0]} {wrong}"
    else:
        kin = [t for t in THINGS if t.group == item.thing.group and t != item.thing]
        other = kin[int(rng.integers(len(kin)))]
        right = f"{item.colour} {name}" if item.colour else name
        start = with_article(other.name) if item.count == 1 else other.plural_of(other.name)
    corrected = with_article(right) if item.count == 1 else f"{NUMBERS[item.count][0]} {right}"
    return f"{start}, {repair} {corrected}"


def _ramble(absent: Sequence[str], rng: np.random.Generator) -> str:
    """Return a digression; the things it names are not in the image."""
    first, second, third, fourth = (absent[i] for i in rng.choice(len(absent), size=4, replace=False))
    return _pick(RAMBLES, rng).format(a=with_article(first), b=second, c=with_article(third), d=fourth)


def emotion_sentence(index: int = 0) -> str:
    """Return one of the sentences spoken in all EMOTIONS, as in RAVDESS: the words carry no emotion."""
    return EMOTION_SENTENCES[index % len(EMOTION_SENTENCES)]
