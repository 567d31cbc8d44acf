# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 Troubleshooting
#
# A session often ends at the first stack trace. Here you cause most of the known failures yourself and read what is said about each.
# Where the cure takes seconds, it is run and checked too. Those that need a GPU are replayed from a recording, and section 11 lists all of them. Some say nothing at all and only give wrong answers; those are the ones to know best.
#
# **Time:** {{cpu_time}} on two CPU cores; {{t4_time}} on a T4. **Needs:** nothing; an adapter of lesson 03 is used if there is one, else
# one is trained.

# %% tags=["parameters"]
model_id = "bundled"  # most failures do not depend on the model; with a small one they come fast
dataset_id = "auto"
adapter_dir = "auto"
seed = 0
eval_rows = 64
output_dir = "auto"

# %% tags=["nbval-ignore-output"] reason="which adapter is there depends on what ran before"
from helpers.lesson import begin, check, record, table, verdict

run = begin(
    "06_troubleshooting", with_data=True,
    model_id=model_id, dataset_id=dataset_id, adapter_dir=adapter_dir, seed=seed, eval_rows=eval_rows, output_dir=output_dir,
)  # fmt: skip
settings = run.settings

# %% [markdown]
# ## 1 What the course says under an error
#
# Read a traceback from its end. The last line has the type of the error and its message; above it stand the calls that led there, and the
# lowest one with *your* code is where to look. In every notebook of this course, an error that is known gets an explanation under its
# traceback: the bootstrap cell switched that on. The traceback itself stays as it is.
#
# Here errors are wanted, so one function runs something, prints what Python's last line would be, and what the course has to say.

# %%
from helpers.failures import FAILURES, RENAMED, SECTIONS, explanation, recognise


def provoke(action):
    "Run `action`, which should fail; print the message and what is known about it. Returns the failure's name."
    known = None
    try:
        action()
        print("no error on this machine")
    except Exception as error:
        lines = f"{type(error).__name__}: {error}".strip().splitlines()
        known = recognise(error)
        print(*(line[:160] for line in lines[:2]), known, sep="\n")
    return known and known.failure.name


# %% [markdown]
# The most common one first: a cell above was not run.

# %%
found = provoke(lambda: trainer.train())
verdict("the course knows this error", found == "not-defined")

# %% [markdown]
# What was printed in a terminal goes to `python -m helpers explain < log.txt`, and a notebook that failed to `python -m helpers explain FILE`.
# Both use the same table as the cell above, and section 11 prints it.
#
# ## 2 The environment
#
# bitsandbytes comes with libraries for several CUDA versions. It takes the one of torch's CUDA, or the nearest of the same major version.
# Here are those of this release.

# %%
from pathlib import Path

import bitsandbytes as bnb
import torch

libraries = Path(bnb.__file__).parent.glob("libbitsandbytes_cuda*.so")
versions = sorted(file.stem.removeprefix("libbitsandbytes_cuda") for file in libraries)
print("libraries for CUDA:", ", ".join(f"{v[:-1]}.{v[-1]}" for v in versions))

# %% [markdown]
# The variable `BNB_CUDA_VERSION` overrides the choice. Old advice sets it; then torch moves on, and the variable stays. So doctor an
# environment, in a process of its own. Where torch has no GPU, it is made to claim one: only the search for the library is real then.

# %%
import os
import subprocess
import sys

code = """
import torch
if not torch.cuda.is_available():
    torch.cuda.is_available, torch.version.cuda = lambda: True, "13.0"
    torch.cuda.device_count, torch.cuda.get_device_capability = lambda: 1, lambda *_: (7, 5)
    torch._C._cuda_getCurrentRawStream = None
from bitsandbytes.cextension import lib
lib.get_context()
"""


# %%
def bitsandbytes_with(version):
    "What bitsandbytes says in a fresh Python in which BNB_CUDA_VERSION asks for `version`."
    environment = os.environ | {"BNB_CUDA_VERSION": version}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stderr


# %% [markdown]
# Ask for a version that does not exist, and for one of another major CUDA than torch's, whose runtime is not here.

# %%
from concurrent.futures import ThreadPoolExecutor

older = next((v for v in versions if v[:2] != (torch.version.cuda or "13.0")[:2]), None)
asked = ["999", older] if older else ["999"]
with ThreadPoolExecutor() as pool:
    logs = list(pool.map(bitsandbytes_with, asked))
for version, log in zip(asked, logs):
    cause = next((line for line in log.splitlines() if line.startswith("Original error: ")), "no error on this machine")
    print(
        f"BNB_CUDA_VERSION={version}: {cause.removeprefix('Original error: ').split(' at ')[0]}\n{explanation(log)}\n"
    )

# %% [markdown]
# A missing `libcudart` is rarely a missing library: something asked for another one than torch brought. `LD_LIBRARY_PATH`, which many texts
# recommend, helps only a CUDA that you installed yourself. The cure here is to take the variable away.

# %%
verdict("a library that does not exist is recognised", recognise(logs[0]).failure.name == "bitsandbytes-binary")
if older and "Original error" in logs[1]:  # a machine may have that runtime after all
    verdict("a missing CUDA runtime is recognised", recognise(logs[1]).failure.name == "libcudart")
weights = torch.randn(64, 64, device=run.machine.device)
restored = bnb.functional.dequantize_4bit(*bnb.functional.quantize_4bit(weights))
near = bool((restored - weights).abs().max() < weights.abs().max())
verdict("without the variable, bitsandbytes quantizes here", near)

# %% [markdown]
# Two more of this kind: a kind of attention that is a package of its own and needs a newer GPU than a T4, and a GPU that is not there.

# %%
from transformers import AutoModelForCausalLM

flash = {"attn_implementation": "flash_attention_2", "dtype": torch.float16}
found = provoke(lambda: AutoModelForCausalLM.from_pretrained(run.model.path, **flash))

# %% tags=["nbval-ignore-output"] reason="torch says it in other words where it was built with CUDA"
no_gpu = provoke(lambda: torch.zeros(1).to("cuda"))

# %%
if found:  # None where the package is installed
    verdict("flash attention that is not there is recognised", found == "flash-attention")
if run.machine.device == "cpu":
    verdict("a GPU that is not there is recognised", no_gpu == "no-gpu")
