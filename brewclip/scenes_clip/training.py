"""Training of the scenes CLIP: contrastive loss on images and read captions, with an auxiliary word loss."""

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from brewclip.progress import ProgressReporter
from brewclip.scenes.captions import read_captions
from brewclip.scenes.drawing import draw_scene
from brewclip.scenes.world import Scene, sample_scene, scene_generator, world_seed
from brewclip.scenes_clip.options import CONFIG_PATH, TrainScenesClip

WORD_SAMPLE = 5_000  # captions for the vocabulary and its frequencies
WORD_SCALE = 16.0  # of the word head's logits: features have length 1, its rows about 1
MAX_LOGIT_SCALE = math.log(100)  # as CLIP (Radford et al. 2021, section 2.5)
FIGURES = (200, 500)  # reported gallery sizes


def build_clip() -> open_clip.CLIP:
    """Build the scenes CLIP with random weights, from its model configuration."""
    config = json.loads(CONFIG_PATH.read_text())
    return open_clip.CLIP(config["embed_dim"], config["vision_cfg"], config["text_cfg"])


def choose_scenes(flags: TrainScenesClip) -> list[Scene]:
    """Return the training scenes, without those that equal a scene of a held-out namespace."""
    forbidden = {
        sample_scene(world_seed(name), index).signature
        for name in flags.keep_clear
        for index in range(flags.keep_clear_scenes)
    }
    candidates = (sample_scene(world_seed("clip-train"), index) for index in range(flags.num_images))
    scenes = [scene for scene in candidates if scene.signature not in forbidden]
    print(
        f"{len(scenes)} training scenes; {flags.num_images - len(scenes)} left out because they look like "
        f"one of {len(forbidden)} scenes of {', '.join(flags.keep_clear)}"
    )
    return scenes


def render(scenes: list[Scene], size_px: int, every_seconds: float) -> torch.Tensor:
    """Render scenes as uint8 (scenes, 3, size_px, size_px)."""
    images = torch.empty((len(scenes), 3, size_px, size_px), dtype=torch.uint8)
    progress = ProgressReporter("draw", len(scenes), "images", every_seconds)
    for index, scene in enumerate(scenes):
        images[index] = torch.from_numpy(np.array(draw_scene(scene, size_px))).permute(2, 0, 1)
        progress.advance()
    return images


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Normalize uint8 (B, 3, H, W) to float32, with CLIP's mean and standard deviation."""
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)  # the same in clip.json
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def encode_text(clip: open_clip.CLIP, tokens: torch.Tensor) -> torch.Tensor:
    """Return the result of `clip.encode_text` at lower cost: over the longest text, not the whole context.

    Exact: the tower is causal, so positions after the end of text have no effect.

    Args:
        clip: an open_clip CLIP with a causal text tower that pools at the end of text.
        tokens: (B, context_length) int64, zero after the end of text.

    Returns:
        (B, embed_dim), not normalised.
    """
    tokens = tokens[:, : int((tokens != 0).sum(dim=1).max())]
    length = tokens.shape[1]
    x = clip.token_embedding(tokens) + clip.positional_embedding[:length]  # (B, L, width)
    x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
    return x[torch.arange(len(x)), tokens.argmax(dim=1)] @ clip.text_projection


