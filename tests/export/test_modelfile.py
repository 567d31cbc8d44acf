"""The Modelfile beside a GGUF file: Ollama can read it, and where its template differs from the model's a note says so."""

import json

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from helpers.export import export_gguf
from tests.export import makers
from tests.export.ollama import as_ollama_does, values

MESSAGES = [
    {"role": "system", "content": "Answer in French."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "It's 357."},
    {"role": "user", "content": "Why?\nTell me."},
]
FIELDS = (
    "{% for m in messages %}%B{{ m.role }}%I{{ m.content }}%E{% endfor %}"
    "{% if add_generation_prompt %}%Bassistant%I{% endif %}"
)


def template(before: str, inside: str, behind: str) -> str:
    """A template that puts texts around role and content."""
    made = FIELDS
    for name, text in (("%B", before), ("%I", inside), ("%E", behind)):
        made = made.replace(name, f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}")
    return made


def exported(folder, chat_template: str) -> tuple[str, str]:
    """(the Modelfile, all notes)."""
    (folder / "chat_template.jinja").write_text(chat_template)
    out = folder.parent / "out.gguf"
    notes = export_gguf(folder, out, overwrite=True, progress=False)["notes"]
    return out.with_suffix(".Modelfile").read_bytes().decode(), " ".join(notes)


@pytest.mark.parametrize(
    ("before", "inside", "behind"),
    [
        ("<", "{", "}"),
        ("{", "{{{", "}}\n"),
        ("{{", " {% x %} ", "{"),
        ('"""', '""""', '""\n'),
        ('"', '"""\n', '"""""""'),
        ('"""  \n', '"\\"', '\\n"""'),
        ("\r\n", "\t", "\r"),
        ("\u00a0a\u200b", "\u2003", "\U000e0061|"),
        ("\\begin{x}", '{"a": "', '"}\n'),
        ("  ", "#", "\n\n "),
    ],
)
def test_ollama_reads_whatever_a_template_puts_around_a_message(model, before, inside, behind):
    words, notes = exported(model, template(before, inside, behind))
    assert "no equal" not in notes
    tokenizer = AutoTokenizer.from_pretrained(model)
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[1:2]):
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert as_ollama_does(words, messages) == expected
    assert values(words)["FROM"] == ["./out.gguf"]


@pytest.mark.parametrize(
    "eos", ['"', '""', '"""', '"end"', '<"end">', "\n###\n", '"\n"', '\n"', "{{end}}", " x ", '"""x']
)
def test_ollama_reads_every_stop(eos, tmp_path):
    tokenizer = makers.of_llama3()
    tokenizer.add_special_tokens({"eos_token": AddedToken(eos, special=True, normalized=False)})
    folder = makers.make_model(tmp_path / "model", "llama", tokenizer)
    (folder / "generation_config.json").unlink()
    words, notes = exported(folder, makers.HEADERS)
    assert values(words)["PARAMETER stop"] == [eos, "<|eot_id|>", "#"]  # config.json's 2 is "#"
    assert "cannot hold" not in notes


@pytest.mark.parametrize("eos", ['"""\nx', 'a""" \n', "\u200b", "a\u00a0"])
def test_a_stop_that_no_modelfile_holds_is_left_out_and_said(eos, tmp_path):
    tokenizer = makers.of_llama3()
    tokenizer.add_special_tokens({"eos_token": AddedToken(eos, special=True, normalized=False)})
    folder = makers.make_model(tmp_path / "model", "llama", tokenizer)
    words, notes = exported(folder, makers.HEADERS)
    assert values(words)["PARAMETER stop"] == ["<|eot_id|>", "#"]
    assert "a Modelfile cannot hold the text of" in notes


@pytest.mark.parametrize("make", [makers.of_llama3, makers.legacy_pieces])
def test_stops_are_what_tokens_stand_for_and_not_how_a_vocabulary_spells_them(make, tmp_path):
    tokenizer = make()
    folder = makers.make_model(tmp_path / "model", "llama", tokenizer, len(tokenizer) + 1)
    spelled = {"Ċ": "\n", "Ġthe": " the", "é": None} if make is makers.of_llama3 else {"▁the": " the", "<0x0A>": "\n"}
    ids = tokenizer.convert_tokens_to_ids(list(spelled)) + [len(tokenizer)]  # the last row has no token
    known = [(token, number) for token, number in zip(spelled, ids[:-1], strict=True) if number not in (None, 0)]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [n for _, n in known] + ids[-1:]}))
    words, notes = exported(folder, makers.HEADERS if make is makers.of_llama3 else makers.INST)
    assert len(known) >= 2
    expected = [spelled[token] for token, _ in known if spelled[token] is not None]
    assert [stop for stop in values(words)["PARAMETER stop"] if stop in spelled.values()] == expected
    left_out = " ".join([token for token, text in spelled.items() if text is None] + [f"[unused {len(tokenizer)}]"])
    assert f"cannot hold the text of {left_out}:" in notes


TRIMMED = makers.HEADERS.replace("{{ m.content }}", "{{ m.content | trim }}")
LATE_TRIMMED = makers.HEADERS.replace(
    "{{ m.content }}", "{{ m.content if m.role != 'assistant' else m.content | trim }}"
)
FORGETFUL = makers.HEADERS.replace(
    "{{ m.content }}", "{{ m.content.split('</think>')[-1].lstrip('\\n') if '</think>' in m.content else m.content }}"
)
DATED = "{{ bos_token }}Today {{ strftime_now('%d %b %Y') }}" + makers.HEADERS.replace("{{ bos_token }}", "")
SKIPS_EMPTY = makers.HEADERS.replace("{{ m.content }}", "{{ m.content or '-' }}")
SPACES, EMPTY, NO_SYSTEM = "begin or end with spaces or line breaks", "an empty message", "an empty system message"
KINDS = (SPACES, EMPTY, NO_SYSTEM, "an earlier answer with a <think> block", "the date, which stays that of the export")


@pytest.mark.parametrize(
    ("chat_template", "said"),
    [
        (TRIMMED, {SPACES, NO_SYSTEM}),
        (LATE_TRIMMED, {SPACES, NO_SYSTEM}),
        (FORGETFUL, {KINDS[3], NO_SYSTEM}),
        (DATED, {KINDS[4], NO_SYSTEM}),
        (SKIPS_EMPTY, {EMPTY, NO_SYSTEM}),
        (makers.HEADERS, {NO_SYSTEM}),
        ("{% if strftime_now is defined %}{% endif %}" + makers.HEADERS, {NO_SYSTEM}),
        ("{% if messages | length > 4 %}{{ raise_exception('too many') }}{% endif %}" + makers.HEADERS, {NO_SYSTEM}),
        (makers.INST, set()),
    ],
)
def test_a_note_names_the_chats_of_which_ollama_makes_another_text(model, chat_template, said):
    words, notes = exported(model, chat_template)
    assert "{{ .Prompt }}" not in words
    assert {kind for kind in KINDS if kind in notes} == said
    assert ("the Modelfile's template gives another text" in notes) == bool(said)


def test_a_date_that_llama_cpp_gives_a_template_is_said(model):
    own = "{% if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}Today: {{ date_string }}."
    _, notes = exported(model, own + makers.HEADERS)
    assert "llama.cpp writes today's in its place" in notes
    assert "stays that of the export" not in notes


def test_a_template_for_one_request_is_passed_over(model):
    _, notes = exported(
        model, "{% if messages[2] is defined %}{{ raise_exception('one') }}{% endif %}" + makers.HEADERS
    )
    assert "no equal in Ollama's language" in notes
