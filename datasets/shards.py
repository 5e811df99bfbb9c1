"""Existing WebDataset tars: adopted in place, or rewritten where necessary.

    python datasets/shards.py --source 's3://bucket/raw/{000..099}.tar' --dest s3://bucket/mine
    python datasets/shards.py --source train='/raw/train-*.tar' dev='/raw/val-*.tar' --dest file:///data/mine

Samples are KEY.jpg|jpeg|png|webp, KEY.flac|wav|ogg|mp3 and, optionally, KEY.json|txt|cls. Tars are adopted if in each
every sample is contiguous, has one recording, and has an image that no other sample of its split has. Without
SPLIT= and --split-field, whole tars are drawn into train, dev and test. See docs/webdataset.md.
"""

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Annotated

from brewclip.config import exit_on_user_error, parse_options
from brewclip.config.ranges import FRACTION_BELOW_1, SEED, Range
from brewclip.containers.adopt import adopt, rejected_of
from brewclip.containers.digest import Digest
from brewclip.containers.plan import SplitDraw, check_splits_of_images, make_plan
from brewclip.containers.rewrite import list_left_out, tar_corpus
from brewclip.containers.scan import ScanTask, plan_of, rules_of, scan_first, scan_tars
from brewclip.containers.sources import SourceTar, find_tars
from brewclip.corpora.options import WriteOptions, check_options
from brewclip.corpora.recipe import exit_on_interrupt, print_summary, write_corpus
from brewclip.data.storage import Storage, check_reachable, open_storage
from brewclip.errors import ObjectMissing, UserError

STATE = "shards.json"
# Flags that do not change the content of a corpus.
NOT_IN_A_CORPUS = {"source", "dest", "dry_run", "max_rejected_fraction", "identical_images"}


@dataclass(frozen=True, kw_only=True)
class ShardsOptions(WriteOptions):
    """Tars in WebDataset's form."""

    source: tuple[str, ...]
    """URLs (s3://, file://) or paths of tars, with {000..099} or *, or their folder; SPLIT=URL names their split."""
    image_ext: tuple[str, ...] = ("jpg", "jpeg", "png", "webp")
    """Extensions of images; of two of one sample, the one listed first here is used."""
    audio_ext: tuple[str, ...] = ("flac", "wav", "ogg", "mp3")
    """Extensions of recordings, likewise."""
    text_ext: tuple[str, ...] = ("txt", "cls")
    """Extensions of texts; each is a field of that name, in addition to those of the json."""
    text_field: tuple[str, ...] = ("text", "caption", "txt")
    """Fields that may hold the text; the first present is used."""
    id_field: str = ""
    """Field that names the image; without it, the key does, and equal bytes are one image."""
    split_field: str = ""
    """Field that names the split."""
    speaker_field: str = "speaker"
    """Field that names the speaker."""
    emotion_field: str = "emotion"
    """Field that names the emotion."""
    without_images: bool = False
    """Samples are recordings alone."""
    dev_fraction: Annotated[float, FRACTION_BELOW_1] = 0.1
    """Share of dev, where nothing names the splits: of the tars, or of the images if they are rewritten."""
    test_fraction: Annotated[float, FRACTION_BELOW_1] = 0.1
    """Share of test, likewise."""
    seed: Annotated[int, SEED] = 0
    """Seed of the split, likewise."""
    rewrite: bool = False
    """Rewrite the samples even if the tars could be adopted."""
    image_side_pixels: Annotated[int, Range(16, 8192, note="--keep-original-images reduces nothing")] = 336
    """Rewritten images are reduced to this short side."""
    keep_original_images: bool = False
    """Keep the bytes of JPEG images that are rewritten."""


def main() -> None:
    """Scan the tars once, print the plan, and write manifests or samples."""
    with exit_on_user_error(), exit_on_interrupt():
        options = parse_options(__doc__, ShardsOptions)
        check_options(options)
        draw = SplitDraw(options.dev_fraction, options.test_fraction, options.seed)
        draw.check()
        tars = find_tars(options.source)
        if options.split_field and tars[0].split:
            raise UserError("--source gives the split of each tar, and --split-field as well: use one of them")
        if options.dry_run:
            preview_first(tars, options, draw)
        else:
            make_corpus(tars, options, draw)


def preview_first(tars: list[SourceTar], options: ShardsOptions, draw: SplitDraw) -> None:
    """Scan the first tar alone and print its content; write nothing."""
    digest = scan_first(tars[0], rules_of(options))
    size = sum(tar.size_bytes for tar in tars) / 1e6
    print(f"{len(tars)} tars, {size:.1f} MB; the first has {digest.num_samples} samples, {describe([digest])}")
    check_rejected([digest], options)
    alone = make_plan(tars[:1], [digest], draw, by_field=bool(options.split_field), wish=wish(options))
    print(f"to rewrite: {alone.obstacle}" if digest.obstacle or wish(options) else "it can be adopted", flush=True)


