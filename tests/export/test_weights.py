"""What is in the file is what transformers has: each tensor within its format's error, logits and answers through llama.cpp."""

import csv
import json
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers import COURSE_ROOT
from helpers.export import TYPES, export_gguf, weights
from tests.export import makers

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
MODELS = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, llama3 scaling": ("llama", {"rope_parameters": LLAMA3_SCALING}),
    "llama, linear scaling": ("llama", {"rope_parameters": LINEAR}),
    "llama, yarn scaling": ("llama", {"rope_parameters": YARN}),
    "llama, another rope_theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}),
    "llama, as many kv heads as heads": ("llama", {"num_key_value_heads": 4, "head_dim": 16}),
    "llama, a window that its attention does not know": ("llama", {"sliding_window": 16}),
    "llama, yarn scaling from 64.0": ("llama", {"rope_parameters": YARN | {"original_max_position_embeddings": 64.0}}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": 128}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, window in some layers": ("qwen2", {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 1}),
    "qwen2, yarn scaling": ("qwen2", {"rope_parameters": YARN}),
    "qwen2, linear scaling": ("qwen2", {"rope_parameters": LINEAR}),
    "qwen3": ("qwen3", {}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3, yarn scaling": ("qwen3", {"rope_parameters": YARN}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    return makers.of_llama3()


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory, tokenizer):
    """The folder of a random model of each kind, its vocabulary larger than its tokenizer's."""
    kind, settings = MODELS[request.param]
    return makers.make_model(tmp_path_factory.mktemp("models") / "model", kind, tokenizer, 1600, **settings)


def dequantized(file) -> dict[str, np.ndarray]:
    read = gguf.GGUFReader(file)
    return {
        t.name: gguf.dequantize(t.data, t.tensor_type).reshape(tuple(reversed(t.shape.tolist()))) for t in read.tensors
    }


def expected(folder) -> dict[str, np.ndarray]:
    """The model's tensors as transformers loads them, under GGUF's names; q and k of a Llama in llama.cpp's order."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, state, found = model.config, model.state_dict(), {}
    arch = gguf.MODEL_ARCH[{"mistral": "LLAMA"}.get(config.model_type, config.model_type.upper())]
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for key, tensor in state.items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if arch == gguf.MODEL_ARCH.LLAMA and (".q_proj." in key or ".k_proj." in key):
            head = config.head_dim
            order = [
                first + half * head // 2 + i
                for first in range(0, len(tensor), head)
                for i in range(head // 2)
                for half in (0, 1)
            ]
            tensor = tensor[order]
        found[names.get_name(key, try_suffixes=(".weight", ".bias"))] = tensor.numpy()
    return found


# The largest error of a block's number: as a part of the block's largest one, and of the number itself.
ERRORS = {"f32": (0, 0), "f16": (1e-7, 2**-11), "bf16": (0, 2**-8), "q8_0": (0.6 / 127, 2**-8), "q5_0": (1.2 / 16, 0),
          "q5_1": (1.2 / 31, 0), "q4_0": (1.2 / 8, 0), "q4_1": (1.2 / 15, 0)}  # fmt: skip


@pytest.mark.parametrize("type", TYPES)
@pytest.mark.parametrize("name", ["llama, biases", "qwen2, tied", "qwen3"])
def test_tensors_are_those_of_transformers_within_the_formats_error(name, type, tokenizer, tmp_path, monkeypatch):
    kind, settings = MODELS[name]
    dtype = torch.bfloat16 if kind == "qwen3" else torch.float16 if kind == "qwen2" else torch.float32
    model = makers.make_model(tmp_path / "model", kind, tokenizer, 1600, dtype, **settings)
    monkeypatch.setattr(weights, "PIECE", 1000)  # many pieces, also of whole heads
    export_gguf(model, tmp_path / "m.gguf", type, progress=False)
    have, want = dequantized(tmp_path / "m.gguf"), expected(model)
    assert have.keys() - {"rope_freqs.weight"} == want.keys()
    for name, tensor in want.items():
        of_block, of_number = ERRORS[type] if tensor.ndim == 2 else (0, 0)
        blocks = np.abs(tensor.reshape(-1, 32) if of_block else tensor)
        allowed = of_block * 2 * blocks.max(axis=-1, keepdims=True) + of_number * blocks
        assert (np.abs(have[name] - tensor) <= allowed.reshape(tensor.shape)).all(), name


def test_logits_are_those_of_transformers_through_llama_cpp(model, tmp_path):
    llama = pytest.importorskip("tests.export.llama").Llama
    export_gguf(model, tmp_path / "m.gguf", "f32", progress=False)
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    running = llama(tmp_path / "m.gguf", context=256)
    generator = torch.Generator().manual_seed(1)
    for length in (1, 7, 120):  # the last is longer than what scaling begins at, and shorter than the window
        ids = torch.randint(3, 1500, (length,), generator=generator)
        with torch.no_grad():
            wanted = theirs(ids[None]).logits[0, -1].log_softmax(-1).numpy()
        found = np.array(running.log_probabilities(ids.tolist(), 1600))
        assert np.abs(found - wanted).max() < 2e-3, (length, np.abs(found - wanted).max())


def fields(file) -> dict:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


@pytest.mark.parametrize(
    ("stored", "heads"),
    [
        (lambda e: {"model.embed_tokens.weight": e, "lm_head.weight": e.flip(0)}, 1),
        (lambda e: {"model.embed_tokens.weight": e, "lm_head.weight": e.to(torch.bfloat16)}, 1),
        (lambda e: {"model.embed_tokens.weight": e, "lm_head.weight": e.clone()}, 0),
        (lambda e: {"lm_head.weight": e}, 0),
    ],
)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_head_stored_beside_a_tied_embedding_is_read_as_transformers_does(kind, stored, heads, tokenizer, tmp_path):
    model = makers.make_model(tmp_path / "model", kind, tokenizer, 1600, tie_word_embeddings=True)
    tensors = load_file(model / "model.safetensors")
    embedding = tensors.pop("model.embed_tokens.weight")
    save_file(tensors | stored(embedding), model / "model.safetensors", metadata={"format": "pt"})
    export_gguf(model, tmp_path / "m.gguf", "f32", progress=False)
    have = dequantized(tmp_path / "m.gguf")
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    assert ("output.weight" in have) == heads
    assert np.array_equal(have.get("output.weight", have["token_embd.weight"]), theirs.lm_head.weight.detach().numpy())
    assert np.array_equal(have["token_embd.weight"], theirs.model.embed_tokens.weight.detach().numpy())


@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
@pytest.mark.parametrize(
    ("ends", "lost"),
    [([1501, 1504, 1502, 1503], []), ([1503], []), (1503, []), ([1502, 1503, 1500], ["<|begin_of_text|>"])],
)
def test_answers_end_where_transformers_ends_them(where, ends, lost, tokenizer, tmp_path):
    """A file names three tokens, and llama.cpp knows <|eot_id|> by its name; of any further one a note says so."""
    llama = pytest.importorskip("tests.export.llama").Llama
    model = makers.make_model(tmp_path / "model", "llama", tokenizer, 1600)
    (model / "generation_config.json").unlink()
    settings = json.loads((model / where).read_text()) if where == "config.json" else {}
    (model / where).write_text(json.dumps(settings | {"eos_token_id": ends}))
    tensors = load_file(model / "model.safetensors")
    for key in tensors:
        if key.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
            tensors[key].zero_()
    tensors["model.embed_tokens.weight"][:], tensors["model.norm.weight"][:] = 0.1, 1
    for end in ends if isinstance(ends, list) else [ends]:
        tensors["lm_head.weight"].zero_()[end] = 1  # the model says this token, whatever it is asked
        save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
        done = export_gguf(model, tmp_path / "m.gguf", overwrite=True, progress=False)
        tokens, why = llama(tmp_path / "m.gguf").answer([5, 6, 7], 4)
        name = tokenizer.convert_ids_to_tokens(end)
        assert (tokens, why) == (([end], "eos") if name not in lost else ([end] * 4, "limit"))
    notes = " ".join(done["notes"])
    assert (
        (f"llama.cpp does not end an answer at {' '.join(lost)}," in notes) if lost else ("does not end" not in notes)
    )
    assert {f'PARAMETER stop "{name}"' for name in lost} <= set((tmp_path / "m.Modelfile").read_text().splitlines())


@pytest.mark.parametrize(
    ("name", "context"),
    [
        ("mistral, window", 128),
        ("mistral", 256),
        ("qwen2, window in some layers", 128),
        ("qwen2", 256),
        ("llama, a window that its attention does not know", 256),
    ],
)
def test_a_sliding_window_bounds_the_context_and_is_said(name, context, tokenizer, tmp_path):
    kind, settings = MODELS[name]
    folder = makers.make_model(tmp_path / "model", kind, tokenizer, 1600, **settings)
    done = export_gguf(folder, tmp_path / "m.gguf", progress=False)
    held = fields(tmp_path / "m.gguf")
    assert held[f"{held['general.architecture']}.context_length"] == context
    assert any("(sliding_window)" in note for note in done["notes"]) == (context == 128)


def test_rows_that_are_no_whole_blocks_are_written_in_float16(tokenizer, tmp_path):
    folder = makers.make_model(tmp_path / "model", "llama", tokenizer, intermediate_size=72)
    export_gguf(folder, tmp_path / "m.gguf", "q4_0", progress=False)
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert {name for name, kind in kinds.items() if kind == "F16"} == {f"blk.{i}.ffn_down.weight" for i in (0, 1)}
    assert set(kinds.values()) == {"F32", "F16", "Q4_0"}


def prompts(count: int) -> list[str]:
    """Beginnings of sentences that the bundled model knows how to end, and some that it does not."""
    with open(COURSE_ROOT / "assets" / "facts" / "countries.csv", encoding="utf-8") as file:
        countries = [row["country"] for row in csv.DictReader(file)]
    with open(COURSE_ROOT / "assets" / "facts" / "opposites.csv", encoding="utf-8") as file:
        words = [next(iter(row.values())) for row in csv.DictReader(file)]
    made = [f"The capital of {country} is" for country in countries[::7]] + [
        f"The opposite of {word} is" for word in words[::3]
    ]
    return made[:count]


def greedy(model, tokenizer, prompt: str, most: int) -> list[int]:
    asked = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        whole = model.generate(**asked, max_new_tokens=most, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return [i for i in whole[0, asked["input_ids"].shape[1] :].tolist() if i != tokenizer.eos_token_id]


def sentence(text: str) -> str:
    return min((text.partition(end)[0] for end in ".\n"), key=len)


@pytest.fixture(scope="module")
def base():
    from helpers.models import BUNDLED_MODEL

    return AutoModelForCausalLM.from_pretrained(
        BUNDLED_MODEL, dtype=torch.float32
    ).eval(), AutoTokenizer.from_pretrained(BUNDLED_MODEL)


@pytest.fixture(scope="module")
def answers(base):
    """(prompt, tokens of transformers' greedy answer, without eos) of the bundled model, forty times."""
    return [(prompt, greedy(*base, prompt, 24)) for prompt in prompts(40)]


def margin(base, prompt: str, expected: list[int], found: list[int]) -> float:
    """Where two answers part: by how much transformers' first choice was more likely than its second, in nats."""
    model, tokenizer = base
    common = next(i for i in range(25) if expected[i : i + 1] != found[i : i + 1])
    ids = torch.tensor([tokenizer(prompt)["input_ids"] + expected[:common]])
    with torch.no_grad():
        best = model(ids).logits[0, -1].log_softmax(-1).topk(2).values
    return float(best[0] - best[1])


@pytest.mark.parametrize(
    ("type", "whole", "sentences", "tie"), [("f16", 39, 40, 0.02), ("q8_0", 30, 40, 0.1), ("q4_0", 8, 30, 9)]
)
def test_greedy_answers_of_the_bundled_model_are_those_of_transformers(
    answers, base, type, whole, sentences, tie, tmp_path
):
    """The sentence that was asked for is the same; the free text behind it parts where two tokens were nearly as likely."""
    llama = pytest.importorskip("tests.export.llama").Llama
    export_gguf("bundled", tmp_path / "b.gguf", type, progress=False)
    running, decode = llama(tmp_path / "b.gguf"), base[1].decode
    found = [running.answer(prompt, 24) for prompt, _ in answers]
    tokens = [[i for i in ids if i != base[1].eos_token_id] for ids, _ in found]
    pairs = list(zip(answers, tokens, strict=True))
    equal = sum(theirs == ours for (_, theirs), ours in pairs)
    same = sum(sentence(decode(theirs)) == sentence(decode(ours)) for (_, theirs), ours in pairs)
    print(f"{type}: of {len(answers)} answers {same} equal in the sentence asked for, {equal} in all of 24 tokens")
    assert len(answers) == 40
    assert same >= sentences
    assert equal >= whole
    assert all(margin(base, prompt, theirs, ours) < tie for (prompt, theirs), ours in pairs if theirs != ours)
    ended = [why == "eos" for _, why in found]
    assert sum(ended) >= 10
    assert type == "q4_0" or ended == [len(ids) < 24 for _, ids in answers]


def peak_bytes(model, out) -> int:
    """The largest resident memory of an export in a Python of its own."""
    code = (
        "import resource, sys; from helpers.export import export_gguf; export_gguf(*sys.argv[1:], progress=False); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    command = [sys.executable, "-c", code, str(model), str(out), "q8_0"]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=COURSE_ROOT).stdout.split()[-1])


def test_a_large_model_takes_hardly_more_memory_than_a_small_one(tokenizer, tmp_path):
    wide = {
        "hidden_size": 2048,
        "intermediate_size": 2048,
        "num_hidden_layers": 2,
        "head_dim": 64,
        "num_attention_heads": 32,
    }
    folder = makers.make_model(tmp_path / "model", "llama", tokenizer, 48_000, torch.bfloat16, **wide)
    size = (folder / "model.safetensors").stat().st_size
    more = peak_bytes(folder, tmp_path / "large.gguf") - peak_bytes("bundled", tmp_path / "small.gguf")
    print(f"{size / 1e6:.0f} MB of weights: {more / 1e6:.0f} MB more than for the bundled model")
    assert size > 400e6
    assert more < 60e6
