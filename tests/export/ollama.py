"""Ollama's reading of a Modelfile (its parser/parser.go), and the text that its template makes of a chat."""

import ast
import re

import jinja2

WORDS = {
    "if .System": "{% if system %}",
    ".System": "{{ system }}",
    "else": "{% else %}",
    "range .Messages": "{% for m in messages %}",
    'if eq .Role "user"': "{% if m.role == 'user' %}",
    'else if eq .Role "assistant"': "{% elif m.role == 'assistant' %}",
    ".Content": "{{ m.content }}",
}


def values(modelfile: str) -> dict[str, list[str]]:
    """The values of each command or parameter. A value ends at the first line end where its quotes are closed."""
    found, rest = {}, modelfile
    while rest:
        name, rest = re.match(r"(FROM|TEMPLATE|PARAMETER \w+) ([^\0]*)", rest).groups()
        ends = (match.start() for match in re.finditer("[\r\n]", rest))
        end = next(end for end in ends if unquoted(rest[:end]) is not None)
        found.setdefault(name, []).append(unquoted(rest[:end]))
        rest = rest[end:].lstrip()
    return found


def unquoted(value: str) -> str | None:
    """What a value holds; None where it is not at its end."""
    value = "".join(sign for sign in value if sign.isprintable() or sign in "\r\n\t").strip()
    for quotes in ('"""', '"'):
        if value.startswith(quotes):
            closed = len(value) >= 2 * len(quotes) and value.endswith(quotes)
            return value[len(quotes) : -len(quotes)] if closed else None
    return value


def as_ollama_does(modelfile: str, messages: list[dict]) -> str:
    """The text of a chat by the Modelfile's template: Go's words for Jinja's, whose blocks are closed by their names."""
    parts = re.split(r"\{\{(.*?)\}\}", values(modelfile)["TEMPLATE"][0], flags=re.DOTALL)
    opened, texts, made = [], parts[::2], []
    for place, word in enumerate(part.strip() for part in parts[1::2]):
        made.append(f"{{{{ texts[{place}] }}}}")
        opened += [word.split()[0]] if word.startswith(("if", "range")) else []
        if word == "end":
            made.append({"if": "{% endif %}", "range": "{% endfor %}"}[opened.pop()])
        elif word.startswith('"'):
            texts.append(ast.literal_eval(word))
            made.append(f"{{{{ texts[{len(texts) - 1}] }}}}")
        else:
            made.append(WORDS[word])
    made.append(f"{{{{ texts[{len(parts) // 2}] }}}}")
    system = next((m["content"] for m in messages if m["role"] == "system"), "")
    return jinja2.Template("".join(made)).render(system=system, messages=messages, texts=texts)
