"""The ledger of claims and the decision page: tries all evidence of claims.toml and decisions.toml, and writes two pages.

    python site/ledger.py

claims.toml says of each claim of two texts whether it holds, and why; paragraphs.toml says which paragraph makes which claims;
evidence.py weighs. A status follows from what the evidence shows, see STATUSES.
"""

import re
import sys

from evidence import KINDS, OURS, SITE, NoEvidence, load, named_rows, weigh

from helpers.course import find_lesson
from helpers.files import write_whole

# What the evidence shows, and the status that follows from it.
STATUSES = {
    frozenset({"for"}): "holds",
    frozenset({"for", "against"}): "holds with a limit",
    frozenset({"against"}): "false today",
    frozenset(): "not checkable here",
}
HELD = ("time", "method", "rank", "layers", "bits", "learning_rate")  # of a decision: what needs evidence
UNKNOWN, NOTHING = "cannot tell yet", "-"  # how a choice begins that has no evidence, and where there is none to make


# --- what is wrong ----------------------------------------------------------------------------------------------------


def faults_of_claim(claim: dict) -> list[str]:
    """What is wrong with a claim, in lines that begin with its name; [] if nothing is."""
    sides, faults = [], []
    for evidence in claim.get("evidence", []):
        try:
            sides.append((weigh(evidence)[0], next(kind for kind in KINDS if kind in evidence)))
        except NoEvidence as problem:
            faults.append(f"{problem}")
    follows = STATUSES[frozenset(side for side, _ in sides if side != "note")]
    if not faults and claim["status"] != follows:
        shown = ", ".join(f"a {kind} {side}" for side, kind in sides) or "nothing"
        faults.append(f"the status is {claim['status']!r}, and {follows!r} follows from the evidence: {shown}")
    if (
        not faults
        and claim["status"] == "false today"
        and not any(side == "against" and kind in OURS for side, kind in sides)
    ):
        faults.append("nothing is called false without evidence of this course's own")
    if claim["status"] not in STATUSES.values():
        faults.append(f"there is no status {claim['status']!r}")
    faults += [f"{part} is missing" for part in ("claim", "topic", "today") if not claim.get(part)]
    return [f"{claim['name']}: {fault}" for fault in faults]


def faults_of_mapping(claims: list[dict], texts: dict) -> list[str]:
    """Paragraphs without a word on them, claims that nobody makes, and names that nothing has."""
    names = [claim["name"] for claim in claims]
    faults = [f"{name}: there are two claims of this name" for name in set(names) if names.count(name) > 1]
    made = set()
    for letter, text in texts.items():
        said = {key: value for key, value in text.items() if key.isdecimal()}
        numbers_of = set(map(str, range(1, text["paragraphs"] + 1)))
        faults += [
            f"text {letter}, paragraph {n}: nothing says what it claims" for n in sorted(numbers_of - said.keys())
        ]
        faults += [f"text {letter} has no paragraph {n}" for n in sorted(said.keys() - numbers_of)]
        for number, value in said.items():
            if not value:
                faults.append(f"text {letter}, paragraph {number}: nothing says what it claims")
            listed = value if isinstance(value, list) else []  # a text says why there is no claim
            made |= set(listed)
            faults += [f"{name}: text {letter}, paragraph {number} names this claim, and there is none"
                       for name in listed if name not in names]  # fmt: skip
    return faults + [f"{name}: no paragraph makes this claim" for name in names if name not in made]


def faults_of_decision(line: dict) -> list[str]:
    """What is wrong with a line of the decision page: each choice needs evidence that speaks for it."""
    supported, faults = set(), []
    for evidence in line.get("evidence", []):
        of = evidence.get("of", [])
        try:
            side, _ = weigh(evidence)
        except NoEvidence as problem:
            faults.append(f"{problem}")
            continue
        if side == "against":
            faults.append(f"evidence speaks against {', '.join(of)}: {evidence['says']}")
        supported |= set(of) if side == "for" else set()
        faults += [f"there is no choice {name!r}" for name in of if name not in HELD]
    for name in HELD:
        chosen = line[name] != NOTHING and not line[name].startswith(UNKNOWN)
        if chosen != (name in supported):
            faults.append(f"{name} = {line[name]!r} {'has no evidence' if chosen else 'has evidence all the same'}")
    return [f"{line['name']}: {fault}" for fault in faults]


def faults() -> list[str]:
    """All that is wrong with the ledger and the decisions."""
    claims = load("claims.toml")["claim"]
    found = [fault for claim in claims for fault in faults_of_claim(claim)]
    found += faults_of_mapping(claims, load("paragraphs.toml"))
    return found + [fault for line in load("decisions.toml")["decision"] for fault in faults_of_decision(line)]


# --- the pages --------------------------------------------------------------------------------------------------------


def _anchor(name: str) -> str:
    """Where a named row stands on the page of claims."""
    return f"row-{re.sub(r'[^a-z0-9]+', '-', name.lower())}"


def _named(names: list[str]) -> str:
    return f"row{'s' if len(names) > 1 else ''} " + ", ".join(
        f"[`{name}`](claims.md#{_anchor(name)})" for name in names
    )


