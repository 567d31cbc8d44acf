"""What `table` shows of each shape of rows: formats by column, text left, numbers right, nothing lost on the way."""

import collections
import dataclasses
import re

import numpy as np
import pandas as pd
import pytest

from helpers import CourseError
from helpers.lesson import table

Point = collections.namedtuple("Point", "name share")


@dataclasses.dataclass
class Score:
    name: str
    share: float


SHAPES = {
    "a list of dictionaries": [{"name": "NF4", "share": 0.25}, {"name": "FP4", "share": None}],
    "a list of named tuples": [Point("NF4", 0.25), Point("FP4", None)],
    "a list of dataclasses": [Score("NF4", 0.25), Score("FP4", None)],
    "a generator": (Score(*row) for row in (("NF4", 0.25), ("FP4", None))),
    "a DataFrame": pd.DataFrame({"name": ["NF4", "FP4"], "share": [0.25, None]}),
    "a part of a DataFrame": pd.DataFrame({"name": ["x", "NF4", "FP4"], "share": [0, 0.25, None]})[1:],
    "a DataFrame with a named index": pd.DataFrame({"name": ["NF4", "FP4"], "share": [0.25, None]}).set_index("name"),
    "a Series with a named index": pd.Series([0.25, None], pd.Index(["NF4", "FP4"], name="name"), name="share"),
}
WITHOUT_HEADINGS = {
    "a dictionary of numbers": {"NF4": 0.25, "FP4": float("nan")},
    "a dictionary of lists": {"NF4": [0.25], "FP4": [None]},
    "a dictionary of arrays": {"NF4": np.array([0.25]), "FP4": np.array([np.nan])},
    "a dictionary of dictionaries": {"NF4": {"": 0.25}, "FP4": {}},
    "a list of lists": [["NF4", 0.25], ("FP4", None)],
    "a Series": pd.Series({"NF4": 0.25, "FP4": None}),
}
SHOWN = "name  share\nNF4     25%\nFP4       -"


@pytest.mark.parametrize("rows", SHAPES.values(), ids=SHAPES)
def test_rows_of_any_shape_become_the_same_table(rows):
    assert repr(table(rows, share="{:.0%}")) == SHOWN


@pytest.mark.parametrize("rows", WITHOUT_HEADINGS.values(), ids=WITHOUT_HEADINGS)
def test_rows_without_headings_are_given_them(rows):
    assert repr(table(rows, columns=("name", "share"), share="{:.0%}")) == SHOWN
    assert repr(table(rows, "{:.0%}")) == SHOWN.partition("\n")[2].replace("     25%", "  25%").replace(
        "       -", "    -"
    )


def test_names_of_two_words_stand_in_two_columns():
    two = {("strong", "merged"): {"kept": 1}, ("weak", "merged"): {"kept": 0.5}}
    by_index = pd.DataFrame(two.values(), pd.MultiIndex.from_tuples(two, names=["adapter", "way"]))
    for rows in (table(two, kept="{:.0%}", columns=("adapter", "way")), table(by_index, kept="{:.0%}")):
        assert repr(rows) == "adapter  way     kept\nstrong   merged  100%\nweak     merged   50%"
        assert rows._repr_html_().count("<th") == 1 + 3 + 4  # <thead>, the headings, two names a row


def test_the_names_of_columns_lose_what_no_python_name_can_hold():
    rows = [{"": "a", "GPU busy (ms)": 1.234, "4-bit": 2.345, "bits a weight": 4.5}]
    shown = table(rows, "{:.1f}", GPU_busy_ms="{:.2f}", _4_bit="{:.0f}", **{"bits a weight": "{:.3f}"})
    assert shown.cells == [["a", "1.23", "2", "4.500"]]
    assert "4.5" in repr(table(rows, "{:.1f}"))


def sides(shown) -> list[set[str]]:
    """The alignments that a column's cells have, its heading too, column by column."""
    rows = re.findall(r"<tr>(.*?)</tr>", shown._repr_html_())
    cells = [re.findall(r'<t[hd] align="(\w+)" style="text-align:(\w+)', row) for row in rows]
    assert all(a == b for row in cells for a, b in row)
    return [{side for side, _ in column} for column in zip(*cells, strict=True)]


def test_text_stands_left_and_numbers_right_with_their_headings():
    row = {"n": 512, "text": "12 of 16", "share": 0.5, "size": 2.5, "yes": True, "none": None, "mixed": 1, "some": 3}
    other = row | {"size": "not measured", "mixed": "all", "some": None}
    shown = table([row, other], share="{:.0%}", size="{:.2f} GB", yes=lambda yes: "yes" if yes else "no")
    right = ["right", "left", "right", "right", "left", "left", "left", "right"]
    assert sides(shown) == [{side} for side in right]
    lines = repr(shown).splitlines()
    assert [line[: len("  n")] for line in lines] == ["  n", "512", "512"]
    assert "     2.50 GB" in lines[1]  # under the end of "not measured"
    assert "not measured" in lines[2]


