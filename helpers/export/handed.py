"""What llama.cpp hands a chat template otherwise than transformers does, found by making the text of chats in both ways.

Where the template itself can make up for it, the file's template begins with a line that does; a note names the rest.
"""

import json
import re

import jinja2
from jinja2 import nodes

from helpers.export.beyond import CHATS
from helpers.export.conversation import USER, text_of

NOTHING = "{{% set {} = QzNothingQz %}}\n"  # makes a name undefined, as one is that nobody hands over
KEPT = "{{% set {0} = {0} if {0} is defined else none %}}"
THINKING = {(False,): "is false", (True,): "is true", (False, True): "is set"}


def for_llama_cpp(tokenizer) -> tuple[str, list[str]]:
    """(the chat template for the file, notes on where llama.cpp still makes another text of it than transformers)."""
    template, notes = tokenizer.get_chat_template(), []
    plain = [text_of(tokenizer, chat) for chat in CHATS]

    def differs(before: str = "", **words) -> bool:
        return plain != [text_of(tokenizer, chat, chat_template=before + template, **words) for chat in CHATS]

    def undefined(names) -> list[str]:
        return [name for name in names if name in template and differs(NOTHING.format(name))]

    # These two are None in transformers, and undefined there.
    lines = {name: KEPT.format(name) for name in undefined(("tools", "documents"))}
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    others = undefined(special.keys() - {"bos_token", "eos_token"})
    lines |= {name: f"{{% set {name} = {json.dumps(special[name], ensure_ascii=False)} %}}" for name in sorted(others)}
    if tokenizer.bos_token is None and differs(bos_token=USER):  # llama.cpp takes some token of the vocabulary for it
        lines["bos_token"] = "{% set bos_token = '' %}"
    if lines:
        notes.append(f"the file's chat template begins with a line that sets {', '.join(lines)} as transformers does")
    thinking = tuple(
        value for value in (False, True) if "enable_thinking" in template and differs(enable_thinking=value)
    )
    if thinking:
        notes.append(
            f"the chat template writes another text where enable_thinking {THINKING[thinking]}: llama.cpp sets it by itself, "
            f"and transformers does not"
        )
    if _reads_parts(tokenizer):
        notes.append(
            "the chat template reads lists of parts alone: llama.cpp hands it such, and transformers what you give it"
        )
    return "".join(lines.values()) + "\n" * bool(lines) + template, notes + _formats_text(template)


def _reads_parts(tokenizer) -> bool:
    """Whether the template leaves out a message's text, and writes it where it comes in a list of parts."""
    parts = [{"role": "user", "content": [{"type": "text", "text": USER}]}]
    plain = [{"role": "user", "content": USER}]
    return USER not in (text_of(tokenizer, plain) or "") and USER in (text_of(tokenizer, parts) or "")


def _formats_text(template: str) -> list[str]:
    """A note for each way in which the template fills in a text with %s, of which llama.cpp knows none."""
    known = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", template)  # without a mark of transformers' own
    try:
        parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(known)
    except jinja2.TemplateSyntaxError:  # transformers says what is wrong with it
        return []
    texts = {  # names that are a text
        assigned.target.name
        for assigned in parsed.find_all(nodes.Assign)
        if isinstance(assigned.target, nodes.Name) and _is_text(assigned.node, set())
    }
    notes = []
    if any(_is_text(found.left, texts) or isinstance(found.right, nodes.Tuple) for found in parsed.find_all(nodes.Mod)):
        notes.append(
            "llama.cpp does not load the file while its chat template fills in a text with %: join the parts with ~"
        )
    if any(found.name == "format" for found in parsed.find_all(nodes.Filter)):
        notes.append("llama.cpp does not fill in what the chat template has before `format`: join the parts with ~")
    return notes


def _is_text(node: nodes.Node, texts: set[str]) -> bool:
    if isinstance(node, nodes.Name):
        return node.name in texts
    return isinstance(node, nodes.Concat) or (isinstance(node, nodes.Const) and isinstance(node.value, str))
