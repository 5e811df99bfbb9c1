"""The model card of a checkpoint: data, settings, metrics with intervals, licences of the frozen towers, limits."""

from brewclip.checkpoints.facts import CheckpointFacts
from brewclip.config import ModelConfig, unflatten
from brewclip.config.speech_encoders import HUBERTS, WHISPER_PREFIX
from brewclip.version import __version__

CARD = "README.md"
# Licences of frozen weights as their publishers state them, by the beginning of the tag in `ARCHITECTURE/TAG`.
_CLIP_LICENCES = {
    "openai": "MIT",
    "laion": "MIT",
    "datacompdr": "Apple's, see LICENSE_weights_data of apple/ml-mobileclip",
    "datacomp": "MIT",
    "dfndr2b": "Apple Machine Learning Research Model License: research only",
    "webli": "Apache-2.0",
    "metaclip": "CC BY-NC 4.0",
    "meta": "Apache-2.0",
    "scenes": "Apache-2.0, trained on drawings of OpenMoji (CC BY-SA 4.0)",
    "random": "none: untrained weights",
}
_VARIANTS = {
    "brewclip": "pipeline and acoustic channel",
    "pipeline": "pipeline channel alone: transcripts through prompted CLIP",
    "acoustic": "acoustic channel alone: Whisper features without a transcript",
    "speechclip": "baseline SpeechCLIP-P: weighted layers of a frozen speech encoder, without a transcript",
}
_SHOWN = ("R1", "R5", "R10")


def model_card(facts: CheckpointFacts) -> str:
    """Return the model card of a checkpoint as Markdown."""
    config = unflatten(facts.config)
    data, model, loss, optim = config.data, config.model, config.loss, config.optim
    settings = {
        "variant": f"{model.variant} ({_VARIANTS.get(model.variant, model.variant)})",
        "adaptation, fusion": f"{model.adaptation}, {model.fusion}",
        "prompt length, layers, heads, feed-forward": (
            f"{config.num_prompts}, {model.num_layers}, {model.num_heads}, {model.ff_dim}"
        ),
        "alpha, temperature, reduction": f"{loss.alpha}, {loss.temperature}, {loss.reduction}",
        "steps, global batch, peak learning rate": f"{facts.step}, {config.run.global_batch_size}, {optim.peak_lr}",
        "seed": str(config.run.seed),
    }
    text = f" with text `{data.transcript}`" if model.reads_text else ""
    rows = "\n".join(f"| {name} | {value} |" for name, value in settings.items())
    return f"""# {config.run_name}: speech-image retrieval

A checkpoint of brewclip {__version__} at step {facts.step}: `brewclip.load(URL)` embeds recordings and images with it.

## Data

Trained on `{data.corpus}/{data.train_split}`{text}, selected on `{data.dev_split}` by
`{config.run.selection_metric}`.

## Settings

| setting | value |
|---|---|
{rows}

## Metrics

{_metrics(facts)}

## Frozen parts and their licences

- CLIP `{model.clip}`, sha256 {facts.frozen_sha256.get(model.clip, "not recorded")[:12]}: {_clip_licence(model.clip)}
- {_speech_part(facts, model)}

## Limits

- The figures above are of the dev split that the checkpoint was selected on; other speakers, languages, microphones and
  images give others.
- A transcript that Whisper's checks reject is empty, so that the acoustic channel alone decides.
- The biases of CLIP's and Whisper's training data are in every result. Recordings of people need their consent.
"""


def _metrics(facts: CheckpointFacts) -> str:
    lines = []
    for direction in ("speech_to_image", "image_to_speech"):
        for name in _SHOWN:
            key = f"dev/{direction}/{name}"
            if key not in facts.metrics:
                continue
            low, high = (facts.metrics.get(f"{key}_{end}", float("nan")) for end in ("low", "high"))
            arrow = direction.replace("_to_", " -> ").replace("_", " ")
            lines.append(f"| {arrow} {name[0]}@{name[1:]} | {facts.metrics[key]:.1f} [{low:.1f}, {high:.1f}] |")
    if not lines:
        return "This checkpoint was not evaluated."
    return "\n".join(["| on dev, in % | value [95 % interval over queries] |", "|---|---|", *lines])


def _speech_part(facts: CheckpointFacts, model: ModelConfig) -> str:
    """Return the licence line of the frozen speech encoder."""
    if model.variant != "speechclip":
        return f"Whisper `{model.whisper}`: MIT"
    name = model.speech_encoder
    licence = "MIT" if name.startswith(WHISPER_PREFIX) else "Apache-2.0" if name in HUBERTS else "see its publisher"
    return f"Speech encoder `{name}`, sha256 {facts.frozen_sha256.get(name, 'not recorded')[:12]}: {licence}"


def _clip_licence(name: str) -> str:
    tag = name.rpartition("/")[2]
    known = (licence for start, licence in _CLIP_LICENCES.items() if tag.startswith(start))
    return next(known, "see the publisher of these weights")
