"""The settings of a run as frozen dataclasses, and their flattened form; `checks` validates them.

Names end in their unit. No torch here: `--help` must be instant.
"""

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any, Literal, get_type_hints

from brewclip.config.renamed import with_current_names
from brewclip.config.submitted import default_storage

Variant = Literal["brewclip", "acoustic", "pipeline", "zero_shot"]
Transcript = Literal["asr", "asr_unfiltered", "ground_truth"]
ImageTransform = Literal["crop", "letterbox"]
LongText = Literal["truncate", "chunks"]
Reduction = Literal["sum", "mean"]
AudioFrames = Literal["speech", "first_30_seconds"]
Precision = Literal["auto", "bfloat16", "float32"]
UseGpu = bool | Literal["auto"]


@dataclass(frozen=True)
class DataConfig:
    """Which corpus is read, and how it is streamed."""

    corpus: str = "scenes"
    """Folder of the corpus below `storage`, as its recipe wrote it."""
    train_split: str = "train"
    """Split that is trained on."""
    dev_split: str = "dev"
    """Split that chooses the best checkpoint. `test` is refused."""
    transcript: Transcript = "asr"
    """Text of the pipeline channel: Whisper's transcript, the same with what Whisper's checks reject, or the text that
    the speaker read."""
    long_text: LongText = "truncate"
    """A text of more tokens than CLIP reads is truncated, or encoded in chunks whose features are averaged."""
    max_audio_frames: int = 6000
    """Longest speech given to the acoustic channel, in Whisper frames of 20 ms; 6000 are two minutes, 0 keeps all."""
    image_transform: ImageTransform = "crop"
    """CLIP's own transform, which is the middle square of an image for most (some were trained on images squashed to a
    square), or the whole image between bars."""
    memory_bytes: int = 512 * 2**20
    """Upper bound of the raw bytes that one worker holds or fetches ahead; a split that fits is read once, and its
    images are decoded once as far as they fit, too."""
    num_threads: int = 4
    """Threads of one worker that decode samples."""
    cache_directory: str = ""
    """Folder where whole shards are kept after their first use; empty reads byte ranges from storage."""
    max_bad_fraction: float = 0.01
    """Largest share of samples that may be undecodable before the run stops, in 0..1."""
    retry_seconds: float = 180.0
    """How long a storage outage may last before the run gives up."""


@dataclass(frozen=True)
class ModelConfig:
    """The bifurcated model (paper section 3.3) and its frozen parts."""

    variant: Variant = "brewclip"
    """Full model, acoustic channel alone, prompted pipeline alone, or the untrained pipeline."""
    whisper: str = "base"
    """Name of a Whisper model as openai-whisper knows it."""
    language: str = "en"
    """Language of the recordings; empty detects it for each recording."""
    clip: str = "ViT-L-14/openai"
    """open_clip architecture and weights as ARCHITECTURE/TAG, or `scenes` for the shipped small one."""
    prompt_length: int = 4
    """Number M of prompt vectors that text, audio and image share; 0 switches prompting off."""
    num_layers: int = 1
    """Transformer layers of the acoustic channel."""
    num_heads: int = 8
    """Attention heads of the acoustic channel; divide the text width."""
    ff_dim: int = 4096
    """Width of the feed-forward part of the acoustic channel."""
    dropout: float = 0.1
    """Dropout of the acoustic channel, in 0..1."""
    cls_std: float = 0.02
    """Standard deviation of the initial CLS vector of the acoustic channel: 0.02 as CLIP's embeddings, 1 (release)."""


@dataclass(frozen=True)
class LossConfig:
    """Inner and outer InfoNCE (paper equations 1 and 2)."""

    alpha: float = 0.1
    """Weight of the inner loss, in 0..1; the outer one weighs 1 - alpha."""
    temperature: float = 0.07
    """Initial softmax temperature tau; the logit scale starts at its inverse."""
    learn_temperature: bool = True
    """Whether the logit scale is trained (paper) or stays as it is (release)."""
    reduction: Reduction = "sum"
    """Sum (paper) or mean (release) of the losses of the two directions, image to speech and speech to image."""


@dataclass(frozen=True)
class OptimConfig:
    """Adam with linear warm-up and linear decay (paper appendix A)."""

    peak_lr: float = 1e-4
    """Learning rate at the end of the warm-up."""
    final_lr: float = 1e-8
    """Learning rate at the last step."""
    prompt_lr_scale: float = 1.0
    """Factor on the learning rate of the prompts alone."""
    warmup_steps: int = 5_000
    """Steps of linear warm-up."""
    total_steps: int = 100_000
    """Steps of the whole run."""
    weight_decay: float = 1e-6
    """L2 weight decay of Adam."""
    grad_clip_norm: float = 4.0
    """Largest gradient norm; 0 does not clip."""


