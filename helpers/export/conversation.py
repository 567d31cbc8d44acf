"""A chat template for llama.cpp, which reads Jinja, and for Ollama, which does not; and the tokens that end an answer."""

import re
from dataclasses import dataclass

from helpers.export.carried import ExportError
from helpers.export.vocabulary import SPACE

USER, ANSWER, SYSTEM = "QzUserQz", "QzAnswerQz", "QzSystemQz"  # words that no template has


@dataclass(frozen=True)
class Conversation:
    """What a chat looks like, in the pieces that Ollama's template is made of."""

    opening: str  # where there is no system message
    before_system: str | None  # None: the template knows no system message
    after_system: str
    before_user: str
    asked: str  # behind a user's message, where an answer is asked for
    before_answer: str  # what else stands in front of an answer that was given
    after_answer: str

    def render(self, messages: list[dict]) -> str:
        """The text that Ollama makes of messages, with an answer to come."""
        system = next((m["content"] for m in messages if m["role"] == "system"), "")
        text = self.opening
        if system and self.before_system is not None:
            text = self.before_system + system + self.after_system
        for message in messages:
            if message["role"] == "user":
                text += self.before_user + message["content"] + self.asked
            elif message["role"] == "assistant":
                text += self.before_answer + message["content"] + self.after_answer
        return text

    def as_go(self) -> str:
        """The same as a template of Go's text/template, over Ollama's .System and .Messages."""
        piece = {name: _plain(text or "") for name, text in vars(self).items()}
        opening = piece["opening"]
        if self.before_system is not None:
            system = piece["before_system"], ".System", piece["after_system"]
            opening = _go("if .System", *system, "else", opening, "end")
        user = _go('if eq .Role "user"', piece["before_user"], ".Content", piece["asked"])
        answer = _go('else if eq .Role "assistant"', piece["before_answer"], ".Content", piece["after_answer"], "end")
        return opening + _go("range .Messages", user + answer, "end")


def _go(*parts: str) -> str:
    """An action of Go's templates, a text, an action, a text, ..."""
    return "".join(text if place % 2 else f"{{{{ {text} }}}}" for place, text in enumerate(parts))


def _plain(text: str) -> str:
    """A text as it stands in a template of Go's in a Modelfile: signs that either reads otherwise as constants of Go."""
    signs = []
    for place, sign in enumerate(text):
        following = text[place + 1 : place + 3]
        if sign == "{" and following[:1] in ("", "{"):  # it would begin an action
            sign = '{{ "{" }}'
        elif (sign == '"' and following == '""') or not _passes(sign):
            sign = f'{{{{ "\\U{ord(sign):08x}" }}}}'
        signs.append(sign)
    return "".join(signs)


def _passes(sign: str) -> bool:
    """Whether Ollama reads a sign from a Modelfile: it leaves out those that are not printed."""
    return sign.isprintable() or sign in "\n\r\t"


def _text(tokenizer, messages: list[dict], answer: bool, **words) -> str:
    """The chat in the template's words, with an answer to come or not; ExportError, one line, where there is none."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer, **words)
    except Exception as error:  # whatever Jinja, or the template itself, raises
        raise ExportError(f"the chat template cannot be used ({type(error).__name__}: {str(error)[:150]})") from error


def text_of(tokenizer, messages: list[dict], **words) -> str | None:
    """The template's text of a chat with an answer to come; None where it takes no such chat. words: what else it is handed."""
    try:
        return _text(tokenizer, messages, answer=True, **words)
    except ExportError:
        return None


def _rendered(tokenizer, *contents: str, answer: bool, **words) -> str:
    """The chat of these contents, in turn the user's and the model's; SYSTEM as the first one is a system message."""
    system = SYSTEM if contents[0] == SYSTEM else None
    return _text(tokenizer, chat_of(system, *contents[system is not None :]), answer, **words)


def chat_of(system: str | None, *contents: str) -> list[dict]:
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}] * (system is not None) + messages


def begins_with(tokenizer) -> int:
    """The first token of a chat."""
    ids = tokenizer(_rendered(tokenizer, USER, answer=True), add_special_tokens=False)["input_ids"]
    if not ids:
        raise ExportError("the chat template makes an empty text of a user's message")
    return ids[0]


def writes_date(tokenizer) -> bool:
    """Whether the template writes a date that llama.cpp gives every template, and transformers none."""
    dated = _rendered(tokenizer, USER, answer=True, date_string=ANSWER, datetime=ANSWER)
    return dated != _rendered(tokenizer, USER, answer=True)


