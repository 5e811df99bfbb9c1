"""Effect of input truncation on recall: each input truncated and whole.

Images: centre crop or letterbox; texts: 77 tokens or all of them in chunks; speech: two minutes or all of it.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from brewclip.config import Config
from brewclip.evaluation.folders import file_name, open_folder, study_name
from brewclip.evaluation.intervals_figure import Panel, Value, draw_intervals
from brewclip.evaluation.pages import Page, Section
from brewclip.evaluation.publish import Publication, publish
from brewclip.evaluation.ranks import Difference, compare
from brewclip.evaluation.shares import evaluate_system
from brewclip.evaluation.systems import System, SystemResult
from brewclip.metrics import DIRECTIONS, RECALL_AT

_DIRECTION = DIRECTIONS[0]
_PRINTED_AT = (1, 10)  # the JSON file has all of RECALL_AT


@dataclass(frozen=True)
class TruncationEffect:
    """Results of one system with an input truncated and whole.

    Attributes:
        name: input: image, text or speech.
        truncated, whole: results on the same split.
        differences: k -> gain of the whole input in R@k, speech -> image, with the paired interval.
    """

    name: str
    truncated: SystemResult
    whole: SystemResult
    differences: dict[int, Difference]


def untruncated_inputs(config: Config) -> dict[str, Config]:
    """Return for each input of the variant the settings in which only this input is not truncated."""
    data, variant = config.data, config.model.variant
    changes = {"image": replace(data, image_transform="letterbox")}
    if config.model.reads_text:
        changes["text"] = replace(data, long_text="chunks")
    if variant in ("brewclip", "acoustic", "speechclip"):
        changes["speech"] = replace(data, max_audio_frames=0)
    return {name: replace(config, data=changed) for name, changed in changes.items()}


def measure_truncation(system: System, split: str) -> list[TruncationEffect]:
    """Evaluate a system with truncated inputs, and with each of them whole.

    Raises:
        UserError: as `evaluate_system`.
    """
    usual = replace(system.config.data, image_transform="crop", long_text="truncate")
    system = replace(system, config=replace(system.config, data=usual))
    truncated = evaluate_system(system, split)
    effects = []
    for name, config in untruncated_inputs(system.config).items():
        num_truncated = {"text": truncated.truncation.truncated_tokens, "speech": truncated.truncation.truncated_frames}
        whole = evaluate_system(replace(system, config=config), split) if num_truncated.get(name, 1) else truncated
        differences = {k: compare([whole.ranking], [truncated.ranking], _DIRECTION, k) for k in RECALL_AT}
        effects.append(TruncationEffect(name, truncated, whole, differences))
    return effects


def study_truncation(config: Config, systems: list[System], split: str) -> str:
    """Measure the effect of truncation on each system, print the table, and publish it.

    Args:
        config: settings of the evaluation.
        systems: systems with distinct names.
        split: split to evaluate on.

    Returns:
        URL of the folder, see `publish`.
    """
    effects = [effect for system in systems for effect in measure_truncation(system, split)]
    title = f"{config.data.corpus}, {split}: truncation"
    text = "speech -> image, recall in %, and the gain without truncation [95 % interval]"
    page = Page(title, text, [Section(rows=truncation_rows(effects))])
    publication = Publication(
        "truncation",
        truncation_record(effects),
        page,
        figures={"truncation.png": draw_gains(title, effects)},
        params={"systems": ", ".join(system.name for system in systems), "split": split},
        metrics=[(_gains(one), one.truncated.system.step) for one in effects],
    )
    url = publish(config, open_folder(config, study_name(config, split, "truncation"), systems, [split]), publication)
    print(f"\n{page.terminal()}\n\nwritten: {url}", flush=True)
    return url


def truncation_rows(effects: list[TruncationEffect]) -> list[list[str]]:
    """Return a header and one row per system and input: truncated share, both recalls and the gain."""
    measured = [f"R@{k} {what}" for k in _PRINTED_AT for what in ("truncated", "whole", "gain")]
    rows = [["system", "input", "truncated", *measured]]
    for one in effects:
        cells = []
        for k in _PRINTED_AT:
            cells += [f"{result.metrics[f'{_DIRECTION}/R{k}']:.1f}" for result in (one.truncated, one.whole)]
            cells.append(str(one.differences[k]))
        rows.append([one.truncated.system.name, one.name, _truncated_share(one), *cells])
    return rows


def draw_gains(title: str, effects: list[TruncationEffect]) -> bytes:
    """Draw the gain of each untruncated input; return a PNG."""
    panels = []
    for k in _PRINTED_AT:
        gains = [(f"{one.truncated.system.name}, {one.name}", one.differences[k]) for one in effects]
        values = [Value(label, gain.mean, gain.low, gain.high) for label, gain in gains]
        panels.append(Panel(f"points of R@{k} gained without truncation", values, reference=0.0))
    return draw_intervals(title, panels)


def _gains(one: TruncationEffect) -> dict[str, float]:
    prefix = f"{file_name(one.truncated.system.name)}/{one.name}"
    return {f"{prefix}/gain_R{k}": gain.mean for k, gain in one.differences.items()}


def truncation_record(effects: list[TruncationEffect]) -> list[dict[str, Any]]:
    """Return the effects as plain JSON."""
    return [
        {
            "system": one.truncated.system.name,
            "input": one.name,
            "truncation": asdict(one.truncated.truncation),
            "metrics_truncated": one.truncated.metrics,
            "metrics_whole": one.whole.metrics,
            "gain": {f"{_DIRECTION}/R{k}": asdict(value) for k, value in one.differences.items()},
        }
        for one in effects
    ]


def _truncated_share(one: TruncationEffect) -> str:
    shares = one.truncated.truncation.shares()
    if one.name == "image":
        return "outside the square"
    part, unit = ("texts", "tokens") if one.name == "text" else ("recordings", "frames")
    return f"{100 * shares[unit]:.1f} % of {unit}, in {100 * shares[part]:.1f} % of {part}"
