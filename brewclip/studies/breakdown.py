"""Recall by a field of the metadata, such as the noise of a recording, its speaker or language.

Each group of recordings is ranked on its own against the images of the split; "all" has the recordings of all groups in
one gallery, where unclear ones compete with clear ones.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from brewclip.config import Config
from brewclip.data.manifest import Manifest, open_manifest
from brewclip.data.reader import Rejections, SplitReader, iter_split
from brewclip.errors import UserError
from brewclip.evaluation.folders import file_name, open_folder, study_name
from brewclip.evaluation.pages import Page, Section
from brewclip.evaluation.publish import Publication, publish
from brewclip.evaluation.ranks import Difference, Ranking, compare_all
from brewclip.evaluation.recall_tables import TITLES, interval_cell
from brewclip.evaluation.shares import evaluate_system
from brewclip.evaluation.systems import System, SystemResult
from brewclip.metrics import DIRECTIONS, RECALL_AT, retrieval

ALL = "all"
_SHOWN_AT = (RECALL_AT[0], RECALL_AT[-1])
_MOST_GROUPS = 24


@dataclass(frozen=True)
class Group:
    """Recordings with one value of a field, ranked by each system.

    Attributes:
        field: name of the field; empty for all recordings.
        value: value, or `ALL`.
        rankings: by system.
        metrics: system -> metrics of its ranks by name, with their intervals.
        differences: system -> `direction/Rk` -> points above the baseline, paired.
    """

    field: str
    value: str
    rankings: dict[str, Ranking]
    metrics: dict[str, dict[str, float]]
    differences: dict[str, dict[str, Difference]]

    @property
    def title(self) -> str:
        """The value, behind the name of the field where it is a number."""
        return f"{self.field} {self.value}" if self.value[-1:].isdigit() else self.value


def study_breakdown(config: Config, systems: Sequence[System], split: str, fields: Sequence[str], baseline: str) -> str:
    """Evaluate systems on a split, break recall down by fields of the metadata, print the tables, and publish them.

    Args:
        config: settings of the evaluation.
        systems: systems with distinct names.
        split: split to evaluate on.
        fields: names of the fields.
        baseline: system that the others are compared with.

    Returns:
        URL of the folder, see `publish`.

    Raises:
        UserError: if no recording has a field, or it has too many values, or as `evaluate_system`.
    """
    manifest = open_manifest(f"{config.splits_url}/{split}")
    values = read_fields(manifest, fields)
    results = [evaluate_system(system, split) for system in systems]
    groups = break_down(results, values, baseline)
    title = f"{config.data.corpus}, {split}: recall by {', '.join(fields)}"
    publication = Publication(
        "breakdown",
        breakdown_record(groups),
        breakdown_page(title, groups, baseline),
        figures={
            f"{file_name(field)}.png": draw_breakdown(
                f"{config.data.corpus}, {split}: recall by {field}", groups, field
            )
            for field in fields
        },
        params={"systems": ", ".join(system.name for system in systems), "split": split, "by": ", ".join(fields)},
        metrics=[(_metrics(groups, system.name), system.step) for system in systems],
    )
    settings = {"by": list(fields), "baseline": baseline}
    folder = open_folder(config, study_name(config, split, "breakdown"), systems, [split], **settings)
    url = publish(config, folder, publication)
    print(f"\n{publication.page.terminal()}\n\nreport: {url}/report.html", flush=True)
    return url


def read_fields(manifest: Manifest, fields: Sequence[str]) -> dict[str, dict[str, str]]:
    """Read fields of the metadata of a split.

    Returns:
        field -> key of a recording -> value as text, in stored order; recordings without the field are left out.

    Raises:
        UserError: if no recording has a field, or it has more than 24 values.
    """
    values: dict[str, dict[str, str]] = {field: {} for field in fields}
    present: set[str] = set()
    split = iter_split(SplitReader(manifest), lambda sample: (sample.key, sample.metadata), Rejections(manifest.url))
    for _, (key, metadata) in split:
        present |= metadata.keys()
        for field in fields:
            if isinstance(value := metadata.get(field), str | int | float):
                values[field][key] = str(value)
    for field, by_key in values.items():
        if not by_key:
            raise UserError(
                f"--by {field}: no recording of {manifest.url} has it; there are {', '.join(sorted(present))}"
            )
        if (count := len(set(by_key.values()))) > _MOST_GROUPS:
            raise UserError(
                f"--by {field}: {count} different values in {manifest.url}; at most {_MOST_GROUPS} are shown"
            )
    return values


def break_down(results: Sequence[SystemResult], values: Mapping[str, Mapping[str, str]], baseline: str) -> list[Group]:
    """Rank the recordings of each value of each field on their own, by each system.

    Args:
        results: of the systems on one split.
        values: as `read_fields` returns them.
        baseline: name of the system that the others are compared with.
    """
    rankings = {one.system.name: one.ranking for one in results}
    groups = [_group("", ALL, rankings, baseline)]
    for field, by_key in values.items():
        for value in dict.fromkeys(by_key.values()):
            keys = {key for key, own in by_key.items() if own == value}
            groups.append(_group(field, value, {one.system.name: _rank(one, keys) for one in results}, baseline))
    return groups


def _group(field: str, value: str, rankings: dict[str, Ranking], baseline: str) -> Group:
    metrics = {system: ranking.result.summary() for system, ranking in rankings.items()}
    return Group(field, value, rankings, metrics, compare_all(rankings, baseline, DIRECTIONS, RECALL_AT))


def _rank(result: SystemResult, keys: set[str]) -> Ranking:
    """Rank some recordings of a split against all of its images."""
    found = result.embeddings
    rows = np.array([row for row, key in enumerate(found.keys) if key in keys], np.int64)
    if not len(rows):
        raise UserError(f"{result.system.name} can use none of the recordings of a group, such as {next(iter(keys))!r}")
    ids = np.array(found.speech_image_ids)[rows]
    ranks = retrieval(found.speech[rows], ids, found.images, np.array(found.image_ids))
    return Ranking(np.array(found.keys)[rows], ranks)


def breakdown_page(title: str, groups: Sequence[Group], baseline: str) -> Page:
    """Return a page with a table of recall, and one of the differences from the baseline.

    What two fields have alike, such as clear recordings in `condition` and in `snr_db`, is shown once.
    """
    header = [f"{TITLES[direction]} R@{k}" for direction in DIRECTIONS for k in _SHOWN_AT]
    names = [f"{direction}/R{k}" for direction in DIRECTIONS for k in _SHOWN_AT]
    recall, above = [["recordings", "system", *header]], [["recordings", "system", *header]]
    for group in {(one.title, *one.rankings[baseline].keys): one for one in groups}.values():
        for number, (system, ranking) in enumerate(group.rankings.items()):
            label = "" if number else f"{group.title} ({len(ranking.keys)})"
            recall.append([label, system, *(interval_cell(group.metrics[system], name) for name in names)])
        for number, (system, cells) in enumerate(group.differences.items()):
            above.append(["" if number else group.title, system, *(str(cells[name]) for name in names)])
    sections = [Section("Recall", "In % with the 95 % bootstrap interval over queries.", recall)]
    if len(above) > 1:
        text = "Points of recall, paired over queries, with the 95 % interval."
        sections.append(Section(f"Difference from {baseline}", text, above))
    return Page(title, sections=sections)


def draw_breakdown(title: str, groups: Sequence[Group], field: str) -> bytes:
    """Draw R@1 and R@10, speech -> image, of each system over the values of a field; return a PNG."""
    shown = [group for group in groups if group.field == field]
    figure = Figure(figsize=(10, 4.6), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axes, k in zip(figure.subplots(1, len(_SHOWN_AT)), _SHOWN_AT, strict=True):
        for number, system in enumerate(shown[0].rankings):
            metrics = [group.metrics[system] for group in shown]
            name = f"{DIRECTIONS[0]}/R{k}"
            middle, low, high = (np.array([one[name + end] for one in metrics]) for end in ("", "_low", "_high"))
            places = np.arange(len(shown)) + 0.06 * (number - (len(shown[0].rankings) - 1) / 2)
            axes.errorbar(places, middle, yerr=(middle - low, high - middle), label=system, marker="o", capsize=2)
        axes.set_xticks(range(len(shown)), [group.value for group in shown])
        axes.set(xlabel=field, ylabel=f"{TITLES[DIRECTIONS[0]]}, R@{k} in %", ylim=(0, 100))
        axes.grid(alpha=0.25)
    lines, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=2, fontsize=8)  # names may be as wide as a plot
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def breakdown_record(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Return the groups as plain JSON, one entry for each system."""
    return [
        {
            "field": group.field,
            "value": group.value,
            "system": system,
            "num_recordings": len(ranking.keys),
            "metrics": group.metrics[system],
            "above_baseline": {name: asdict(one) for name, one in group.differences.get(system, {}).items()},
        }
        for group in groups
        for system, ranking in group.rankings.items()
    ]


def _metrics(groups: Sequence[Group], system: str) -> dict[str, float]:
    return {
        file_name(f"{system}/{group.field or ALL}_{group.value}/{direction}_R{k}"): group.rankings[system].recall(
            direction, k
        )
        for group in groups
        for direction in DIRECTIONS
        for k in _SHOWN_AT
    }
