"""Added tokens that overlap in a text are refused, and those of known tokenizers, which do not, are exported."""

import itertools

import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from helpers.export import ExportError, export_gguf, overlaps, vocabulary
from tests.export import makers


def added(*contents: str, normalized: bool = False) -> list[dict]:
    return [{"content": content, "normalized": normalized} for content in contents]


LLAMA3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>",
          "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
          *(f"<|reserved_special_token_{number}|>" for number in range(248))]  # fmt: skip
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
        "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>",
        "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
        "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"]  # fmt: skip
SMOLLM2 = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>", "<gh_stars>",
           "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>",
           "<jupyter_output>", "<jupyter_script>", "<empty_output>"]  # fmt: skip
MISTRAL = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
           "[TOOL_RESULTS]", "[/TOOL_RESULTS]", *(f"[control_{number}]" for number in range(8, 768))]  # fmt: skip
SPACES = [" " * length for length in range(2, 25)]


@pytest.mark.parametrize("contents", [LLAMA3, QWEN, SMOLLM2, MISTRAL, SPACES, ["<a>", "<a>b"], ["aa", "a"]])
@pytest.mark.parametrize("normalized", [False, True])
def test_the_added_tokens_of_known_tokenizers_do_not_overlap(contents, normalized):
    overlaps.check_overlaps(added(*contents, normalized=normalized))


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(
    ("contents", "text"),
    [
        (["aab", "abab"], "aabab"),
        (["<ab>cd", "cd<efg>hi"], "<ab>cd<efg>hi"),
        (["<x>=", "=<y>"], "<x>=<y>"),
        (["é!", "!!!"], "é!!!"),
    ],
)
def test_added_tokens_that_overlap_are_refused(contents, text, normalized):
    with pytest.raises(ExportError, match="overlap in .* take one of them out of the tokenizer") as caught:
        overlaps.check_overlaps(added(*contents, normalized=normalized))
    assert repr(text) in str(caught.value)


PAIRS = list(itertools.combinations(["aab", "abab", "bb", "aaa", "baa", "ab"], 2))


def overlapping(contents) -> bool:
    try:
        overlaps.check_overlaps(contents)
    except ExportError:
        return True
    return False


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_it_is_refused_exactly_where_llama_cpp_finds_other_tokens(pair, normalized, tmp_path, monkeypatch):
    """In all texts of seven letters; of two tokens of one length, also where it might."""
    running = pytest.importorskip("tests.export.llama").Llama
    tokenizer = makers.of_llama3()
    tokenizer.add_tokens([AddedToken(content, normalized=normalized) for content in pair])
    folder = makers.make_model(tmp_path / "model", "llama", tokenizer)
    monkeypatch.setattr(vocabulary, "check_overlaps", lambda added: None)
    export_gguf(folder, tmp_path / "out.gguf", "f16", progress=False)
    tokenizer, llama = AutoTokenizer.from_pretrained(folder), running(tmp_path / "out.gguf")
    texts = ["".join(letters) for letters in itertools.product("ab", repeat=7)]
    differ = [text for text in texts if llama.ids(text) != tokenizer(text)["input_ids"]]
    refuses = overlapping(added(*pair, normalized=normalized))
    if len(pair[0]) == len(pair[1]):  # which of the two llama.cpp takes first is not sure
        assert refuses or not differ
    else:
        assert refuses == bool(differ), differ


def test_an_added_token_with_the_sign_of_a_space_is_said(tmp_path):
    running = pytest.importorskip("tests.export.llama").Llama
    tokenizer = makers.legacy_pieces()
    tokenizer.add_tokens([AddedToken("▁foo", normalized=False)])
    folder = makers.make_model(tmp_path / "model", "llama", tokenizer)
    notes = export_gguf(folder, tmp_path / "out.gguf", "f16", progress=False)["notes"]
    assert any("llama.cpp finds ▁foo also where a text has a space" in note for note in notes)
    foo = tokenizer.convert_tokens_to_ids("▁foo")
    assert foo in running(tmp_path / "out.gguf").ids("a foo")
    assert foo not in tokenizer("a foo")["input_ids"]
