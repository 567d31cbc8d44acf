"""Token ids through llama.cpp are the tokenizer's own, of texts and of chats: a wrong pre-tokenizer would be silent."""

import jinja2
import pytest
from transformers import AutoTokenizer

from helpers.export import export_gguf
from tests.export import makers
from tests.export.llama import Llama
from tests.export.texts import DECOMPOSED, TEXTS, with_special

TEXTS_AT_LEAST = 200


def differing(file, folder, texts) -> list[str]:
    """The texts of which llama.cpp makes other tokens than the tokenizer in the folder."""
    tokenizer, llama = AutoTokenizer.from_pretrained(folder), Llama(file)
    return [text for text in texts if llama.ids(text) != tokenizer(text)["input_ids"]]


def exported(folder, out, **words):
    return out, export_gguf(folder, out, "f16", progress=False, **words)


@pytest.fixture(scope="module", params=makers.TOKENIZERS)
def made(request, tmp_path_factory):
    """(kind, folder, its GGUF file, what export said) of a small model with a tokenizer of each kind, without a template."""
    folder = tmp_path_factory.mktemp("models") / "model"
    makers.make_model(folder, "llama", makers.TOKENIZERS[request.param]())
    file, done = exported(folder, folder.parent / "model.gguf")
    return request.param, folder, file, done


def special_of(folder) -> list[str]:
    return list(AutoTokenizer.from_pretrained(folder).get_added_vocab())


def test_the_bundled_models_tokens_are_the_tokenizers_own(tmp_path):
    from helpers.models import BUNDLED_MODEL

    texts = TEXTS + with_special(special_of(BUNDLED_MODEL)) + DECOMPOSED
    assert len(texts) >= TEXTS_AT_LEAST
    file, done = exported("bundled", tmp_path / "bundled.gguf")
    assert done["notes"] == []
    assert differing(file, BUNDLED_MODEL, texts) == []


def test_tokens_of_every_known_kind_are_the_tokenizers_own(made):
    kind, folder, file, done = made
    texts = TEXTS + with_special(special_of(folder))
    assert len(texts) >= TEXTS_AT_LEAST
    wrong = differing(file, folder, texts)
    if kind == "sentencepiece of transformers 5":  # said in notes: see the next test
        wrong = [text for text in wrong if not text.startswith(" ") and not any(s in text for s in special_of(folder))]
    assert wrong == []


def test_where_llama_cpp_cannot_follow_a_note_says_so(made):
    kind, folder, file, done = made
    said = " ".join(done["notes"])
    assert ("NFC" in said) == (kind == "qwen 2") == bool(differing(file, folder, DECOMPOSED))
    assert (
        ("puts a space behind each special token" in said)
        == (kind == "sentencepiece of transformers 5")
        == bool(differing(file, folder, [" a"]))
    )


MESSAGES = [
    [{"role": "user", "content": "hi"}],
    [
        {"role": "user", "content": "What is 12 + 345?"},
        {"role": "assistant", "content": "It's 357."},
        {"role": "user", "content": "Why?\nTell me."},
    ],
]
SYSTEM = [{"role": "system", "content": "Answer in French."}]
CHATS = {
    "llama 3": ("llama 3", makers.HEADERS, True),
    "chatml of qwen 2": ("qwen 2", makers.CHATML, True),
    "chatml on a tokenizer that adds bos": ("llama 3", makers.CHATML, True),
    "mistral": ("sentencepiece", makers.INST, False),
    "mistral of transformers 5": ("sentencepiece of transformers 5", makers.INST, False),
    "the lessons'": ("llama 3", "alpaca", False),
}


def as_ollama_does(modelfile: str, messages: list[dict]) -> str:
    """The text of a chat by the Modelfile's template: Go's words for Jinja's, whose blocks are closed by their names."""
    words = {
        "if .System": "{% if system %}",
        ".System": "{{ system }}",
        "else": "{% else %}",
        "range .Messages": "{% for m in messages %}",
        'if eq .Role "user"': "{% if m.role == 'user' %}",
        'else if eq .Role "assistant"': "{% elif m.role == 'assistant' %}",
        ".Content": "{{ m.content }}",
    }
    parts, opened = modelfile.split('"""')[1].replace("{{ ", "\0").replace(" }}", "\0").split("\0"), []
    for place in range(1, len(parts), 2):
        word = parts[place]
        opened += [word.split()[0]] if word.startswith(("if", "range")) else []
        parts[place] = {"if": "{% endif %}", "range": "{% endfor %}"}[opened.pop()] if word == "end" else words[word]
    system = next((m["content"] for m in messages if m["role"] == "system"), "")
    return (
        jinja2.Environment(keep_trailing_newline=True)
        .from_string("".join(parts))
        .render(system=system, messages=messages)
    )


@pytest.mark.parametrize("chat", CHATS)
def test_a_chats_tokens_are_those_of_training_through_llama_cpp_and_by_ollamas_template(chat, tmp_path):
    kind, template, takes_system = CHATS[chat]
    tokenizer = makers.TOKENIZERS[kind]()
    tokenizer.chat_template = template if template != "alpaca" else None
    folder = makers.make_model(tmp_path / "model", "llama", tokenizer)
    file, _ = exported(folder, tmp_path / "model.gguf", template="alpaca" if template == "alpaca" else "own")
    words, llama, tokenizer = (
        (tmp_path / "model.Modelfile").read_text(),
        Llama(file),
        AutoTokenizer.from_pretrained(folder),
    )
    for messages in MESSAGES + [SYSTEM + messages for messages in MESSAGES if takes_system]:
        if template == "alpaca":
            from helpers.data import alpaca_prompt

            expected = tokenizer("".join(
                alpaca_prompt(m["content"]) if m["role"] == "user" else m["content"] + tokenizer.eos_token for m in messages
            ))["input_ids"]  # fmt: skip
        else:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert llama.ids(llama.chat(messages)) == expected
        assert llama.ids(as_ollama_does(words, messages)) == expected