here = torch.zeros(1).to(run.machine.device)
verdict("the cure: name the device that this machine has", here.device.type == run.machine.device)

# %% [markdown]
# ## 3 Renamed arguments
#
# The libraries rename things, and the texts on the web stay. Some old names are refused, some still work and warn, some went with what
# they named. Ask the installed releases about each. First a listener: what libraries say by warning or by log is collected, not printed.

# %%
import contextlib
import logging
import warnings
from unittest.mock import patch


@contextlib.contextmanager
def listening():
    "Collect what libraries warn of, in place of showing it."
    heard, handler = [], logging.Handler()
    handler.emit = lambda entry: heard.append(entry.getMessage())
    with contextlib.ExitStack() as stack:
        for name in ("transformers", "bitsandbytes"):
            stack.enter_context(patch.object(logging.getLogger(name), "handlers", [handler]))
        warned = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("always")
        yield heard
    heard += [str(entry.message) for entry in warned]


# %% [markdown]
# Then what uses an old name as the old texts do: as an argument of a class or of `from_pretrained`, or as something to import.

# %%
import importlib

from trl import SFTConfig, SFTTrainer

on_cpu = run.machine.device == "cpu"
config = {"output_dir": str(run.folder / "checkpoints"), "use_cpu": on_cpu, "bf16": False, "report_to": "none"}
users = {
    "SFTTrainer": lambda **old: SFTTrainer(model=None, **old),
    "SFTConfig": lambda **old: SFTConfig(**config, **old),
    "from_pretrained": lambda **old: AutoModelForCausalLM.from_pretrained(run.model.path, **old),
}
values = {"torch_dtype": "float32", "gradient_checkpointing_kwargs": {"use_reentrant": False}}


def use(row):
    user = users.get(row.where)
    if user:
        user(**{row.old: values.get(row.old, True)})
    else:
        getattr(importlib.import_module(row.where), row.old)


# %% [markdown]
# Each name gets one of three answers. That a name works without a word is the one that must not come.


# %%
def answer_to(row):
    "What the installed release does with an old name, and the lines that it says."
    with listening() as heard:
        try:
            use(row)
        except (TypeError, AttributeError) as error:
            return "refused", [*heard, f"{type(error).__name__}: {error}"]
    return "works, and warns" if any(row.old in line for line in heard) else "works", heard


# %% [markdown]
# In the last column stands the release that renamed, moved or removed the name, where one was found in writing, and the thread that says
# so: trl#2162 is issue or pull request 2162 of the library trl on GitHub. A renamed one may have worked on for some releases.

# %% tags=["renamed"]
answers = [answer_to(row) for row in RENAMED]
rows = [(f"{row.where}: {row.old}", row.new, answer, row.since) for row, (answer, _) in zip(RENAMED, answers)]
table(rows, columns=("old", "today", "the installed release", "since"))


# %%
def told(row, lines):
    "Whether one of the lines is recognised as a rename, with the new name in what to do."
    found = [known for line in lines if (known := recognise(line))]
    return any(known.failure.name == "renamed" and row.new in known.do for known in found)


verdict("none of the old names works without a word", all(answer != "works" for answer, _ in answers))
recognised = [told(row, lines) for row, (_, lines) in zip(RENAMED, answers)]
verdict("each message is recognised, with the new name in what to do", all(recognised))

# %% [markdown]
# ## 4 The hub and the disk
#
# Five things can stand between you and a model or its data: no network, no such model, no such data, a gated page, no token. They must be
# told apart, for their cures differ. A small server plays the hub here and answers as the hub does to who is not logged in: 401 each time, and
# a header says whether the page is gated or not to be seen. The clients and their messages are the real ones.

# %%
import http.server
import threading


class Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        gated = "/meta-llama/" in self.path
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *words):
        pass


# %% [markdown]
# What asks is a Python of its own, with an empty cache and no token. It prints the last line of each error.

# %%
code = """
import sys, datasets, huggingface_hub, transformers
ways = {
    "model": transformers.AutoConfig.from_pretrained,
    "data": datasets.load_dataset,
    "with-token": lambda name: huggingface_hub.hf_hub_download(name, "config.json", token=True),
}
for way, name in (line.split() for line in sys.argv[1:]):
    call = ways[way]
    try:
        call(name)
    except Exception as error:
        print(f"{type(error).__name__}: {error}".replace(chr(10), " "))
"""

# %% [markdown]
# Two surroundings: one in which this server is the hub, and one with no network.

# %%
import tempfile

hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=hub.serve_forever, daemon=True).start()
no_token = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
empty = no_token | {"HF_HOME": tempfile.mkdtemp(), "NO_PROXY": "127.0.0.1"}
online = empty | {
    "HF_HUB_OFFLINE": "0",
    "HF_DATASETS_OFFLINE": "0",
    "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
}
offline = empty | {"HF_HUB_OFFLINE": "1"}


def ask(environment, *calls):
    command = [sys.executable, "-c", code, *calls]
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout.splitlines()


# %% [markdown]
# A gated model, a model and data that do not exist, a call that insists on a token; and a model without a network.

# %%
questions = [
    "model meta-llama/Llama-3.1-8B",
    "model nobody/nothing",
    "data nobody/nothing",
    "with-token meta-llama/Llama-3.1-8B",
]
with ThreadPoolExecutor() as pool:
    here, nowhere = pool.submit(ask, online, *questions), pool.submit(ask, offline, "model Qwen/Qwen2.5-0.5B")
hub.shutdown()
messages = here.result() + nowhere.result()
for message in messages:
    print(f"{message[:110]}\n{explanation(message)}\n")

# %%
names = [recognise(message).failure.name for message in messages]
wanted = ["gated", "unknown-model", "unknown-dataset", "no-token", "no-network"]
verdict("gated, no such model, no such data, no token and no network are told apart", names == wanted)

# %% [markdown]
# In the course's own loading, each ends in one line; with `model_id = "auto"` and no network the bundled model takes over.
#
# ### A full disk
#
# A large model takes many GB, and each checkpoint more. Linux has a device that is always full: write to it.

# %%
full = Path("/dev/full")
if full.exists():
    found = provoke(lambda: full.write_text("a checkpoint"))
    verdict("a full disk is recognised", found == "disk-full")

