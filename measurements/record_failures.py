"""Provoke the failures that need a GPU, each in a process of its own, and keep what was really said.

    python measurements/record_failures.py OUT.json                  all of them: one GPU, under a minute
    python measurements/record_failures.py OUT.json --only NAME ...  some of them
    python measurements/record_failures.py OUT.json --cpu            a dry run of the same lines without a GPU

Writes a JSON list, one row a failure: `name` (its name in helpers/failures/table.toml), `provoked` (whether the error that was
meant came), `type`, `message`, `tail` (the last two frames of the traceback), `cured` (None where the cure needs a fresh
process, else whether the same work ran after it), `cure` in words, device, versions, date. slow-dtype raises nothing:
its row holds `milliseconds`. The GPU is held to a T4's rules (float16, 14.56 GiB). Lesson 06 replays these messages;
tests/gpu/test_failures.py provokes them again.
"""

import argparse
import contextlib
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")
SECONDS = 240  # a child that takes longer is stopped
FAILURES: dict[str, "Failure"] = {}


class Failure:
    """One failure: what provokes it, a part of the message that is expected, and how it is cured."""

    def __init__(self, provoke, says: str, cure: str, environment: dict):
        self.provoke, self.says, self.cure, self.environment = provoke, says, cure, environment


def failure(name: str, says: str, cure: str = "", **environment):
    """Register a generator: what runs before its `yield` must raise, what follows is the same work with the cure."""

    def add(function):
        FAILURES[name] = Failure(function, says, cure, environment)
        return function

    return add


# ------------------------------------------------------------------------------------------------ the failures


@failure("scaler-bfloat16", "not implemented for 'BFloat16'", "trainable parameters to float32 before train()")
def gradient_scaler_meets_bfloat16():
    from helpers.training import adapters_to_float32

    yield lambda: trainer(quantized=True).train()
    yield lambda: adapters_to_float32(trainer(quantized=True)).train()


@failure("unscale-fp16", "Attempting to unscale FP16 gradients", "trainable parameters to float32 before train()")
def gradient_scaler_meets_float16():
    from helpers.training import adapters_to_float32

    yield lambda: trainer(quantized=False).train()
    yield lambda: adapters_to_float32(trainer(quantized=False)).train()


@failure("out-of-memory", "out of memory", "fewer rows at once")
def more_rows_than_fit():
    import torch

    model, _ = base(quantized=True)
    model.train()
    model.enable_input_require_grads()
    gpu = model.device.type == "cuda"

    def step(rows):
        ids = torch.randint(3, 1000, (rows, 512), device=model.device)
        model(input_ids=ids, labels=ids).loss.backward()

    yield lambda: step(4096) if gpu else torch.empty(10**14)
    if gpu:
        torch.cuda.empty_cache()
    yield lambda: step(8)


@failure("devices-differ", "same device", "inputs.to(model.device)")
def inputs_left_on_the_cpu():
    model, tokenizer = base(quantized=True)
    inputs = tokenizer("What is the capital of", return_tensors="pt")
    yield lambda: model(**inputs)
    yield lambda: model(**inputs.to(model.device))


@failure("token-out-of-range", "device-side assert", "a tokenizer that belongs to the model, in a new process")
def a_token_id_past_the_table():
    import torch

    model, _ = base(quantized=True)
    ids = torch.full((1, 4), 10**6, device=model.device)
    yield lambda: model(input_ids=ids).logits.sum().item()


@failure("no-gpu", "CUDA", "a GPU runtime, or device 'cpu'", CUDA_VISIBLE_DEVICES="")
def a_gpu_that_is_not_there():
    import torch

    yield lambda: torch.zeros(1).to("cuda")
    yield lambda: torch.zeros(1).to("cuda" if torch.cuda.is_available() else "cpu")


@failure("flash-attention", "lash", 'attn_implementation="sdpa"')
def flash_attention_that_is_not_installed():
    yield lambda: base(quantized=True, attn_implementation="flash_attention_2")
    yield lambda: base(quantized=True, attn_implementation="sdpa")


@failure("slow-dtype", "", "bnb_4bit_compute_dtype=torch.float16, as the input")
def float16_input_and_float32_compute():
    yield compute_times


