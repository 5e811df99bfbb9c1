"""Pages of the paper's tables: measured and published numbers, a figure, and a verdict on each claim."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from brewclip.config import Config
from brewclip.data.manifest import open_manifest
from brewclip.errors import ManifestError
from brewclip.evaluation.folders import file_name, open_experiment
from brewclip.evaluation.intervals_figure import Panel, Value, draw_intervals
from brewclip.evaluation.pages import Page, Rows, Section
from brewclip.evaluation.publish import Publication, publish
from brewclip.evaluation.published import CORPORA, describe_source
from brewclip.evaluation.ranks import Ranking
from brewclip.evaluation.recall_tables import (
    TITLES,
    earlier_rows,
    published_cells,
    published_header,
    recall_header,
)
from brewclip.metrics import DIRECTIONS, RECALL_AT
from brewclip.paper.claims import FAILS, HEADER, HOLDS, Verdict
from brewclip.paper.retrieval_tables import TABLES, Rankings, published_rows, shown_title

_PLURAL = {HOLDS: "hold", FAILS: "fail"}
PREAMBLE = """# The paper's tables, run here

Written by `jobs/reproduce.py`: each section names its command, and running it again replaces the section. Recall is in
%. With several seeds a cell is their mean (lowest to highest); with one, its 95 % bootstrap interval over queries. What
was not run is `-`. A claim about two systems holds if the whole 95 % interval of their paired difference is above zero
(queries drawn again, each with its mean over the seeds); a claim of no difference, if zero is inside.
"""


def recall_spread(rankings: Sequence[Ranking]) -> dict[str, tuple[float, float, float]]:
    """Return R@1/5/10 in both directions, by DIRECTION/Rk, over the seeds in percent.

    Args:
        rankings: one per seed, at least one.

    Returns:
        Mean, lowest and highest of the seeds; for one seed its recall and the ends of its 95 % bootstrap interval.
    """
    pairs = [(direction, k) for direction in DIRECTIONS for k in RECALL_AT]
    if len(rankings) == 1:
        metrics = rankings[0].result.summary()
        names = [f"{direction}/R{k}" for direction, k in pairs]
        return {name: (metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"]) for name in names}
    found = {f"{direction}/R{k}": [one.recall(direction, k) for one in rankings] for direction, k in pairs}
    return {name: (float(np.mean(values)), min(values), max(values)) for name, values in found.items()}


def recall_cells(rankings: Sequence[Ranking]) -> list[str]:
    """Return six cells: R@1/5/10 in both directions, over the seeds."""
    if not rankings:
        return ["-"] * (len(DIRECTIONS) * len(RECALL_AT))
    form = "{:.1f} [{:.1f}, {:.1f}]" if len(rankings) == 1 else "{:.1f} ({:.1f} to {:.1f})"
    return [form.format(*ends) for ends in recall_spread(rankings).values()]


def describe_corpus(config: Config, split: str, total_steps: bool) -> str:
    """Return one line with the sizes of the available splits, of the training if `total_steps`, and how Whisper ran."""
    counts: list[str] = []
    details: dict[str, Any] = {}
    for name in (config.data.train_split, split):
        try:
            summary = open_manifest(f"{config.features_url}/{name}", retry_seconds=10).summary
        except ManifestError:
            continue
        details = summary.details
        counts.append(f"{name}: {summary.num_samples} recordings of {summary.num_images} images")
    if total_steps:
        counts.append(f"{config.optim.total_steps} steps of {config.run.global_batch_size} pairs")
    if details.get("precision", "float32") != "float32" or not details.get("retries", True):
        counts.append(f"Whisper's encoder in {details['precision']}, {details['retries']} retries")
    return ", ".join(counts)


def corpus_rows(
    name: str, corpora: Sequence[str], corpus: str, rows: Mapping[str, Sequence[Ranking]], config: Config
) -> Rows:
    """Return the table of one corpus, whose settings `config` are."""
    published = published_rows(name, corpora, corpus)
    table = [recall_header() + published_header(corpus)]
    for title, rankings in rows.items():
        table.append(
            [shown_title(title, config), *recall_cells(rankings), *published_cells(corpus, published.get(title))]
        )
    if TABLES[name].shows_earlier:
        table += earlier_rows(corpus, len(published_header(corpus)))
    return table


def table_page(
    name: str,
    command: str,
    configs: Mapping[str, Config],
    rankings: Rankings,
    verdicts: Sequence[Verdict],
    split: str,
    more: Sequence[Section] = (),
) -> Page:
    """Return the page of a table.

    Args:
        name: name of the table.
        command: command that writes it.
        configs: settings of each corpus.
        rankings: corpus -> title of the row -> rankings, one per seed.
        verdicts: verdicts on the claims.
        split: evaluated split.
        more: sections between the corpora and the claims.
    """
    sections = []
    for corpus, rows in rankings.items():
        trains = any("zero-shot" not in title for title in rows)
        about = describe_corpus(configs[corpus], split, trains)
        mirrored = (
            "" if corpus in CORPORA or not describe_source(corpus) else " The published numbers are of other data."
        )
        title = CORPORA.get(corpus, corpus) if about else corpus
        text = f"{about}.{mirrored}" if about else ""
        sections.append(Section(title, text, corpus_rows(name, list(rankings), corpus, rows, configs[corpus])))
    return Page(TABLES[name].title, sections=[*sections, *more, claims_section(verdicts)], command=command)


def claims_section(verdicts: Sequence[Verdict]) -> Section:
    """Return the section with the verdict on each claim."""
    return Section("Claims", rows=[HEADER, *(verdict.cells() for verdict in verdicts)])


def count_verdicts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Return the number of claims per verdict."""
    return dict(Counter(verdict.verdict.partition(":")[0] for verdict in verdicts))


