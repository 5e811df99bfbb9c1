"""The loop on one process: it learns, goes on exactly, stops where it must, and leaves frozen weights alone."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from brewclip.config import ModelConfig, OptimConfig, RunConfig, unflatten
from brewclip.config.settings import Config
from brewclip.data.batches import collate
from brewclip.data.manifest import open_manifest
from brewclip.data.order import SampleOrder
from brewclip.data.reader import Rejections, SplitReader
from brewclip.data.stream import Stream
from brewclip.errors import UserError
from brewclip.factory import build_autocast, build_decoder, build_model
from brewclip.models.clip import PromptedCLIP
from brewclip.pretrained.clip_identity import weights_sha256
from brewclip.pretrained.load import load_clip
from brewclip.training.loop import train
from brewclip.training.optimizer import build_optimizer, load_optimizer_state, optimizer_state
from brewclip.training.state import STOP_REQUESTED, TrainState
from tests.training.features import AUDIO_DIM, write_features

STEPS = 12
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip():
    return load_clip("scenes")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    url = tmp_path_factory.mktemp("features").as_uri()
    write_features(url, "train", 16)
    return open_manifest(f"{url}/train")


class Run:
    """One process's parts of a run, and what it recorded."""

    def __init__(self, clip, manifest, variant="brewclip", **optim):
        settings = {"peak_lr": 1e-3, "warmup_steps": 2, "total_steps": STEPS} | optim
        self.config = Config(
            model=ModelConfig(variant=variant, clip="scenes", ff_dim=64),
            optim=OptimConfig(**settings),
            run=RunConfig(global_batch_size=8, log_every_steps=1, eval_every_steps=4, checkpoint_every_steps=5),
        )
        self.clip, self.manifest = clip, manifest
        self.model = build_model(self.config, PromptedCLIP(clip.model), AUDIO_DIM)
        self.optimizer = build_optimizer(self.model.trained_parameters(), self.config.optim)
        self.state = TrainState()
        self.recalls = itertools.cycle([10.0, 30.0, 20.0])
        self.losses: dict[int, float] = {}
        self.saved: list[tuple[int, bool]] = []
        self.stop_at = math.inf

    def batches(self):
        run = self.config.run
        order = SampleOrder(self.manifest, run.seed, run.global_batch_size)
        decode = build_decoder(self.config, self.clip)
        stream = Stream(SplitReader(self.manifest), order, decode, Rejections(self.manifest.url))
        for step, pairs in stream.iter_from(self.state.step):
            yield collate(pairs, self.clip.mean, self.clip.std, CPU), torch.arange(8) + step * 8

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
def test_the_loss_falls_and_frozen_weights_stay(clip, manifest):
    before = weights_sha256(clip.model)
    run = Run(clip, manifest, total_steps=40, peak_lr=3e-3)
    run.go()
    assert sum(run.losses[n] for n in range(37, 41)) < 0.8 * sum(run.losses[n] for n in range(1, 5))
    assert weights_sha256(clip.model) == before


@pytest.mark.slow
def test_going_on_equals_never_having_stopped(clip, manifest):
    straight = Run(clip, manifest)
    straight.go()
    first = Run(clip, manifest)
    first.stop_at = 6  # the request is met after the step that was about to start
    assert first.go().problem == STOP_REQUESTED
    assert first.saved[-1] == (7, False)

    second = Run(clip, manifest)
    names = list(second.model.trained_parameters())
    second.model.load_trained_state(first.model.trained_state())
    load_optimizer_state(second.optimizer, names, optimizer_state(first.optimizer, names))
    second.state = TrainState(step=7)
    second.go()
    assert first.losses | second.losses == straight.losses
    for name, tensor in straight.model.trained_state().items():
        assert torch.equal(tensor, second.model.trained_state()[name]), name


def test_the_best_of_dev_is_marked_and_the_last_step_is_saved(clip, manifest):
    run = Run(clip, manifest)
    state = run.go()
    assert run.saved == [(4, True), (5, False), (8, True), (10, False), (12, False)]
    assert state.best == {"dev/speech_to_image/R10": 30.0, "step": 8}


@pytest.mark.parametrize("log_every_steps", [1, 6, 100])
def test_a_gradient_that_is_not_finite_stops_before_the_step(clip, manifest, log_every_steps):
    """Whenever it is noticed, the run stands before the first such step, and no metric of a later one is recorded."""
    run = Run(clip, manifest, "acoustic")
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
def test_a_batch_that_is_missing_stops_the_run_before_its_step(clip, manifest, step):
    """The last one, too; all steps before it are done, logged and saved as ever."""
    run = Run(clip, manifest, "acoustic")

    def batches():
        yield from itertools.islice(Run.batches(run), step)
        raise UserError("too many samples cannot be used")

    run.batches = batches
    assert run.go() == TrainState(step, run.state.best, run.state.metrics, "too many samples cannot be used")
    assert sorted(run.losses) == list(range(1, step + 1))
    assert [at for at, _ in run.saved] == [at for at in (4, 5, 8, 10) if at <= step]


@pytest.mark.parametrize("variant", ["pipeline", "acoustic"])
def test_variants_train(clip, manifest, variant):
    run = Run(clip, manifest, variant)
    assert run.go().step == STEPS


def test_a_run_can_be_rebuilt_from_its_checkpoint_settings(clip, manifest):
    from brewclip.config import flatten

    run = Run(clip, manifest)
    assert unflatten(flatten(run.config)) == run.config