@failure("bitsandbytes-binary", "No compatible", "unset BNB_CUDA_VERSION", BNB_CUDA_VERSION="999")
def bitsandbytes_for_a_cuda_that_does_not_exist():
    yield quantize_natively


@failure(
    "libcudart", "libcudart", "unset BNB_CUDA_VERSION; install bitsandbytes for torch's CUDA", BNB_CUDA_VERSION="118"
)
def a_cuda_runtime_that_is_not_there():
    folder = Path(next(p for p in sys.path if (Path(p) / "bitsandbytes" / "__init__.py").is_file())) / "bitsandbytes"
    if not (folder / "libbitsandbytes_cuda118.so").is_file():  # a package cut down to one CUDA: ask a copy for another
        copy = Path(tempfile.mkdtemp()) / "bitsandbytes"
        shutil.copytree(folder, copy)
        library = next(copy.glob("libbitsandbytes_cuda*.so"))
        wanted = re.search(rb"libcudart\.so\.\d\d", library.read_bytes())[0]
        doctored = library.read_bytes().replace(wanted, b"libcudart.so.99")
        (copy / "libbitsandbytes_cuda118.so").write_bytes(doctored)
        sys.path.insert(0, str(copy.parent))
    yield quantize_natively


# ------------------------------------------------------------------------------------------- what they are made of


def base(quantized: bool, **more):
    """(model, tokenizer): the bundled model, in 4 bits or in 16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    from helpers.machine import hardware as machine
    from helpers.models import resolving as models
    from helpers.training import workarounds

    here = machine.detect()
    dtype = torch.float16 if here.device == "cuda" else torch.float32
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    path = str(models.BUNDLED_MODEL)
    more |= {"quantization_config": config} if quantized else {}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, device_map=here.device_map, **more)
    return workarounds.keep_4bit_layout(model), AutoTokenizer.from_pretrained(path)


def trainer(quantized: bool):
    """A trainer of one short step in fp16; the adapters are as TRL leaves them (4-bit base) or in float16 (16-bit base)."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from transformers import PrinterCallback
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = base(quantized)
    gpu = model.device.type == "cuda"
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    made = {"peft_config": lora}
    if not quantized:
        model, made = get_peft_model(model, lora, autocast_adapter_dtype=False), {}
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=2, max_length=64, fp16=gpu, use_cpu=not gpu,
        activation_checkpointing=False, gradient_checkpointing=None, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    rows = Dataset.from_list([{"prompt": "Name a colour.\n", "completion": "blue"}] * 4)
    built = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, **made)
    built.remove_callback(PrinterCallback)
    return built


def compute_times(tokens: int = 2048, repeats: int = 5) -> dict:
    """Milliseconds of forward and backward on float16 input, with each compute format: nothing warns of the slow one.

    One layer of Mistral-7B's largest shape, 4096 to 14336; the best of `repeats`, after one to warm up.
    """
    import time

    import bitsandbytes as bnb
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        tokens, repeats = 16, 1
    milliseconds = {}
    for name in ("float32", "float16"):
        layer = bnb.nn.Linear4bit(4096, 14336, bias=False, compute_dtype=getattr(torch, name), quant_type="nf4").to(
            device
        )
        x = torch.randn(tokens, 4096, device=device, dtype=torch.float16, requires_grad=True)
        times = []
        for _ in range(repeats + 1):
            begun = time.perf_counter()
            layer(x).sum().backward()
            x.grad.sum().item()  # waits for the GPU
            times.append(1000 * (time.perf_counter() - begun))
        milliseconds[name] = round(min(times[1:]), 3)
    return {"provoked": True, "milliseconds": milliseconds, "tokens": tokens}


def quantize_natively():
    """Call bitsandbytes' native library. Where torch sees no GPU it is made to say that it does: only the loading is real."""
    import torch

    if not torch.cuda.is_available():
        torch.cuda.is_available, torch.version.cuda = lambda: True, "13.0"
        torch.cuda.device_count, torch.cuda.get_device_capability = lambda: 1, lambda *_: (7, 5)
        torch._C._cuda_getCurrentRawStream = None
    from bitsandbytes.cextension import lib

    lib.cquantize_blockwise_fp16_nf4()


# ------------------------------------------------------------------------------------------------------ recording


