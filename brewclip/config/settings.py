"""The settings of a run as frozen dataclasses; `checks` validates them, `flat` flattens them.

Names end in their unit. No torch here: `--help` must be instant.
"""

import os
from dataclasses import dataclass, field
from typing import Annotated, Literal

from brewclip.config.names import FOLDER, FOLDERS
from brewclip.config.ranges import COUNT, COUNT_OR_0, FRACTION, FRACTION_BELOW_1, SEED, THREADS, Range
from brewclip.config.speech_encoders import SPEECH_ENCODER
from brewclip.config.submitted import default_storage
from brewclip.config.whisper_names import WHISPER

Variant = Literal["brewclip", "acoustic", "pipeline", "zero_shot", "speechclip"]
Adaptation = Literal["prompts", "adapter"]
Fusion = Literal["sum", "confidence", "gate"]
Transcript = Literal["asr", "asr_unfiltered", "asr_greedy", "asr_mean", "ground_truth"]
ImageTransform = Literal["crop", "letterbox"]
LongText = Literal["truncate", "chunks"]
Task = Literal["transcribe", "translate"]
Reduction = Literal["sum", "mean"]
AudioFrames = Literal["speech", "first_30_seconds"]
Precision = Literal["auto", "bfloat16", "float32"]
UseGpu = bool | Literal["auto"]
ONLY_OF_SPEECHCLIP = ("model.speech_encoder", "data.crop_samples", "data.cache_layers")
"""Settings that no other variant reads, by their dotted names."""
_ALTERNATIVES = 3  # R@10 through babble: one adds 3.9 points, three 4.6, five 5.4, see docs/adapter.md


@dataclass(frozen=True)
class DataConfig:
    """Corpus and data loading."""

    corpus: Annotated[str, FOLDERS] = "scenes"
    """Folder of the corpus below `storage`, as its recipe wrote it."""
    train_split: Annotated[str, FOLDER] = "train"
    """Training split."""
    dev_split: Annotated[str, FOLDER] = "dev"
    """Split for selecting the best checkpoint. `test` is refused."""
    transcript: Transcript = "asr"
    """Text of the pipeline channel: `asr` is Whisper's transcript, empty where its checks reject it; `asr_unfiltered`
    keeps rejected text as it was decoded last, `asr_greedy` as it was decoded first, without sampling; `asr_mean` is
    the mean of the embeddings of the greedy text and its alternatives; `ground_truth` is what the speaker read."""
    long_text: LongText = "truncate"
    """A text of more tokens than CLIP reads is truncated, or encoded in chunks whose features are averaged."""
    max_audio_frames: Annotated[int, Range(0, 10**7)] = 6000
    """Longest speech given to the acoustic channel, in Whisper frames of 20 ms; 6000 are two minutes, 0 is no limit."""
    crop_samples: Annotated[int, Range(0, 10**8)] = 102_400
    """Longest recording in training with variant speechclip, in samples at 16 kHz; of a longer one a random crop is
    taken. 0 crops none."""
    image_transform: ImageTransform = "crop"
    """`crop` is CLIP's own transform, for most models the center square of an image (some were trained on images
    squashed to a square); `letterbox` is the whole image with padding."""
    memory_bytes: Annotated[int, Range(2**20, 2**40)] = 512 * 2**20
    """Upper bound of the raw bytes that one worker caches or prefetches; a split that fits is read once, and its images
    are decoded once as far as they fit, too."""
    num_threads: Annotated[int, THREADS] = 4
    """Decoding threads of one worker."""
    cache_directory: str = ""
    """Folder that caches whole shards after their first use; empty reads byte ranges from storage."""
    cache_layers: bool = False
    """Store the frozen layers that variant speechclip reads in `cache_directory`, as float16, so that each recording is
    encoded once; 1 MB for a caption with Whisper base. Crops then start at multiples of half their length."""
    max_bad_fraction: Annotated[float, FRACTION] = 0.01
    """Largest share of undecodable samples before the run stops, in 0..1."""
    retry_seconds: Annotated[float, Range(0, 7 * 86_400)] = 180.0
    """How long a storage outage may last before the run gives up."""


