"""Tables, as lessons show them: a format for a column, text on the left, numbers on the right."""

import dataclasses
import html
import numbers
import re
from collections.abc import Mapping

from helpers import CourseError

MISSING = "-"  # shown for None and NaN


class _Unnamed(int):
    """Stands where a column has no heading: its place in the row."""


@dataclasses.dataclass(frozen=True, repr=False)
class Table:
    """What `table` returns: ready text, which Jupyter shows as HTML and everything else as aligned lines.

    Alignment stands in each cell, for GitHub and Colab drop style sheets.
    """

    headings: list[str]
    cells: list[list[str]]  # one list a row, as long as `headings`
    right: list[bool]  # whether a column is of numbers
    names: int  # how many columns, from the left, name a row

    def __repr__(self) -> str:
        if not self.cells:
            return "(no rows)"
        lines = [self.headings, *self.cells] if any(self.headings) else self.cells
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        sides = [str.rjust if right else str.ljust for right in self.right]
        padded = ([side(t, w) for side, t, w in zip(sides, line, widths, strict=True)] for line in lines)
        return "\n".join("  ".join(line).rstrip() for line in padded)

    def _repr_html_(self) -> str:
        if not self.cells:
            return "<p>(no rows)</p>"
        head = f"<thead>\n{self._line('th', self.headings)}\n</thead>\n" if any(self.headings) else ""
        body = "\n".join(self._line("td", row) for row in self.cells)
        return f"<table>\n{head}<tbody>\n{body}\n</tbody>\n</table>"

    def _line(self, tag: str, row: list[str]) -> str:
        cells = ""
        for place, (text, right) in enumerate(zip(row, self.right, strict=True)):
            cell = "th" if place < self.names else tag
            side = "right" if right else "left"
            kept = ";white-space:nowrap" if right and tag == "td" else ""  # a number stays in one line
            style = f"text-align:{side};vertical-align:top{kept}"
            cells += f'<{cell} align="{side}" style="{style}">{html.escape(text, quote=False)}</{cell}>'
        return f"<tr>{cells}</tr>"


def table(rows, every=None, /, *, columns=(), **formats) -> Table:
    """A table for display, with a format for each column that needs one.

        table(runs, peak_GB="{:.2f}", share="{:.0%}")
        table({"NF4": 0.092, "FP4": 0.118}, "{:.1%}", columns=("levels", "relative error"))

    `rows` is a list of rows, a dictionary from a name to a row or to one value, a pandas Series or a DataFrame. A row is
    a dictionary, a dataclass or a sequence. What comes first (a name, a named index, the first column) names the row.
    `columns` are headings from the left: all of them for rows without headings, the first ones for other rows.

    A format is a format string or a function. It goes by the name of its column, with "_" for all that a Python name
    cannot hold: GPU_busy_ms for "GPU busy (ms)". `every` is for all other columns with numbers, but the first.
    None and NaN are shown as "-", text among numbers as it is, and floats without a format with six digits.
    Raises CourseError for a format of a column that is not there, and for one that does not fit a number.
    """
    headings, cells, names = _laid_out(rows)
    if not cells:
        return Table([], [], [], 0)
    if len(columns) > len(headings) or (columns and "" in headings[len(columns) :]):
        raise CourseError(f"{len(columns)} headings for {len(headings)} columns: {', '.join(map(str, columns))}")
    headings = [*map(str, columns), *headings[len(columns) :]]
    by_column = _formats_by_column(headings, formats)
    shown, right = [], []
    for place, values in enumerate(zip(*cells, strict=True)):
        present = [value for value in values if not _missing(value)]
        numeric = [_is_number(value) for value in present]
        form = by_column.get(place, every if place >= names and any(numeric) else None)
        # A word among formatted numbers ("not measured") does not make it a column of words.
        right.append(any(numeric) and (all(numeric) or form is not None))
        shown.append([_text(value, form, any(numeric), headings[place]) for value in values])
    return Table(headings, [list(row) for row in zip(*shown, strict=True)], right, names)


