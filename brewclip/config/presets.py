"""Named configurations as Python functions: the paper's corpora, the generated scenes, the released code."""

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from brewclip.config.settings import (
    ClusterConfig,
    Config,
    DataConfig,
    ExtractionConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    Variant,
)

Number = TypeVar("Number", int, float)


def flickr8k() -> Config:
    """Return the paper's settings for Flickr8k with the Flickr Audio Caption Corpus."""
    return Config(data=DataConfig(corpus="flickr8k"), cluster=ClusterConfig(use_gpu=True, cpus_per_worker=4))


def spoken_coco() -> Config:
    """Return the paper's settings for SpokenCOCO on the Karpathy split."""
    return _on(flickr8k(), "spoken_coco")


def localized_narratives() -> Config:
    """Return the paper's settings for Localized Narratives on COCO."""
    return _on(flickr8k(), "localized_narratives")


def scenes() -> Config:
    """Return the local default: generated scenes, which two CPU cores train on in minutes."""
    return Config(
        data=DataConfig(corpus="scenes", num_threads=1),
        model=ModelConfig(clip="scenes", ff_dim=1024),
        optim=OptimConfig(peak_lr=3e-4, prompt_lr_scale=3.0, warmup_steps=20, total_steps=300),
        run=RunConfig(
            global_batch_size=64,
            precision="float32",
            selection_metric="dev/speech_to_image/R1",  # R@10 of a small dev split is soon 100 %
            log_every_steps=10,
            eval_every_steps=75,
            checkpoint_every_steps=75,
        ),
        cluster=ClusterConfig(num_workers=2),
        extraction=ExtractionConfig(image_side_pixels=192),  # twice what its CLIP needs, for the reports
    )


def scenes_narratives() -> Config:
    """Return settings for the scenes world in narratives: long, with fillers and repairs, as in Localized Narratives.

    120 steps are enough for the prompts: R@1 of the pipeline on dev was 45 / 45 / 47 % after 40 / 80 / 120 steps of a
    run of 240, and 44 to 46 % after them.
    """
    config = _on(scenes(), "scenes_narratives")
    return replace(
        config,
        optim=replace(config.optim, peak_lr=1e-3, prompt_lr_scale=10.0, total_steps=120),
        run=replace(config.run, eval_every_steps=40, checkpoint_every_steps=40),
    )


def scenes_noisy() -> Config:
    """Return settings for the scenes world in babble noise, where Whisper makes many errors.

    The acoustic channel has to learn from scratch, so training is longer than for narratives: with 5,400 recordings
    R@10 of the full model on dev (200 images) was 48 / 58 / 60 / 62 / 63 / 64 % after 100, 200 ... 600 steps.
    """
    config = _on(scenes_narratives(), "scenes_noisy")
    return replace(
        config,
        optim=replace(config.optim, total_steps=600),
        run=replace(
            config.run, selection_metric=RunConfig().selection_metric, eval_every_steps=100, checkpoint_every_steps=100
        ),
    )


def scenes_mixed() -> Config:
    """Return settings for the scenes world with clear captions and the same through babble, in one gallery."""
    return _on(scenes_noisy(), "scenes_mixed")


def own() -> Config:
    """Return settings for a user's own corpus: hundreds to thousands of pairs, on a laptop or on one GPU.

    The CLIP is one that a laptop can train: forward and backward of 32 pairs took 10.6 CPU-s with ViT-B-32, 31.4 with
    ViT-B-16, and 40.7 for 8 pairs with ViT-L-14 (2 threads; 2.8, 5.9 and 6.4 GB), so 300 steps are half an hour of two
    free cores. With a GPU, --model.clip ViT-L-14/openai is the better choice.
    Steps, rates and cadence are those of `scenes`, a corpus of that size: 300 steps of 32 pairs are 9,600 pairs, 27
    epochs of 360. Whether they suit OpenAI's weights was not measured; watch the `dev` metrics, every 50 steps. The
    language of each recording is detected.
    """
    return Config(
        data=DataConfig(corpus="own"),
        model=ModelConfig(clip="ViT-B-32/openai", language=""),
        optim=OptimConfig(peak_lr=3e-4, prompt_lr_scale=3.0, warmup_steps=20, total_steps=300),
        run=RunConfig(
            selection_metric="dev/speech_to_image/R1",  # R@10 of a small dev split is soon 100 %
            log_every_steps=10,
            eval_every_steps=50,
            checkpoint_every_steps=50,
        ),
        cluster=ClusterConfig(use_gpu="auto", cpus_per_worker=2),
    )


def release(config: Config) -> Config:
    """Return the configuration with the settings of the authors' released code where it differs from the paper.

    English Whisper; no inner loss; tau fixed at 0.07; the mean of the two directions' losses, which makes gradients
    half as long before they are clipped at 4; the CLS vector drawn from N(0, 1); the acoustic channel gets the first
    30 s. See docs/presets.md.
    """
    return replace(
        config,
        model=replace(config.model, whisper="base.en", cls_std=1.0),
        loss=replace(config.loss, alpha=0.0, temperature=0.07, learn_temperature=False, reduction="mean"),
        optim=replace(config.optim, grad_clip_norm=4.0),
        extraction=replace(config.extraction, frames="first_30_seconds"),
    )


