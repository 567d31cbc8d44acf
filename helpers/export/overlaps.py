"""Added tokens that overlap in a text: transformers takes the one that begins first, llama.cpp the longest one."""

from collections.abc import Iterator

from helpers.export.carried import ExportError


def check_overlaps(added: list[dict]) -> None:
    """ExportError if there is a text in which llama.cpp finds other added tokens than transformers.

    added: as tokenizer.json has them. It is enough to look at texts of two tokens, the end of one being the other's beginning.
    """
    contents = [token["content"] for token in added if token["content"]]
    # transformers looks for those in normalized text second.
    passes = [[t["content"] for t in added if t["normalized"] is normalized] for normalized in (False, True)]
    # Of two of one length, llama.cpp may take either first.
    orders = [sorted(order, key=lambda content: -len(content.encode())) for order in (contents, contents[::-1])]
    for one, other, text in _overlapping(contents):
        if any(_cut(text, passes) != _cut(text, [[content] for content in order]) for order in orders):
            raise ExportError(
                f"the added tokens {one!r} and {other!r} overlap in {text!r}, where llama.cpp takes the longer one first and "
                f"transformers does not: take one of them out of the tokenizer"
            )


def _overlapping(contents: list[str]) -> Iterator[tuple[str, str, str]]:
    """(one, other, the text of both) for every two of which the end of one is the beginning of the other."""
    begun: dict[str, list[str]] = {}
    for content in contents:
        for length in range(1, len(content)):
            begun.setdefault(content[:length], []).append(content)
    for one in contents:
        for start in range(1, len(one)):
            for other in begun.get(one[start:], ()):
                yield one, other, one[:start] + other


def _cut(text: str, passes: list[list[str]]) -> list[tuple[str, bool]]:
    """(piece, whether it is a token) of a text: each pass takes the token that begins first, of those the longest, and looks
    at what the passes before it left."""
    pieces = [(text, False)]
    for tokens in passes:
        pieces = [part for piece, found in pieces for part in ([(piece, True)] if found else _cut_once(piece, tokens))]
    return pieces


def _cut_once(text: str, tokens: list[str]) -> list[tuple[str, bool]]:
    pieces, at, begun = [], 0, 0
    while at < len(text):
        here = max((token for token in tokens if token and text.startswith(token, at)), key=len, default=None)
        if here:
            pieces += [(text[begun:at], False), (here, True)]
            begun = at + len(here)
        at += len(here or " ")
    return [piece for piece in (*pieces, (text[begun:], False)) if piece[0]]
