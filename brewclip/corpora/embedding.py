"""Embedding of extracted splits by a frozen CLIP over Ray: texts and images, once for all adapters.

A worker embeds a shard and writes its array atomically; arrays of an interrupted job are reused. The file that says
what they depend on is written last (see `data.embeddings`).
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from brewclip.config import Config
from brewclip.corpora.actors import num_places, run_on_actors, start_actor
from brewclip.corpora.embedding_worker import ShardEmbedder
from brewclip.data.embeddings import FACTS, FOLDER, EmbeddingFacts, EmbeddingKey, read_facts
from brewclip.data.manifest import Manifest, open_manifest
from brewclip.data.storage import open_storage
from brewclip.factory import embedding_keys
from brewclip.progress import ProgressReporter


def embed_splits(config: Config, splits: tuple[str, ...]) -> dict[str, dict[str, int]]:
    """Embed texts and images of splits over all CPUs or GPUs of the cluster; what is there already is kept.

    Returns:
        split -> counts: texts that were truncated, and samples that cannot be embedded, in total over both kinds.

    Raises:
        UserError: if the CLIP cannot be loaded, or the stored images are too small for it.
    """
    import ray

    manifests = {split: open_manifest(f"{config.features_url}/{split}") for split in splits}
    missing = {split: keys for split, one in manifests.items() if (keys := _missing(config, one))}
    for split in manifests.keys() - missing.keys():
        print(f"embed {config.data.corpus}/{split}: already done with {config.model.clip}", flush=True)
    most = max((len(manifests[split].num_samples) for split in missing), default=0)
    actors = [start_actor(ShardEmbedder, config, config) for _ in range(min(most, num_places(config)))]
    done = {}
    try:
        for split, keys in missing.items():
            manifest = manifests[split]
            results = list(_run_shards(f"embed {config.data.corpus}/{split}", manifest, keys, actors))
            identity, embed_dim = ray.get(actors[0].identity.remote())
            for key in keys:
                facts = EmbeddingFacts(asdict(key), embed_dim, identity)
                open_storage(f"{manifest.url}/{key.folder}").write(FACTS, json.dumps(asdict(facts)).encode())
            _remove_stale(manifest)
            done[split] = {name: sum(one[name] for one in results) for name in ("truncated_texts", "unusable")}
    finally:
        for actor in actors:
            ray.kill(actor)
    return done


def _missing(config: Config, manifest: Manifest) -> list[EmbeddingKey]:
    return [
        key
        for key in embedding_keys(config, manifest)
        if read_facts(open_storage(f"{manifest.url}/{key.folder}")) is None
    ]


def _run_shards(
    label: str, manifest: Manifest, keys: list[EmbeddingKey], actors: list[Any]
) -> Iterator[dict[str, int]]:
    """Give shards to free workers one by one, and yield their counts."""
    progress = ProgressReporter(label, len(manifest), "samples")
    shards = range(len(manifest.num_samples))
    for finished, _ in run_on_actors(actors, shards, lambda actor, one: actor.embed.remote(manifest.url, keys, one)):
        for shard, counts in finished:
            yield counts
            progress.advance(int(manifest.num_samples[shard]))


def _remove_stale(manifest: Manifest) -> None:
    """Remove embeddings of an earlier extraction of a split."""
    storage = open_storage(manifest.url)
    names = storage.list_names(f"{FOLDER}/")
    for folder in {name.rpartition("/")[0] for name in names}:
        facts = read_facts(open_storage(f"{manifest.url}/{folder}"))
        if facts is not None and facts.key.get("split_sha256") != manifest.sha256:
            for name in sorted(names, reverse=True):
                if name.startswith(f"{folder}/"):
                    storage.delete(name)