def test_text_is_escaped_and_a_line_break_is_seen():
    shown = table([{"<b>": "a < b & c", "said": 'one\n"two"\t'}])
    assert "<th align" in shown._repr_html_()
    assert "&lt;b&gt;" in shown._repr_html_()
    assert "a &lt; b &amp; c" in shown._repr_html_()
    assert "<b>" not in shown._repr_html_()
    assert r'one\n"two"\t' in shown._repr_html_()
    assert repr(shown).splitlines()[1] == r'a < b & c  one\n"two"\t'


def test_without_a_format_nothing_is_rounded_that_a_reader_could_miss():
    values = [65504.0, 0.1 + 0.2, 3.4028234663852886e38, 123456789, True, np.float32(0.5), np.int64(7), (1, 2)]
    shown = table({str(place): value for place, value in enumerate(values)})
    expected = ["65504", "0.3", "3.40282e+38", "123456789", "True", "0.5", "7", "1  2"]
    assert [" ".join(line[1:]) for line in shown.cells][:7] == [f"{text} -" for text in expected[:7]]
    assert shown.cells[7][1:] == ["1", "2"]


@pytest.mark.parametrize("nothing", [None, float("nan"), np.nan, pd.NA, pd.NaT], ids=repr)
def test_what_is_missing_is_a_dash_whatever_the_format(nothing):
    assert repr(table([["a", nothing, 1.0]], "{:.1f}")) == "a  -  1.0"
    assert repr(table([["a", nothing]], columns=["name", "f"], f=lambda value: value + 1)).endswith("-")


def test_words_among_numbers_are_shown_as_they_are_and_words_alone_by_their_format():
    assert repr(table({"a": 1.5, "b": "none"}, "{} GB")) == "a  1.5 GB\nb    none"
    assert repr(table({"a": 1.5, "b": "none"}, lambda value: value * 2)) == "a   3.0\nb  none"
    rows = [{"n": 1, "said": "a long answer", "size": "not measured"}]
    assert repr(table(rows, said="{!r:.7}", size="{:.2f}")).splitlines()[1] == "1  'a long  not measured"


def test_a_tensor_of_one_number_is_that_number():
    torch = pytest.importorskip("torch")
    rows = {torch.tensor(3): torch.tensor([0.25, 1.0]), torch.tensor(12): [torch.tensor(0.5), 2]}
    assert repr(table(rows, "{:.2f}")).splitlines() == [" 3  0.25  1.00", "12  0.50  2.00"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"peek_GB": "{:.2f}"}, "no column 'peek_GB' to format; there are: name, peak (GB)"),
        ({"peak_GB": "{:.2q}"}, "the format '{:.2q}' of column 'peak (GB)' does not fit 2.5"),
        ({"peak_GB": "{peak}"}, "the format '{peak}' of column 'peak (GB)' does not fit 2.5"),
        ({"columns": ("a", "b", "c")}, "3 headings for 2 columns: a, b, c"),
    ],
)
def test_a_wrong_name_or_format_is_one_line(how, words):
    with pytest.raises(CourseError) as said:
        table([{"name": "a", "peak (GB)": 2.5}], **how)
    assert words in str(said.value)
    assert "\n" not in str(said.value)


def test_a_column_that_is_left_without_a_heading_is_one_line():
    "Two values more in each row would stand there unseen, and under the wrong headings."
    with pytest.raises(CourseError, match="^2 headings for 4 columns: asked, said$"):
        table([("a", "b", "c", "d")], columns=("asked", "said"))
    assert repr(table({"a": {"n": 1}, "b": {"n": 2}}, columns=["name"])).splitlines()[0] == "name  n"


def test_no_rows_are_no_error():
    for rows in ([], {}, pd.DataFrame({"a": []}), pd.Series(dtype=float)):
        assert repr(table(rows, a="{:.1f}")) == "(no rows)"
        assert table(rows)._repr_html_() == "<p>(no rows)</p>"


def test_the_same_rows_give_the_same_html_and_no_style_sheet():
    one, two = (table(SHAPES["a list of dictionaries"], share="{:.1%}")._repr_html_() for _ in range(2))
    assert one == two
    assert not re.search(r"<style|class=|id=", one)


def test_jupyter_shows_html_and_text():
    from IPython.core.formatters import DisplayFormatter

    data, _ = DisplayFormatter().format(table({"a": 1}))
    assert data["text/html"].startswith("<table>")
    assert data["text/plain"] == "a  1"
