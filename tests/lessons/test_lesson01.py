"""Lesson 01: its functions equal bitsandbytes', its exercises name mistakes, its explorer is quick."""

import ast
import re
import time

import bitsandbytes.functional as bnb
import jupytext
import pytest
import torch

from helpers.course import disk as course
from helpers.lesson import checks
from helpers.models import resolving as models
from helpers.widgets import explorer
from tests.pace import paces

LESSON = jupytext.read(course.find_lesson("01"), fmt="py:percent")
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
            codes, absmax = lesson.quantize_blockwise(x, levels, block_size)
            restored = lesson.dequantize_blockwise(codes, absmax, levels, block_size, x.shape)
            theirs = bnb.dequantize_4bit(packed, state).view(x.shape)
            where = f"{dtype}, blocks of {block_size}"
            assert same_bits(lesson.pack_4bit(codes, filler), packed.flatten()), where
            assert same_bits(absmax, state.absmax), where
            assert restored.dtype == torch.float32
            # Adding 0.0 turns -0.0 into 0.0: FP4's code 8 is either, on two paths of bitsandbytes' own.
            signless = 0.0 if kind == "fp4" else -0.0
            assert same_bits(restored.to(dtype) + signless, theirs + signless), where


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
    codes, _ = lesson.quantize_blockwise(bell(7), lesson.nf4_levels(), 64)
    assert same_bits(lesson.pack_4bit(codes), bnb.quantize_4bit(bell(7), quant_type="nf4")[0])


def test_double_quantized_weights_equal_bitsandbytes_whole(lesson):
    x = bell(512 * 640).view(512, 640)
    packed, state = bnb.quantize_4bit(x, quant_type="nf4", compress_statistics=True)
    codes, absmax = lesson.quantize_blockwise(x, lesson.nf4_levels(), 64)
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
    assert torch.allclose(lesson.normal_levels(4), lesson.nf4_levels(), atol=1e-6)
    assert [len(lesson.normal_levels(bits)) for bits in (2, 3, 4)] == [4, 8, 16]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_infinities_and_nan_are_refused_with_their_number(lesson, bad):
    x = bell(100)
    x[[3, 50]] = bad
    with pytest.raises(ValueError, match="2 of 100 values are infinite or NaN"):
        lesson.quantize_blockwise(x, lesson.nf4_levels(), 64)
    with pytest.raises(ValueError, match="2 of 100 values are infinite or NaN"):
        lesson.double_quantize(x)


def test_the_definitions_are_short_and_use_torch_alone():
    wanted = {"nf4_levels", "quantize_blockwise", "dequantize_blockwise", "pack_4bit", "double_quantize"}
    found = {}
    for cell in LESSON.cells:
        if cell.cell_type == "code":
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.FunctionDef) and node.name in wanted:
                    found[node.name] = ast.get_source_segment(cell.source, node)
    assert set(found) == wanted
    for name, source in found.items():
        assert len(source.splitlines()) <= 12, name
        assert not re.search(r"\b(np|numpy|scipy|bnb|bitsandbytes)\.", source), name


# The exercises: a right answer, and wrong ones with a word that their hint must hold.


def nf3(normalise=True, zero=True, mirrored=False):
    offset = 1 - (1 / 16 + 1 / 14) / 2
    above = torch.special.ndtri(torch.linspace(offset, 0.5, 5)[:-1].double())
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, 4)[:-1].double())
    middle = torch.zeros(1) if zero else torch.full((1,), 0.05)
    levels = torch.cat([below, middle, above]).float().sort().values
    levels = levels / levels.max() if normalise else levels
    return -levels.flip(0) if mirrored else levels


def unpacked(packed):
    return torch.stack([packed >> 4, packed & 15], dim=1).flatten()


def t4(**changes):
    from transformers import BitsAndBytesConfig

    right = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float16}
    return BitsAndBytesConfig(**(right | {"bnb_4bit_use_double_quant": True} | changes))