def by_confidence(config: Config) -> Config:
    """Return the configuration with an adapter and the fusion by confidence, see docs/adapter.md.

    In the scenes worlds its acoustic channel, which is trained alone, gets the learning rate of the variant `acoustic`;
    the adapter gets the same.
    """
    model = replace(config.model, adaptation="adapter", fusion="confidence")
    run = replace(config.run, selection_metric="dev/mean_recall")
    peak_lr = 1e-3 if config.model.clip == "scenes" else config.optim.peak_lr
    return replace(config, model=model, run=run, optim=replace(config.optim, peak_lr=peak_lr, prompt_lr_scale=1.0))


def speechclip(config: Config) -> Config:
    """Return the configuration with the baseline SpeechCLIP-P, trained as its authors do; see docs/baselines.md.

    In the scenes worlds it hears all layers of Whisper base, as no HuBERT comes without a download, and keeps steps and
    batch of the corpus, with the learning rate of the acoustic channel alone. What the user set is not changed.
    """
    usual = PRESETS.get(config.data.corpus, scenes)()
    model = replace(config.model, variant="speechclip", cls_std=1.0)
    loss = replace(config.loss, reduction="mean")
    optim, run = replace(config.optim, prompt_lr_scale=1.0), config.run
    if config.model.clip == "scenes":
        if model.speech_encoder == ModelConfig().speech_encoder:
            model = replace(model, speech_encoder="whisper-base")
        optim = replace(optim, peak_lr=_changed(optim.peak_lr, usual.optim.peak_lr, 1e-3))
    else:
        optim = replace(optim, total_steps=_changed(optim.total_steps, usual.optim.total_steps, 50_000))
        run = replace(run, global_batch_size=_changed(run.global_batch_size, usual.run.global_batch_size, 256))
    return replace(config, model=model, loss=loss, optim=optim, run=run)


def _changed(value: Number, usual: Number, wanted: Number) -> Number:
    """Return what is wanted instead of the usual value, or the value that a user has set."""
    return wanted if value == usual else value


def for_variant(config: Config, variant: Variant, seed: int) -> Config:
    """Return a preset with a variant and a seed.

    In the scenes worlds the acoustic channel alone is trained from scratch and needs a higher learning rate (R@1 on dev
    was 26 against 18 %); a learning rate set by the user is not changed.
    """
    if variant == "speechclip":
        config = speechclip(config)
    optim, usual = config.optim, PRESETS.get(config.data.corpus, scenes)().optim
    if variant == "acoustic" and config.model.clip == "scenes" and optim.peak_lr == usual.peak_lr:
        optim = replace(optim, peak_lr=1e-3, prompt_lr_scale=10.0)
    model, run = replace(config.model, variant=variant), replace(config.run, seed=seed, name="")
    data = replace(config.data, cache_layers=config.data.cache_layers and variant == "speechclip")
    return replace(config, data=data, model=model, run=run, optim=optim)


def _on(config: Config, corpus: str) -> Config:
    return replace(config, data=replace(config.data, corpus=corpus))


PRESETS: dict[str, Callable[[], Config]] = {
    "scenes": scenes,
    "scenes_narratives": scenes_narratives,
    "scenes_noisy": scenes_noisy,
    "scenes_mixed": scenes_mixed,
    "own": own,
    "scenes_adapter": lambda: by_confidence(scenes()),
    "scenes_narratives_adapter": lambda: by_confidence(scenes_narratives()),
    "scenes_noisy_adapter": lambda: by_confidence(scenes_noisy()),
    "scenes_mixed_adapter": lambda: by_confidence(scenes_mixed()),
    "own_adapter": lambda: by_confidence(own()),
    "scenes_speechclip": lambda: speechclip(scenes()),
    "scenes_narratives_speechclip": lambda: speechclip(scenes_narratives()),
    "scenes_noisy_speechclip": lambda: speechclip(scenes_noisy()),
    "flickr8k": flickr8k,
    "spoken_coco": spoken_coco,
    "localized_narratives": localized_narratives,
    "flickr8k_release": lambda: release(flickr8k()),
    "spoken_coco_release": lambda: release(spoken_coco()),
    "localized_narratives_release": lambda: release(localized_narratives()),
    "speechclip_flickr8k": lambda: speechclip(flickr8k()),
    "speechclip_spoken_coco": lambda: speechclip(spoken_coco()),
    "speechclip_localized_narratives": lambda: speechclip(localized_narratives()),
}


def preset(name: str) -> Config:
    """Return the named configuration.

    Raises:
        ValueError: if there is no such preset; the message names the nearest.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown preset {name!r}: {hint}there are {', '.join(PRESETS)}")
    return PRESETS[name]()
