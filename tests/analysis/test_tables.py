"""Tables as people read them."""

from brewclip.analysis.tables import markdown_table, recall_rows, text_table


def metrics(value: float) -> dict[str, float]:
    names = [f"{d}/R{k}" for d in ("speech_to_image", "image_to_speech") for k in (1, 5, 10)]
    return {n + end: value + shift for n in names for end, shift in (("", 0.0), ("_low", -1.5), ("_high", 1.5))}


def test_rows_have_recall_with_its_interval():
    header, row = recall_rows({"brewclip": metrics(40.26)})
    assert header == ["system"] + [f"{d} R@{k}" for d in ("speech -> image", "image -> speech") for k in (1, 5, 10)]
    assert row == ["brewclip"] + ["40.3 [38.8, 41.8]"] * 6


def test_markdown():
    assert markdown_table([["a", "b"], ["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |\n"


def test_the_terminal_table_fits_80_columns():
    text = text_table({"zero_shot": metrics(100.0), "brewclip": metrics(5.0)})
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("brewclip") == 2