# %% [markdown]
# The check costs one line: compare what is free with what will be written, before the run. Here for a 7B model in 16 bits. This course also
# writes each new file or folder beside the old one and then puts it in its place: a full disk costs you the new one only.

# %% tags=["nbval-ignore-output"] reason="disks differ"
import shutil

from helpers.models import PRESETS, RECIPES, base_of

free, needed = shutil.disk_usage(run.folder).free, PRESETS["qwen2.5-7b"].download_bytes
print(f"free {free / 1e9:.0f} GB, needed {needed / 1e9:.1f} GB:", "enough" if free > needed else "not enough")

# %% [markdown]
# ## 5 Number formats
#
# ### bfloat16 where there is none
#
# You need not ask for bfloat16 to get it: `SFTConfig` does, unless you say `fp16=True`. On a CPU that is refused.

# %%
plain = {"output_dir": config["output_dir"], "report_to": "none"}
bf16 = provoke(lambda: SFTConfig(**plain))
if on_cpu:
    verdict("bfloat16 without a GPU is recognised", bf16 == "bfloat16")

# %% [markdown]
# On a T4 nothing is refused, which is worse. `torch.cuda.is_bf16_supported()` says True there, for it counts emulation
# ([pytorch#148322](https://github.com/pytorch/pytorch/issues/148322)), and the run is slow. Ask the hardware: bfloat16 units came with compute
# capability 8.0. The cure is one rule for every machine, and this course keeps it in `run.machine.dtype`.

# %%
cured = SFTConfig(
    **plain,
    use_cpu=on_cpu,
    fp16=run.machine.dtype == "float16",
    bf16=run.machine.dtype == "bfloat16",
)
for name, capability in {"T4": (7, 5), "A100": (8, 0)}.items():
    print(f"{name}, capability {capability[0]}.{capability[1]}:", "bfloat16" if capability >= (8, 0) else "float16")
both = provoke(lambda: SFTConfig(**plain, use_cpu=True, fp16=True, bf16=True))
verdict("both formats at once are refused, and that is recognised", both == "two-formats")
verdict(
    "with the machine's own format the config is accepted", cured.fp16 + cured.bf16 == (run.machine.device != "cpu")
)

# %% [markdown]
# ### float16, and what the gradient scaler cannot take
#
# float16 holds nothing smaller than two to the power of -24, so the trainer multiplies the loss by a large number and divides the gradients
# by it again. The part that divides takes neither bfloat16 nor float16 gradients. Two errors follow, and on a T4 you will meet the first: TRL makes the adapters of a
# quantized model bfloat16. It needs a GPU; this is what one said.

# %%
import json

from helpers import COURSE_ROOT

recorded = {row["name"]: row for row in json.loads((COURSE_ROOT / "measurements" / "h200_failures.json").read_text())}


def replay(name):
    "Show what a GPU really said, as `provoke` does, and whether the same work ran after the cure."
    row = recorded[name]
    print(f"{row['type']}: {row['message']}"[:760])
    print(f"[{row['device']}, torch {row['versions']['torch']}, trl {row['versions']['trl']}, {row['date']}]")
    known = recognise(f"{row['type']}: {row['message']}")
    print(known)
    return known and known.failure.name


# %% tags=["nbval-ignore-output"] reason="a recording, which may be made anew"
found = replay("scaler-bfloat16")

# %%
verdict("it is recognised, and on that GPU the cure worked", found == "scaler-bfloat16" and recorded[found]["cured"])

# %% [markdown]
# The second comes when what is trained is float16 itself. The scaler works on a CPU too, so cause it here.


# %%
def scaled_step(dtype):
    weight = torch.nn.Parameter(torch.ones(4, dtype=dtype))
    optimizer, scaler = torch.optim.SGD([weight], lr=0.1), torch.amp.GradScaler("cpu")
    scaler.scale((weight.float() ** 2).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    return weight


found = provoke(lambda: scaled_step(torch.float16))

# %%
verdict("it is recognised", found == "unscale-fp16")
verdict("in float32 the same step is taken", bool((scaled_step(torch.float32) < 1).all()))
verdict(
    "and the GPU said the same, and was cured the same way", recorded[found]["provoked"] and recorded[found]["cured"]
)

# %% [markdown]
# ### Formats that do not meet
#
# Cast one layer by itself, and the next input does not fit. Cast a 4-bit model, and it refuses: its weights are packed codes.

# %%
from helpers.quick import adapter_for, load_4bit

base, tokenizer = load_4bit(run.model, run.machine)
layer = torch.nn.Linear(4, 4)
differ = provoke(lambda: layer.half()(torch.zeros(1, 4)))
print()
cast = provoke(lambda: base.half())

# %%
verdict("both are recognised", (differ, cast) == ("dtypes-differ", "cast-quantized"))
verdict("one format for layer and input is the cure", layer.float()(torch.zeros(1, 4)).dtype == torch.float32)

# %% [markdown]
# ### Formats that meet, slowly
#
# The default of `bnb_4bit_compute_dtype` is float32. Load the rest of the model in float16, and every 4-bit layer casts its input to
# float32, multiplies in float32, and casts the result back. Nothing fails, and with a loaded model nothing warns. Only a clock shows it.

# %%
with listening() as heard:
    layer = bnb.nn.Linear4bit(64, 64, compute_dtype=torch.float32).to(run.machine.device)
    out = layer(torch.zeros(2, 64, dtype=torch.float16, device=run.machine.device))
silent = out.dtype == torch.float16 and not heard
verdict("float16 input to a float32 layer comes back as float16, without a word", silent)

# %% [markdown]
# So time one layer, forward and backward, with formats that meet and formats that do not.

# %%
import time


def milliseconds(compute_dtype, input_dtype, repeats=3):
    layer = bnb.nn.Linear4bit(256, 256, bias=False, compute_dtype=compute_dtype, quant_type="nf4")
    layer = layer.to(run.machine.device)
    layer.support_avx512bf16_for_cpu = False  # see helpers/training/workarounds.py
    x = torch.randn(128, 256, device=run.machine.device, dtype=input_dtype, requires_grad=True)
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        layer(x).sum().backward()
        x.grad.sum().item()  # waits for a GPU
        times.append(1000 * (time.perf_counter() - begun))
    return min(times)


# %% tags=["nbval-ignore-output"] reason="milliseconds vary"
for compute, given in ((torch.float32, torch.float32), (torch.float32, torch.float16), (torch.float16, torch.float16)):
    print(f"{run.machine.device}: compute {compute}, input {given}: {milliseconds(compute, given):.2f} ms")
if slow := recorded.get("slow-dtype", {}).get("milliseconds"):
    times = ", ".join(f"compute {name} {ms:.2f} ms" for name, ms in slow.items())
    print(f"recorded on an {recorded['slow-dtype']['device']}, input torch.float16: {times}")

# %% [markdown]
# A GPU is many times faster in float16 than in float32: NVIDIA lists 65 TFLOPS and 8.1 [for a T4](https://www.nvidia.com/en-us/data-center/tesla-t4/).
# Many a CPU has no float16 units at all, and float32 is its fast format:
# that is why `run.machine.dtype` is float32 there. What is fast is a property of the machine. Set all three alike: `dtype`,
# `bnb_4bit_compute_dtype`, and `fp16` or `bf16`.

# %% [markdown]
# ## 6 No gradient
#
# A loss must reach what is trained. Here are three ways to cut it off; the first two share one message. First: an adapter that is loaded as it is for
# inference, which is frozen.

# %%
from peft import LoraConfig, PeftModel, get_peft_model

from helpers.data import alpaca_prompt, to_prompt_completion

adapter, made_now = adapter_for(run)
texts = [
    alpaca_prompt(r["instruction"], r["input"]) + r["output"] + tokenizer.eos_token
    for r in run.rows["train"].select(range(8))
]
batch = tokenizer(texts, return_tensors="pt", padding=True).to(base.device)
labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)


