"""Which of a row's columns are the question and the answer, and how a row of any layout becomes one of the course's."""

import datetime
import decimal
import difflib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from helpers.data.readers import ROW, DataError, fault_of_json

# What a role may be called in columns="prompt=Question,completion=Answer".
ROLES = {
    "prompt": "instruction", "instruction": "instruction", "question": "instruction",
    "input": "input", "context": "input",
    "completion": "output", "output": "output", "answer": "output", "response": "output",
    "messages": "messages", "conversations": "messages", "text": "text", "group": "group",
}  # fmt: skip
# Names that are known, the first that fits decides: layout, then a column for each role.
ANSWERS = ("output", "response", "completion", "answer")
KNOWN: list[tuple[str, dict[str, tuple[str, ...]]]] = [
    ("messages", {"messages": ("messages", "conversations", "conversation")}),
    ("instruction and output", {"instruction": ("instruction",), "input": ("input", "context"), "output": ANSWERS}),
    ("prompt and completion", {"instruction": ("prompt",), "input": ("input", "context"), "output": ANSWERS}),
    ("question and answer", {"instruction": ("question", "query"), "input": ("input", "context"), "output": ANSWERS}),
    ("plain text", {"text": ("text",)}),
]
NEEDED = 'columns="prompt=NAME,completion=NAME"'
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
            "model": "assistant", "bot": "assistant", "system": "system"}  # fmt: skip
LONE = re.compile("[\ud800-\udfff]")
SHOWN = 3  # places that a note names


@dataclass
class Notes:
    """In how many rows something was met, and in which first: {what: (count, first places, last row)}.

    Several rows may have one place, as those of a JSON array that is one line. So rows are counted: say `next_row`.
    """

    unit: str = "line"
    met: dict = field(default_factory=dict)
    row: int = 0

    def next_row(self) -> None:
        self.row += 1

    def add(self, what: str, place: int) -> None:
        count, places, last = self.met.get(what, (0, [], None))
        if self.row != last:  # once a row
            self.met[what] = (count + 1, places if place in places else [*places, place][: SHOWN + 1], self.row)

    @property
    def total(self) -> int:
        return sum(count for count, _, _ in self.met.values())

    def lines(self) -> list[str]:
        """One line for each, such as "3 with an empty answer (lines 2, 9, 11)"."""
        found = []
        for what, (count, places, _) in self.met.items():
            more = ", ..." if len(places) > SHOWN else ""
            unit = self.unit + ("s" if len(places) > 1 else "")
            found.append(f"{count:,} {what} ({unit} {', '.join(f'{place:,}' for place in places[:SHOWN])}{more})")
        return found


@dataclass(frozen=True)
class Layout:
    """What was recognised: `name` in words, and the column of each role that the rows have."""

    name: str
    roles: dict
    unused: tuple = ()

    def __str__(self) -> str:
        words = ", ".join(f"{role} from {column!r}" if role != column else role for role, column in self.roles.items())
        return f"{self.name} ({words})" if words != self.name else words


def recognise(columns: list[str], asked="auto", name: str = "the data") -> Layout:
    """The layout of rows with these columns: as `asked` ("prompt=Question,completion=Answer"), or by their names.

    Raises DataError, one line, that says which columns there are, for names that are not known.
    """
    if asked not in ("auto", "", None):
        named, group = _asked(columns, asked, name), {}
        if set(named) != {"group"}:
            return _layout("as asked", named, columns)
        group = named
    else:
        group = {}
    by_name = {column.lower(): column for column in reversed(columns)}
    for layout, wanted in KNOWN:
        roles = {r: next((by_name[n] for n in names if n in by_name), None) for r, names in wanted.items()}
        found = {role: column for role, column in roles.items() if column is not None}
        if found.keys() | {"input"} >= wanted.keys():
            return _layout(layout, found | group, columns)
    there = in_words(columns)
    if {"chosen", "rejected"} <= set(by_name):
        raise DataError(
            f"{name} has pairs of answers to choose from (chosen, rejected), and lessons learn one answer: {NEEDED}"
        )
    raise DataError(f"{name} has the columns {there or '(none)'}: say which is asked and which is the answer, {NEEDED}")


def in_words(columns: list[str]) -> str:
    """The first twelve columns, each in at most forty characters: a table without a heading has texts in its place."""
    names = [repr(column if len(column) <= 40 else f"{column[:37]}...") for column in columns[:12]]
    return ", ".join(names) + (", ..." if len(columns) > 12 else "")


def _layout(name: str, roles: dict, columns: list[str]) -> Layout:
    return Layout(name, roles, tuple(column for column in columns if column not in roles.values()))


def parse_columns(asked: str | Mapping) -> dict[str, str]:
    """The column of each role, from "prompt=Question,completion=Answer"; DataError, one line, for another form."""
    if isinstance(asked, Mapping):
        pairs = [(str(role), str(column)) for role, column in asked.items()]
    else:
        split = [part.partition("=") for part in str(asked).split(",")]
        pairs = [(role.strip(), column.strip()) for role, mark, column in split if mark]
        if len(pairs) < len(split) or not all(column for _, column in pairs):
            raise DataError(f"columns = {asked!r}: write ROLE=NAME with commas between, such as {NEEDED}")
    for role, _ in pairs:
        if role not in ROLES:
            raise DataError(f"columns = {asked!r}: {role!r} is no role; there are {', '.join(ROLES)}")
    roles = [ROLES[role] for role, _ in pairs]
    if len(set(roles)) < len(roles):
        raise DataError(f"columns = {asked!r} names two columns for one role")
    given = set(roles) - {"group", "input"}
    if given not in ({"instruction", "output"}, {"messages"}, {"text"}) and set(roles) != {"group"}:
        raise DataError(f"columns = {asked!r}: name a prompt and a completion, or messages, or text")
    return dict(zip(roles, (column for _, column in pairs), strict=True))


