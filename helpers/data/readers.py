"""Files of rows, read one row at a time: what each holds, and in which line it stands.

The libraries' own readers name no line, guess encodings and types, and stop at a column of two kinds. So JSON and CSV
are read here, and only as much of a file is in memory as one row takes (of a JSON array, its text). Parquet is pyarrow's,
which keeps a page of each column (1 MB, as most programs write them), and 256 rows.
"""

import codecs
import contextlib
import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from helpers import CourseError

KINDS = {".jsonl": "JSON lines", ".ndjson": "JSON lines", ".json": "JSON", ".csv": "CSV", ".tsv": "TSV"}
KINDS |= {".parquet": "Parquet"}
TAKEN = "a file of JSON lines, a JSON array, CSV, TSV or Parquet, as it is or packed as .gz, or a folder of such files"
MARKS = (  # of the longest first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
LONGEST_LINE = 64_000_000  # characters of a row
LARGEST_ARRAY = 500_000_000  # bytes of a JSON array, or of a Parquet file packed with gzip: these are read whole
NO_UTF8 = re.compile("[\udc80-\udcff]")  # how Python keeps a byte that is no UTF-8


class DataError(CourseError, OSError):
    """Rows that cannot be read."""


@dataclass(frozen=True)
class RowFile:
    """A file of rows: `kind` is its format in words, `unit` what its places count ("line" or "row")."""

    path: Path
    kind: str
    encoding: str = ""
    delimiter: str = ""
    unit: str = "line"

    def __str__(self) -> str:
        words = [
            self.kind,
            {"utf-8": "UTF-8", "utf-8-sig": "UTF-8 with a byte order mark"}.get(self.encoding, self.encoding),
        ]
        if self.delimiter not in ("", ",", "\t"):
            words.append(f"cells between {self.delimiter!r}")
        return ", ".join(filter(None, words)) + (", packed with gzip" if _packed(self.path) else "")

    def rows(self) -> Iterator[tuple[int, dict]]:
        """(place, row) of each row in order; DataError, one line, where that ends."""
        read = {"Parquet": _parquet, "CSV": _csv, "TSV": _csv, "JSON array": _array, "JSON object": _object}
        with _in_one_line(self.path, self.encoding):
            yield from read.get(self.kind, _json_lines)(self)


@contextlib.contextmanager
def _in_one_line(path: Path, encoding: str = ""):
    """Turn what Python says of a file that is damaged or in another encoding into a DataError."""
    try:
        yield
    except CourseError:
        raise
    except UnicodeError as error:
        raise DataError(f"{path.name} is not written in {encoding}: {error}") from error
    except (EOFError, zlib.error, csv.Error, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path.name} cannot be read: {why}; it is cut off, damaged or locked") from error


def files_of(named: str) -> tuple[list[Path], list[str]]:
    """The files that a path means, in order, and the names of those in a folder that are not taken."""
    path = Path(named).expanduser()
    if os.path.isfile(path):
        return [path], []
    if not os.path.isdir(path):  # a device or a pipe would never end
        raise DataError(f"no readable file {str(named)!r}: give {TAKEN}")
    inside = sorted(
        p for p in path.rglob("*") if p.is_file() and not any(q.startswith(".") for q in p.parts[len(path.parts) :])
    )
    files = [p for p in inside if _suffix(p) in KINDS]
    if not files:
        raise DataError(f"the folder {str(named)!r} holds no rows: give {TAKEN}")
    if len({KINDS[_suffix(p)] for p in files}) > 1:
        raise DataError(f"the folder {str(named)!r} holds files of several formats: name one of {_names(files)}")
    to_learn = [p for p in files if re.search(r"(?<![a-z])train(?![a-z])", p.name.lower())] or files
    return to_learn, [p.name for p in inside if p not in to_learn]


def _names(files: list[Path]) -> str:
    return ", ".join(p.name for p in files[:5]) + (", ..." if len(files) > 5 else "")


def _suffix(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def opened(path: Path, encoding: str = "auto") -> RowFile:
    """What kind of file it is, by its name and its first bytes; DataError, one line, for one that holds no rows."""
    if encoding != "auto":
        _check_encoding(encoding)
    with _in_one_line(path), _bytes(path) as file:
        head = file.read(65536)
    kind = KINDS.get(_suffix(path), "")
    if head[:4] == b"PAR1" or kind == "Parquet":
        return RowFile(path, "Parquet", unit="row")
    if head[:2] == b"PK" or head[:4] == b"\xd0\xcf\x11\xe0":
        raise DataError(f"{path.name} is a zip or an Excel file: save it as CSV (UTF-8)")
    if not head.strip():
        raise DataError(f"{path.name} is empty: there are no rows in it")
    encoding = _encoding(path, head, encoding)
    with _in_one_line(path, encoding):
        start = head.decode(encoding, errors="ignore").lstrip("\ufeff \t\r\n")
    if start[:1] not in ("{", "[") and not kind:
        raise DataError(f"{path.name} holds no rows that are known here: give {TAKEN}")
    with _in_one_line(path, encoding):
        if kind in ("CSV", "TSV"):
            delimiter = "\t" if kind == "TSV" else _delimiter(RowFile(path, kind, encoding))
            return RowFile(path, kind, encoding, delimiter)
        return RowFile(path, _kind_of_json(path, encoding, start, _suffix(path)), encoding)


class _Twice(ValueError):
    """A name that stands twice in one object of JSON."""


def _once(pairs: list[tuple]) -> dict:
    """An object of JSON. Of a name that stands twice in it Python would keep the last value, without a word."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"{next(name for name in names if names.count(name) > 1)!r} stands twice in one object")
    return row


def _whole_number(digits: str) -> int | str:
    """A whole number of JSON; as text where it has more digits than Python makes a number of."""
    try:
        return int(digits)
    except ValueError:
        return digits


ROW = json.JSONDecoder(strict=False, parse_int=_whole_number, object_pairs_hook=_once)


def fault_of_json(error: Exception) -> str:
    """What is wrong with a text that `ROW` does not take."""
    if isinstance(error, _Twice):
        return str(error)
    return f"no JSON ({error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__})"


def _kind_of_json(path: Path, encoding: str, start: str, suffix: str) -> str:
    if start.startswith("["):
        return "JSON array"
    if suffix != ".json":
        return "JSON lines"
    lines = filter(str.strip, _lines(RowFile(path, "JSON lines", encoding), longest=10 * LONGEST_LINE))
    try:
        json.JSONDecoder(strict=False, parse_int=_whole_number).decode(next(lines, ""))
    except (ValueError, RecursionError):
        return "JSON object"
    return "JSON lines" if next(lines, "") else "JSON object"


def _check_encoding(encoding: str) -> None:
    try:
        io.TextIOWrapper(io.BytesIO(), encoding).close()
        b"a".decode(encoding, errors="ignore")  # some that Python lists decode no file: "idna", "undefined"
    except (LookupError, ValueError) as error:
        raise DataError(
            f'encoding = {encoding!r} is not known as that of a file: say "utf-8", "cp1252" or "utf-16"'
        ) from error


def _encoding(path: Path, head: bytes, asked: str) -> str:
    """The encoding: the file's byte order mark decides, then what was asked, then UTF-8; it is never guessed."""
    marked = next((name for mark, name in MARKS if head.startswith(mark)), None)
    if marked or asked != "auto":
        return marked or asked
    if head[:1000].count(0) > len(head[:1000]) / 3:
        raise DataError(
            f'{path.name} is full of zero bytes, as UTF-16 is: say encoding="utf-16-le", or save it as UTF-8'
        )
    return "utf-8"


def _packed(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _bytes(path: Path):
    return gzip.open(path, "rb") if _packed(path) else open(path, "rb")


def _lines(file: RowFile, newline: str = "\n", longest: int = LONGEST_LINE) -> Iterator[str]:
    """The lines of a text file with their ends. Only \\n ends a line of JSON: U+2028 and its like may stand in its texts."""
    kept = "surrogateescape" if file.encoding.startswith("utf-8") else "strict"
    with io.TextIOWrapper(_bytes(file.path), file.encoding, errors=kept, newline=newline) as text:
        number = 0
        while line := text.readline(longest):
            number += 1
            if len(line) == longest:
                raise DataError(f"{file.path.name}, line {number}: it has more than {longest:,} characters")
            if bad := NO_UTF8.search(line):
                byte = ord(bad.group()) - 0xDC00
                raise DataError(
                    f"{file.path.name}, line {number}: the byte 0x{byte:02X} is no UTF-8. If the file comes from Windows "
                    'or Excel, say encoding="cp1252" and look at the letters, or save it as UTF-8'
                )
            yield line


def _json_lines(file: RowFile) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(_lines(file), 1):
        if line.strip():
            try:
                row = ROW.decode(line)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{file.path.name}, line {number}: {fault_of_json(error)}; each line is one object"
                ) from error
            yield number, _row(row, file, number)


def _row(row, file: RowFile, number: int) -> dict:
    if not isinstance(row, dict):
        raise DataError(
            f"{file.path.name}, line {number}: {_called(row)}, where an object with the row's columns is needed"
        )
    return row


def _called(value) -> str:
    """A value's kind in words."""
    names = {
        list: "a list",
        dict: "an object",
        str: "a text",
        bool: "true or false",
        bytes: "bytes",
        type(None): "null",
    }
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def _whole(file: RowFile) -> str:
    """The text of a JSON array or object, which has to be read whole."""
    text, size = [], 0 if _packed(file.path) else file.path.stat().st_size
    for line in _lines(file, longest=10 * LONGEST_LINE) if size <= LARGEST_ARRAY else [""]:
        text.append(line)
        size += len(line) if _packed(file.path) else 0
        if size > LARGEST_ARRAY:
            raise DataError(
                f"{file.path.name} is one JSON array of more than {LARGEST_ARRAY / 1e6:.0f} MB, which is read whole: make it "
                "JSON lines, one object a line (jq -c '.[]' does that), and its size does not matter"
            )
    return "".join(text)


def _array(file: RowFile) -> Iterator[tuple[int, dict]]:
    text, space = _whole(file), re.compile(r"[\ufeff\s]*")
    place = space.match(text).end() + 1  # type: ignore[union-attr]
    line, counted, expected = 1, 0, "]"
    while True:
        place = space.match(text, place).end()  # type: ignore[union-attr]
        line, counted = line + text.count("\n", counted, place), place
        if text[place : place + 1] == "]" and expected in ("]", ",]"):
            break
        if expected == ",]":
            if text[place : place + 1] != ",":
                raise DataError(
                    f"{file.path.name}, line {line}: the JSON array breaks off here; a comma or ] is missing"
                )
            place, expected = place + 1, "row"
            continue
        try:
            row, place = ROW.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            at = error.lineno if isinstance(error, json.JSONDecodeError) else line
            raise DataError(f"{file.path.name}, line {at}: {fault_of_json(error)}") from error
        yield line, _row(row, file, line)
        expected = ",]"
    if text[place + 1 :].strip():
        raise DataError(f"{file.path.name}, line {line}: the JSON array ends here, and more follows")


def _object(file: RowFile) -> Iterator[tuple[int, dict]]:
    """The rows of a file that is one JSON object: its only list of objects, or the object itself."""
    text = _whole(file).removeprefix("\ufeff")
    try:
        whole = ROW.decode(text)
    except (ValueError, RecursionError) as error:
        at = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{file.path.name}{at}: {fault_of_json(error)}; give one object a line, or an array") from error
    lists = [v for k, v in whole.items() if isinstance(v, list) and v and all(isinstance(row, dict) for row in v)]
    if len(whole) > 1 and all(isinstance(v, dict) for v in whole.values()):
        raise DataError(
            f'{file.path.name} holds columns, not rows: with pandas, to_json(..., orient="records", lines=True)'
        )
    if len(lists) == 1 and not {"messages", "conversations"} & set(whole):
        yield from enumerate(lists[0], 1)
    else:
        yield 1, whole


def _delimiter(file: RowFile) -> str:
    """What stands between the cells of a CSV: what parts the heading into most columns, and the next rows into as many."""
    csv.field_size_limit(LONGEST_LINE)
    sample = list(islice(_lines(file, ""), 40))
    found = []
    for place, delimiter in enumerate((",", ";", "\t", "|")):
        counts = [len(cells) for cells in csv.reader(sample, delimiter=delimiter) if cells][:20]
        even = counts and len(set(counts[:-1] or counts)) == 1  # the last row may be cut
        found.append((bool(even) and counts[0] > 1, counts[0] if counts else 0, -place, delimiter))
    return max(found)[3]


def _csv(file: RowFile) -> Iterator[tuple[int, dict]]:
    csv.field_size_limit(LONGEST_LINE)
    reader = csv.reader(_lines(file, ""), delimiter=file.delimiter, strict=True)
    heading: list[str] = []
    while True:
        begin = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{file.path.name}, line {begin}: {error}; a text in quotes has to end with one, and a quote within it is doubled"
            ) from error
        if cells is None:
            return
        if len(cells) <= 1 and not "".join(cells).strip():
            continue  # an empty line is no row
        if not heading:
            heading = [name.removeprefix("\ufeff").strip() for name in cells]
            twice = next((name for name in heading if name and heading.count(name) > 1), None)
            if twice is not None:
                raise DataError(f"{file.path.name}, line {begin}: two columns are called {twice!r}")
        elif len(cells) != len(heading):
            raise DataError(
                f"{file.path.name}, line {begin}: {len(cells)} cells, and the heading has {len(heading)} columns; "
                f"a text that holds {file.delimiter!r} stands in quotes"
            )
        else:
            yield begin, dict(zip(heading, cells, strict=True))


def _parquet(file: RowFile) -> Iterator[tuple[int, dict]]:
    import pyarrow
    from pyarrow import parquet

    source = io.BytesIO(_unpacked(file)) if _packed(file.path) else file.path
    try:
        # Without these two pyarrow reads a whole row group ahead, and many files have only one.
        with parquet.ParquetFile(source, pre_buffer=False, buffer_size=1 << 20) as opened:
            twice = _twice(opened.schema_arrow)
            if twice is not None:
                raise DataError(f"{file.path.name}: two columns, or two fields of one, are called {twice!r}")
            number = 0
            for group in range(opened.num_row_groups):  # over all at once pyarrow keeps what it has read
                for batch in opened.iter_batches(batch_size=256, row_groups=[group], use_threads=False):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
                pyarrow.default_memory_pool().release_unused()
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{file.path.name} is no readable Parquet file: cut off or damaged") from error


def _twice(fields) -> str | None:
    """A name that two of these fields of a Parquet file have, or two within one of them; None if there is none."""
    fields = list(fields)
    names = [field.name for field in fields]
    inside = [_twice(kind.field(i) for i in range(kind.num_fields)) for kind in (field.type for field in fields)]
    return next((name for name in [*(n for n in names if names.count(n) > 1), *inside] if name is not None), None)


def _unpacked(file: RowFile) -> bytes:
    """A packed Parquet file's content: such a file is read from its end, and a packed one only from its beginning."""
    with _bytes(file.path) as packed:
        content = packed.read(LARGEST_ARRAY + 1)
    if len(content) > LARGEST_ARRAY:
        raise DataError(
            f"{file.path.name} holds more than {LARGEST_ARRAY / 1e6:.0f} MB, which would be read whole: unpack it (gunzip), "
            "and its size does not matter; Parquet is packed inside"
        )
    return content