def backward(model):
    model.train()
    model(**batch, labels=labels, use_cache=False).loss.backward()


frozen = PeftModel.from_pretrained(base, adapter)
found = provoke(lambda: backward(frozen))

# %%
cured = PeftModel.from_pretrained(frozen.unload(), adapter, is_trainable=True)
backward(cured)
with_gradient = [p.grad is not None for p in cured.parameters() if p.requires_grad]
verdict("the frozen adapter is recognised", found == "no-gradient")
verdict("with is_trainable=True every adapter tensor gets a gradient", len(with_gradient) > 0 and all(with_gradient))

# %% [markdown]
# Second: checkpointing. In its reentrant form it follows only inputs that carry a gradient, and token embeddings of a frozen model carry
# none. transformers marks them itself today; take the mark away, and you have what older releases did.

# %%
base = cured.unload()
base.activation_checkpointing_enable({"use_reentrant": True})
base.disable_input_require_grads()
cut = PeftModel.from_pretrained(base, adapter, is_trainable=True)
cut.disable_input_require_grads()
with listening() as heard:
    found = provoke(lambda: backward(cut))
warning = next(line for line in heard if "requires_grad" in line)
print("and a warning:", warning)

# %%
cut.enable_input_require_grads()
with listening():
    backward(cut)
verdict(
    "the cut path is recognised, by its error and by its warning",
    {found, recognise(warning).failure.name} == {"no-gradient"},
)
verdict(
    "with enable_input_require_grads the gradients arrive",
    all(p.grad is not None for p in cut.parameters() if p.requires_grad),
)
base = cut.unload()
base.activation_checkpointing_disable()

# %% [markdown]
# Third: no adapter at all. The trainer refuses before the first step, in words of its own.

# %%
arguments = SFTConfig(
    **config, max_steps=1, activation_checkpointing=False, gradient_checkpointing=None, disable_tqdm=True
)
rows = run.rows["train"].select(range(16)).map(to_prompt_completion, remove_columns=run.rows["train"].column_names)
found = provoke(
    lambda: SFTTrainer(
        model=load_4bit(run.model, run.machine)[0], args=arguments, train_dataset=rows, processing_class=tokenizer
    )
)
verdict("it is recognised", found == "purely-quantized")

# %%
lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
trainer = SFTTrainer(
    model=load_4bit(run.model, run.machine)[0],
    args=arguments,
    train_dataset=rows,
    processing_class=tokenizer,
    peft_config=lora,
)
verdict("with adapters the trainer is built, and they are what it trains",
        {"lora_" in name for name, p in trainer.model.named_parameters() if p.requires_grad} == {True})  # fmt: skip
del trainer

# %% [markdown]
# ## 7 A loss that is NaN, or stuck
#
# Train adapters that are float16 themselves. Adam divides by the root of an average plus a small constant, 1e-8: in float16 that is 0, and
# where the gradient was 0 as well, 0 / 0 is no number.


# %%
def few_steps(dtype, learning_rate, steps=3):
    torch.manual_seed(settings.seed)
    model, _ = load_4bit(run.model, run.machine)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.data = p.data.to(dtype)
    optimizer, losses = torch.optim.AdamW(trained, lr=learning_rate), []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model.train()(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), losses


# %%
right = RECIPES["bundled" if run.model.bundled else "other"]["learning_rate"]
broken, losses = few_steps(torch.float16, right)
print("in numbers:", ["nan" if loss != loss else "a number" for loss in losses])
prompt = tokenizer(alpaca_prompt("What is the capital of Norway?"), return_tensors="pt").to(broken.device)
with torch.no_grad():
    likely = broken(**prompt).logits[0, -1].float().softmax(-1).cpu()  # on a GPU the draw would end the kernel
found = provoke(lambda: torch.multinomial(likely, 1))
del broken

# %%
log = "{'loss': '0', 'grad_norm': 'nan', 'learning_rate': '0.003'}"  # logging_nan_inf_filter shows a NaN loss as 0
verdict(
    "one step is enough: the loss is NaN from then on",
    losses[0] == losses[0] and all(loss != loss for loss in losses[1:]),
)
verdict(
    "it is recognised, where the model is used and in a training log",
    {found, recognise(log).failure.name} == {"nan-loss"},
)
verdict(
    "with float32 adapters the same steps lower the loss", (cured := few_steps(torch.float32, right)[1])[-1] < cured[0]
)

# %% [markdown]
# And stuck? Often it is the learning rate. Three of them, on the same eight rows: one right, one a thousand times smaller, one a hundred
# times larger.