BLOCKS = torch.tensor([[0.5, -2.0, 0.1, 1.0], [0.01, 0.02, -0.04, 0.03], [3.0, -1.0, 0.0, -6.0]])
ANSWERS = {
    "01.1": (
        lambda: 240.0,
        [(lambda: 256, "fraction"), (lambda: 480, "infinity"), (lambda: 120, "bias"), (lambda: 3, "bits")],
    ),
    "01.2": (
        lambda: BLOCKS.abs().amax(dim=1),
        [
            (lambda: BLOCKS.abs().max(), "whole tensor"),
            (lambda: 6.0, "whole tensor"),
            (lambda: BLOCKS.amax(dim=1), "abs"),
            (lambda: BLOCKS.abs().amax(dim=0), "column"),
        ],
    ),
    "01.3": (
        nf3,
        [
            (lambda: nf3(normalise=False), "not normalised"),
            (lambda: nf3(zero=False), "no level is zero"),
            (lambda: nf3(mirrored=True), "mirrored"),
            (lambda: nf3().flip(0), "sort"),
            (lambda: torch.cat([nf3(), torch.zeros(1)]), "8 levels"),
            (lambda: torch.arange(-4, 4) / 4, "offset"),
        ],
    ),
    "01.4": (
        lambda: 4 + 8 / 128 + 32 / (128 * 256),
        [
            (lambda: 4.25, "without double"),
            (lambda: 4.127, "64"),
            (lambda: 4.0625, "256"),
            (lambda: 0.5079, "bytes"),
            (lambda: 5, "add"),
        ],
    ),
    "01.5": (
        lambda: unpacked,
        [
            (lambda: lambda p: torch.stack([p & 15, p >> 4], dim=1).flatten(), "order swapped"),
            (lambda: lambda p: p >> 4, "half"),
            (lambda: lambda p: torch.cat([p >> 4, p & 15]), "interleave"),
            (lambda: lambda p: torch.stack([p >> 4, p], dim=1).flatten(), "mask"),
            (lambda: lambda p: None, "could not be checked"),
        ],
    ),
    "01.6": (
        t4,
        [
            (lambda: t4(bnb_4bit_compute_dtype=torch.bfloat16), "bfloat16"),
            (lambda: t4(bnb_4bit_compute_dtype=None), "float32"),
            (lambda: t4(bnb_4bit_quant_type="fp4"), "fp4"),
            (lambda: t4(bnb_4bit_use_double_quant=False), "0.373"),
            (lambda: t4(load_in_4bit=False, load_in_8bit=True), "8 bits"),
            (lambda: t4(load_in_4bit=False), "nothing"),
        ],
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_exercise_takes_the_right_answer(name, capsys):
    checks.check(name, ANSWERS[name][0]())
    assert capsys.readouterr().out == f"Exercise {name}: right.\n"


@pytest.mark.parametrize(("name", "i"), [(name, i) for name, (_, wrong) in ANSWERS.items() for i in range(len(wrong))])
def test_exercise_names_the_mistake(name, i, capsys):
    answer, word = ANSWERS[name][1][i]
    checks.check(name, answer())
    line = capsys.readouterr().out
    assert "not yet" in line
    assert word in line


def test_every_exercise_of_the_lesson_is_tested_with_two_wrong_answers():
    asked = set(re.findall(r'check\("(01\.\d)"', "\n".join(cell.source for cell in LESSON.cells)))
    assert asked == set(ANSWERS)
    assert len(asked) >= 5
    assert all(len(wrong) >= 2 for _, wrong in ANSWERS.values())


# The explorer.


@pytest.fixture(scope="module")
def sets(lesson):
    return {"NF4": lesson.nf4_levels(), "FP4": lesson.fp4_levels(), "int4": torch.arange(-7, 8) / 7}


def test_explorer_redraws_while_a_hand_still_moves(lesson, sets):
    settings = [(name, size, outlier) for name in sets for size in (32, 512, 16384) for outlier in (0, 100)]
    functions = lesson.quantize_blockwise, lesson.dequantize_blockwise
    explorer.draw(*functions, sets, *settings[0])  # imports and fonts
    units = [paces(lambda s=setting: explorer.draw(*functions, sets, *s), 3, time.perf_counter) for setting in settings]
    assert max(units) < 20  # 0.2 s where a unit takes 10 ms


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
    assert "relative error 9." in output["text/plain"]


def test_explorer_without_ipywidgets_shows_the_still_figure_alone(monkeypatch, lesson, sets):
    monkeypatch.setitem(__import__("sys").modules, "ipywidgets", None)
    assert set(shown(monkeypatch, lesson, sets)) == {"text/plain", "image/png"}