@dataclass(frozen=True)
class RunConfig:
    """Name, length and rhythm of a run."""

    name: str = ""
    """Name of the run; the same name continues it. Empty: corpus-variant[-transcript]-seed."""
    fresh: bool = False
    """Start over under the same name: earlier checkpoints of the run are removed."""
    init_from: str = ""
    """Start from the weights of another run, by the URL of it or of a checkpoint, or `models:/NAME@ALIAS`."""
    seed: int = 0
    """Seed of initial weights, sample order and dropout."""
    global_batch_size: int = 32
    """Pairs in one step over all workers."""
    precision: Precision = "auto"
    """Arithmetic of the towers: `auto` is bfloat16 where the device has it fast, else float32."""
    selection_metric: str = "dev/speech_to_image/R10"
    """Metric that chooses the best checkpoint, larger is better; from dev."""
    log_every_steps: int = 20
    """Steps between two records of the training curves."""
    eval_every_steps: int = 2_000
    """Steps between two evaluations on dev."""
    checkpoint_every_steps: int = 500
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept, beside the best one."""


@dataclass(frozen=True)
class ClusterConfig:
    """How the work is spread over a Ray cluster."""

    num_workers: int = 1
    """Workers of a run, or its largest number if `min_workers` is smaller."""
    min_workers: int = 0
    """Smallest number of workers of an elastic run; 0 keeps the number fixed."""
    resize_every_seconds: float = 60.0
    """How often an elastic run looks for room for more workers; each change restarts it from its last checkpoint."""
    use_gpu: UseGpu = False
    """One GPU for each worker; `auto` takes one where the cluster has any when the job starts."""
    cpus_per_worker: float = 1.0
    """CPUs of one worker."""
    max_failures: int = 20
    """Lost workers or nodes after which a run gives up; -1 never does."""


@dataclass(frozen=True)
class ExtractionConfig:
    """How Whisper reads a corpus once."""

    splits: tuple[str, ...] = ()
    """Splits that are extracted; none given takes all that the corpus has."""
    frames: AudioFrames = "speech"
    """Frames of the whole recording, or the first 30 s with their padding (release)."""
    batch_size: int = 16
    """Chunks of recordings decoded together."""
    image_side_pixels: int = 0
    """Short side that stored images are reduced to; 0 takes what the CLIP model needs."""
    keep_original_images: bool = False
    """Copy images byte for byte instead of reducing them."""
    overwrite: bool = False
    """Extract again what was extracted with other settings."""


@dataclass(frozen=True)
class TrackingConfig:
    """Where runs are recorded."""

    uri: str = field(default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI", ""))
    """MLflow tracking URI; empty records nothing."""
    experiment: str = "brewclip"
    """MLflow experiment."""
    parent_run: str = ""
    """Id of the MLflow run that this one is shown below; a sweep sets it for its trials."""


@dataclass(frozen=True)
class Config:
    """Everything that a job needs to know."""

    storage: str = field(default_factory=default_storage)
    """Base URL, s3://bucket[/prefix] or file:///folder: corpora and runs lie below it."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    cluster: ClusterConfig = ClusterConfig()
    extraction: ExtractionConfig = ExtractionConfig()
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def corpus_url(self) -> str:
        """Where the recipe wrote images and recordings."""
        return f"{self.storage.rstrip('/')}/{self.data.corpus}"

    @property
    def features_url(self) -> str:
        """Where the extraction wrote images and Whisper features."""
        frames = "" if self.extraction.frames == "speech" else f"-{self.extraction.frames}"
        return f"{self.corpus_url}/whisper-{self.model.whisper}{frames}"

    @property
    def run_name(self) -> str:
        """The name of the run, given or made from what it is: CORPUS-VARIANT-SEED, or with the text it was told."""
        reads_asr = self.data.transcript == "asr" or self.model.variant == "acoustic"
        text = "" if reads_asr else f"-{self.data.transcript}"
        return self.run.name or f"{self.data.corpus}-{self.model.variant}{text}-{self.run.seed}"

    @property
    def run_url(self) -> str:
        """Where checkpoints and results of the run lie."""
        return f"{self.storage.rstrip('/')}/runs/{self.run_name}"


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return `{"optim.peak_lr": 1e-4, ...}`: one entry for each leaf, in the order of definition."""
    leaves: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            leaves |= flatten(value, f"{prefix}{item.name}.")
        else:
            leaves[prefix + item.name] = list(value) if isinstance(value, tuple) else value
    return leaves


def unflatten(leaves: dict[str, Any]) -> Config:
    """Invert `flatten`; settings that were renamed are read, names that no longer exist are refused.

    Raises:
        ValueError: if a name is not a setting.
    """
    return _replace(Config(), with_current_names(leaves))


def _replace(config: Any, leaves: dict[str, Any]) -> Any:
    changes: dict[str, Any] = {}
    hints = get_type_hints(type(config))
    for name, value in leaves.items():
        head, _, rest = name.partition(".")
        if head not in hints:
            raise ValueError(f"{name!r} is not a setting of this version")
        if rest:
            changes[head] = _replace(changes.get(head, getattr(config, head)), {rest: value})
        else:
            changes[head] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(config, **changes)