# %%
rates = {"right": right, "a thousandth": right / 1000, "a hundredfold": right * 100}
curves = {name: few_steps(torch.float32, rate, steps=8)[1] for name, rate in rates.items()}

# %%
from helpers import plots

fell = {name: losses[0] - losses[-1] for name, losses in curves.items()}
figure = plots.curves(
    {f"{name}: {rates[name]:g}": (range(1, 9), losses) for name, losses in curves.items()},
    f"In 8 steps the loss falls by {fell['right']:.1f}; at a thousandth of the rate by {fell['a thousandth']:.2f}",
    "step", "loss (nats a token)",
)  # fmt: skip
plots.show(
    figure, alt="Loss over eight steps at three learning rates: the right one, a thousandth and a hundred times of it"
)

# %%
verdict("a thousandth of the right rate hardly moves the loss", fell["a thousandth"] < fell["right"] / 10)
if run.model.bundled:  # its right rate was found by trying; the recipe for other models is the usual one
    verdict("a hundredfold ends higher than the right one", not curves["a hundredfold"][-1] <= curves["right"][-1])

# %% [markdown]
# A loss of 0 has two meanings. The Trainer shows NaN as 0, and a notebook's table shows nothing else: look at `grad_norm` in
# `trainer.state.log_history`. If it is nan, the loss is NaN. If it is 0 as well, every label is masked, and no learning rate helps.
#
# ## 8 Out of memory
#
# What a GPU said that was held to a T4's memory, in a forward pass of too many rows:

# %% tags=["nbval-ignore-output"] reason="a recording, which may be made anew"
found = replay("out-of-memory")

# %%
verdict("it is recognised, and fewer rows ran afterwards", found == "out-of-memory" and recorded[found]["cured"])

# %% [markdown]
# Read its numbers. *Allocated* is what tensors hold. *Reserved but unallocated* is what torch keeps in pieces too small for the request. Add what
# is allocated and what was asked for: if that is less than what is allowed, the room was there, in pieces. Then set
# `os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"` in the first cell of a fresh kernel, before torch is imported.
#
# What was wanted at the end is rarely what filled the memory. What did, lesson 02 works out. Here is the order
# for one example. Start from Mistral-7B with everything that costs: no checkpointing, float32 copies, plain Adam. Take the cure that saves most,
# then the one that saves most of the rest, and so on. A plain `SFTTrainer` is not that wasteful: `SFTConfig` checkpoints by default, and it does not
# call `prepare_model_for_kbit_training`. If you changed neither, begin at the third bar.

# %%
import dataclasses

from helpers.memory import GPUS, RunSpec, fits, predict

mistral = PRESETS["mistral-7b"].shape
costly = RunSpec(rank=16, target_modules="all-linear", batch_size=4, seq_len=512, optimizer="adamw_torch", double_quant=False,
                 upcast_non_quantized=True, checkpoint_every=0, attention_kernels="t4")  # fmt: skip
cures = {
    "activation_checkpointing=True": {"checkpoint_every": 1},
    "no prepare_model_for_kbit_training": {"upcast_non_quantized": False},
    "half the rows, twice the accumulation": {"batch_size": 2},
    "half of max_length": {"seq_len": 256},
    "adapters on q, k, v, o alone": {"target_modules": ("q_proj", "k_proj", "v_proj", "o_proj")},
    "half the rank": {"rank": 8},
    "double quantization": {"double_quant": True},
    "paged 8-bit Adam": {"optimizer": "paged_adamw_8bit"},
    "repeat key and value heads (T4)": {"repeat_kv": True},
}


# %%
def peak(spec):
    return predict(mistral, spec).peak_allocated


ladder, left = [("everything that costs", costly)], dict(cures)
while left:
    now = ladder[-1][1]
    best = min(left, key=lambda name: peak(dataclasses.replace(now, **left[name])))
    ladder.append((best, dataclasses.replace(now, **left.pop(best))))

# %% [markdown]
# That is arithmetic. Is it measured? In `measurements/` there are pairs of runs on a GPU that differ in one setting alone. Find them. The
# runs of lesson 03's speed table are among them; two of their settings change no prediction, so `predict` does not know them.

# %%
from helpers.records import measured_pairs, measured_runs, nearest_pair

pairs = measured_pairs()
table(pairs.groupby("differs_in").size(), columns=("the setting that differs", "pairs"))

# %% [markdown]
# For each cure take the pair whose settings are nearest to the ladder's, before the cure and after it. Beside what it saved there stands
# what `predict` says of the same two runs. Where a cure halves something, a pair that halves it too comes first.


# %%
def predicted(measured):
    spec = {name: value for name, value in measured.spec.items() if name in RunSpec.__dataclass_fields__}
    return predict(measured.config, spec).peak_allocated


def measured_pair(cure, before, after):
    "Two measured runs near a step of the ladder, what the cure saved there, and what `predict` says that it saves."
    (key,) = cures[cure]
    found = nearest_pair(key, before, after)
    if found is None:
        return "not measured", None, None
    a, b = found
    runs = f"{a.model}, {a.batch_size} x {a.seq_len}, {key}: {a[key]} to {b[key]}"
    return runs, (a.peak_bytes - b.peak_bytes) / 2**30, (predicted(a) - predicted(b)) / 2**30


# %% tags=["cures"]
import itertools

rows = [
    (name, peak(after) / 2**30, (peak(before) - peak(after)) / 2**30, *measured_pair(name, before, after))
    for (_, before), (name, after) in itertools.pairwise(ladder)
]
headings = ("cure, the one that saves most first", "predicted peak after it", "saves here")
table(rows, "{:.2f} GiB", columns=(*headings, "measured on", "saved there", "predicted for it"))

# %%
t4 = GPUS["t4"].total_bytes
peaks = {name: peak(spec) for name, spec in ladder}
good = [fits(predict(mistral, spec, "t4"), "t4") for _, spec in ladder]
figure = plots.bars(
    list(peaks), [after / 2**30 for after in peaks.values()],
    f"Mistral-7B with everything that costs fits a T4 after {good.index(True)} of {len(cures)} cures", "predicted peak (GiB)",
    line=t4 / 2**30, line_label="a T4's memory",
    colours=[plots.COLOURS["green" if enough else "orange"] for enough in good],
)  # fmt: skip
(ax,) = figure.axes
for colour, meaning in {plots.COLOURS["orange"]: "does not fit a T4", plots.COLOURS["green"]: "fits"}.items():
    ax.scatter([], [], marker="s", color=colour, label=meaning)