def draw_table(name: str, rankings: Rankings, configs: Mapping[str, Config]) -> bytes:
    """Draw R@10 of each row, in each corpus and direction; return a PNG.

    Ends of an interval are those of the cell: lowest and highest seed, or the bootstrap interval of a single one.
    """
    k, panels = RECALL_AT[-1], []
    for corpus, rows in rankings.items():
        spreads = {shown_title(title, configs[corpus]): recall_spread(many) for title, many in rows.items() if many}
        for direction in DIRECTIONS:
            values = [Value(title, *spread[f"{direction}/R{k}"]) for title, spread in spreads.items()]
            panels.append(Panel(f"{corpus}, {TITLES[direction]}, R@{k} in %", values))
    return draw_intervals(TABLES[name].title, panels)


def publish_table(
    config: Config,
    name: str,
    publication: Publication,
    verdicts: Sequence[Verdict] = (),
    *,
    only_cached: bool = False,
) -> None:
    """Print a table and publish it in STORAGE/experiments/NAME.

    Args:
        config: settings with storage and tracking.
        name: name of the table.
        publication: the table.
        verdicts: verdicts on its claims, counted in the last line and in MLflow.
        only_cached: nothing was run, so nothing is logged to MLflow.
    """
    if only_cached:
        config = replace(config, tracking=replace(config.tracking, uri=""))
    counts = count_verdicts(verdicts)
    metrics = {f"claims/{file_name(verdict)}": float(count) for verdict, count in counts.items()}
    publication = replace(publication, metrics=[*publication.metrics, (metrics, 0)])
    url = publish(config, open_experiment(config, name, command=publication.page.command), publication)
    claims = f"{', '.join(f'{count} {_PLURAL.get(verdict, verdict)}' for verdict, count in counts.items())}; "
    print(f"\n{publication.page.markdown()}\n{name}: {claims if counts else ''}written to {url}", flush=True)


def recall_metrics(rankings: Rankings) -> dict[str, float]:
    """Return the mean recall over the seeds of every row, CORPUS/ROW/DIRECTION/Rk."""
    return {
        f"{file_name(corpus)}/{file_name(title)}/{name}": mean
        for corpus, rows in rankings.items()
        for title, many in rows.items()
        if many
        for name, (mean, _, _) in recall_spread(many).items()
    }


def record(rankings: Rankings, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return cells and claims as plain JSON."""
    cells = [
        {"corpus": corpus, "row": title, "facts": one.facts, "metrics": one.result.summary()}
        for corpus, rows in rankings.items()
        for title, many in rows.items()
        for one in many
    ]
    return {"cells": cells, "claims": [asdict(verdict) for verdict in verdicts]}


def put_section(page: str, name: str, text: str) -> str:
    """Insert or replace a section of a page; tables come first, sorted by name, then the other sections.

    Args:
        page: the whole page; empty starts a new one.
        name: name of the table.
        text: section as Markdown.
    """
    sections = dict(_sections(page))
    sections[name] = text.strip()
    parts = [f"<!-- {key} -->\n{sections[key]}\n<!-- end of {key} -->\n" for key in sorted(sections, key=_place)]
    return "\n".join([PREAMBLE, *parts])


def _place(name: str) -> tuple[bool, str]:
    return not name.startswith("table"), name


def _sections(page: str) -> list[tuple[str, str]]:
    found = []
    for part in page.split("<!-- end of ")[:-1]:
        name, _, text = part.rpartition("<!-- ")[2].partition(" -->\n")
        found.append((name, text.strip()))
    return found