def _asked(columns: list[str], asked, name: str) -> dict[str, str]:
    found = {}
    for role, column in parse_columns(asked).items():
        same = [there for there in columns if there == column] or [c for c in columns if c.lower() == column.lower()]
        if not same:
            close = difflib.get_close_matches(column, columns, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise DataError(f"{name} has no column {column!r}{hint} There are: {in_words(columns)}")
        found[role] = same[0]
    return found


class Converter:
    """Turns rows into instruction, input and output, and counts what it changes and what it leaves out."""

    def __init__(self, layout: Layout, name: str, unit: str = "line"):
        self.layout, self.name, self.unit = layout, name, unit
        self.changed, self.left_out = Notes(unit), Notes(unit)

    def __call__(self, row: dict, place: int) -> dict | None:
        """The row as text in instruction, input, output and group, or None; DataError for what can be no text."""
        roles = self.layout.roles
        self.changed.next_row()
        self.left_out.next_row()
        found: dict | None
        if "messages" in roles:
            found = self._conversation(row.get(roles["messages"]), place)
        elif "text" in roles:
            found = {"instruction": "", "input": "", "output": self._text(row, "text", place)}
        else:
            found = {role: self._text(row, role, place) for role in ("instruction", "input", "output")}
        if found is None:
            return None
        if not found["instruction"].strip() and "text" not in roles:
            return self._leave("without a question", place)
        if not found["output"].strip():
            return self._leave("with an empty answer" if "text" not in roles else "without a text", place)
        return found | ({"group": self._text(row, "group", place)} if "group" in roles else {})

    def _leave(self, why: str, place: int) -> dict | None:
        self.left_out.add(why, place)
        return None

    def _text(self, row: dict, role: str, place: int) -> str:
        column = self.layout.roles.get(role)
        return "" if column is None else self._plain(row.get(column), repr(column), place)

    def _plain(self, value, where: str, place: int) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if isinstance(value, bool | int | float):
            self.changed.add("with a number in place of a text, which is written as text", place)
            return json.dumps(value)
        if isinstance(value, decimal.Decimal | datetime.date | datetime.time | datetime.datetime):
            self.changed.add("with a date or a decimal number, which is written as text", place)
            return str(value)
        if not isinstance(value, str):
            kind = (
                "a list"
                if isinstance(value, list)
                else "an object"
                if isinstance(value, dict)
                else type(value).__name__
            )
            raise DataError(f"{self.name}, {self.unit} {place}: {where} holds {kind}, where a text is needed")
        if LONE.search(value):
            self.changed.add("with half of a character (a lone surrogate), which becomes \ufffd", place)
            value = LONE.sub("\ufffd", value)
        return value

    def _conversation(self, messages, place: int) -> dict | None:
        """The last answer of a conversation as output, what is asked for it as instruction, what went before as input; and
        the turns themselves as JSON in "messages", where there are several that take turns as templates want it."""
        if isinstance(messages, str) and messages.lstrip().startswith("["):  # as a table keeps them
            try:
                messages = ROW.decode(messages)
            except (ValueError, RecursionError) as error:
                why = fault_of_json(error)
                raise DataError(f"{self.name}, {self.unit} {place}: of the messages, {why}") from error
        if messages is None or messages == [] or messages == "":
            return self._leave("without a message", place)
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise DataError(f"{self.name}, {self.unit} {place}: messages are a list of objects with role and content")
        turns = []
        for message in messages:
            speaker = message.get("role", message.get("from"))
            role = SPEAKERS.get(speaker.lower()) if isinstance(speaker, str) else None
            if message.get("tool_calls") or role is None:
                kind = "tools" if message.get("tool_calls") else f"the role {str(speaker)[:30]!r}"
                return self._leave(f"with {kind}, which lessons do not teach", place)
            turns.append((role, self._content(message.get("content", message.get("value")), place)))
        return self._last_answer(turns, place)

    def _content(self, content, place: int) -> str:
        if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
            content = "".join(part["text"] for part in content)
        return self._plain(content, "a message", place)

    def _last_answer(self, turns: list[tuple[str, str]], place: int) -> dict | None:
        system = [text for role, text in turns if role == "system" and text.strip()]
        turns = [turn for turn in turns if turn[0] != "system"]
        last = max((i for i, (role, _) in enumerate(turns) if role == "assistant"), default=0)
        if not last or turns[last - 1][0] != "user":
            return self._leave("without an answer to a question", place)
        if turns[last + 1 :]:
            self.changed.add("that end with a question, which is not used", place)
        earlier = turns[: last - 1]
        if earlier:
            self.changed.add("of several turns: the last answer is learned, what went before is read", place)
        if system:
            self.changed.add("with a system message, which stands before the question", place)
        said = "\n".join(f"{'User' if role == 'user' else 'Assistant'}: {text}" for role, text in earlier)
        found = {"instruction": "\n\n".join([*system, turns[last - 1][1]]), "input": said, "output": turns[last][1]}
        return found | {"messages": _turns(system, turns[: last + 1]) if earlier else ""}


def _turns(system: list[str], turns: list[tuple[str, str]]) -> str:
    """Turns as a JSON list of role and content, what the system says before the first question; "" where they do not
    alternate. Not every template knows a system message, and many refuse two turns of one speaker."""
    if any(role != ("user", "assistant")[place % 2] for place, (role, _) in enumerate(turns)):
        return ""
    said = [{"role": role, "content": text} for role, text in turns]
    said[0]["content"] = "\n\n".join([*system, said[0]["content"]])
    return json.dumps(said, ensure_ascii=False)