ax.legend(frameon=False, loc="lower right")
plots.show(
    figure,
    alt="Predicted peak memory of Mistral-7B after each cure, from the costliest settings down to the leanest, orange where it is more than a T4 has",
)

# %% [markdown]
# The measured pairs have other settings, mostly longer rows, so they save other amounts: compare the last two columns with each other. The pair
# for Adam starts from the paged 32-bit one. Some of these runs were known when the formulas were written, others were predicted blind:
# `measurements/README.md` tells which.

# %%
savings = [before - after for before, after in itertools.pairwise(peaks.values())]
first_most = ladder[1][0].startswith("activation") and savings[0] > sum(savings[1:])
verdict("checkpointing comes first and saves more than all others together", first_most)
paired = measured_runs().loc[sorted({*pairs.costlier, *pairs.cheaper})]
off = [abs(predicted(row) / row.peak_bytes - 1) for _, row in paired.iterrows()]
verdict("each run of the measured pairs was predicted within one percent", max(off) < 0.01)

# %% [markdown]
# What do they cost? Leaving out `prepare_model_for_kbit_training` and repeating the heads cost nothing that was measured here. Checkpointing computes
# each layer's forward pass twice. Fewer rows with more accumulation learn the same, a bit slower. A shorter `max_length` cuts long rows off, and
# fewer or smaller adapters train less: take these last, whatever they save. `python -m helpers memory predict MODEL --gpu t4 --plan` chooses for you.
#
# Two relatives. The computer's own memory can run out instead of the GPU's, and a `device_map` can put 4-bit layers where they cannot be.

# %%
host = provoke(lambda: torch.empty(10**14, device="cpu"))
print()
split = provoke(lambda: AutoModelForCausalLM.from_pretrained(
    run.model.path, device_map={"model": 0, "lm_head": "cpu"}, quantization_config=base.config.quantization_config))  # fmt: skip

# %%
verdict("both are recognised", (host, split) == ("host-memory", "does-not-fit"))
verdict("the cure: all of it on one device", {p.device.type for p in base.parameters()} == {run.machine.device})

# %% [markdown]
# ## 9 Parts that do not belong together
#
# Model, tokenizer, adapter and data come from different places. These mistakes do raise, each in its own words. Here is a row of them, on a
# tiny model of another shape.

# %%
from transformers import AutoTokenizer, LlamaConfig

shape = LlamaConfig(vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2)
stranger = AutoModelForCausalLM.from_config(shape)
lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
unknown_names = LoraConfig(r=4, target_modules=["query", "value"], task_type="CAUSAL_LM")
mistakes = {
    "wrong-base": ("an adapter on a model of another shape", lambda: PeftModel.from_pretrained(stranger, adapter)),
    "target-modules": ("projections by another model's names", lambda: get_peft_model(stranger, unknown_names)),
    "no-adapter": ("a folder with no adapter in it", lambda: PeftModel.from_pretrained(stranger, run.folder)),
    "no-peft": ("merging where no adapter is", lambda: stranger.merge_and_unload()),
}  # fmt: skip

# %% [markdown]
# Those were adapters. These are tokens and rows.

# %%
bare, two = AutoTokenizer.from_pretrained(run.model.path), ["one", "and a longer one"]
bare.pad_token = None
mistakes |= {
    "pad-token": ("padding, and no padding token", lambda: bare(two, padding=True)),
    "ragged-batch": ("rows of different lengths, not padded", lambda: tokenizer(two, return_tensors="pt")),
    "not-a-tensor": ("text where token ids belong", lambda: stranger("What is the capital of Norway?")),
    "not-token-ids": ("scores where token ids belong", lambda: tokenizer.decode(stranger(input_ids=torch.tensor([[5]])))),
    "token-out-of-range": ("the tokenizer of a larger vocabulary", lambda: stranger(input_ids=torch.tensor([[1000]]))),
    "data-split": ("a part that the data do not have", lambda: run.rows["validation"]),
    "data-columns": ("rows that were not prepared", lambda: SFTTrainer(model=stranger, args=arguments, peft_config=lora,
                     train_dataset=run.rows["train"].select(range(4)), processing_class=tokenizer)),
}  # fmt: skip


# %%
def raised_by(action):
    try:
        action()
    except Exception as error:
        return error


errors = {name: raised_by(action) for name, (_, action) in mistakes.items()}
known = {name: error and recognise(error) for name, error in errors.items()}
rows = [(mistakes[n][0], type(errors[n]).__name__, it and it.failure.name, it and it.do) for n, it in known.items()]
table(rows, columns=("mistake", "error", "recognised as", "what to do"))

# %%
verdict("each of them is recognised as what it is", all(it and it.failure.name == name for name, it in known.items()))

# %% [markdown]
# Two look different on a GPU: a tensor that stayed on the CPU, and a token id that is out of range. After the second one the GPU is lost to the
# kernel: every later call fails with the same message, wherever it is.

# %% tags=["nbval-ignore-output"] reason="a recording, which may be made anew"
device = replay("devices-differ")
print()
token = replay("token-out-of-range")
verdict("both are recognised", (device, token) == ("devices-differ", "token-out-of-range"))
verdict("on that GPU, inputs on the model's device were the cure", recorded["devices-differ"]["cured"])

# %% [markdown]
# ## 10 It runs, and the answers are wrong
#
# No message, no traceback. First see it right: the adapter, its own base, its own template.

# %%
from helpers.evaluation import answer, exact_match

heldout = run.rows["heldout"].select(range(min(settings.eval_rows, len(run.rows["heldout"]))))
tuned = PeftModel.from_pretrained(base, adapter).eval()
match = {"all as in training": exact_match(tuned, tokenizer, heldout)}

# %% [markdown]
# ### The wrong template
#
# The model learned to answer after one exact form. Change the form a little, and look what is left.

# %%


