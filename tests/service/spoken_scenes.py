"""A small world to search in by voice: drawn scenes, spoken captions, an index, and a system with both channels."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile

import brewclip
from brewclip.audio import SAMPLE_RATE_HZ
from brewclip.checkpoints.checkpoint import save_checkpoint
from brewclip.checkpoints.facts import Checkpoint, CheckpointFacts
from brewclip.config import flatten, preset
from brewclip.data.storage import open_storage
from brewclip.factory import build_model, build_towers
from brewclip.pretrained.clip_identity import weights_sha256
from brewclip.pretrained.load import load_clip
from brewclip.scenes import captions, voices
from brewclip.scenes.drawing import draw_scene
from brewclip.scenes.world import sample_scene, scene_generator, world_seed

WHISPER_WIDTH = 512  # of Whisper base
RUN = "scenes-brewclip-adapter-confidence-asr_mean-0"
NEAR_COSINE = 0.5  # the score below which nothing is close, as if fitted on dev
_SEED = world_seed("scenes/test")


@dataclass(frozen=True)
class SpokenScenes:
    """Where the parts of the world are: image number k is images/k.png."""

    folder: Path

    @property
    def index(self) -> Path:
        return self.folder / "index"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def storage(self) -> str:
        return (self.folder / "storage").as_uri()

    def caption(self, number: int) -> str:
        """Return what is said of an image."""
        return captions.read_captions(sample_scene(_SEED, number), scene_generator(_SEED, number, "captions"), 1)[0]

    def speak(self, number: int, path: Path, silence_seconds: float = 0.0) -> Path:
        """Write a caption as a sound file, behind some silence."""
        rng = scene_generator(_SEED, number, "voice")
        waveform = voices.speak(self.caption(number), voices.speaker_voice("speaker-01"), rng)
        silence = np.zeros(round(silence_seconds * SAMPLE_RATE_HZ), np.float32)
        soundfile.write(path, np.concatenate([silence, waveform]), SAMPLE_RATE_HZ, subtype="PCM_16")
        return path


def make_spoken_scenes(folder: Path, num_images: int) -> SpokenScenes:
    """Draw the images, save a system, and index them with it."""
    world = SpokenScenes(folder)
    world.images.mkdir(parents=True)
    for number in range(num_images):
        draw_scene(sample_scene(_SEED, number), 192).save(world.images / f"{number}.png")
    system = brewclip.load(save_untrained_run(world.storage))
    system.build_index([world.images], world.index)
    return world


def save_untrained_run(storage: str) -> str:
    """Write a run whose channel of words is CLIP as it is, and whose channel of sound has its initial weights.

    Sound has the weight 0 until somebody moves the slider, so results are those of zero-shot CLIP.
    """
    clip = load_clip("scenes")
    config = preset("scenes_adapter")
    config = replace(config, data=replace(config.data, transcript="asr_mean"))
    model = build_model(config, build_towers(config, clip), WHISPER_WIDTH)
    facts = CheckpointFacts(
        step=0,
        config=flatten(config),
        frozen_sha256={"scenes": weights_sha256(clip.model)},
        audio_dim=WHISPER_WIDTH,
        metrics={"dev/near_cosine": NEAR_COSINE},
    )
    state = {key: value.contiguous() for key, value in model.trained_state().items()}
    url = f"{storage}/runs/{RUN}"
    save_checkpoint(open_storage(url), Checkpoint(facts, state, {}), best=True, keep=1)
    return url