@dataclass(frozen=True)
class ModelConfig:
    """The two-channel model (paper section 3.3) and its frozen parts."""

    variant: Variant = "brewclip"
    """`brewclip` is the full model, `acoustic` the acoustic channel alone, `pipeline` the prompted pipeline alone,
    `zero_shot` the untrained pipeline. `speechclip` is the baseline SpeechCLIP-P, which reads recordings as the corpus
    stores them (docs/baselines.md)."""
    adaptation: Adaptation = "prompts"
    """What is trained of text and images: prompts inside CLIP's towers (paper), or an adapter on cached embeddings of
    any CLIP, which the extraction computes once."""
    fusion: Fusion = "sum"
    """How text and sound become one vector: `sum` adds them, trained jointly (paper); `confidence` trains each channel
    alone and adds sound where the transcript is doubtful, by weights that are chosen on dev; `gate` is the sum with
    such weights on sound, trained jointly."""
    whisper: Annotated[str, WHISPER] = "base"
    """Name of a Whisper model as openai-whisper knows it, or the path of a .pt file."""
    speech_encoder: Annotated[str, SPEECH_ENCODER] = "hubert_large_ll60k"
    """Frozen encoder of variant speechclip: hubert_large_ll60k, hubert_base_ls960, the folder of another HuBERT, or
    whisper-NAME for the layers of Whisper's encoder."""
    language: str = "en"
    """Language of the recordings; empty detects it for each recording."""
    task: Task = "transcribe"
    """What Whisper writes: the words that are spoken, or its translation of them to English."""
    clip: str = "ViT-L-14/openai"
    """open_clip architecture and weights as ARCHITECTURE/TAG (docs/towers.md) or ARCHITECTURE/FILE, or `scenes` for the
    small one in this package."""
    prompt_length: Annotated[int, Range(0, 512)] = 4
    """Number M of prompt vectors shared by text, audio and image; 0 disables prompting. An adapter replaces them."""
    num_layers: Annotated[int, Range(1, 64)] = 1
    """Transformer layers of the acoustic channel."""
    num_heads: Annotated[int, Range(1, 128)] = 8
    """Attention heads of the acoustic channel; must divide the text width."""
    ff_dim: Annotated[int, Range(1, 65_536)] = 4096
    """Width of the feed-forward part of the acoustic channel."""
    dropout: Annotated[float, FRACTION_BELOW_1] = 0.1
    """Dropout of the acoustic channel, in 0..1."""
    recompute: bool = False
    """Recompute the activations of CLIP's towers in the backward pass instead of storing them: a batch takes a fraction
    of the memory, and a step a third more time. Gradients are the same."""
    cls_std: Annotated[float, Range(0, 100)] = 0.02
    """Standard deviation of the initial CLS vector of the acoustic channel: 0.02 as in CLIP, 1 (release)."""

    @property
    def trains_channels_apart(self) -> bool:
        """Whether text and sound are trained each alone, and the weights of their fusion are chosen afterwards."""
        return self.variant == "brewclip" and self.fusion == "confidence"

    @property
    def reads_text(self) -> bool:
        """Whether the variant reads texts."""
        return self.variant not in ("acoustic", "speechclip")


@dataclass(frozen=True)
class LossConfig:
    """Inner and outer InfoNCE (paper equations 1 and 2)."""

    alpha: Annotated[float, FRACTION] = 0.1
    """Weight of the inner loss, in 0..1; the outer loss has weight 1 - alpha."""
    temperature: Annotated[float, Range(0.01, 1, note="the logit scale is clamped at 100")] = 0.07
    """Initial softmax temperature tau; the logit scale starts at its inverse."""
    learn_temperature: bool = True
    """Whether the logit scale is trained (paper) or fixed (release)."""
    reduction: Reduction = "sum"
    """Sum (paper) or mean (release) of the losses of both directions, image to speech and speech to image."""


