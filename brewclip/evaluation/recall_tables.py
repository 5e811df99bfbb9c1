"""Recall tables, as plain text for terminals and as Markdown with published numbers."""

from collections.abc import Mapping, Sequence

from brewclip.evaluation.pages import Page, Section
from brewclip.evaluation.published import CORPORA, EARLIER, Recalls, describe_source, find_recalls
from brewclip.evaluation.ranks import Difference
from brewclip.evaluation.systems import SystemResult
from brewclip.metrics import DIRECTIONS, NDCG_AT, RECALL_AT

TITLES = {"speech_to_image": "speech -> image", "image_to_speech": "image -> speech"}


def recall_cell(metrics: Mapping[str, float], direction: str, k: int) -> str:
    """Return recall in percent with its 95 % interval: `43.5 [40.1, 46.8]`."""
    return interval_cell(metrics, f"{direction}/R{k}")


def interval_cell(metrics: Mapping[str, float], name: str) -> str:
    """Return a metric in percent with its 95 % interval."""
    return f"{metrics[name]:.1f} [{metrics[f'{name}_low']:.1f}, {metrics[f'{name}_high']:.1f}]"


def recall_header(first: str = "system") -> list[str]:
    """Return the column names: the system, then R@1/5/10 in both directions."""
    return [first] + [f"{TITLES[direction]} R@{k}" for direction in DIRECTIONS for k in RECALL_AT]


def recall_rows(results: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Return a header and one row per system: its name, then R@1/5/10 in both directions."""
    rows = [
        [name] + [recall_cell(metrics, direction, k) for direction in DIRECTIONS for k in RECALL_AT]
        for name, metrics in results.items()
    ]
    return [recall_header(), *rows]


def published_header(corpus: str) -> list[str]:
    """Return the headers of `published_cells`; empty if there are no published numbers."""
    source = describe_source(corpus)
    return [f"{source}, {TITLES[direction]} R@{'/'.join(map(str, RECALL_AT))}" for direction in DIRECTIONS if source]


def published_cells(corpus: str, recalls: Recalls | None) -> list[str]:
    """Return two cells `40.3/68.1/78.7`, one per direction."""
    if not describe_source(corpus):
        return []
    return ["/".join(_number(one) for one in part) for part in _halves(recalls)] if recalls else ["-", "-"]


def earlier_rows(corpus: str, num_extra: int) -> list[list[str]]:
    """Return a row per earlier system published on a corpus of the paper, with `num_extra` empty cells."""
    return [
        [f"{name} (published)", *map(_number, of[corpus]), *[""] * num_extra]
        for name, of in EARLIER.items()
        if corpus in CORPORA and corpus in of
    ]


def evaluation_page(
    results: Sequence[SystemResult],
    corpus: str,
    split: str,
    baseline: str,
    differences: Mapping[str, Mapping[str, Difference]],
) -> Page:
    """Return the page of an evaluation: recall with published numbers, ranks, and differences from a baseline."""
    first = results[0]
    counts = f"{len(first.embeddings.keys)} recordings of {len(first.embeddings.image_ids)} images"
    recall = recall_rows({one.system.name: one.metrics for one in results})
    recall[0] += published_header(corpus)
    for row, one in zip(recall[1:], results, strict=True):
        config = one.system.config
        row += published_cells(corpus, find_recalls(config.model.variant, config.data.transcript, corpus))
    recall += earlier_rows(corpus, len(published_header(corpus)))
    ranks = [["system"] + [f"{TITLES[d]} {what}" for d in DIRECTIONS for what in (f"nDCG@{NDCG_AT}", "median rank")]]
    for one in results:
        cells = [
            (interval_cell(one.metrics, f"{d}/ndcg{NDCG_AT}"), one.metrics[f"{d}/median_rank"]) for d in DIRECTIONS
        ]
        ranks.append([one.system.name] + [text for ndcg, rank in cells for text in (ndcg, f"{rank:g}")])
    sections = [
        Section("Recall", "In % with the 95 % bootstrap interval over queries.", recall),
        Section("Ranks", "nDCG@10 in % with its interval, and the median rank of the first correct answer.", ranks),
    ]
    if differences:
        text = "Points of recall, paired over queries, with the 95 % interval."
        sections.append(Section(f"Difference from {baseline}", text, difference_rows(differences)))
    return Page(f"{corpus}, {split}: {counts}", sections=sections)


def difference_rows(differences: Mapping[str, Mapping[str, Difference]]) -> list[list[str]]:
    """Return a header and one row per system: points of recall above the baseline, in both directions."""
    rows = [[name, *(str(one) for one in cells.values())] for name, cells in differences.items()]
    return [recall_header(), *rows]


def text_table(results: Mapping[str, Mapping[str, float]]) -> str:
    """Format the recall tables for a terminal, one per direction, at most 80 columns wide."""
    width = max(len(name) for name in ["system", *results]) + 2
    lines = []
    for direction in DIRECTIONS:
        lines.append(f"{TITLES[direction]}, recall in % [95 % interval]")
        lines.append("  " + "system".ljust(width) + "".join(f"R@{k}".ljust(20) for k in RECALL_AT))
        for name, metrics in results.items():
            cells = (recall_cell(metrics, direction, k).ljust(20) for k in RECALL_AT)
            lines.append("  " + name.ljust(width) + "".join(cells).rstrip())
        lines.append("")
    return "\n".join(lines)


def difference_lines(differences: Mapping[str, Mapping[str, Difference]], baseline: str) -> str:
    """Format for a terminal the difference of each system from the baseline at R@1 and R@10."""
    lines = [f"points of recall above {baseline}, paired [95 % interval]"] if differences else []
    for name, cells in differences.items():
        lines.append(f"  {name}")
        for direction in DIRECTIONS:
            parts = [f"R@{k} {cells[f'{direction}/R{k}']!s:<22}" for k in (RECALL_AT[0], RECALL_AT[-1])]
            lines.append(f"    {TITLES[direction]}  {'  '.join(parts)}".rstrip())
    return "\n".join(lines)


def _halves(recalls: Recalls) -> tuple[Recalls, Recalls]:
    return recalls[: len(RECALL_AT)], recalls[len(RECALL_AT) :]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
