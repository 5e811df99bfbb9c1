"""The loop on one process: it learns, goes on exactly, stops where it must, and leaves frozen weights alone."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from brewclip.config import DataConfig, ModelConfig, OptimConfig, RunConfig, unflatten
from brewclip.config.settings import Config
from brewclip.data.layer_cache import LayerFolder
from brewclip.data.order import SampleOrder
from brewclip.data.reader import Rejections
from brewclip.data.stream import Stream
from brewclip.errors import UserError
from brewclip.factory import build_autocast
from brewclip.pretrained.clip_identity import weights_sha256
from brewclip.training.cost import StepCost
from brewclip.training.loop import train
from brewclip.training.optimizer import load_optimizer_state, optimizer_state
from brewclip.training.parts import build_parts
from brewclip.training.state import STOP_REQUESTED, TrainState
from tests.training.features import write_features
from tests.training.recordings import save_tiny_whisper, write_recordings

STEPS = 12
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """A corpus, its features, and a small Whisper for the variant that hears the corpus itself."""
    folder = tmp_path_factory.mktemp("storage")
    for split, num_images in (("train", 16), ("dev", 2)):
        write_features(f"{folder.as_uri()}/scenes/whisper-base", split, num_images)
        write_recordings(f"{folder.as_uri()}/scenes", split, num_images)
    save_tiny_whisper(folder)
    return folder


class Run:
    """One process's parts of a run, and what it recorded."""

    def __init__(self, storage, variant="brewclip", cache="", **optim):
        settings = {"peak_lr": 1e-3, "warmup_steps": 2, "total_steps": STEPS} | optim
        encoder = f"whisper-{storage}/tiny.pt"
        self.config = Config(
            storage=storage.as_uri(),
            data=DataConfig(crop_samples=4000, cache_layers=bool(cache), cache_directory=cache),
            model=ModelConfig(variant=variant, clip="scenes", ff_dim=64, speech_encoder=encoder),
            optim=OptimConfig(**settings),
            run=RunConfig(global_batch_size=8, log_every_steps=1, eval_every_steps=4, checkpoint_every_steps=5),
        )
        self.parts = build_parts(self.config, CPU)
        self.model, self.optimizer = self.parts.model, self.parts.optimizer
        self.state = TrainState()
        self.recalls = itertools.cycle([10.0, 30.0, 20.0])
        self.losses: dict[int, float] = {}
        self.saved: list[tuple[int, bool]] = []
        self.stop_at = math.inf

    def batches(self):
        run, parts = self.config.run, self.parts
        order = SampleOrder(parts.manifest, run.seed, run.global_batch_size)
        rejections = Rejections(parts.manifest.url)
        stream = Stream(parts.train, order, parts.decoder, rejections, at_position=parts.at_position)
        for step, pairs in stream.iter_from(self.state.step):
            yield parts.to_batch(pairs), torch.arange(8) + step * 8

    def log(self, metrics, step):
        if "train/loss" in metrics:
            self.losses[step] = metrics["train/loss"]

    def go(self):
        return train(self.config, self.model, self.optimizer, self.batches(), self.state, self)

    def evaluate(self):
        return {"dev/speech_to_image/R10": next(self.recalls)}

    def save(self, state, best):
        self.saved.append((state.step, best))

    def observe(self, batch):
        pass

    def achieved(self, seconds):
        return {}

    def count_bad(self):
        return {}

    def stop_requested(self):
        return self.state.step >= self.stop_at

    def preempted(self):
        return False

    def report(self, state):
        pass

    def autocast(self):
        return build_autocast(self.config, CPU)


@pytest.mark.slow
def test_the_loss_falls_and_frozen_weights_stay(storage):
    run = Run(storage, total_steps=40, peak_lr=3e-3)
    before = weights_sha256(run.model.clip.clip)
    run.go()
    assert sum(run.losses[n] for n in range(37, 41)) < 0.8 * sum(run.losses[n] for n in range(1, 5))
    assert weights_sha256(run.model.clip.clip) == before