@dataclass(frozen=True)
class OptimConfig:
    """Adam with linear warm-up and linear decay (paper appendix A)."""

    peak_lr: Annotated[float, Range(0, 10, above=True)] = 1e-4
    """Learning rate at the end of the warm-up."""
    final_lr: Annotated[float, Range(0, 10)] = 1e-8
    """Learning rate at the last step."""
    prompt_lr_scale: Annotated[float, Range(0, 10_000)] = 1.0
    """Factor on the learning rate of the prompts, or of the adapter, only."""
    warmup_steps: Annotated[int, COUNT_OR_0] = 5_000
    """Steps of linear warm-up."""
    total_steps: Annotated[int, COUNT] = 100_000
    """Steps of the whole run."""
    weight_decay: Annotated[float, Range(0, 10)] = 1e-6
    """L2 weight decay of Adam."""
    grad_clip_norm: Annotated[float, Range(0, 10**6)] = 4.0
    """Maximum gradient norm; 0 disables clipping."""


@dataclass(frozen=True)
class RunConfig:
    """Name, batch size, precision and cadence of a run."""

    name: str = ""
    """Name of the run; the same name resumes it. Empty:
    CORPUS-VARIANT[-adapter][-FUSION][-translate][-TRANSCRIPT]-SEED, a part in brackets if it is not the default."""
    fresh: bool = False
    """Start over under the same name; earlier checkpoints of the run are removed."""
    init_from: str = ""
    """Initialize from the weights of another run: its URL, that of a checkpoint, or `models:/NAME@ALIAS`."""
    seed: Annotated[int, SEED] = 0
    """Seed of initial weights, sample order and dropout."""
    global_batch_size: Annotated[int, Range(2, 2**20, note="1 leaves no negatives")] = 32
    """Pairs per step over all workers."""
    precision: Precision = "auto"
    """Precision of the towers: `auto` is bfloat16 on GPUs that support it, else float32."""
    compile: bool = False
    """Compile the encoders by `torch.compile`: fewer and larger kernels in a step, after minutes of compiling. Texts
    and speech are padded to a few lengths, each of which is compiled once."""
    selection_metric: str = "dev/speech_to_image/R10"
    """Dev metric for selecting the best checkpoint; larger is better."""
    log_every_steps: Annotated[int, COUNT] = 20
    """Steps between two points of the training curves."""
    eval_every_steps: Annotated[int, COUNT] = 2_000
    """Steps between two evaluations on dev."""
    checkpoint_every_steps: Annotated[int, COUNT] = 500
    """Steps between two checkpoints."""
    keep_checkpoints: Annotated[int, Range(1, 10**6)] = 2
    """Number of newest checkpoints to keep, in addition to the best one."""


@dataclass(frozen=True)
class ClusterConfig:
    """Resources on a Ray cluster."""

    num_workers: Annotated[int, Range(1, 4096)] = 1
    """Workers of a run; the maximum if `min_workers` is set."""
    min_workers: Annotated[int, Range(0, 4096)] = 0
    """Minimum workers of an elastic run; 0 keeps the number fixed. When a node is lost, Ray waits
    RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S (60) for all workers before it starts fewer."""
    resize_every_seconds: Annotated[float, Range(1, 86_400)] = 60.0
    """How often an elastic run checks for free resources; each resize restarts it from its last checkpoint."""
    use_gpu: UseGpu = False
    """One GPU per worker; `auto` uses GPUs if the cluster has any when the job starts."""
    cpus_per_worker: Annotated[float, Range(0.01, 1024)] = 1.0
    """CPUs per worker."""
    max_failures: Annotated[int, Range(-1, 10**6, note="-1 is unlimited")] = 20
    """Worker or node failures after which a run gives up; -1 is unlimited."""


