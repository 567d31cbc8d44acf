"""Token ids through llama.cpp are the tokenizer's own, of texts and of chats: a wrong pre-tokenizer would be silent."""

import pytest
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer

from helpers.export import ExportError, export_gguf
from tests.export import makers
from tests.export.llama import Llama
from tests.export.ollama import as_ollama_does
from tests.export.texts import DECOMPOSED, TEXTS, with_special

TEXTS_AT_LEAST = 200
NO_TEMPLATE = "there is no chat template: llama.cpp writes chats as ChatML, and transformers none"


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
    assert done["notes"] == [NO_TEMPLATE]
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


def with_template(tokenizer, template: str):
    tokenizer.chat_template = template
    return tokenizer


def through_llama(folder, out, messages) -> tuple[list[int], list[int], int]:
    """(a chat's tokens by transformers, by llama.cpp, how many its server made of it), the bos in front by the file."""
    file, _ = exported(folder, out)
    tokenizer, llama = AutoTokenizer.from_pretrained(folder), Llama(file)
    served = llama.ask("v1/chat/completions", messages=messages, max_tokens=1)["usage"]["prompt_tokens"]
    theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return theirs, llama.ids(llama.chat(messages)), served


@pytest.mark.parametrize(
    ("make", "single", "template"),
    [
        (makers.of_llama3, "<|begin_of_text|> $A <|end_of_text|>", makers.HEADERS),
        (makers.of_llama3, "$A <|end_of_text|>", makers.CHATML),
        (makers.of_qwen2, "$A <|im_end|>", makers.CHATML),
        (makers.legacy_pieces, "<s> $A </s>", makers.INST),
    ],
)
def test_no_eos_stands_between_a_question_and_its_answer(make, single, template, tmp_path):
    tokenizer = with_template(make(), template)
    makers.add_around(tokenizer.backend_tokenizer, single)
    folder = makers.make_model(tmp_path / "model", "llama", tokenizer)
    for messages in MESSAGES:
        theirs, ours, served = through_llama(folder, tmp_path / f"{len(messages)}.gguf", messages)
        assert (ours, served) == (theirs, len(theirs))
    notes = " ".join(exported(folder, tmp_path / "model.gguf")[1]["notes"])
    assert "the file puts none behind any text" in notes


def test_without_a_template_texts_end_in_eos_as_the_tokenizer_has_it(tmp_path):
    tokenizer = makers.of_llama3()
    makers.add_around(tokenizer.backend_tokenizer, "<|begin_of_text|> $A <|end_of_text|>")
    folder = makers.make_model(tmp_path / "model", "llama", tokenizer)
    file, done = exported(folder, tmp_path / "model.gguf")
    assert done["notes"] == [NO_TEMPLATE, "llama.cpp ends an answer at <|eot_id|> too, which it knows by name"]
    assert differing(file, folder, ["a b", "Hello"]) == []


def test_a_template_begins_with_bos_where_the_tokenizer_begins_texts_with_another_token(tmp_path):
    tokenizer = with_template(makers.of_llama3(), makers.HEADERS)
    makers.add_around(tokenizer.backend_tokenizer, "<|eot_id|> $A")
    folder = makers.make_model(tmp_path / "model", "llama", tokenizer)
    theirs, ours, _ = through_llama(folder, tmp_path / "model.gguf", MESSAGES[1])
    assert ours == theirs


def metaspace(scheme: str, template: str | None):
    tokenizer = with_template(makers.legacy_pieces(), template)
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return tokenizer


SPACED = makers.INST.replace("[INST]", " [INST]")
MIXED = makers.INST.replace("{{ bos_token }}", "{{ bos_token }}\n")  # a line break, and a space behind each eos


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("template", [makers.INST, SPACED, MIXED], ids=["bare", "spaced", "mixed"])
def test_a_metaspaces_chats_are_its_own_or_refused(scheme, template, tmp_path):
    """A Metaspace leaves alone what begins with a space; llama.cpp puts one there too."""
    folder = makers.make_model(tmp_path / "model", "llama", metaspace(scheme, template))
    for messages in MESSAGES:
        theirs, ours, served = through_llama(folder, tmp_path / f"{len(messages)}.gguf", messages)
        assert (ours, served) == (theirs, len(theirs))


@pytest.mark.parametrize("template", [SPACED.replace("{{ eos_token }}", "{{ eos_token }}x"),
                                      makers.INST.replace("{{ eos_token }}", "{{ eos_token }} ")])  # fmt: skip
def test_a_metaspace_of_which_a_chat_needs_both_is_refused(template, tmp_path):
    folder = makers.make_model(tmp_path / "model", "llama", metaspace("always", template))
    with pytest.raises(ExportError, match="in front of some parts of a chat and not of others"):
        exported(folder, tmp_path / "model.gguf")


def test_without_a_template_a_note_says_where_a_metaspace_differs(tmp_path):
    folder = makers.make_model(tmp_path / "model", "llama", metaspace("always", None))
    file, done = exported(folder, tmp_path / "model.gguf")
    assert "puts a space in front of a text, or behind a special token, also where one is already" in " ".join(
        done["notes"]
    )
    wrong = differing(file, folder, TEXTS + with_special(special_of(folder)))
    assert wrong
    assert all(text.startswith(" ") or any(f"{token} " in text for token in special_of(folder)) for text in wrong)


def test_a_tokenizer_model_as_transformers_reads_it_is_carried(tmp_path):
    """A normalizer that doubles a space in front, so that the Metaspace puts one there always."""
    tokenizer = metaspace("always", makers.INST)
    doubled = normalizers.Replace(makers.Regex(r"\A▁"), "▁▁")
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Replace(" ", "▁"), doubled])
    folder = makers.make_model(tmp_path / "model", "llama", tokenizer)
    file, done = exported(folder, tmp_path / "model.gguf")
    assert differing(file, folder, TEXTS + with_special(special_of(folder))) == []


def test_a_token_with_the_name_of_an_unused_row_is_loaded(tmp_path):
    tokenizer = makers.of_llama3()
    tokenizer.add_tokens(["[unused 1508]", "[[unused 1508]]"])
    folder = makers.make_model(tmp_path / "model", "llama", tokenizer, len(tokenizer) + 4)
    file, _ = exported(folder, tmp_path / "model.gguf")
    assert differing(file, folder, ["a [unused 1508] b", "[[unused 1508]]"]) == []