def _row_in_words(row: dict) -> str:
    path = row["file"] if "/" in row["file"] else f"measurements/{row['file']}"
    where = ", ".join(f"{name} {value}" for name, value in row.get("where", {}).items())
    return f"[{path.rpartition('/')[2]}](../{path}){f' with {where}' if where else ''}"


def in_words(evidence: dict) -> str:
    """A piece of evidence as Markdown: what it shows, and where it is. One that is gone gets a line that is never written."""
    try:
        side, value = weigh(evidence)
    except NoEvidence as problem:
        return f"Gone: {problem}"
    says = evidence["says"].format(found=value)
    if "row" in evidence:
        row = evidence["row"]
        which = _named([row["file"]]) if row["file"] in named_rows() else f"row of {_row_in_words(row)}"
        source = f"{which}, `{row['value']}`"
    elif "computed" in evidence:
        read = re.findall(r"(?:measured|smi_bytes)\('([^']+)'", evidence["computed"])
        names = [name for name in named_rows() if name in read]
        source = f"[computed](claims.md#computed): `{evidence['computed']}`{f', {_named(names)}' if names else ''}"
    elif "test" in evidence:
        file, _, function = evidence["test"].partition("::")
        source = f"test [`{function}`](../{file}){', on a GPU' if file.startswith('tests/gpu') else ''}"
    elif "cell" in evidence:
        cell = evidence["cell"]
        stem = find_lesson(cell["lesson"]).stem
        what = f'verdict "{cell["verdict"]}"' if "verdict" in cell else f"cell `{cell['tag']}`"
        source = f"[lesson {cell['lesson']}](../notebooks/{stem}.ipynb), {what}"
    else:
        source = f"[cited]({evidence['citation']['link']}), {evidence['citation']['date']}"
    return f"{ {'for': 'For', 'against': 'Against', 'note': 'Beside it'}[side] }: {says} ({source})"


def _entry(claim: dict) -> str:
    head = f'<a id="{claim["name"]}"></a>**{claim["claim"]}** *{claim["status"].capitalize()}.* {claim["today"]}'
    lines = [f"- {in_words(evidence)}" for evidence in claim.get("evidence", [])]
    return "\n".join([head, "", *lines] if lines else [head])


def claims_page() -> str:
    """site/claims.md."""
    ledger, texts = load("claims.toml"), load("paragraphs.toml")
    claims = ledger["claim"]
    count = {status: sum(claim["status"] == status for claim in claims) for status in STATUSES.values()}
    parts = [
        "<!-- generated by `python site/ledger.py`: do not edit -->",
        "# The ledger of claims",
        ledger["about"].strip(),
    ]
    parts.append("\n".join(f"- Text {letter.upper()}: {text['title']}" for letter, text in texts.items()))
    parts.append("| status | claims |\n|---|---:|\n" + "\n".join(f"| {name} | {n} |" for name, n in count.items()))
    rows = [f"| [{claim['claim']}](#{claim['name']}) | {claim['status']} |" for claim in claims]
    parts += ["## All claims", "| claim | status |\n|---|---|\n" + "\n".join(rows)]
    for topic in dict.fromkeys(claim["topic"] for claim in claims):
        parts.append(f"## {topic}")
        parts += [_entry(claim) for claim in claims if claim["topic"] == topic]
    parts += ['<a id="computed"></a>', "## How to read a computed line", ledger["computed"].strip()]
    rows = [f'- <a id="{_anchor(name)}"></a>`{name}`: {_row_in_words(row)}' for name, row in named_rows().items()]
    parts += ["## Rows by their names", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def decisions_page() -> str:
    """site/decide.md."""
    page = load("decisions.toml")
    parts = ["<!-- generated by `python site/ledger.py`: do not edit -->", "# What to choose", page["about"].strip()]
    heads = ("GPU", "model", "to be learned", "time", "method", "rank", "layers", "bits", "learning rate", "why")
    rows = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for line in page["decision"]:
        said = [line[name] for name in ("gpu", "model", "learn", *HELD)]
        rows.append("| " + " | ".join([*said, f"[evidence](#{line['name']})"]) + " |")
    parts += ["\n".join(rows), "## Evidence"]
    for line in page["decision"]:
        head = f'<a id="{line["name"]}"></a>**{line["gpu"]}; {line["model"]}; {line["learn"]}** {line["because"]}'
        # All that counts speaks for a choice here, so the choice is named in place of "For".
        pieces = [(", ".join(e.get("of", [])).replace("_", " "), in_words(e)) for e in line["evidence"]]
        lines = [f"- {names}: {words.removeprefix('For: ')}" if names else f"- {words}" for names, words in pieces]
        parts.append("\n".join([head, "", *lines]))
    return "\n\n".join(parts) + "\n"


PAGES = {"claims.md": claims_page, "decide.md": decisions_page}


def main() -> int:
    if found := faults():
        print(*found, sep="\n", file=sys.stderr)
        return 1
    for name, page in PAGES.items():
        write_whole(SITE / name, page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
