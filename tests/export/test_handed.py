"""Texts that llama.cpp makes by the file's template are transformers' own, or a note names what makes them differ."""

import pytest
from transformers import AutoTokenizer

from helpers.export import export_gguf
from tests.export import makers
from tests.export.llama import Llama

CHATS = [
    [{"role": "user", "content": "hi"}],
    [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}, {"role": "user", "content": "Why?"}],
]
CHATML, HEADERS = makers.CHATML, makers.HEADERS
ASKED = "<|im_start|>assistant\n{% endif %}"


def behind(text: str) -> str:
    """ChatML that writes something more where an answer is asked for."""
    return CHATML.replace(ASKED, ASKED.replace("{% endif %}", text + "{% endif %}"))


def exported(folder, chat_template: str) -> tuple[list[str], list[str | None], list[str]]:
    """(transformers' texts, llama.cpp's, None where it does not load the file, all notes)."""
    (folder / "chat_template.jinja").write_text(chat_template)
    out = folder.parent / "out.gguf"
    notes = export_gguf(folder, out, "f16", overwrite=True, progress=False)["notes"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    wanted = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in CHATS]
    try:
        running = Llama(out)
    except OSError:
        return wanted, [None] * len(CHATS), notes
    return wanted, [running.chat(chat) for chat in CHATS], notes


@pytest.fixture
def without_bos(tmp_path):
    return makers.make_model(tmp_path / "model", "llama", makers.of_qwen2())


@pytest.mark.parametrize(
    ("chat_template", "names"),
    [
        (HEADERS, "bos_token"),
        ("  {% if true %}\n" + HEADERS + "{% endif %}", "bos_token"),
        ("{% macro begin() %}[{{ bos_token }}]{% endmacro %}{{ begin() }}" + CHATML, "bos_token"),
        (CHATML + "{% if tools is not none %}[AVAILABLE_TOOLS] []{% endif %}", "tools"),
        (CHATML + "{% if tools is defined %}T{% endif %}{% if documents is defined %}D{% endif %}", "tools, documents"),
        ("\n  {% if documents is none %}D{% endif %}\n" + HEADERS, "documents, bos_token"),
        (CHATML + "{{ pad_token }}", "pad_token"),
        (CHATML + "{% if tools %}{{ tools | tojson }}{% endif %}", None),
        (CHATML + "{% if false %}{{ bos_token }}{% endif %}", None),
        (CHATML.replace("<|im_end|>", "{{ eos_token }}"), None),
        ("{% if not tools is defined %}{% set tools = none %}{% endif %}" + CHATML, None),
    ],
)
def test_what_transformers_hands_a_template_is_set_by_the_files_own(without_bos, chat_template, names):
    wanted, found, notes = exported(without_bos, chat_template)
    assert found == wanted
    said = [note for note in notes if "begins with a line that sets" in note]
    assert said == (
        [f"the file's chat template begins with a line that sets {names} as transformers does"] if names else []
    )


def test_tools_that_are_handed_over_reach_the_template(without_bos):
    exported(without_bos, CHATML + "{% if tools is not none %}{{ tools[0].function.name }}{% endif %}")
    tool = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
    asked = Llama(without_bos.parent / "out.gguf").ask("apply-template", messages=CHATS[0], tools=[tool])
    assert asked["prompt"].endswith("find")


@pytest.mark.parametrize(
    ("chat_template", "said"),
    [
        (
            behind("{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"),
            "is false",
        ),
        (behind("{% if enable_thinking %}<think>\n{% endif %}"), "is true"),
        (behind("{% if enable_thinking is defined %}<think>\n{% endif %}"), "is set"),
        (behind("{% if enable_thinking is defined %}{% endif %}"), None),
        (CHATML, None),
    ],
)
def test_a_template_that_reads_enable_thinking_is_said(without_bos, chat_template, said):
    wanted, found, notes = exported(without_bos, chat_template)
    assert [f"where enable_thinking {said}: llama.cpp sets it by itself" in note for note in notes].count(True) == bool(
        said
    )
    assert found == wanted or said


@pytest.mark.parametrize(
    ("chat_template", "said"),
    [
        (CHATML.replace("{{ m.content }}", "{% for part in m.content %}{{ part.text }}{% endfor %}"), True),
        (CHATML.replace("{{ m.content }}", "{{ m.content if m.content is string else m.content[0].text }}"), False),
        (CHATML, False),
    ],
)
def test_a_template_that_reads_lists_of_parts_alone_is_said(without_bos, chat_template, said):
    wanted, found, notes = exported(without_bos, chat_template)
    assert (found != wanted) is any("reads lists of parts alone" in note for note in notes) is said


@pytest.mark.parametrize(
    ("written", "loaded"),
    [
        ("{{ '%s-%d' % (m.role, 1) }}", False),
        ("{% set form = '%s' %}{{ form % m.role }}", False),
        ("{{ ('<' ~ '%s') % m.role }}", False),
        ("{{ loop.index0 % 2 }}", True),
        (
            "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('order') }}{% endif %}{{ m.role }}",
            True,
        ),
        ("{% set count = 3 %}{{ count % 2 }}", True),
        ("{{ '100 % of ' ~ m.role }}", True),
    ],
)
def test_a_text_that_is_filled_in_with_percent_is_said(without_bos, written, loaded):
    wanted, found, notes = exported(without_bos, CHATML.replace("{{ m.role }}", written))
    assert found == (wanted if loaded else [None, None])
    assert any("llama.cpp does not load the file while its chat template" in note for note in notes) is not loaded


def test_a_text_that_is_filled_in_by_the_filter_is_said(without_bos):
    wanted, found, notes = exported(without_bos, CHATML.replace("{{ m.role }}", "{{ '%s' | format(m.role) }}"))
    assert found != wanted
    assert any("does not fill in what the chat template has before `format`" in note for note in notes)


@pytest.mark.parametrize("name", ["date_string", "datetime"])
def test_each_date_that_llama_cpp_hands_over_is_said(without_bos, name):
    _, found, notes = exported(without_bos, CHATML + f"{{{{ {name} or 'some day' }}}}")
    assert not any(text.endswith("some day") for text in found)
    assert any("llama.cpp writes today's in its place" in note for note in notes)
