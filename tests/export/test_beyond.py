"""Notes on what of a chat a template reads and servers do not hand it: other fields of a message, and other roles."""

import importlib.util

import pytest
from transformers import AutoTokenizer

from helpers.data import with_template
from helpers.export import beyond, export_gguf
from helpers.export.conversation import take_apart
from tests.export import makers
from tests.export.ollama import as_ollama_does

BODY = "{{ m.content }}<|eot_id|>"
TOOLS = "{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}{% endif %}" + BODY
AFTER = "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}"  # a template that knows these alone


def reading(body: str) -> str:
    """A template for three roles, with something of its own in front of each message's content."""
    return (
        makers.HEADERS.replace("{% for m in messages %}", AFTER)
        .replace("{% endfor %}", "{% endif %}{% endfor %}", 1)
        .replace(BODY, body)
    )


def with_roles(*roles: str) -> str:
    """A template that writes these roles and passes over all others."""
    return reading(BODY).replace("('system', 'user', 'assistant')", str(("system", "user", "assistant", *roles)))


def exported(folder, chat_template: str) -> tuple[str, str]:
    """(the Modelfile, all notes)."""
    (folder / "chat_template.jinja").write_text(chat_template)
    out = folder.parent / "out.gguf"
    notes = export_gguf(folder, out, "f16", overwrite=True, progress=False)["notes"]
    return out.with_suffix(".Modelfile").read_text(), "\n".join(notes)


FIELDS = [
    (BODY, []),
    ("{{ m.input or '' }}" + BODY, ["input"]),
    ("{{ m['context'] }}" + BODY, ["context"]),
    ("{{ m['the-context'] }}" + BODY, ["the-context"]),
    ("{{ m.get('lang', '') }}" + BODY, ["lang"]),
    ("{% if 'hint' in m %}{{ m.hint }}{% endif %}" + BODY, ["hint"]),
    ("{% if m.input %}{{ m.instruction + m.input }}{% endif %}" + BODY, ["input", "instruction"]),
    ("{% if m.one and m.two %}{{ m.one }}{% endif %}" + BODY, ["one", "two"]),
    ("{% if m.quiet is true %}.{% endif %}" + BODY, ["quiet"]),
    ("{% if m.mood == 'glad' %}!{% endif %}" + BODY, ["mood"]),
    ("{% if m.role == 'assistant' and m.reasoning_content %}{{ m.reasoning_content }}{% endif %}" + BODY,
     ["reasoning_content"]),
    ("{% if loop.last and m.prefix %}>{% endif %}" + BODY, ["prefix"]),
    ("{% if m.secret %}{{ raise_exception('no') }}{% endif %}" + BODY, ["secret"]),
    ("{% if m.unused is defined %}{% endif %}" + BODY, []),
    ("{% for key, value in m.items() %}{{ key }}{% endfor %}" + BODY, [beyond.OTHER]),
    ("{{ m | tojson }}" + BODY, [beyond.OTHER]),
]  # fmt: skip


@pytest.mark.parametrize(("body", "fields"), FIELDS, ids=[body[:40] for body, _ in FIELDS])
def test_the_fields_that_change_a_templates_text_are_found_and_no_others(body, fields):
    tokenizer = makers.of_llama3()
    tokenizer.chat_template = reading(body)
    assert sorted(beyond.fields_read(tokenizer)) == sorted(fields)


def test_what_is_read_of_a_tool_call_is_a_field_of_the_call_and_not_of_the_message():
    tokenizer = makers.of_llama3()
    tokenizer.chat_template = reading(TOOLS)
    assert beyond.fields_read(tokenizer) == ["tool_calls"]


@pytest.mark.parametrize(
    ("chat_template", "roles"),
    [
        (with_roles(), []),
        (with_roles("tool"), ["tool"]),
        (with_roles("developer", "context"), ["developer", "context"]),
        (makers.HEADERS, [beyond.OTHER]),
        (makers.CHATML, [beyond.OTHER]),
        (makers.INST, []),
    ],
)
def test_the_roles_that_a_template_writes_and_the_modelfile_does_not_are_found(chat_template, roles):
    tokenizer = makers.of_llama3()
    tokenizer.chat_template = chat_template
    bos = tokenizer.bos_token if chat_template != makers.CHATML else ""
    assert beyond.roles_read(take_apart(tokenizer, bos), tokenizer, bos) == roles


ASKED = {"role": "user", "content": "Greet.\n\nBob", "instruction": "Greet.", "input": "Bob"}


def test_the_note_on_the_lessons_own_template_is_what_ollamas_text_shows(model):
    tokenizer = with_template(AutoTokenizer.from_pretrained(model), "alpaca")
    words, notes = exported(model, tokenizer.chat_template)
    assert "another text than the model's for an empty message; a message with the fields input, instruction," in notes
    assert "also reads the fields input, instruction of a message, and llama.cpp's server hands it none" in notes
    assert "a message of" not in notes
    plain = {"role": "user", "content": "Greet."}
    for message, same in ((ASKED, False), (plain, True)):
        text = tokenizer.apply_chat_template([message], tokenize=False)
        assert (
            tokenizer.bos_token * text.startswith(tokenizer.bos_token) + as_ollama_does(words, [message]) == text
        ) is same


@pytest.mark.parametrize(
    ("chat_template", "said", "not_said"),
    [
        (reading(BODY), [], ["a message with", "a message of", "also reads"]),
        (reading("{{ m.input or '' }}" + BODY), ["with the fields input,", "also reads the fields input of"], ["a message of"]),
        (reading(TOOLS), ["with the fields tool_calls,"], ["also reads", "a message of"]),
        (reading("{{ m | tojson }}" + BODY), ["also reads other fields than role and content of a message"], []),
        (with_roles("tool"), ["a message of the roles tool, which Ollama's leaves out"], ["also reads", "a message with"]),
        (makers.HEADERS, ["a message of other roles than system, user and assistant"], ["also reads"]),
    ],
)  # fmt: skip
def test_notes_name_fields_and_roles_that_are_lost(model, chat_template, said, not_said):
    _, notes = exported(model, chat_template)
    assert [words for words in said if words not in notes] == []
    assert [words for words in not_said if words in notes] == []


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs the wheel xllamacpp")
def test_llama_cpps_server_hands_a_template_the_fields_that_are_listed_and_not_a_rows_own(model):
    from tests.export.llama import Llama

    names = [*beyond.HANDED_ON, "input", "instruction", "thinking", "tool_name"]
    given = dict.fromkeys(names, "x") | {"tool_calls": [beyond.CALL | {"function": {"name": "f", "arguments": "{}"}}]}
    tests = "".join(f"{{% if m.{name} %}}({name}){{% endif %}}" for name in names)
    exported(model, makers.HEADERS.replace("{{ m.content }}", tests + "{{ m.content }}"))
    llama = Llama(model.parent / "out.gguf")
    for name in names:
        messages = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
        messages[1][name] = given[name]
        text = llama.chat(messages)
        assert (f"({name})" in text) is (name in beyond.HANDED_ON), text