def make_corpus(tars: list[SourceTar], options: ShardsOptions, draw: SplitDraw) -> None:
    """Scan the tars and adopt them, or rewrite their samples."""
    dest = options.dest.rstrip("/")
    tasks = [ScanTask(tar, dest, rules_of(options)) for tar in tars]
    flags = {name: value for name, value in asdict(options).items() if name not in NOT_IN_A_CORPUS}
    storage, plan_hash = open_storage(dest), plan_of(tasks, flags)
    check_reachable(dest)
    if already_made(storage, plan_hash):
        return
    corpus = dest.rpartition("/")[2]
    digests = scan_tars(f"index {corpus}", tasks)
    print(f"{corpus}: {sum(one.num_samples for one in digests)} samples in {len(tars)} tars, {describe(digests)}")
    check_rejected(digests, options)
    for tar, digest in zip(tars, digests, strict=True):
        if digest.damage:
            print(
                f"warning: {tar.url} is damaged ({digest.damage}): only samples before it are used",
                flush=True,
            )
    plan = make_plan(tars, digests, draw, by_field=bool(options.split_field), wish=wish(options))
    if plan.obstacle:
        print(f"the samples are rewritten: {plan.obstacle}", flush=True)
        side_pixels = 0 if options.keep_original_images else options.image_side_pixels
        listed = tar_corpus(corpus, dest, tasks, digests, plan, draw, side_pixels)
        summary = write_corpus(listed, options)
        for cause, count in list_left_out(listed, dest).items():
            print(f"in no split: {count} {cause}", flush=True)
    else:
        print("the tars are adopted in place", flush=True)
        warn_of_flags(tars, options)
        check_splits_of_images(digests, plan.splits, refuse_identical=options.identical_images == "refuse")
        summary = adopt(corpus, dest, tasks, digests, plan, plan_hash)
    storage.write(STATE, json.dumps({"plan": plan_hash, "splits": summary}, indent=1, sort_keys=True).encode())
    for name in [*storage.list_names("parts/"), *(storage.list_names("tars/") if plan.obstacle else [])]:
        storage.delete(name)
    print_summary(summary)


def already_made(storage: Storage, plan_hash: str) -> bool:
    """Return whether an earlier run wrote this corpus, and print its table.

    Raises:
        UserError: if the destination holds one of other tars or flags.
    """
    try:
        state = json.loads(storage.read(STATE))
    except ObjectMissing:
        return False
    if state["plan"] != plan_hash:
        raise UserError(
            f"{storage.url} was made from other tars or with other flags: remove it, or name another --dest"
        )
    print_summary({split: counts | {"state": "already there"} for split, counts in state["splits"].items()})
    return True


def wish(options: ShardsOptions) -> str:
    """Return why the user wants the samples rewritten; empty if not."""
    return "--rewrite asks for it" if options.rewrite else "--limit takes a part of them" if options.limit else ""


def warn_of_flags(tars: list[SourceTar], options: ShardsOptions) -> None:
    """Warn about flags without effect on adopted tars, and about tars on local disks."""
    if not options.dest.startswith("file:") and any(tar.url.startswith("file:") for tar in tars):
        print(f"warning: every machine that reads {options.dest} must see {tars[0].url} at this path", flush=True)
    if options.keep_original_images or options.image_side_pixels != ShardsOptions.image_side_pixels:
        print("warning: --image-side-pixels and --keep-original-images have no effect without --rewrite", flush=True)


def check_rejected(digests: list[Digest], options: ShardsOptions) -> None:
    """Raise if too large a share cannot be used, including the estimated losses in damaged tars.

    Raises:
        UserError: with the causes, and the first.
    """
    rejected = rejected_of(digests)
    num_lost = len(rejected) + sum(digest.num_lost for digest in digests)
    total = sum(digest.num_samples for digest in digests) + num_lost
    if not total:
        raise UserError(
            f"--source has no sample: {sum(one.num_others for one in digests)} members are neither images, recordings "
            "nor texts: name their extensions by --image-ext, --audio-ext and --text-ext"
        )
    if num_lost > options.max_rejected_fraction * total:
        raise UserError(
            f"{num_lost} of {total} samples cannot be used ({describe(digests)}), more than --max-rejected-fraction "
            f"{options.max_rejected_fraction:g} allows; the first: {rejected[0]}"
        )


def describe(digests: list[Digest]) -> str:
    """Describe rejections by cause, samples without text, and skipped members."""
    causes = Counter(row["cause"] for row in rejected_of(digests))
    words = ["rejected: " + (", ".join(f"{count} {cause}" for cause, count in sorted(causes.items())) or "none")]
    without_text = sum(digest.sums["without_text"] for digest in digests)
    words += [f"{without_text} without a text"] if without_text else []
    warned = sum(digest.sums["with_decoder_warnings"] for digest in digests)
    words += [f"{warned} with MP3 decoder warnings"] if warned else []
    lost = sum(digest.num_lost for digest in digests)
    words += [f"about {lost} lost in damaged tars"] if lost else []
    others = sum(digest.num_others for digest in digests)
    return ", ".join([*words, *([f"{others} other members passed over"] if others else [])])


if __name__ == "__main__":
    main()