@pytest.mark.slow
@pytest.mark.parametrize("form", ["brewclip", "speechclip", "speechclip, cached"])
def test_going_on_equals_never_having_stopped(storage, form, tmp_path):
    """Inside an epoch, to the bit; of speechclip with the same crops, and layers that are computed or cached."""
    variant, cached = form.split(", ")[0], form.endswith("cached")
    straight = Run(storage, variant, cache=str(tmp_path / "one") if cached else "")
    straight.go()
    cache = str(tmp_path / "other") if cached else ""
    first = Run(storage, variant, cache)
    first.stop_at = 6  # the request is met after the step that was about to start
    assert first.go().problem == STOP_REQUESTED
    assert first.saved[-1] == (7, False)

    second = Run(storage, variant, cache)
    names = list(second.model.trained_parameters())
    second.model.load_trained_state(first.model.trained_state())
    load_optimizer_state(second.optimizer, names, optimizer_state(first.optimizer, names))
    second.state = TrainState(step=7)
    second.go()
    assert first.losses | second.losses == straight.losses
    for name, tensor in straight.model.trained_state().items():
        assert torch.equal(tensor, second.model.trained_state()[name]), name


def test_a_step_on_cached_layers_is_counted_without_the_encoder(storage, tmp_path):
    """As it is once they are cached; counting stores none."""
    flops = {}
    for cache in ("", str(tmp_path / "cache")):
        run = Run(storage, "speechclip", cache)
        cost = StepCost(run.model, run.autocast, 8)
        batch, _ = next(run.batches())
        flops[bool(cache)] = cost.flops(batch)
        assert cost.kept_bytes(batch) > 0
    assert 0 < flops[True] < 0.9 * flops[False]
    assert not [path for path in (tmp_path / "cache" / "layers").rglob("*") if path.is_file()]
    assert isinstance(run.model.acoustic.layer_cache, LayerFolder)


def test_the_best_of_dev_is_marked_and_the_last_step_is_saved(storage):
    run = Run(storage)
    state = run.go()
    assert run.saved == [(4, True), (5, False), (8, True), (10, False), (12, False)]
    assert state.best == {"dev/speech_to_image/R10": 30.0, "step": 8}


@pytest.mark.parametrize("log_every_steps", [1, 6, 100])
def test_a_gradient_that_is_not_finite_stops_before_the_step(storage, log_every_steps):
    """Whenever it is noticed, the run stands before the first such step, and no metric of a later one is recorded."""
    run = Run(storage, "acoustic")
    never = {"eval_every_steps": 100, "checkpoint_every_steps": 100}
    run.config = replace(run.config, run=replace(run.config.run, log_every_steps=log_every_steps, **never))
    states = []

    def batches():
        for batch, positions in Run.batches(run):
            states.append(run.model.trained_state())
            yield (replace(batch, audio=batch.audio * math.nan) if len(states) == 5 else batch), positions

    run.batches = batches
    state = run.go()
    assert "gradient is nan at step 4: lower --optim.peak-lr" in state.problem
    assert (state.step, run.saved, max(run.losses, default=0)) == (4, [], 4 if log_every_steps == 1 else 0)
    # The batch of step 5 was taken when step 4 was about to start.
    for name, tensor in run.model.trained_state().items():
        assert torch.equal(tensor, states[5][name]), name


@pytest.mark.parametrize("step", [0, 5, STEPS - 1])
def test_a_batch_that_is_missing_stops_the_run_before_its_step(storage, step):
    """The last one, too; all steps before it are done, logged and saved as ever."""
    run = Run(storage, "acoustic")

    def batches():
        yield from itertools.islice(Run.batches(run), step)
        raise UserError("too many samples cannot be used")

    run.batches = batches
    assert run.go() == TrainState(step, run.state.best, run.state.metrics, "too many samples cannot be used")
    assert sorted(run.losses) == list(range(1, step + 1))
    assert [at for at, _ in run.saved] == [at for at in (4, 5, 8, 10) if at <= step]


@pytest.mark.parametrize("variant", ["pipeline", "acoustic", "speechclip"])
def test_variants_train(storage, variant):
    run = Run(storage, variant)
    assert run.go().step == STEPS


def test_a_run_can_be_rebuilt_from_its_checkpoint_settings(storage):
    from brewclip.config import flatten

    run = Run(storage)
    assert unflatten(flatten(run.config)) == run.config
