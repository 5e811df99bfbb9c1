"""The synthetic scenes corpus: drawn images with captions spoken by a synthetic voice.

    python datasets/scenes.py --dest s3://bucket/scenes
    python datasets/scenes.py --dest file:///tmp/scenes --num-train 2000 --style narrative --noise-snr-db 5
    python datasets/scenes.py --dest s3://bucket/scenes --noise-snr-db 99 2 --test-noise-snr-db 99 5 2 0 -5

Needs the packages of the extra `demo`. The same flags write the same bytes.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from brewclip.audio import SAMPLE_RATE_HZ, encode_flac
from brewclip.config import exit_on_user_error, parse_options
from brewclip.config.ranges import Range
from brewclip.config.submitted import default_storage
from brewclip.corpora.options import WriteOptions
from brewclip.corpora.recipe import exit_on_interrupt, print_summary, write_corpus
from brewclip.data.schema import Sample
from brewclip.scenes import captions, voices
from brewclip.scenes.drawing import draw_scene
from brewclip.scenes.world import Scene, sample_scene, scene_generator, world_seed

CLEAR = "clear"
_CLEAR_SNR_DB = 60
Style = Literal["caption", "narrative", "emotion"]

# Of the emotions: no speaker of test is in train, as with the actors of RAVDESS.
EMOTION_SPEAKERS = {"train": voices.SPEAKERS[:8], "dev": voices.SPEAKERS[8:9], "test": voices.SPEAKERS[9:]}


@dataclass(frozen=True)
class ScenesOptions(WriteOptions):
    """Flags of the scenes corpus."""

    dest: str = field(default_factory=lambda: f"{default_storage().rstrip('/')}/scenes")
    """URL of the corpus, s3://bucket/corpus or file:///folder: splits are stored below it. By default `scenes` in the
    storage of the jobs: BREWCLIP_STORAGE, else the folder ./storage."""
    samples_per_shard: Annotated[int, Range(0, 10**6)] = 100
    """Samples of one shard, the last of a round excepted."""
    num_train: Annotated[int, Range(0, 10**6)] = 400
    """Images of the split train."""
    num_dev: Annotated[int, Range(0, 10**6)] = 100
    """Images of the split dev."""
    num_test: Annotated[int, Range(0, 10**6)] = 200
    """Images of the split test."""
    captions_per_image: Annotated[int, Range(1, 5)] = 2
    """Spoken captions of each image, 1 to 5; narratives and emotions have their own number."""
    style: Style = "caption"
    """Read captions, spontaneous narratives, or one sentence in four emotions (no images)."""
    image_side_pixels: Annotated[int, Range(16, 8192)] = 192
    """Side of the square images."""
    noise_snr_db: tuple[Annotated[float, Range(-100, 100)], ...] = (99.0,)
    """Babble is mixed in at this signal-to-noise ratio, in dB; 60 and more add no babble. Of several, each caption is
    spoken at each one: the same words, voice and babble."""
    test_noise_snr_db: tuple[Annotated[float, Range(-100, 100)], ...] = ()
    """The same for the split test; empty: as in the other splits."""


@dataclass(frozen=True)
class Item:
    """One recording to synthesise: caption `caption` of scene `index` of a split at its noise `level`.

    `number` counts the recordings of the scene.
    """

    split: str
    index: int
    number: int
    caption: int
    level: int


class Scenes:
    """The recipe: the scenes of each split, drawn and spoken."""

    corpus = "scenes"

    def __init__(self, options: ScenesOptions) -> None:
        self.options = options
        self.sizes = {"train": options.num_train, "dev": options.num_dev, "test": options.num_test}
        self.held_out = {
            sample_scene(world_seed(f"scenes/{split}"), index).signature
            for split in ("dev", "test")
            for index in range(self.sizes[split])
        }

    def splits(self) -> list[str]:
        return [split for split, size in self.sizes.items() if size]

    def rounds(self, split: str) -> list[list[Item]]:
        count = {
            "caption": self.options.captions_per_image,
            "narrative": 1,
            "emotion": len(captions.EMOTIONS),
        }
        indices, levels = list(self._indices(split)), len(self._levels(split))
        numbers = range(levels * count[self.options.style])
        return [[Item(split, index, number, *divmod(number, levels)) for index in indices] for number in numbers]

    def _levels(self, split: str) -> tuple[float, ...]:
        """Return the signal-to-noise ratios that each caption of a split is spoken at."""
        return (split == "test" and self.options.test_noise_snr_db) or self.options.noise_snr_db

    def _indices(self, split: str) -> Iterator[int]:
        """Yield scene numbers; a training scene with the signature of a held-out one is skipped."""
        index = found = 0
        while found < self.sizes[split]:
            if split != "train" or _scene(split, index).signature not in self.held_out:
                found += 1
                yield index
            index += 1

    def make_sample(self, item: Item) -> Sample:
        scene = _scene(item.split, item.index)
        image_id = f"scene{item.split}{item.index:06d}"
        text, emotion = self._words(scene, item)
        waveform, speaker = self._speech(text, emotion, item)
        metadata: dict[str, Any] = {
            "image_id": image_id,
            "caption_id": f"{image_id}-{item.number}",
            "split": item.split,
            "duration_seconds": round(len(waveform) / SAMPLE_RATE_HZ, 3),
            "text": text,
            "speaker": speaker,
        }
        image = None if emotion else _jpeg(scene, self.options.image_side_pixels)
        metadata |= {"emotion": emotion} if emotion else {}
        if len(self._levels(item.split)) > 1:
            snr_db = self._levels(item.split)[item.level]
            clear = snr_db >= _CLEAR_SNR_DB
            metadata |= {"condition": CLEAR if clear else "babble", "snr_db": CLEAR if clear else f"{snr_db:g}"}
        return Sample(f"{image_id}-{item.number}", metadata, image=image, audio=encode_flac(waveform))

    def _words(self, scene: Scene, item: Item) -> tuple[str, str]:
        seed = world_seed(f"scenes/{item.split}")
        rng = scene_generator(seed, item.index, "captions")
        if self.options.style == "emotion":
            return captions.emotion_sentence(item.index), captions.EMOTIONS[item.caption]
        if self.options.style == "narrative":
            return captions.narrative(scene, rng), ""
        return captions.read_captions(scene, rng, self.options.captions_per_image)[item.caption], ""

    def _speech(self, text: str, emotion: str, item: Item) -> tuple[NDArray[np.float32], str]:
        rng = scene_generator(world_seed(f"scenes/{item.split}"), item.index, f"voice-{item.caption}")
        voice = voices.sample_voice(rng, emotion_speaker(item.split, item.index) if emotion else None)
        waveform = voices.speak(text, voices.with_emotion(voice, emotion) if emotion else voice, rng)
        snr_db = self._levels(item.split)[item.level]
        if snr_db < _CLEAR_SNR_DB:
            waveform = voices.add_noise(waveform, snr_db, rng)
        return waveform, voice.speaker


def emotion_speaker(split: str, index: int) -> str:
    """Return the speaker of sentence `index` of a split in all emotions; each speaker says every sentence."""
    speakers = EMOTION_SPEAKERS[split]
    return speakers[index // len(captions.EMOTION_SENTENCES) % len(speakers)]


def _scene(split: str, index: int) -> Scene:
    return sample_scene(world_seed(f"scenes/{split}"), index)


def _jpeg(scene: Scene, side_pixels: int) -> bytes:
    buffer = io.BytesIO()
    draw_scene(scene, side_pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def main() -> None:
    """Write the splits that the flags request."""
    with exit_on_user_error(), exit_on_interrupt():
        options = parse_options(__doc__, ScenesOptions)
        print_summary(write_corpus(Scenes(options), options))


if __name__ == "__main__":
    main()