def _laid_out(rows) -> tuple[list[str], list[list], int]:
    """Headings, the values of each row in their order, and how many columns name a row."""
    if hasattr(rows, "to_frame") and hasattr(rows, "index"):  # a Series: its index is what it is about
        named = rows.rename_axis([name or "" for name in rows.index.names])
        rows = named.reset_index(name="" if rows.name is None else rows.name, allow_duplicates=True)
        return _of_frame(rows, rows.shape[1] - 1)
    if hasattr(rows, "iterrows"):
        return _of_frame(*_with_its_index(rows))
    if isinstance(rows, Mapping):
        keys = [list(key) if isinstance(key, tuple) else [key] for key in rows]
        names = max(map(len, keys), default=0)
        lined = [_counted(key, -names) | _by_heading(row) for key, row in zip(keys, rows.values(), strict=True)]
    else:
        lined, names = [_by_heading(row) for row in rows], 1
    headings = list(dict.fromkeys(heading for row in lined for heading in row))
    values = [[_plain(row.get(heading)) for heading in headings] for row in lined]
    return ["" if isinstance(heading, _Unnamed) else str(heading) for heading in headings], values, names


def _with_its_index(frame):
    """A DataFrame and how many columns name a row: a plain count of rows names nothing, another index does."""
    if frame.index.nlevels == 1 and frame.index.name is None and frame.index.dtype.kind == "i":
        return frame, 1
    named = frame.rename_axis([name or "" for name in frame.index.names])
    return named.reset_index(allow_duplicates=True), frame.index.nlevels


def _of_frame(frame, names: int):
    cells = [[_plain(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    return [str(heading) for heading in frame.columns], cells, names


def _by_heading(row) -> dict:
    """One row as heading: value."""
    if isinstance(row, Mapping):
        return dict(row)
    if dataclasses.is_dataclass(row):
        return {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    if hasattr(row, "_asdict"):
        return row._asdict()
    row = row.tolist() if hasattr(row, "tolist") else row
    return _counted(row if isinstance(row, list | tuple) else [row])


def _counted(values, start: int = 0) -> dict:
    return {_Unnamed(place): value for place, value in enumerate(values, start)}


def _plain(value):
    """The Python number in a tensor or an array of one value; anything else as it is."""
    return value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value


def _missing(value) -> bool:
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, numbers.Number) and value != value


def _is_number(value) -> bool:
    return isinstance(value, numbers.Number) and not isinstance(value, bool)


def _formats_by_column(headings: list[str], formats: dict) -> dict:
    """Which column has which format."""
    found: dict = {}
    for name, form in formats.items():
        places = [i for i, heading in enumerate(headings) if name == heading or _as_name(name) == _as_name(heading)]
        if not places:
            raise CourseError(f"no column {name!r} to format; there are: {', '.join(filter(None, headings))}")
        found |= dict.fromkeys(places, form)
    return found


def _as_name(heading: str) -> str:
    return re.sub(r"\W+", "_", heading).strip("_")


def _text(value, form, among_numbers: bool, heading: str) -> str:
    """One value as it is shown, in one line."""
    if _missing(value):
        return MISSING
    if form is None or (among_numbers and isinstance(value, str)):
        text = f"{value:.6g}" if isinstance(value, float) else str(value)
    elif callable(form):
        text = str(form(value))
    else:
        text = _formatted(value, form, heading)
    for character, escape in (("\n", r"\n"), ("\r", r"\r"), ("\t", r"\t")):
        text = text.replace(character, escape)
    return text


def _formatted(value, form: str, heading: str) -> str:
    try:
        return form.format(value)
    except (ValueError, LookupError, TypeError) as error:
        if isinstance(value, str):  # a column of words alone, such as "not measured" in every row
            return value
        raise CourseError(f"the format {form!r} of column {heading!r} does not fit {value!r}: {error}") from error
