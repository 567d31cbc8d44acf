"""What a chat template makes of more than role and content: other fields of a message, and other roles.

A server hands a template the fields that it knows and drops the others without a word, and the template of a Modelfile
is made of role and content alone. What a template reads is found by trying, not by reading it: a name counts if a chat
with it becomes another text, or none.
"""

import re

from helpers.export.conversation import Conversation, chat_of, same_text, text_of

OTHER, WORD = "QzOtherQz", "QzWordQz"  # words that no template has
ROLES = ("system", "user", "assistant")  # those that a Modelfile's template writes
HANDED_ON = ("name", "reasoning_content", "tool_call_id", "tool_calls")  # what llama.cpp's server hands its templates
CALL = {"id": "call00001", "type": "function", "function": {"name": WORD, "arguments": {WORD: WORD}}}
TURNS = [("a",), ("a", "b"), ("a", "", "c"), ("a", "b", "c")]
CHATS = [chat_of(system, *turns) for system in (None, "s") for turns in TURNS]


def fields_read(tokenizer) -> list[str]:
    """The fields of a message beside role and content that change the template's text; [OTHER] where any does."""
    template = tokenizer.get_chat_template()
    names, compared = _names(template) - {"role", "content"}, re.findall(r"[!=]=\s*['\"]([^'\"]*)['\"]", template)

    def texts(fields: dict) -> list[str | None]:
        return [text_of(tokenizer, [message | fields for message in chat]) for chat in CHATS]

    plain = texts({})

    def differ(fields: dict, beside: dict | None = None) -> bool:
        return texts((beside or {}) | fields) != (texts(beside) if beside else plain)

    if differ({OTHER: WORD}):
        return [OTHER]
    found: dict[str, object] = {}
    for value in (WORD, [CALL], True, *dict.fromkeys(compared)):
        every = dict.fromkeys(names - found.keys(), value)
        if not differ(every):
            continue
        found |= {name: value for name in every if differ({name: value})}
        every = {name: value for name in every if name not in found}
        found |= {name: value for name in every if differ({name: value}, {n: v for n, v in every.items() if n != name})}
    for name, value in list(found.items()):  # those that are read beside another one alone
        found |= {more: WORD for more in names - found.keys() if differ({more: WORD}, {name: value})}
    return sorted(found, key=template.find)


def roles_read(done: Conversation, tokenizer, bos: str) -> list[str]:
    """The roles beside those of ROLES of whose messages the template makes a text and the pieces none; [OTHER] where any."""
    alike = [chat for chat in CHATS if (text_of(tokenizer, chat) or "").removeprefix(bos) == done.render(chat)]

    def told(role: str) -> bool:
        more = {"role": role, "content": WORD}
        chats = [[*chat[:place], more, *chat[place:]] for chat in alike for place in range(len(chat) + 1)]
        return not same_text(done, tokenizer, bos, chats)

    if told(OTHER):
        return [OTHER]
    template = tokenizer.get_chat_template()
    return sorted(filter(told, _names(template) - set(ROLES)), key=template.find)


def _names(template: str) -> set[str]:
    """Every word of a template, and every short text between quotes: the names of fields and roles are among them."""
    quoted = re.findall(r"'([^'\n]{1,40})'|\"([^\"\n]{1,40})\"", template)
    return {*re.findall(r"[^\W\d]\w*", template), *(one or other for one, other in quoted)}