def spaces_wanted(tokenizer, prefix: str) -> set[bool]:
    """Whether the tokenizer puts a space in front of the parts of a chat between special tokens; both, if not of all.

    prefix: "first" for a tokenizer that puts one in front of a text, "always" for one that puts it in front of each part.
    Neither puts one in front of another.
    """
    try:
        text = _rendered(tokenizer, USER, ANSWER, USER, answer=True)
    except ExportError:  # a template for one request
        text = _rendered(tokenizer, USER, answer=True)
    special = "|".join(re.escape(token) for token in sorted(tokenizer.get_added_vocab(), key=len, reverse=True))
    parts = enumerate(re.split(special, text))
    return {(prefix == "always" or not place) and not part.startswith((" ", SPACE)) for place, part in parts if part}


def take_apart(tokenizer, bos: str) -> Conversation | None:
    """The pieces of a tokenizer's template, without the bos in front; None where it is not made of such pieces."""
    try:
        text = _rendered(tokenizer, USER, ANSWER, USER, ANSWER, answer=False).removeprefix(bos)
        asked = _rendered(tokenizer, USER, answer=True).removeprefix(bos)
        first, between, rest, _, after_answer = text.replace(ANSWER, USER).split(USER)
    except (ValueError, ExportError):  # it does not hold each text once, or takes one request only
        return None
    before_user, asked = rest.removeprefix(after_answer), asked.partition(USER)[2]
    before_answer = between.removeprefix(asked)
    opening, before_system, after_system = first.removesuffix(before_user), None, ""
    try:
        with_system = _rendered(tokenizer, SYSTEM, USER, answer=True).removeprefix(bos)
        before_system, found, behind = with_system.partition(SYSTEM)
        before_system = before_system if found else None
        after_system = behind.partition(USER)[0].removesuffix(before_user)
    except ExportError:  # it takes no system message
        before_system = None
    done = Conversation(opening, before_system, after_system, before_user, asked, before_answer, after_answer)
    plain = [chat_of(system, *turns) for system in (None, "s") for turns in ("a", "bcd", "efghi")]
    return done if same_text(done, tokenizer, bos, plain) else None


def same_text(done: Conversation, tokenizer, bos: str, chats: list[list[dict]]) -> bool:
    """Whether the pieces make the same text as the template of each chat that it takes."""
    for messages in chats:
        if messages[0]["role"] == "system" and done.before_system is None:
            continue
        text = text_of(tokenizer, messages)
        if text is not None and done.render(messages) != text.removeprefix(bos):
            return False
    return True


def otherwise(done: Conversation, tokenizer, bos: str) -> list[str]:
    """The kinds of chats, in words, of which Ollama makes another text by the pieces than the template does."""
    thought = "<think>\nb\n</think>\n\nc"
    kinds = {
        "messages that begin or end with spaces or line breaks": [
            *(chat_of(None, text) for text in (" a", "a ", "\na", "a\n")),
            *(chat_of(None, "a", text, "c") for text in (" b", "b ", "\nb", "b\n")),
            *(chat_of(text, "a") for text in (" s", "s\n")),
        ],
        "an empty message": [chat_of(None, ""), chat_of(None, "a", "", "b")],
        "an empty system message": [chat_of("", "a")],
        "an earlier answer with a <think> block": [chat_of(None, "a", thought, "d")],
    }
    found = [kind for kind, chats in kinds.items() if not same_text(done, tokenizer, bos, chats)]
    if _dated(tokenizer):
        found.append("the date, which stays that of the export")
    return found


def _dated(tokenizer) -> bool:
    """Whether the template writes today's date: then it makes no text, or another, where its clock is taken away."""
    try:
        return _rendered(tokenizer, USER, answer=True, strftime_now=None) != _rendered(tokenizer, USER, answer=True)
    except ExportError:
        return True


def modelfile(gguf_name: str, template: str | None, stops: dict[str, str | None]) -> tuple[str, list[str]]:
    """(Ollama's description of a model (https://docs.ollama.com/modelfile), the stops that it cannot hold).

    stops: the text of each token that ends an answer, None where it has none.
    """
    lines, left_out = [f"FROM ./{gguf_name}"], []
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    for token, text in stops.items():
        # Ollama ends a value in quotes at the first line that ends with such quotes.
        if not text or not all(map(_passes, text)) or re.search(r'"""\s*[\r\n]', text):
            left_out.append(token)
            continue
        quotes = '"""' if '"' in text else '"'
        lines.append(f"PARAMETER stop {quotes}{text}{quotes}")
    return "\n".join(lines) + "\n", left_out
