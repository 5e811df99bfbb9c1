"""Results of an evaluation in tests: real systems over a small split, in this process instead of on a cluster."""

from dataclasses import replace

import torch

from brewclip.config import Config, Variant
from brewclip.data.batches import Batch, Pair, collate
from brewclip.data.manifest import open_manifest
from brewclip.data.reader import Rejections, SplitReader
from brewclip.data.truncation import TruncationCounts
from brewclip.evaluation.embed import embed_split
from brewclip.evaluation.systems import System, SystemResult, load_system
from brewclip.factory import audio_dim_of, build_decoder


def system_of(config: Config, variant: Variant) -> System:
    """Return a system with the initial weights of its seed, named as its variant."""
    model = replace(config.model, variant=variant, prompt_length=0 if variant == "zero_shot" else 2)
    return System(variant, "", replace(config, model=model))


def evaluate_here(system: System, split: str) -> SystemResult:
    """Evaluate a system as `evaluate_system` does."""
    reader = SplitReader(open_manifest(f"{system.config.features_url}/{split}"))
    model, clip = load_system(system, audio_dim_of(reader.manifest))
    rejections, truncation = Rejections(reader.manifest.url), TruncationCounts()

    def to_batch(pairs: list[Pair]) -> Batch:
        truncation.add(pair.lengths for pair in pairs)
        return collate(pairs, clip.mean, clip.std, torch.device("cpu"))

    embeddings = embed_split(model, reader, build_decoder(system.config, clip), to_batch, rejections)
    result = embeddings.rank()
    return SystemResult(system, embeddings, result, result.summary(), rejections.counts, truncation)