def provoke_one(name: str) -> dict:
    """Provoke one failure in this process; returns its row. Never raises for what the failure raises."""
    it, row = (
        FAILURES[name],
        {"name": name, "provoked": False, "type": None, "message": None, "tail": [], "cured": None},
    )
    row["cure"] = it.cure
    steps = iter(())
    with contextlib.redirect_stdout(sys.stderr):
        try:
            steps = it.provoke()
            result = next(steps)()
            if (
                type(result) is dict
            ):  # a measurement fills in its own row; what a model returns is a kind of dict as well
                row |= result
        except BaseException as error:  # KeyboardInterrupt of a child is a row as well
            row |= describe(error)
            row["provoked"] = it.says in row["message"]
            error.__traceback__ = None  # frees the tensors that its frames hold
        try:
            for work in steps:
                work()
                row["cured"] = True
        except BaseException as error:
            row["cured"], row["after_cure"] = False, f"{type(error).__name__}: {short(str(error))}"
    return row


def describe(error: BaseException) -> dict:
    """Type, message and the last lines of the traceback, without the places of this machine."""
    lines = "".join(traceback.format_tb(error.__traceback__)[-2:]).splitlines()
    return {
        "type": type(error).__name__,
        "module": type(error).__module__,
        "message": short(str(error)),
        "tail": [short(line) for line in lines],
    }


def short(text: str) -> str:
    """`text` with absolute paths cut down to what follows site-packages, or to the file's name."""
    text = re.sub(r"(?<![\w.])/\S*?/(?:site|dist)-packages/", "", text)
    return re.sub(r"(?<![\w.:/])/(?:[\w.+@-]+/)+([\w.+@-]+)", r"\1", text)


def record(names: list[str], cpu: bool = False, workers: int = 4) -> list[dict]:
    """Each failure in a process of its own, a few at a time; returns the rows in order. One lost row loses no other."""

    def child(name: str) -> dict:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "row.json"
            surroundings = os.environ | {
                "HF_HUB_OFFLINE": "1",
                "COURSE_T4_RULES": "1",
                "TOKENIZERS_PARALLELISM": "false",
            }
            surroundings["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
            surroundings.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one GPU: SFTTrainer refuses several
            surroundings |= FAILURES[name].environment | ({"CUDA_VISIBLE_DEVICES": ""} if cpu else {})
            command = [sys.executable, __file__, str(out), "--child", name]
            said = ""
            try:
                done = subprocess.run(
                    command, capture_output=True, text=True, env=surroundings, timeout=SECONDS, errors="replace"
                )
                said = done.stderr
            except subprocess.TimeoutExpired:
                said = f"no end after {SECONDS} s"
            if out.is_file():
                return json.loads(out.read_text(encoding="utf-8"))
            return {
                "name": name,
                "provoked": False,
                "type": None,
                "message": None,
                "tail": short(said).splitlines()[-12:],
            }

    with ThreadPoolExecutor(workers) as pool:
        rows = list(pool.map(child, names))
    about = surroundings_of()
    return [row | about for row in rows]


def surroundings_of() -> dict:
    """Device, capability, versions and date, for every row."""
    import torch

    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name(0) if gpu else "CPU",
        "capability": list(torch.cuda.get_device_capability(0)) if gpu else None,
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": sys.version.split()[0], "cuda": torch.version.cuda},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="*", choices=sorted(FAILURES), help="some of the failures")
    parser.add_argument("--cpu", action="store_true", help="a dry run: the lines are run, few of the failures can come")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        arguments.out.write_text(json.dumps(provoke_one(arguments.child)), encoding="utf-8")
        sys.stdout.flush()
        os._exit(0)  # a GPU after a device-side assert cannot be shut down in order
    if arguments.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    rows = record(arguments.only or list(FAILURES), arguments.cpu)
    arguments.out.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for row in rows:
        said = (row["message"] or " ".join(row["tail"][-1:]) or "nothing").strip().splitlines()[0][:90]
        came = "provoked" if row["provoked"] else "NOT"
        print(f"{row['name']:<20}{came:<10}cured: {row.get('cured')!s:<6}{row['type']}: {said}")
    return 0 if all(row["provoked"] for row in rows) or arguments.cpu else 1


if __name__ == "__main__":
    sys.exit(main())
