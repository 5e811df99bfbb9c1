"""Cached embeddings of a split in tests, made in this process instead of by Ray actors."""

import json
from dataclasses import asdict

from brewclip.config import Config
from brewclip.corpora.embedding_worker import ShardEmbedder
from brewclip.data.embeddings import FACTS, EmbeddingFacts
from brewclip.data.manifest import Manifest, open_manifest
from brewclip.data.storage import open_storage
from brewclip.factory import embedding_keys


def manifest_of(config: Config, split: str = "train") -> Manifest:
    return open_manifest(f"{config.features_url}/{split}")


def write_embeddings(config: Config, split: str = "train") -> None:
    """Embed a split in this process, as `embed_splits` does."""
    embedder, manifest = ShardEmbedder(1, config), manifest_of(config, split)
    embed(config, split)
    identity, embed_dim = embedder.identity()
    for key in embedding_keys(config, manifest):
        facts = EmbeddingFacts(asdict(key), embed_dim, identity)
        open_storage(f"{manifest.url}/{key.folder}").write(FACTS, json.dumps(asdict(facts)).encode())


def embed(config: Config, split: str = "train") -> dict[str, int]:
    """Embed a split in this process, but for the facts."""
    manifest, total = manifest_of(config, split), {}
    for shard in range(len(manifest.num_samples)):
        total = ShardEmbedder(1, config).embed(manifest.url, list(embedding_keys(config, manifest)), shard)
    return total