def share_right(prompts):
    answers = answer(tuned, tokenizer, prompts)
    return sum(said == row["output"].strip() for said, row in zip(answers, heldout)) / len(heldout)


asked = [alpaca_prompt(row["instruction"], row["input"]) for row in heldout]
match["no newline at the end"] = share_right([prompt.rstrip("\n") for prompt in asked])
match["no header"] = share_right([prompt[prompt.index("### Instruction") :] for prompt in asked])
match["the question alone, no newline"] = share_right(
    [f"{row['instruction']} {row['input']}".strip() for row in heldout]
)

# %% [markdown]
# ### Right padding
#
# Rows of a batch are padded to one length. On the right, the padding stands between the prompt and the answer. transformers says a word about
# it in the log, where it is easily missed.


# %%
def answers_padded(side):
    tokenizer.padding_side = side
    inputs = tokenizer(asked, return_tensors="pt", padding=True).to(tuned.device)
    new = tuned.generate(**inputs, max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.pad_token_id)[
        :, inputs["input_ids"].shape[1] :
    ]
    return [text.strip() for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


with listening() as heard:
    for side in ("right", "left"):
        match[f"padded on the {side}"] = sum(
            a == row["output"].strip() for a, row in zip(answers_padded(side), heldout)
        ) / len(heldout)
warned = next(line for line in heard if "padding" in line)
print(warned, explanation(warned), sep="\n")

# %% [markdown]
# ### Another base of the same shape
#
# Same shape, other weights: here random ones. PEFT has nothing to complain of.

# %%
from transformers import AutoConfig

if run.model.bundled:
    torch.manual_seed(settings.seed)
    other = (
        AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(run.model.path))
        .to(run.machine.torch_dtype)
        .to(run.machine.device)
    )
    match["another base of the same shape"] = exact_match(
        PeftModel.from_pretrained(other, adapter).eval(), tokenizer, heldout
    )
verdict(
    "the adapter's own config names the base it belongs to",
    base_of(adapter) == ("bundled" if run.model.bundled else run.model.path),
)

# %% tags=["nbval-ignore-output"] reason="the last rows right or wrong vary with the processor"
table(match, "{:.0%}", columns=("how it was asked", f"right, of {len(heldout)} held-out rows"))

# %%
if run.model.bundled and len(heldout) >= 32:
    best = match["all as in training"]
    verdict("padded on the left a batch answers as well as it can", match["padded on the left"] >= best - 0.05)
    verdict(
        "without template and newline most of what was tuned is lost",
        match["the question alone, no newline"] < best / 2,
    )
    verdict(
        "one missing newline loses more than the whole header does", match["no newline at the end"] < match["no header"]
    )
    verdict("padding on the right loses most of it too", match["padded on the right"] < best / 2)
    verdict("and on another base nothing is left", match["another base of the same shape"] < 0.1)

# %% [markdown]
# A newline more or less is another token, and after that token this model never saw an answer begin. The long header, which looks so
# important, is the same in every row: the model learned to look past it. Lesson 04 asks the question alone with the newline at its end, and
# most answers are right. You cannot guess which part matters, so use one function for
# training and for use.
#
# ### A model that never stops
#
# A common recipe: `tokenizer.pad_token = tokenizer.eos_token`, and transformers' `DataCollatorForLanguageModeling`. It masks every
# padding token in the labels, and now each end of sequence is one ([transformers#23530](https://github.com/huggingface/transformers/issues/23530)).
# Look at the labels of one batch: with a padding token of its own, and without.

# %%
from transformers import DataCollatorForLanguageModeling


def collator(own_padding_token):
    its = AutoTokenizer.from_pretrained(run.model.path)
    if not own_padding_token:
        its.pad_token = its.eos_token
    return DataCollatorForLanguageModeling(its, mlm=False)


kept = {
    own: (collator(own)([tokenizer(text) for text in texts])["labels"] == tokenizer.eos_token_id).sum().item()
    for own in (True, False)
}
print(
    f"ends of sequence among the labels of {len(texts)} rows: {kept[True]} with its own padding token, {kept[False]} without"
)

# %% [markdown]
# Train both ways, sixteen short steps each, and count how many answers end before they are cut off.


