"""Reproduce a table of the paper: train and evaluate every missing cell, and report which claims hold.

    python jobs/reproduce.py table2 spoken_coco localized_narratives --storage s3://bucket --seeds 0 1 2
    python jobs/reproduce.py table2 scenes scenes_narratives scenes_noisy --seeds 0 1 2 --markdown docs/RESULTS.md
    python jobs/reproduce.py table3 scenes_noisy --emotion-corpus scenes_emotion
    python jobs/reproduce.py real_speech scenes --speech DIR --systems scenes-brewclip-0 --markdown docs/RESULTS.md

First the table, then the presets of the corpora; further flags are those of jobs/train.py and apply to every preset.
table1: retrieval. table2: ablation of the channels. table3: emotion. table4: ASR against ground truth, zero-shot.
table5: every training corpus against every test corpus. beyond: adapter and fusion by confidence against the paper's
sum, a gate and zero-shot. The corpora must have been extracted (jobs/extract.py), for `beyond` with
--model.adaptation adapter --data.transcript asr_greedy (docs/adapter.md).
real_speech: word errors on a folder of real recordings compared with whisper.transcribe, and emotions by speaker; it
takes one preset for Whisper and CLIP, and no corpus.
Finished runs and evaluated cells are reused, so a second call only prints. Writes table.md, results.json, a figure
and report.html to STORAGE/experiments/NAME, and to MLflow.
"""

import dataclasses
import difflib
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from brewclip.config import Config, exit_on_user_error, parse_command_line, preset
from brewclip.config.names import FOLDER
from brewclip.config.ranges import SEED
from brewclip.config.unused import IGNORED_BY_TRAINING
from brewclip.errors import UserError

REAL_SPEECH = "real_speech"
NAMES = ("table1", "table2", "table3", "table4", "table5", "beyond", REAL_SPEECH)


@dataclass(frozen=True)
class ReproduceConfig(Config):
    """Settings of a table."""

    seeds: tuple[Annotated[int, SEED], ...] = (0, 1, 2)
    """Seeds of the runs; each system is trained once per seed."""
    split: Annotated[str, FOLDER] = "test"
    """Split to evaluate on."""
    emotion_corpus: str = ""
    """Corpus of table3, with emotions and speakers; empty: ravdess, or scenes_emotion for the scenes world."""
    speech: str = ""
    """Folder of recordings of real_speech: ravdess/Actor_NN/*.flac, digits/*.wav, jfk.flac, any of them."""
    systems: tuple[str, ...] = ()
    """Systems whose acoustic channel real_speech probes for emotions: names or URLs of runs."""
    markdown: str = ""
    """Markdown file whose section of this table is replaced; empty writes none."""
    only_cached: bool = False
    """Run nothing, print cached results."""


def main() -> None:
    """Parse the command line, compute the cells, write the page."""
    with exit_on_user_error():
        name, forms = parse(sys.argv[1:])
        form = next(iter(forms.values()))
        from brewclip.data.storage import check_reachable
        from brewclip.paper.reproduce import reproduce_table, write_page

        check_reachable(form.storage)
        configs = {corpus: plain(one) for corpus, one in forms.items()}
        command = describe_command(sys.argv[1:])
        if name == "table3":
            from brewclip.paper.emotion import reproduce_emotion

            emotion = form.emotion_corpus or ("scenes_emotion" if form.model.clip == "scenes" else "ravdess")
            page = reproduce_emotion(configs, emotion, form.seeds, command, only_cached=form.only_cached)
        elif name == REAL_SPEECH:
            from brewclip.paper.real_speech import reproduce_real_speech

            page = reproduce_real_speech(plain(form), Path(form.speech), form.systems, command)
        else:
            page = reproduce_table(name, configs, form.seeds, form.split, command, only_cached=form.only_cached)
        if form.markdown:
            write_page(Path(form.markdown), name, page)


def parse(words: list[str]) -> tuple[str, dict[str, ReproduceConfig]]:
    """Return the table, and the settings of each corpus.

    Raises:
        UserError: for an unknown table, preset or flag, or settings that each cell sets itself.
    """
    flags = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    name, presets = (words[:flags] or [""])[0], words[1:flags]
    if {"-h", "--help"} & set(words):
        parse_command_line(__doc__, ReproduceConfig, ["--help"])
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=1)
        raise UserError(f"no table {name!r}: {f'did you mean {near[0]}? ' if near else ''}there are {', '.join(NAMES)}")
    if not presets:
        raise UserError(f"{name} of which corpora? Name presets behind it, such as: {name} scenes")
    forms: dict[str, ReproduceConfig] = {}
    ignored = ("optim.", "loss.") if name == REAL_SPEECH else IGNORED_BY_TRAINING
    for word in presets:
        once = () if forms else ignored
        form = parse_command_line(__doc__, ReproduceConfig, [word, *words[flags:]], ignored=once)
        for flag, value, usual in (
            ("--run.name", form.run.name, ""),
            ("--run.seed", form.run.seed, preset(word).run.seed),
            ("--model.variant", form.model.variant, preset(word).model.variant),
            ("--data.transcript", form.data.transcript, preset(word).data.transcript),
            ("--data.corpus", form.data.corpus, preset(word).data.corpus),
        ):
            if value != usual:
                raise UserError(f"{flag} {value} is not for a table: its cells have their own")
        if preset(word).model.variant == "speechclip":
            raise UserError(f"{word} is the preset of one row: name {form.data.corpus}, whose table1 has this row")
        if form.data.corpus in forms:
            raise UserError(f"{word} is a second preset of the corpus {form.data.corpus}: name each corpus once")
        if not form.seeds or len(set(form.seeds)) < len(form.seeds):
            raise UserError(f"--seeds {' '.join(map(str, form.seeds))}: give one or more, each once")
        forms[form.data.corpus] = form
    check_real_speech(name, list(forms.values()))
    return name, forms


def check_real_speech(name: str, forms: list[ReproduceConfig]) -> None:
    """Check the settings that real_speech requires, and those that only it accepts.

    Raises:
        UserError: if one is missing or not accepted.
    """
    form = forms[0]
    if name == REAL_SPEECH:
        if len(forms) > 1:
            raise UserError(f"{REAL_SPEECH} takes one preset, which names Whisper and CLIP; there are {len(forms)}")
        if not form.speech:
            raise UserError(f"{REAL_SPEECH} needs --speech: name a folder with ravdess/, digits/ or jfk.flac")
    elif form.speech or form.systems:
        raise UserError(f"--speech and --systems are for {REAL_SPEECH}, not for {name}")


def plain(form: ReproduceConfig) -> Config:
    """Return the settings without those of the table."""
    return Config(**{item.name: getattr(form, item.name) for item in dataclasses.fields(Config)})


def describe_command(words: list[str]) -> str:
    """Return the command without machine-specific flags, such as storage and tracking."""
    kept, skip = [], False
    for word in words:
        own = word.startswith(("--storage", "--tracking.", "--markdown", "--cluster.", "--only-cached"))
        skip = own if word.startswith("--") else skip
        kept += [] if skip else [word]
    return f"python jobs/reproduce.py {shlex.join(kept)}"


if __name__ == "__main__":
    main()