def iter_batches(num_scenes: int, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the scene numbers of endless batches, each epoch in a new order."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(num_scenes)
        for start in range(0, num_scenes - batch_size + 1, batch_size):
            yield order[start : start + batch_size]


def compute_lr(step: int, flags: TrainScenesClip) -> float:
    """Return the learning rate: linear warm-up, then cosine decay to zero."""
    if step < flags.warmup_steps:
        return flags.peak_lr * (step + 1) / flags.warmup_steps
    done = (step - flags.warmup_steps) / max(1, flags.steps - flags.warmup_steps)
    return flags.peak_lr * 0.5 * (1 + math.cos(math.pi * done))


class WordHead(nn.Module):
    """Predicts the words of a caption from one feature, of image or text; discarded after training.

    The contrastive loss alone learned the backgrounds and then stalled (R@1 over 200 scenes 1 % after 200 steps, the
    loss no lower after 340, at a peak rate of 1.5e-3), because it only shows which image belongs to which caption.
    Words as labels, rare ones with more weight, show what a word stands for in an image, and one head for both towers
    aligns them: R@1 28 % after 200 steps at 1e-3. Only captions are used.

    Source: Huang et al. 2024, "Classification Done Right for Vision-Language Pre-Training".
    """

    def __init__(self, embed_dim: int, sample: torch.Tensor) -> None:
        """Build the vocabulary and its weights from the tokens (N, L) of a sample of captions."""
        super().__init__()
        self.words: torch.Tensor  # (W,) int64, the predicted token ids
        self.rarity: torch.Tensor  # (W,) their weights, minus log frequency
        frequency = _bag_of_words(sample, int(sample.max()) + 1).mean(dim=0)
        self.register_buffer("words", frequency.nonzero().squeeze(1))
        self.register_buffer("rarity", -frequency[self.words].log())
        self.weight = nn.Parameter(torch.randn(len(self.words), embed_dim) * embed_dim**-0.5)

    def forward(self, features: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of the words, from normalised features (B, D) and tokens (B, L)."""
        present = _bag_of_words(tokens, int(self.words.max()) + 1)[:, self.words] * self.rarity
        logits = WORD_SCALE * features @ self.weight.T
        return F.cross_entropy(logits, present / present.sum(dim=1, keepdim=True).clamp(min=1e-6))


def _bag_of_words(tokens: torch.Tensor, size: int) -> torch.Tensor:
    """Return (B, size) from tokens (B, L): 1 if a token occurs; padding and tokens beyond `size` are ignored."""
    bag = torch.zeros(len(tokens), max(size, int(tokens.max()) + 1)).scatter_(1, tokens, 1.0)[:, :size]
    bag[:, 0] = 0
    return bag


def build_optimizer(clip: open_clip.CLIP, head: WordHead, flags: TrainScenesClip) -> torch.optim.AdamW:
    """Build AdamW without decay of token embeddings: those that no caption uses keep their random values."""
    decayed = [p for name, p in clip.named_parameters() if p.ndim >= 2 and "embedding" not in name]
    undecayed = [p for name, p in clip.named_parameters() if p.ndim < 2 or "embedding" in name]
    groups = [
        {"params": decayed, "weight_decay": flags.weight_decay},
        {"params": [*undecayed, head.weight], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=flags.peak_lr, betas=(0.9, 0.98), eps=1e-6)


def write_texts(scenes: list[Scene], step: int, flags: TrainScenesClip) -> list[str]:
    """Return a caption of every scene, or two joined captions on every `joined_every_steps`-th step."""
    rng = scene_generator(flags.seed, step, "clip-captions")
    count = 2 if flags.joined_every_steps and step % flags.joined_every_steps == 0 else 1
    texts = [" ".join(read_captions(scene, rng, count)) for scene in scenes]
    return [
        text[:-1] if bare else text for text, bare in zip(texts, rng.random(len(texts)) < flags.unstopped, strict=True)
    ]


def compute_loss(image_features: torch.Tensor, text_features: torch.Tensor, logit_scale: torch.Tensor) -> torch.Tensor:
    """Return CLIP's symmetric InfoNCE over the batch, from normalised (B, D) features and the log of the scale."""
    logits = logit_scale.exp() * image_features @ text_features.T
    targets = torch.arange(len(logits))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def compute_gradients(
    clip: open_clip.CLIP,
    head: WordHead,
    images: torch.Tensor,
    tokens: torch.Tensor,
    pool: ThreadPoolExecutor,
    flags: TrainScenesClip,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Set every parameter's gradient and return both losses; the towers run on parts of the batch in threads.

    One thread per part, synchronized twice a step, because on a busy machine threads inside every operation wait for
    the slowest one each time. The loss is over the whole batch, and the parts' gradients are added in a fixed order, so
    the step is exact and deterministic.
    """
    towers = [p for name, p in clip.named_parameters() if name != "logit_scale"]
    num_parts = flags.num_threads

    def embed(part: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return F.normalize(clip.encode_image(part[0]), dim=1), F.normalize(encode_text(clip, part[1]), dim=1)

    def backpropagate(
        part: tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]],
    ) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(part[0], towers, part[1])

    features = list(pool.map(embed, zip(images.chunk(num_parts), tokens.chunk(num_parts), strict=True)))
    image_features, text_features = (
        torch.cat([part.detach() for part in parts]).requires_grad_() for parts in zip(*features, strict=True)
    )
    loss = compute_loss(image_features, text_features, clip.logit_scale)
    word_loss = (head(image_features, tokens) + head(text_features, tokens)) / 2
    (loss + flags.word_loss * word_loss).backward()
    chunks = [f.grad.chunk(num_parts) for f in (image_features, text_features) if f.grad is not None]
    parts = pool.map(backpropagate, zip(features, zip(*chunks, strict=True), strict=True))
    for parameter, *of_parts in zip(towers, *parts, strict=True):
        parameter.grad = sum(of_parts[1:], start=of_parts[0])
    return loss.detach(), word_loss.detach()


@torch.inference_mode()
def measure(clip: open_clip.CLIP, every_seconds: float) -> dict[str, float]:
    """Return text-to-image recall on held-out scenes, one caption per scene, for every size of FIGURES."""
    seed = world_seed("clip-heldout")
    figures: dict[str, float] = {}
    scenes = [sample_scene(seed, index) for index in range(max(FIGURES))]
    texts = [read_captions(scene, scene_generator(seed, i, "captions"), 1)[0] for i, scene in enumerate(scenes)]
    images = normalise(render(scenes, clip.visual.image_size[0], every_seconds))
    image_features = F.normalize(clip.encode_image(images), dim=1)
    text_features = F.normalize(encode_text(clip, open_clip.tokenize(texts)), dim=1)
    for size in FIGURES:
        similarity = text_features[:size] @ image_features[:size].T
        rank = (similarity >= similarity.diag().unsqueeze(1)).sum(dim=1)  # 1 is best; ties count as errors
        figures |= {f"{size}/text_to_image/R{k}": 100 * (rank <= k).float().mean().item() for k in (1, 5, 10)}
    return figures


def save(clip: open_clip.CLIP, path: Path, metadata: dict[str, str]) -> None:
    """Write the weights as float16, atomically."""
    state = {name: tensor.detach().half().contiguous() for name, tensor in clip.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(state, partial, metadata=metadata)
    partial.replace(path)


def train(clip: open_clip.CLIP, flags: TrainScenesClip) -> None:
    """Render the scenes, then train, saving and evaluating at intervals."""
    scenes = choose_scenes(flags)
    rendered = render(scenes, clip.visual.image_size[0], flags.log_every_seconds)
    sample = write_texts(scenes[:WORD_SAMPLE], 0, flags)
    head = WordHead(clip.visual.output_dim, open_clip.tokenize(sample))
    optimizer = build_optimizer(clip, head, flags)
    batches = iter_batches(len(scenes), flags.batch_size, flags.seed)
    pool = ThreadPoolExecutor(flags.num_threads, initializer=torch.set_num_threads, initargs=(1,))
    progress = ProgressReporter("train the scenes CLIP", flags.steps, "steps", flags.log_every_seconds)
    for step in range(flags.steps):
        for group in optimizer.param_groups:
            group["lr"] = compute_lr(step, flags)
        chosen = next(batches)
        tokens = open_clip.tokenize(write_texts([scenes[i] for i in chosen], step, flags))
        images = normalise(rendered[torch.from_numpy(chosen)])
        optimizer.zero_grad()
        loss, word_loss = compute_gradients(clip, head, images, tokens, pool, flags)
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        progress.advance(note=f"loss {loss:.3f}, words {word_loss:.3f}")
        if (step + 1) % flags.save_every_steps == 0 or step + 1 == flags.steps:
            measure_and_save(clip, step + 1, flags)


def measure_and_save(clip: open_clip.CLIP, steps_done: int, flags: TrainScenesClip) -> None:
    """Print the current metrics and write the weights, with the command and settings as metadata."""
    figures = measure(clip, flags.log_every_seconds)
    print(json.dumps({key: round(value, 1) for key, value in figures.items()}), flush=True)
    settings = {key: value for key, value in asdict(flags).items() if key != "output"}
    made = {"command": write_command(flags), "steps_done": steps_done, "figures": json.dumps(figures)}
    save(clip, flags.output, {key: str(value) for key, value in (settings | made).items()})


def write_command(flags: TrainScenesClip) -> str:
    """Return the command that gives these weights: steps, and every changed flag that affects them."""
    default = asdict(TrainScenesClip(steps=flags.steps))
    words = ["python jobs/train_scenes_clip.py --steps", str(flags.steps)]
    for key, value in asdict(flags).items():
        if value != default[key] and key not in ("output", "log_every_seconds", "save_every_steps"):
            words += [
                f"--{key.replace('_', '-')}",
                *(map(str, value) if isinstance(value, tuple) else [str(value)]),
            ]
    return " ".join(words)


def run(flags: TrainScenesClip) -> None:
    """Train the scenes CLIP with these flags."""
    torch.manual_seed(flags.seed)
    torch.set_num_threads(1)
    with sdpa_kernel(SDPBackend.MATH):  # 0.67 s a step of 256 against 1.8 s with flash attention on 2 cores
        train(build_clip(), flags)
