"""Run a table of the paper: its cells one after the other, then the page with its claims."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from brewclip.config import Config
from brewclip.data.manifest import open_manifest
from brewclip.data.storage import open_storage
from brewclip.errors import UserError
from brewclip.paper.cells import load_cached, run_cell
from brewclip.paper.claims import KINDS, NOT_RUN, Verdict
from brewclip.paper.page import put_section, record, section
from brewclip.paper.retrieval_tables import ZERO, Rankings, judge_table, plan_grid
from brewclip.paper.word_errors import judge_word_errors


def check_corpora(configs: Mapping[str, Config], split: str, keeps_only: bool) -> None:
    """Check that all corpora can be evaluated, before anything is trained.

    Raises:
        UserError: for a corpus that is neither one of the paper's nor mirrors one, or a missing split.
    """
    for corpus, config in configs.items():
        if corpus not in KINDS:
            raise UserError(f"corpus {corpus!r} is not one of the tables: choose among {', '.join(KINDS)}")
        if not keeps_only:
            open_manifest(f"{config.features_url}/{split}", retry_seconds=10)


def reproduce_table(
    name: str,
    configs: Mapping[str, Config],
    seeds: Sequence[int],
    split: str,
    command: str,
    *,
    keeps_only: bool = False,
) -> str:
    """Run the missing cells of a table, and write its page to STORAGE/experiments/NAME.

    Args:
        name: one of `TABLES`.
        configs: settings of each corpus, with a common storage.
        seeds: seeds of the runs.
        split: split to evaluate on.
        command: command shown on the page.
        keeps_only: run nothing, show cached results only.

    Returns:
        The section of the table as Markdown.
    """
    check_corpora(configs, split, keeps_only)
    grid = plan_grid(name, configs, seeds, split)
    rankings: Rankings = {}
    num_cells = len({cell.name for rows in grid.values() for cells in rows.values() for cell in cells})
    print(f"{name}: {num_cells} cells over {', '.join(configs)}", flush=True)
    for corpus, rows in grid.items():
        rankings[corpus] = {}
        for title, cells in rows.items():
            found = [load_cached(cell) if keeps_only else run_cell(cell) for cell in cells]
            # Seeds are compared in pairs, so a row with a missing seed is dropped.
            rankings[corpus][title] = [one for one in found if one is not None] if all(found) else []
    verdicts = judge_table(name, rankings)
    if name == "table4":
        for corpus, config in configs.items():
            plain = next(iter(rankings[corpus][ZERO.title]), None)
            verdicts.append(judge_word_errors(config, split, plain, keeps_only=keeps_only))
    text = section(name, command, configs, rankings, verdicts, split)
    storage = open_storage(f"{next(iter(configs.values())).storage.rstrip('/')}/experiments/{name}")
    storage.write("results.json", json.dumps(record(rankings, verdicts), indent=1).encode())
    storage.write("table.md", text.encode())
    print(f"\n{text}\n{name}: {count_verdicts(verdicts)}; written to {storage.url}", flush=True)
    return text


def count_verdicts(verdicts: Sequence[Verdict]) -> str:
    """Return the number of claims per verdict: `7 hold, 2 fail, 1 not tested`."""
    kinds = [verdict.verdict.partition(":")[0] for verdict in verdicts]
    words = {"holds": "hold", "fails": "fail", "not tested": "not tested", NOT_RUN: NOT_RUN}
    return ", ".join(f"{kinds.count(kind)} {word}" for kind, word in words.items() if kind in kinds) or "no claims"


def write_page(path: Path, name: str, text: str) -> None:
    """Insert the section of a table into a Markdown file, leaving its other sections unchanged.

    Raises:
        UserError: if the file cannot be read or written.
    """
    try:
        page = path.read_text() if path.exists() else ""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(put_section(page, name, text))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--markdown {path} cannot be written: {error}") from None
