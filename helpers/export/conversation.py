"""A chat template for llama.cpp, which reads Jinja, and for Ollama, which does not; and the tokens that end an answer."""

from dataclasses import dataclass

from helpers.export.carried import ExportError

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
        system = next((m["content"] for m in messages if m["role"] == "system"), None)
        text = self.opening
        if system is not None and self.before_system is not None:
            text = self.before_system + system + self.after_system
        for message in messages:
            if message["role"] == "user":
                text += self.before_user + message["content"] + self.asked
            elif message["role"] == "assistant":
                text += self.before_answer + message["content"] + self.after_answer
        return text

    def fits_ollama(self) -> bool:
        """Whether the pieces can stand in a Modelfile as they are."""
        return not any(sign in piece for piece in vars(self).values() if piece for sign in ("{{", '"""'))

    def as_go(self) -> str:
        """The same as a template of Go's text/template, over Ollama's .System and .Messages."""
        opening = self.opening
        if self.before_system is not None:
            opening = _go("if .System", self.before_system, ".System", self.after_system, "else", opening, "end")
        user = _go('if eq .Role "user"', self.before_user, ".Content", self.asked)
        answer = _go('else if eq .Role "assistant"', self.before_answer, ".Content", self.after_answer, "end")
        return opening + _go("range .Messages", user + answer, "end")


def _go(*parts: str) -> str:
    """An action of Go's templates, a text, an action, a text, ..."""
    return "".join(text if place % 2 else f"{{{{ {text} }}}}" for place, text in enumerate(parts))


def _text(tokenizer, messages: list[dict], answer: bool) -> str:
    """The chat in the template's words, with an answer to come or not; ExportError, one line, where there is none."""
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    except Exception as error:  # whatever Jinja, or the template itself, raises
        raise ExportError(f"the chat template cannot be used ({type(error).__name__}: {str(error)[:150]})") from error


def _rendered(tokenizer, *contents: str, answer: bool) -> str:
    """The chat of these contents, in turn the user's and the model's; SYSTEM as the first one is a system message."""
    roles = ["system"] * (contents[0] == SYSTEM) + ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return _text(tokenizer, messages, answer)


def begins_with(tokenizer) -> tuple[int, bool]:
    """(the first token of a chat, whether it is a special one)."""
    first = tokenizer(_rendered(tokenizer, USER, answer=True), add_special_tokens=False)["input_ids"][0]
    return first, first in tokenizer.added_tokens_decoder


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
    return done if _is_whole(done, tokenizer, bos) and done.fits_ollama() else None


def _is_whole(done: Conversation, tokenizer, bos: str) -> bool:
    """Whether the pieces make the same text as the template, for chats of one, two and three requests."""
    chats = [["a"], ["b", "c", "d"], ["e", "f", "g", "h", "i"]]
    systems = [None] if done.before_system is None else [None, "s"]
    for system in systems:
        for turns in chats:
            messages = [{"role": "system", "content": system}] * (system is not None)
            messages += [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
            if done.render(messages) != _text(tokenizer, messages, answer=True).removeprefix(bos):
                return False
    return True


def modelfile(gguf_name: str, template: str, stops: list[str]) -> str:
    """Ollama's description of a model (https://docs.ollama.com/modelfile): its file, its template, where answers end."""
    lines = [f"FROM ./{gguf_name}", f'TEMPLATE """{template}"""']
    return "\n".join(lines + [f'PARAMETER stop "{stop}"' for stop in stops]) + "\n"