# %%
def train_with(collate, steps=16, rows=16):
    torch.manual_seed(settings.seed)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(load_4bit(run.model, run.machine)[0], lora)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=right)
    for step in range(steps):
        chosen = run.rows["train"].select(range(step * rows, (step + 1) * rows))
        texts = [alpaca_prompt(r["instruction"], r["input"]) + r["output"] + tokenizer.eos_token for r in chosen]
        model.train()(**collate([tokenizer(text) for text in texts]).to(model.device)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def share_that_stops(model):
    inputs = tokenizer(asked[:32], return_tensors="pt", padding=True).to(model.device)
    tokens = model.generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return (tokens[:, inputs["input_ids"].shape[1] :] == tokenizer.eos_token_id).any(1).float().mean().item()


stops = {own: share_that_stops(train_with(collator(own))) for own in (True, False)}

# %% tags=["nbval-ignore-output"] reason="shares vary with the processor"
print(f"answers that end: {stops[True]:.0%} with its own padding token, {stops[False]:.0%} with eos as padding")
print(f"answers that end with lesson 03's adapter, whose labels SFTTrainer made: {share_that_stops(tuned):.0%}")

# %%
if tokenizer.pad_token_id != tokenizer.eos_token_id:
    verdict(
        "with eos as padding no end of sequence is among the labels; with its own padding token all are",
        (kept[True], kept[False]) == (len(texts), 0),
    )
if run.model.bundled:
    verdict(
        "trained on the first, most answers never end; trained on the second, most do", stops[False] < 0.5 < stops[True]
    )

# %% [markdown]
# So look at one batch of labels before a long run. `SFTTrainer` masks by position and appends the end of sequence itself, and with it
# `pad_token = eos_token` does no harm.
#
# ### A merge that erased the tuning
#
# Take the adapter at a fiftieth of its strength, to see the effect at its clearest (lesson 05 trains a weak one). Merge it into the 4-bit
# weights, and into dequantized ones (lesson 05), and see how far each is from the model with the adapter beside it. 0 is that model, 1 is as far
# away as the untuned base.


# %%
def weakened(model):
    model = PeftModel.from_pretrained(model, adapter)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data *= 0.02
    return model.eval()


def logits(model):
    with torch.no_grad():
        return torch.stack(
            [model(**tokenizer(p, return_tensors="pt").to(model.device)).logits[0, -1].float().cpu() for p in asked[:8]]
        )


# %% [markdown]
# First the model that is wanted, with the adapter beside its weights, and the untuned one; then the two merges.

# %%
beside = weakened(load_4bit(run.model, run.machine)[0])
wanted = logits(beside)
with beside.disable_adapter():
    untuned = logits(beside)
with listening() as heard:
    in_four_bits = logits(beside.merge_and_unload())
dequantized = weakened(load_4bit(run.model, run.machine)[0].dequantize().to(run.machine.torch_dtype)).merge_and_unload()
distance = {way: ((got - wanted).norm() / (untuned - wanted).norm()).item()
            for way, got in {"into 4-bit weights": in_four_bits, "into dequantized weights": logits(dequantized)}.items()}  # fmt: skip
warned = next(line for line in heard if "Merge lora" in line)
print(warned, explanation(warned), sep="\n")

# %% tags=["nbval-ignore-output"] reason="the last digits vary with the processor"
for way, how_far in distance.items():
    print(f"merged {way}: {how_far:.2g} of the way back to the untuned base")

# %%
verdict("the warning of the 4-bit merge is recognised", recognise(warned).failure.name == "merge-rounds")
if run.machine.dtype == "float32":
    verdict(
        "merged into 4 bits, the model is as far off as the untuned base, or nearly",
        distance["into 4-bit weights"] > 0.9,
    )
    verdict(
        "merged into dequantized weights, it is the one that was trained", distance["into dequantized weights"] < 0.01
    )

# %% [markdown]
# ## 11 All of them
#
# This is the table that explains errors in every notebook of the course, row by row, by section of this lesson. A name in angle brackets
# stands for what the message said.

# %% tags=["failures"]
from IPython.display import Markdown, display

for number, title in SECTIONS.items():
    rows = [(it.shown, it.general(it.means), it.general(it.do)) for it in FAILURES if it.section == number]
    shown = table(rows, columns=("what you see", "what it means", "what to do"))
    display(Markdown(f"**{number} {title}**"), shown)

# %%
record(
    failures=len(FAILURES), renamed=len(RENAMED), adapter_made_now=made_now, exact_match=match, answers_that_stop={str(k): v for k, v in stops.items()},
    merge_distance=distance, ladder_gib={name: after / 2**30 for name, after in peaks.items()}, measured_pairs=pairs.differs_in.nunique(),
)  # fmt: skip
verdict("every failure has a place in this lesson", {it.section for it in FAILURES} == set(SECTIONS))

# %% [markdown]
# ## Exercises
#
# **1.** A friend sends this line: `TypeError: Qwen2ForCausalLM.__init__() got an unexpected keyword argument 'load_in_4bit'`. Which argument of
# `from_pretrained` takes what is needed today?

# %%
argument = ...
check("06.1", argument)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# argument = "quantization_config"
# check("06.1", argument)
# ```
# </details>
#
# **2.** These settings are from an old text, for a T4: `SFTConfig(max_seq_length=256, evaluation_strategy="no", warmup_ratio=0.1, bf16=True)`. Give
# the settings of today with the same meaning, with the format that a T4 is fast in, as a dictionary. The check builds an `SFTConfig` of it.

# %%
settings_of_today = ...
check("06.2", settings_of_today)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# settings_of_today = {"max_length": 256, "eval_strategy": "no", "warmup_steps": 0.1, "fp16": True, "bf16": False}
# check("06.2", settings_of_today)
# ```
# </details>
#
# **3.** A run with `per_device_train_batch_size=8` and `gradient_accumulation_steps=2` is out of memory. Halve the rows that go through at once,
# and leave what one optimizer step sees as it is. Give the two numbers as a pair.

# %%
rows_and_accumulation = ...
check("06.3", rows_and_accumulation)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# rows_and_accumulation = (4, 4)
# check("06.3", rows_and_accumulation)
# ```
# </details>
#
# **4.** Write the check that catches a model that will never stop, before it is trained: a function of `labels` (a list of rows, each a list of
# token ids, with -100 where masked) and `eos` (a token id). It returns True if every row has `eos` among its labels.

# %%
learns_to_stop = ...
check("06.4", learns_to_stop)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def learns_to_stop(labels, eos):
#     return all(eos in row for row in labels)
#
#
# check("06.4", learns_to_stop)
# ```
# </details>
#
# **5.** Which of these raise no error at all? `"wrong template"`, `"gated model"`, `"eos as padding"`, `"adapter on another shape"`,
# `"adapter on another base of the same shape"`, `"4-bit merge of a weak adapter"`. Give a set of names.

# %%
silent = ...
check("06.5", silent)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# silent = {"wrong template", "eos as padding", "adapter on another base of the same shape", "4-bit merge of a weak adapter"}
# check("06.5", silent)
# ```
# </details>
#
# ## What you saw

# %% tags=["nbval-ignore-output"] reason="the numbers of this run"
table({
    "failures in the table": f"{len(FAILURES)}, of which {sum(not it.patterns for it in FAILURES)} have no message",
    "old names that the installed releases refuse or warn of": str(len(RENAMED)),
    "Mistral-7B, from everything that costs to the last cure": f"{peak(ladder[0][1]) / 2**30:.1f} to {peak(ladder[-1][1]) / 2**30:.1f} GiB",
    "right answers, with the template, and without it and its newline": f"{match['all as in training']:.0%}, {match['the question alone, no newline']:.0%}",
    "answers that end, with eos as label and masked": f"{stops[True]:.0%}, {stops[False]:.0%}",
    "a weak adapter merged into 4 bits, and dequantized": " and ".join(f"{d:.2g}" for d in distance.values()),
}, columns=("question", "this run"))  # fmt: skip

# %% [markdown]
# When none of it fits: reduce it to the smallest cell that still fails, on the bundled model if you can, and read the last line again. Run
# `python -m helpers doctor` and put what it prints into your question.
#
# This is the last lesson. Run [lesson 03](03_t4_training.ipynb) with other parameters; the README shows how.
