"""What the model does not get of its inputs, and what that costs: recall cut and whole, side by side.

The middle square of a picture against all of it between bars; 77 tokens of a text against windows over all of it; two
minutes of speech against all of it.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from brewclip.config import Config
from brewclip.evaluation.columns import align
from brewclip.evaluation.ranks import Difference, compare
from brewclip.evaluation.systems import System, SystemResult, evaluate_system
from brewclip.metrics import DIRECTIONS, RECALL_AT

_DIRECTION = DIRECTIONS[0]
_PRINTED_AT = (1, 10)  # the file has all


@dataclass(frozen=True)
class InputEffect:
    """One system with an input cut and whole.

    Attributes:
        name: of the input: picture, text, speech.
        cut, whole: results over the same split.
        differences: k -> points of R@k, speech -> image, that the whole input gains, with the paired interval.
    """

    name: str
    cut: SystemResult
    whole: SystemResult
    differences: dict[int, Difference]


def whole_inputs(config: Config) -> dict[str, Config]:
    """Return for each input that the variant takes, the settings in which it alone is whole."""
    data, variant = config.data, config.model.variant
    changes = {"picture": replace(data, image_transform="letterbox")}
    if variant != "acoustic":
        changes["text"] = replace(data, long_text="windows")
    if variant in ("brewclip", "acoustic"):
        changes["speech"] = replace(data, max_audio_frames=0)
    return {name: replace(config, data=changed) for name, changed in changes.items()}


def measure_inputs(system: System, split: str) -> list[InputEffect]:
    """Evaluate a system with its inputs cut, and with each of them whole.

    Raises:
        UserError: as `evaluate_system`.
    """
    usual = replace(system.config.data, image_transform="crop", long_text="cut")
    system = replace(system, config=replace(system.config, data=usual))
    cut = evaluate_system(system, split)
    effects = []
    for name, config in whole_inputs(system.config).items():
        nothing_cut = {"text": not cut.cuts.cut_tokens, "speech": not cut.cuts.cut_frames}.get(name, False)
        whole = cut if nothing_cut else evaluate_system(replace(system, config=config), split)
        differences = {k: compare([whole.outcome], [cut.outcome], _DIRECTION, k) for k in RECALL_AT}
        effects.append(InputEffect(name, cut, whole, differences))
    return effects


def inputs_table(effects: list[InputEffect]) -> str:
    """Return both recalls of every input side by side, and how much was cut, for a terminal."""
    rows = [
        ["system", "input", "cut away", *(f"R@{k} {what}" for k in _PRINTED_AT for what in ("cut", "whole", "gain"))]
    ]
    for one in effects:
        cells = [
            cell
            for k in _PRINTED_AT
            for cell in (
                *(f"{m.metrics[f'{_DIRECTION}/R{k}']:.1f}" for m in (one.cut, one.whole)),
                str(one.differences[k]),
            )
        ]
        rows.append([one.cut.system.name, one.name, _cut_away(one), *cells])
    return align(rows)


def inputs_record(effects: list[InputEffect]) -> list[dict[str, Any]]:
    """Return the same as plain JSON."""
    return [
        {
            "system": one.cut.system.name,
            "input": one.name,
            "cut": asdict(one.cut.cuts),
            "metrics_cut": one.cut.metrics,
            "metrics_whole": one.whole.metrics,
            "gain": {f"{_DIRECTION}/R{k}": asdict(value) for k, value in one.differences.items()},
        }
        for one in effects
    ]


def _cut_away(one: InputEffect) -> str:
    shares = one.cut.cuts.shares()
    if one.name == "picture":
        return "beside the square"
    part, unit = ("texts", "tokens") if one.name == "text" else ("recordings", "frames")
    return f"{100 * shares[unit]:.1f} % of {unit}, in {100 * shares[part]:.1f} % of {part}"