@dataclass(frozen=True)
class ExtractionConfig:
    """Extraction of transcripts and features by Whisper."""

    splits: tuple[Annotated[str, FOLDER], ...] = ()
    """Splits to extract; by default all splits of the corpus."""
    frames: AudioFrames = "speech"
    """Frames of the whole recording, or the first 30 s with their padding (release)."""
    batch_size: Annotated[int, Range(1, 4096)] = 16
    """Chunks of recordings per decoding batch."""
    precision: Precision = "float32"
    """Precision of Whisper's encoder: `auto` is bfloat16 on GPUs (float16 on those without it) and on CPUs with AMX or
    AVX-512 BF16, else float32."""
    retries: Annotated[int, Range(0, 5)] = 5
    """How often text that fails Whisper's checks is decoded again with sampling, 0 to 5. For unclear speech
    this takes most of the time."""
    alternatives: Annotated[int, Range(0, 20, note="0 samples 3 where --data.transcript asr_mean reads them")] = 0
    """Number of other texts that Whisper samples for each recording whose greedy text is uncertain; each takes as long
    as decoding the recording once. 0 samples none, or 3 with --data.transcript asr_mean."""
    image_side_pixels: Annotated[int, Range(0, 8192, note="0 takes what the CLIP model needs")] = 0
    """Short side of stored images; 0 takes what the CLIP model needs."""
    keep_original_images: bool = False
    """Copy images byte for byte instead of downscaling them."""
    overwrite: bool = False
    """Replace features that were extracted with other settings."""


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow tracking."""

    uri: str = field(default_factory=lambda: os.environ.get("MLFLOW_TRACKING_URI", ""))
    """MLflow tracking URI; empty records nothing."""
    experiment: str = "brewclip"
    """MLflow experiment."""
    parent_run: str = ""
    """Id of the parent run in MLflow; a sweep sets it for its trials."""


@dataclass(frozen=True)
class Config:
    """All settings of a job."""

    storage: str = field(default_factory=default_storage)
    """Base URL of corpora and runs: s3://bucket[/prefix] or file:///folder."""
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
        """URL of the images and recordings written by the recipe."""
        return f"{self.storage.rstrip('/')}/{self.data.corpus}"

    @property
    def features_url(self) -> str:
        """URL of the images and Whisper features written by the extraction."""
        frames = "" if self.extraction.frames == "speech" else f"-{self.extraction.frames}"
        task = "" if self.model.task == "transcribe" else f"-{self.model.task}"
        return f"{self.corpus_url}/whisper-{self.model.whisper}{frames}{task}"

    @property
    def splits_url(self) -> str:
        """URL of the splits that the variant reads: the corpus as it was written, or what was extracted of it."""
        return self.corpus_url if self.model.variant == "speechclip" else self.features_url

    @property
    def run_name(self) -> str:
        """Name of the run, given or derived: CORPUS-VARIANT[-adapter][-FUSION][-translate][-TRANSCRIPT]-SEED."""
        model, parts = self.model, [self.data.corpus, self.model.variant]
        parts += [model.adaptation] if model.adaptation != "prompts" else []
        parts += [model.fusion] if model.fusion != "sum" else []
        parts += [model.task] if model.task != "transcribe" else []
        parts += [self.data.transcript] if self.data.transcript != "asr" and model.reads_text else []
        return self.run.name or "-".join([*parts, str(self.run.seed)])

    @property
    def num_alternatives(self) -> int:
        """Number of other texts that Whisper samples of an uncertain recording, see `data.transcript`."""
        return self.extraction.alternatives or (_ALTERNATIVES if self.data.transcript == "asr_mean" else 0)

    @property
    def num_prompts(self) -> int:
        """Number of prompts that the model takes: none without training, and none with an adapter."""
        takes_prompts = self.model.adaptation == "prompts" and self.model.variant not in ("zero_shot", "speechclip")
        return self.model.prompt_length if takes_prompts else 0

    @property
    def run_url(self) -> str:
        """URL of the run's checkpoints and results."""
        return f"{self.storage.rstrip('/')}/runs/{self.run_name}"
