"""Run a table of the paper: its cells one after the other, then the page with its claims."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from brewclip.config import Config
from brewclip.data.manifest import open_manifest
from brewclip.errors import UserError
from brewclip.evaluation.pages import Page
from brewclip.evaluation.publish import Publication
from brewclip.paper.cells import load_cached, run_cell
from brewclip.paper.claims import KINDS
from brewclip.paper.cost import Cost, cost_section, costs_of
from brewclip.paper.page import draw_table, publish_table, put_section, recall_metrics, record, table_page
from brewclip.paper.retrieval_tables import (
    SPEECHCLIP,
    TABLES,
    ZERO,
    Grid,
    Rankings,
    judge_table,
    plan_grid,
    shown_title,
)
from brewclip.paper.word_errors import judge_word_errors


def check_corpora(name: str, configs: Mapping[str, Config], split: str, only_cached: bool) -> None:
    """Check that all corpora can be evaluated, before anything is trained.

    Raises:
        UserError: for a corpus that is neither one of the paper's nor mirrors one, or a missing split.
    """
    for corpus, config in configs.items():
        if corpus not in KINDS:
            raise UserError(f"corpus {corpus!r} is not one of the tables: choose among {', '.join(KINDS)}")
        if not only_cached:
            urls = [config.features_url, *([config.corpus_url] if SPEECHCLIP in TABLES[name].rows else [])]
            for url in urls:
                open_manifest(f"{url}/{split}", retry_seconds=10)


def reproduce_table(
    name: str,
    configs: Mapping[str, Config],
    seeds: Sequence[int],
    split: str,
    command: str,
    *,
    only_cached: bool = False,
) -> Page:
    """Run the missing cells of a table, and publish it in STORAGE/experiments/NAME.

    Args:
        name: one of `TABLES`.
        configs: settings of each corpus, with a common storage.
        seeds: seeds of the runs.
        split: split to evaluate on.
        command: command shown on the page.
        only_cached: run nothing and log nothing to MLflow, show cached results only.
    """
    check_corpora(name, configs, split, only_cached)
    grid = plan_grid(name, configs, seeds, split)
    rankings: Rankings = {}
    num_cells = len({cell.name for rows in grid.values() for cells in rows.values() for cell in cells})
    print(f"{name}: {num_cells} cells over {', '.join(configs)}", flush=True)
    for corpus, rows in grid.items():
        rankings[corpus] = {}
        for title, cells in rows.items():
            found = [load_cached(cell) if only_cached else run_cell(cell) for cell in cells]
            # Seeds are compared in pairs, so a row with a missing seed is dropped.
            rankings[corpus][title] = [one for one in found if one is not None] if all(found) else []
    verdicts = judge_table(name, rankings)
    if name == "table4":
        for corpus, config in configs.items():
            plain = next(iter(rankings[corpus][ZERO.title]), None)
            verdicts.append(judge_word_errors(config, split, plain, only_cached=only_cached))
    costs = [cost_section(measure_costs(grid, configs, only_cached))] if TABLES[name].shows_cost else []
    page = table_page(name, command, configs, rankings, verdicts, split, costs)
    publication = Publication(
        "table",
        record(rankings, verdicts),
        page,
        figures={f"{name}.png": draw_table(name, rankings, configs)} if any_run(rankings) else {},
        params={"corpora": ", ".join(configs), "seeds": ", ".join(map(str, seeds)), "split": split},
        metrics=[(recall_metrics(rankings), 0)],
    )
    publish_table(next(iter(configs.values())), name, publication, verdicts, only_cached=only_cached)
    return page


def measure_costs(grid: Grid, configs: Mapping[str, Config], only_cached: bool) -> dict[str, dict[str, list[Cost]]]:
    """Return the cost of each trained row, of its first seed; empty where it was not measured."""
    cells = {
        (corpus, title): found[0]
        for corpus, rows in grid.items()
        for title, found in rows.items()
        if title != ZERO.title
    }
    costs: dict[str, dict[str, list[Cost]]] = {corpus: {} for corpus in grid}
    for (corpus, title), cost in zip(cells, costs_of(list(cells.values()), only_cached=only_cached), strict=True):
        costs[corpus][shown_title(title, configs[corpus])] = [] if cost is None else [cost]
    return costs


def any_run(rankings: Rankings) -> bool:
    """Return whether any cell of a table was run."""
    return any(many for rows in rankings.values() for many in rows.values())


def write_page(path: Path, name: str, table: Page) -> None:
    """Insert a table as a section into a Markdown file, leaving its other sections unchanged.

    Raises:
        UserError: if the file cannot be read or written.
    """
    try:
        page = path.read_text() if path.exists() else ""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(put_section(page, name, table.markdown(level=2)))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--markdown {path} cannot be written: {error}") from None
