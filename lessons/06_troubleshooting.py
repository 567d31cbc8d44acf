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
# At the end of this lesson you can name the cause of a failed run: from its error, or from its symptoms where there is none.
#
# You will learn to
#
# - tell from the loss, the gradient and a few answers what is wrong with a run that ended without any error;
# - read an error from its end, and look up what is known about it;
# - cure the failures that stop a run most often;
# - work out why a GPU had no memory left to give, and which settings to change in which order.
#
# Has a run of yours failed just now? Look for the last line that begins with a type, such as `RuntimeError:`. It or the lines below it say where to go:
#
# | what it says | section |
# |---|---|
# | `device-side assert triggered` | 3 |
# | `got an unexpected keyword argument` | 4 |
# | `bitsandbytes native library functionality but it's not available` | 5 |
# | `401`, `403` or `gated repo` | 6 |
# | `unscale FP16 gradients`, or `not implemented for 'BFloat16'` | 7 |
# | `does not require grad` | 8 |
# | `CUDA out of memory` | 9 |
# | `PytorchStreamReader failed`, `Killed`, or the notebook restarted by itself | 10 |
# | `num_samples should be a positive integer value` | 11 |
# | no error, and `grad_norm` is nan, or the loss is 0 or nan | 2 (run E) and 11 |
# | no error, and a bad model | 1 and 2 |
# | something else | [the page of failures](../site/failures.md) |
#
# Or let the course look. These work in a notebook of your own too, on Colab and on Kaggle:
#
# - Copy the set-up cell of this notebook into yours, and run it. It fetches the course into the folder `qlora-course` and installs what is missing. From then on each error that the course knows is explained under its traceback.
# - For a log that you saved beside your notebook: `!cd qlora-course && python -m helpers explain ../log.txt`
# - For a notebook that failed, and was saved there: `!cd qlora-course && python -m helpers explain ../NAME.ipynb`
#
# If you read on, you meet the twelve failures that people ask about most: five that raise no error (sections 1 and 2), and seven that do (sections 4 to 10). Section 11 adds one of each kind. You cause each of them, or replay what a GPU said, and a public thread is linked.
#
# **Time:** 50 minutes to read, 60 for the exercises. The cells take {{cpu_time}} on two CPU cores; {{t4_time}} on a T4. **Needs:** lesson 03, and no GPU:
# what only a GPU says was recorded on one.

# %% tags=["parameters"]
seed = 0
eval_rows = 32  # held-out questions that each run is asked
output_dir = "auto"

# %%
from helpers.lesson import begin, check, record, table, verdict

run = begin("06_troubleshooting", with_data=True, model_id="bundled", dataset_id="bundled",
            seed=seed, eval_rows=eval_rows, output_dir=output_dir)  # fmt: skip

# %% [markdown]
# ## 1 Six runs, and five of them are broken
#
# The next cell makes six runs of the small model that comes with the course: one as it should be, and five with a fault. None of the five
# raises an error. Each of them ends and looks finished. (A run is a training and the questions that are asked afterwards. Two of the faults come after the training.)

# %% tags=["broken-runs"]
from helpers.quick import broken_runs

heldout = run.rows["heldout"].select(range(min(run.settings.eval_rows, len(run.rows["heldout"]))))
runs = broken_runs(run, heldout)

# %% tags=["nbval-ignore-output"] reason="the last digits of a loss vary with the processor"
from helpers import plots


def curve(name):
    "(steps, losses) as the trainer logged them."
    return [entry["step"] for entry in runs[name].log], [float(entry["loss"]) for entry in runs[name].log]


lines = {"healthy, and also A and D": curve("healthy"), "B": curve("B"), "C": curve("C"), "E": curve("E")}
figure = plots.curves(lines, "By the training loss B looks worst, and E best", "step", "training loss (nats per token)")
plots.show(
    figure,
    alt="Training loss over the steps: healthy, A, D, C and E fall quickly, E to zero, and B stays where it began",
)

# %% [markdown]
# A run shows more than its training loss. [*grad_norm*](../site/glossary.md#grad_norm) is the length of the [gradient](../site/glossary.md#gradient): how strongly the loss pulls at what
# is trained. The held-out [loss](../site/glossary.md#loss) is measured afterwards, on rows that no run was trained on, and always in the form of the training. For each run the questions are asked as its user asked them, which may be wrong. The last two columns say how many
# of the questions are answered exactly, and how many answers come to an end by themselves, before they are cut off.

# %% tags=["nbval-ignore-output", "symptoms"] reason="the last digits of a loss vary with the processor"
symptoms = {name: ended.symptoms for name, ended in runs.items()}
table(symptoms, "{:.3f}", columns=("run",), right="{:.0%}", answers_that_end="{:.0%}")

# %% tags=["nbval-ignore-output"] reason="what a broken model says varies with the processor"
answers = []
for place in range(min(4, len(heldout))):
    answers.append([heldout[place]["output"], *(ended.answers[place][:30] for ended in runs.values())])
table(answers, columns=("expected", *runs))

# %% [markdown]
# Stop here and write down, for each letter, what you think is wrong. There are seven suspects, and two of them are innocent: `"learning rate"`, `"number format"` (of what was trained),
# `"padding"` (the token that fills rows up), `"template"` (of the questions), `"adapter not loaded"`, `"training mode"` (while answering) and `"too few rows"`.
#
# ## 2 The five that said nothing
#
# Name the fault of each run. If you are unsure, ask three questions of it. Did the loss and the gradient behave? Is the held-out loss good? And do the answers agree with that?
#
# **Exercise 1. Decide** (10 minutes, ••). Put your five names in place of the dots.

# %%
diagnosis = ...  # {"A": "...", "B": "...", "C": "...", "D": "...", "E": "..."}
check("06.1", diagnosis)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# diagnosis = {"A": "template", "B": "learning rate", "C": "padding", "D": "adapter not loaded", "E": "number format"}
# check("06.1", diagnosis)
# ```
# </details>
#
# What follows gives them away, one after the other. In each case the cure is what the healthy run did, and its row in the table of section 1 is the check.
#
# ### Run B
#
# The fault of B is the learning rate. *Met in [a run with a rate of 1e-6](https://github.com/OpenBMB/MiniCPM-V/issues/141).* The loss goes up and down, since each line of the log sees other rows, and it falls nowhere. Is the rate too high, or too low?
# The held-out loss decides. The next cell compares it with that of the base model, and reads the rate, which the trainer logs.

# %% tags=["small-rate"]
for name in ("healthy", "B"):
    print(f"{name:8} learning rate {max(float(entry['learning_rate']) for entry in runs[name].log):.1e}")
before = runs["B"].base_loss(heldout)  # without the adapter, as before the training
verdict("B's held-out loss is within a tenth of the base model's", abs(runs["B"].heldout_loss / before - 1) < 0.1)

# %% [markdown]
# So the weights hardly moved, although the gradient is still strong at the end: the steps are too small. The healthy run's rate, 3e-3, is large because the model is tiny: do not copy it. LoRA takes a larger rate than full fine-tuning: the QLoRA paper took 2e-4 for its 7B models ([arXiv 2305.14314](https://arxiv.org/abs/2305.14314), appendix B).
#
# ### Run E
#
# The fault of E is the number format. *Met by [people whose loss became 0](https://github.com/huggingface/trl/issues/618).* This was the best loss of all six. Look at the log again, with the gradient beside it. `recognise` says what the course knows of its last line.

# %% tags=["nbval-ignore-output", "nan-log"] reason="the first loss varies in its last digits"
from helpers.failures import last_error, recognise

seen = [(entry["step"], float(entry["loss"]), str(entry["grad_norm"])) for entry in runs["E"].log]
verdict("the log never shows NaN as the loss, while grad_norm and the held-out loss are NaN",
        all(loss >= 0 for _, loss, _ in seen) and seen[-1][2] == "nan" and runs["E"].heldout_loss != runs["E"].heldout_loss)  # fmt: skip
print(recognise(str(runs["E"].log[-1])))
table(seen, "{:.3f}", columns=("step", "loss in the log", "grad_norm"))

# %% [markdown]
# From the fifth step on every real loss was [NaN](../site/glossary.md#nan), "not a number". The trainer does not log that. It leaves such a loss out, and adds a guess in its place: a share of what it has summed up since the last
# line of the log. Where that is nothing, it logs 0 (`logging_nan_inf_filter`, on by default). So a log can show a plausible loss, and then 0, for a run that died in its first steps. grad_norm is not filtered.
#
# Why NaN? The adapters were float16, and so were Adam's averages. Adam divides each step by the root of the average of squared gradients, plus a small constant. These squares were too small for float16: nearly all of them became 0. So Adam divided by almost nothing. In the second step
# the largest weight jumped from 0.06 to 50, two steps later it was 470, and in the fifth step the loss was NaN. When all scores are NaN, generation takes the first token of the vocabulary. Here that is padding, so the answers look blank. (The run had no gradient scaler, which would have refused such adapters: section 7.) *Cure:* what is trained is float32.
#
# In a run of your own, ask in this order. Are the trained weights float32? If they are: is every grad_norm NaN or inf from the first line on? Then the model itself may overflow float16: take another, or bfloat16 on a newer GPU. Or only from a later line on? Then try a lower rate.
# (A single one may be the scaler, which skips that step.)
#
# ### Run C
#
# The fault of C is the padding. *Met by [readers of a well-known notebook](https://github.com/mlabonne/llm-course/issues/33).* The answers begin right and go on for ever. `tokenizer.pad_token = tokenizer.eos_token` stands in many notebooks, and
# transformers' own [collator](../site/glossary.md#collator), which puts rows into a batch, masks every padding token in the labels ([transformers#23530](https://github.com/huggingface/transformers/issues/23530)). So count the ends of sequence among the labels of eight rows, with a padding token of its own
# and without.

# %%
from transformers import AutoTokenizer, DataCollatorForLanguageModeling


def ends_among_labels(own_padding):
    tokenizer = AutoTokenizer.from_pretrained(run.model.path)
    tokenizer.pad_token = tokenizer.pad_token if own_padding else tokenizer.eos_token
    texts = [row["output"] + tokenizer.eos_token for row in run.rows["heldout"].select(range(8))]
    labels = DataCollatorForLanguageModeling(tokenizer, mlm=False)([tokenizer(text) for text in texts])["labels"]
    return (labels == tokenizer.eos_token_id).sum().item()


kept = {"its own padding token": ends_among_labels(True), "pad_token = eos_token": ends_among_labels(False)}
print(kept)
verdict("with eos as padding, no end is among the labels", list(kept.values()) == [8, 0])

# %% [markdown]
# A model that never sees an end never ends. That is also why its held-out loss is high although its answers begin right: each row there ends, and C never expects it. (C's training loss cannot be compared with the others': this collator teaches the prompts, too.) *Cure:* a padding token of its own, or the collator of `SFTTrainer`, which masks by position. Look at the labels of one batch before
# a long run; lesson 03 shows them in colour.
#
# ### Run A
#
# The fault of A is the template. *Met by [somebody who changed the prompt](https://github.com/unslothai/unsloth/issues/1834).* Loss, gradient and held-out loss are the healthy run's to the last digit. So the training is good, and the fault came
# later: the questions were asked in the template of other models, `[INST] ... [/INST]`. To them the model answers by ending at once, so its answers are empty. That is easy to see. But how exact must a template be?
# Change it a little, and ask again. Which of these changes hurt? Guess first.

# %% tags=["nbval-ignore-output", "template"] reason="the last rows right or wrong vary with the processor"
changes = {
    "none": str,
    "without its header": lambda prompt: prompt[prompt.index("### Instruction") :],
    "without the newline at its end": lambda prompt: prompt.rstrip("\n"),
    "### Output: for ### Response:": lambda prompt: prompt.replace("### Response:", "### Output:"),
    "one space more at its end": lambda prompt: prompt + " ",
    "without ### Response:": lambda prompt: prompt.replace("### Response:\n", ""),
}
grid = {name: runs["healthy"].ask(heldout, change) for name, change in changes.items()}
grid["[INST] ... [/INST], as in A"] = runs["A"].right
table(grid, "{:.0%}", columns=("change of the template", f"right, of {len(heldout)}"))

# %% [markdown]
# What you see least hurts much: a space at the end. In training no answer stood behind a space. Header and newline cost this model nothing, but another one may mind them. *Cure:* one function for training and for use. Exercise 8 writes the tool that finds a difference.
#
# ### Run D
#
# The adapter of D was not loaded. *Met [here](https://github.com/huggingface/peft/issues/2566).* The log is the healthy run's again, but the held-out loss is the base model's, which B's cell measured. So what answered was not what was trained: the
# base model, without its adapter. That happens, for instance, where a model that also sees images has its layers under another name. Save the healthy adapter,
# and rename its tensors in that way.

# %% tags=["not-loaded"]
import shutil

from safetensors.torch import load_file, save_file

runs["healthy"].model.save_pretrained(run.folder / "healthy")
shutil.copytree(run.folder / "healthy", run.folder / "renamed", dirs_exist_ok=True)
file = run.folder / "renamed" / "adapter_model.safetensors"
elsewhere = {
    name.replace("model.layers", "model.language_model.layers"): part for name, part in load_file(file).items()
}
save_file(elsewhere, file)

# %% [markdown]
# Load both files, and ask how much of each arrived.

# %% tags=["loaded"]
import warnings

from peft import PeftModel
from transformers import AutoModelForCausalLM


def arrived(folder):
    base = AutoModelForCausalLM.from_pretrained(run.model.path, dtype="float32")
    model = PeftModel.from_pretrained(base, run.folder / folder)
    return sum(weight.norm().item() for name, weight in model.named_parameters() if "lora_B" in name)


with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    strengths = [arrived("renamed"), arrived("healthy")]
warned = next(str(warning.message) for warning in heard if "adapter keys" in str(warning.message))
print(warned[:90], recognise(warned), sep="\n")
verdict("none of the renamed tensors arrived, and all of the others did", strengths[0] == 0 < strengths[1])

# %% [markdown]
# PEFT warns, among the many warnings of a start, and goes on with an adapter whose $B$ is zero: that is the base model. (So D was not trained on too few rows, one of the two innocent suspects: then the answers would have the right form, and end. The other, training mode, would have changed nothing here, since these models have no dropout.) *Cure:* a file whose names fit. *Check:* after loading, ask whether any `lora_B` is
# not zero, or one question whose answer you know.
#
# ## 3 Where to look first
#
# Failures that raise an error are easier: they tell you where to look. Read a traceback from its end. Look for the last line that begins with a type, such as `RuntimeError:`. It
# has the message; some messages go on below it, so read those lines too. Above it stand the calls that led there, and the lowest one in *your* code is the place. The next cell shows a whole one, with an arrow
# at code of yours. (A table of 100 tokens is asked for token 200, as happens with the tokenizer of another model.)

# %% tags=["nbval-ignore-output", "traceback"] reason="the lines of a library move with its releases"
import re
import traceback

import torch

try:
    torch.nn.Embedding(100, 8)(torch.tensor([200]))
except IndexError:
    shown = traceback.format_exc()
for line in shown.splitlines()[1:]:  # without its heading
    if line.strip(" ^~"):  # and without Python's own marks under a call
        yours = "File" in line and "-packages" not in line
        print("-->" if yours else "   ", re.sub('"/.*/', '"', line))

# %% [markdown]
# The lowest line of all belongs to torch, and torch is right. The arrow shows where the mistake is.
#
# > **Trap: on a GPU the arrow may point to the wrong line.** *What you see:* the same mistake says `CUDA error: device-side assert triggered`, and from then on every cell fails that uses the GPU. *Why:* a GPU works
# > behind the program, so the error comes when a later line waits for it, and it leaves the GPU unusable to this kernel. *Cure:* restart the kernel, and run the same once on the CPU: there the message is clear.
#
# In every notebook of this course a known error is explained under its traceback; the set-up cell switched that on. Here errors are wanted. So `read` prints the error at the end of
# a log and what is known about it, and `provoke` runs what should fail and reads the traceback. It begins with the commonest of all: a cell above was not run.


# %%
def read(log, also="Original error"):
    known = recognise(log)
    print(last_error(log), *(line for line in log.splitlines() if line.startswith(also)), sep="\n")
    print(known, end="\n\n")
    return known and known.failure.name


def provoke(action):
    try:
        action()
    except Exception:
        return read(traceback.format_exc())


provoke(lambda: trainer.train())  # returns "not-defined"

# %% [markdown]
# Now those that raise an error. Each section causes a failure, reads it, cures it, and checks the cure where this machine can.
#
# ## 4 A name from an old text
#
# *Met [here](https://github.com/huggingface/trl/issues/2162).* Most tutorials are older than the libraries that you have installed. TRL has renamed
# the argument that takes the tokenizer:

# %%
from trl import SFTConfig, SFTTrainer

from_an_old_text = {"tokenizer": None}
found = provoke(lambda: SFTTrainer(model=None, **from_an_old_text))

# %% [markdown]
# With this message the text is often old, so do not try spellings: ask the installed library which names it has, first with the whole old name, and then with a part of it. The next cell can be taken home.

# %% tags=["copy"]
# Which arguments of a class have a word in their name?
import inspect


def arguments_with(word, cls):
    return [name for name in inspect.signature(cls).parameters if word in name]


# %%
words = {"max_seq_length": SFTConfig, "length": SFTConfig, "tokenizer": SFTTrainer, "token": SFTTrainer}
for word, cls in words.items():
    print(f"{word:14} in {cls.__name__:10} {arguments_with(word, cls)}")
verdict("a part of the old name leads to max_length, and none to processing_class",
        "max_length" in arguments_with("length", SFTConfig) and not arguments_with("token", SFTTrainer))  # fmt: skip

# %% [markdown]
# A part of `max_seq_length` leads to `max_length`. No part of `tokenizer` leads anywhere, because TRL's new name has another word: a *processing class* is a tokenizer, or what prepares images. Then look the old name up in the table of all
# renames that the course knows, on the [page of failures](../site/failures.md#renamed).
#
# > **Trap: an old name that still works.** Some names only warn, among the many warnings of a start. `torch_dtype` is one (now `dtype`), and `gradient_checkpointing` in an
# > `SFTConfig` another (now `activation_checkpointing`). *What you see:* a line with "deprecated", once. *Cure:* change it now, because in a later release it is an error.
# > The line about checkpointing comes even if you wrote neither name, because TRL sets the old one itself. `activation_checkpointing=True` is silent and keeps checkpointing on;
# > `gradient_checkpointing=None` alone is silent, and switches it off.
#
# ## 5 Four CUDA versions
#
# *Met by [users of Colab when it moved to another CUDA](https://github.com/bitsandbytes-foundation/bitsandbytes/issues/934).* You ask which CUDA version you have, and
# get several answers. That is no fault: they are versions of different things.
#
# | what says it | what it is the version of | does it matter to you? |
# |---|---|---|
# | `nvidia-smi`, top right | the newest CUDA that the *driver* can run | yes: its first number [must not be lower](https://docs.nvidia.com/deploy/cuda-compatibility/) than torch's |
# | `torch.version.cuda` | the CUDA that *torch* was built with; its libraries came along when torch was installed | yes: this is what computes |
# | `libbitsandbytes_cuda130.so` | the CUDA that this file of *bitsandbytes* was built for, here 13.0 | yes: its first number must be torch's |
# | `nvcc --version` | a *compiler* that somebody installed, or "command not found" | no, unless you compile CUDA code yourself |

# %% tags=["nbval-ignore-output"] reason="versions and drivers differ between machines"
import subprocess


def said_by(*command):
    return subprocess.run(command, capture_output=True, text=True).stdout if shutil.which(command[0]) else "not here"


driver = said_by("nvidia-smi").partition("CUDA Version:")[2][:6].strip()
compiler = said_by("nvcc", "--version").partition("release ")[2][:4]
print(f"driver: {driver or 'none'}; torch: {torch.version.cuda or 'built without CUDA'}; nvcc: {compiler or 'none'}")

# %% [markdown]
# bitsandbytes brings a file for each of several CUDA versions. Which one does it take? Ask the function that chooses, for torch builds with different
# versions of CUDA. Before you run the cell: what will it take for 12.9, for which it has no file, and for 14.0?

# %% tags=["libraries"]
from bitsandbytes.cextension import get_cuda_bnb_library_path
from bitsandbytes.cuda_specs import CUDASpecs


def library_for(version):
    major, minor = version.split(".")
    return get_cuda_bnb_library_path(CUDASpecs((7, 5), major + minor, (int(major), int(minor))))


table([(v, library_for(v).name, library_for(v).exists()) for v in ("12.6", "12.9", "13.0", "14.0")],
      columns=("torch's CUDA", "file of bitsandbytes", "is it there?"))  # fmt: skip

# %% [markdown]
# The first number must agree, and the second need not: it takes the nearest older file, else the nearest newer one. For another first number there is nothing, and the cure is
# an upgrade of bitsandbytes.
#
# One variable overrides the choice: `BNB_CUDA_VERSION`. Old advice sets it, then bitsandbytes or torch moves on, and the variable
# stays. Cause that failure, with a version that never was, in a Python of its own, which is made to believe that it has a GPU:

# %% tags=["cuda-child"]
import os
import sys

child = """
import torch
if not torch.cuda.is_available():
    torch.cuda.is_available, torch.version.cuda = lambda: True, "13.0"
    torch.cuda.device_count, torch.cuda.get_device_capability = lambda: 1, lambda *_: (7, 5)
    torch._C._cuda_getCurrentRawStream = None  # bitsandbytes looks for it on import
from bitsandbytes.cextension import lib
lib.get_context()
"""
doctored = os.environ | {"BNB_CUDA_VERSION": "999"}
log = subprocess.run([sys.executable, "-c", child], env=doctored, capture_output=True, text=True).stderr
log = re.sub(r"/\S+/", "", log)  # without the folders of this machine
verdict("the missing file is recognised in the log", read(log) == "bitsandbytes-binary")

# %% [markdown]
# The `RuntimeError` line does not name the cause; the line below it, "Original error", does. The cure is to take the variable away (`unset BNB_CUDA_VERSION`, or `os.environ.pop` before the import). Check it:
# the file for torch's CUDA is there, and bitsandbytes quantizes. (Without a GPU it quantizes by its code for CPUs, and that file is not loaded.)

# %%
import bitsandbytes as bnb

weights = torch.randn(64, 64, device=run.machine.device)
error = bnb.functional.dequantize_4bit(*bnb.functional.quantize_4bit(weights, quant_type="nf4")) - weights
there = library_for(torch.version.cuda or "13.0").exists()
verdict("without the variable, the file is there and bitsandbytes quantizes",
        there and 0 < error.norm() < 0.2 * weights.norm())  # fmt: skip

# %% [markdown]
# ## 6 A page that is locked
#
# *Met by [this person](https://github.com/georgian-io/LLM-Finetuning-Toolkit/issues/158), who had logged in, and still could not.* Three things look alike when
# a model does not come from the hub: its page is *gated*, its name is wrong, or there is no network. The cures differ. A small server on this machine plays the hub, and
# answers as the hub does to somebody who is not logged in: always 401, with a header that says more. (Who is logged in, and has not accepted the terms, gets 403, and the same words about a gated page.)

# %%
import http.server
import threading


class Hub(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo" if "/meta-llama/" in self.path else "RepoNotFound")
        self.end_headers()

    def log_message(self, *words):
        pass


# %% [markdown]
# The library that asks is the real one, in a Python of its own without a token.

# %% tags=["hub"]
import tempfile

hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=hub.serve_forever, daemon=True).start()
no_token = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | {"NO_PROXY": "127.0.0.1"}
as_hub = {"HF_HOME": tempfile.mkdtemp(), "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_OFFLINE": "0"}
code = "import sys, huggingface_hub as h; h.hf_hub_download(sys.argv[1], 'config.json')"


def asked_for(name, **more):
    command = [sys.executable, "-c", code, name]
    said = subprocess.run(command, env=no_token | as_hub | more, capture_output=True, text=True).stderr
    return said.replace(as_hub["HF_ENDPOINT"], "https://huggingface.co")


# %%
logs = [asked_for("meta-llama/Llama-3.1-8B"), asked_for("nobody/nothing"), asked_for("Qwen/Qwen2.5-0.5B", HF_HUB_OFFLINE="1")]  # fmt: skip
hub.shutdown()
names = [read(log, also=("Cannot access", "Repository Not Found")) for log in logs]
verdict("gated, unknown, and no network are told apart", names == ["gated", "unknown-model", "no-network"])

# %% [markdown]
# The first two both say "401 Client Error". The type before the colon tells them apart, and so does the sentence below. To log in is half of the cure for a gated page: the other half is to accept its terms in the browser. This lesson cannot check that cure, because it
# needs your account. Where it takes too long, an open model is the better cure; `model_id="qwen2.5-0.5b"` needs no account.
#
# ## 7 The gradient scaler
#
# *Met [here](https://github.com/pytorch/pytorch/issues/127176),* and by you in lesson 03 (trap 5). float16 holds no positive number below $2^{-24}$. So with
# `fp16=True` the trainer multiplies the loss by a large number, the *scale*, and divides the gradients by it again before the step. This *gradient scaler* takes float32
# gradients alone. TRL makes the adapters of a quantized model bfloat16. This is what a GPU said:

# %% tags=["nbval-ignore-output"] reason="a recording, which may be made anew"
from helpers.records import measured_failures

on_a_gpu = measured_failures()
said = on_a_gpu["scaler-bfloat16"]
print(f"{said['device']}, torch {said['versions']['torch']}, {said['date']}:")
found = read(f"{said['type']}: {said['message']}")
print(f"Cured on that GPU: {said['cured']}, by {said['cure']}")

# %% [markdown]
# A related error comes when the adapters are float16 themselves, and it needs no GPU. Will the same cure, float32 for what is trained, help here?


# %%
def scaled_step(dtype):
    weight = torch.nn.Parameter(torch.ones(4, dtype=dtype))
    optimizer, scaler = torch.optim.SGD([weight], lr=0.1), torch.amp.GradScaler("cpu")
    scaler.scale((weight.float() ** 2).sum()).backward()
    scaler.unscale_(optimizer)  # the division
    scaler.step(optimizer)
    return weight


found = provoke(lambda: scaled_step(torch.float16))
verdict("the related error is recognised, and in float32 the same step is taken",
        found == "unscale-fp16" and bool((scaled_step(torch.float32) < 1).all()))  # fmt: skip

# %% [markdown]
# It helps here too, and lesson 03 trains with it (trap 5). The line stands under "Do this". The frozen model may stay in float16, since it has no gradients that could be divided.

# %% [markdown]
# ## 8 No gradient
#
# *Met [here](https://github.com/huggingface/peft/issues/137).* You want to go on training the adapter that you saved. So load the healthy one, which section 2 saved, and take one step.

# %%
tokens = torch.arange(5, 40)[None]  # any tokens will do


def one_step(**how):
    base = AutoModelForCausalLM.from_pretrained(run.model.path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, run.folder / "healthy", **how).train()
    model(input_ids=tokens, labels=tokens).loss.backward()
    return model


found = provoke(one_step)

# %% [markdown]
# `PeftModel.from_pretrained` loads for use, and freezes what it loads. One argument says that you want to train:

# %%
got = [p.grad is not None for p in one_step(is_trainable=True).parameters() if p.requires_grad]
verdict(
    "with is_trainable=True every tensor of the adapter gets a gradient", found == "no-gradient" and got and all(got)
)

# %% [markdown]
# > **Trap: the same message from checkpointing.** In its older form (`use_reentrant=True`) activation checkpointing follows only inputs that carry a gradient, and a frozen model's
# > embeddings carry none. *What you see:* the warning "None of the inputs have requires_grad=True", then this error. *Cure:* `model.enable_input_require_grads()`, or the newer form,
# > `use_reentrant=False`.
#
# ## 9 Out of memory
#
# *Met [in Colab](https://github.com/meta-pytorch/torchtune/issues/665).* A GPU that has no memory left says this, with sizes in place of the five names:
#
# ```text
# CUDA out of memory. Tried to allocate ASKED. GPU 0 has a total capacity of HAS of which FREE is free. Including non-PyTorch memory, this process has ... memory in use.
# Of the allocated memory ALLOCATED is allocated by PyTorch, and HOLES is reserved by PyTorch but unallocated.
# ```
#
# torch takes memory from the GPU in large blocks (*reserved*) and gives it to tensors (*allocated*). What lies between tensors in a block is a *hole*. It
# is free, but a larger tensor does not fit into it. So a request fails for one of two causes, and three of the numbers say for which:
#
# $$\text{asked for} \; \le \; \text{free} + \text{reserved but unallocated}\,?$$
#
# If so, the memory has *holes*: the room was there, in pieces. If not, there was no room: the memory is *full*.
#
# Take *free* from the message, and not from the size of the GPU. CUDA itself takes a few hundred MB, and another process, such as a forgotten notebook, may hold far more. Then the message
# also says something like "Process 442 has 2.31 GiB memory in use". As long as that process runs, its memory is no room for you.
#
# Begin with the T4 in [somebody's thread](https://github.com/edumunozsala/llama-2-7B-4bit-python-coder/issues/1), whose message has an older form. 2.00 GiB were asked for, and 790.81 MiB were free. torch had reserved 12.92 GiB, and
# 10.23 of those were allocated, so the rest is in holes. Holes, or full? Reckon in your head first.
#
# The second message was recorded for this course. A GPU of 140 GiB was allowed no more than a T4's memory, so the message does not say what was free under that limit: it is what is allowed, less what is allocated and what is
# unallocated. Skip the sentences with "Process", and read four numbers: asked for, allowed, allocated, unallocated.

# %% tags=["nbval-ignore-output"] reason="a recording, which may be made anew"
import textwrap

message = on_a_gpu["out-of-memory"]["message"]
print(textwrap.fill(message.partition("If reserved")[0], 110), recognise(f"OutOfMemoryError: {message}"), sep="\n\n")

# %% [markdown]
# Now apply the rule to both. (Both sizes, 14.75 and 14.56 GiB, are a T4's: how much of it torch is shown varies between drivers.)

# %% tags=["oom-rule"]
import re

patterns = {
    "asked": r"allocate ([\d.]+)",
    "has": r"([\d.]+) GiB allowed",
    "allocated": r"([\d.]+) GiB is alloc",
    "holes": r"([\d.]+) GiB is res",
}
recorded = {name: float(re.search(pattern, message)[1]) for name, pattern in patterns.items()}
recorded["free"] = recorded["has"] - recorded["allocated"] - recorded["holes"]  # under the limit
thread = {"asked": 2.00, "has": 14.75, "allocated": 10.23, "holes": 12.92 - 10.23, "free": 790.81 / 1024}
cases = {"the thread's T4": thread, "recorded for this course": recorded}


def kind(case):
    return "holes" if case["asked"] <= case["free"] + case["holes"] else "full"


verdict("both have holes", [kind(case) for case in cases.values()] == ["holes", "holes"])

# %%
title = "2 GiB were asked for: there was room for it, but not in one piece"
figure = plots.diagrams.holes(cases, title)
plots.show(
    figure,
    alt="Two bars of a GPU's memory: allocated, in holes, free, and held by others. Holes and free are more than the 2 GiB asked for",
)

# %% [markdown]
# Against holes there is a setting. It lets torch move the end of a block, so that fewer holes arise. It must be set before torch is imported, so it belongs into the first cell of a
# fresh kernel:
#
# ```python
# import os
#
# os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
# os.environ["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"  # the older name
# ```
#
# > **Trap: two names of one setting.** Older texts, and the end of the message, say `PYTORCH_CUDA_ALLOC_CONF`. That is an
# > [alias](https://github.com/pytorch/pytorch/pull/167659) now. *What you see:* on some releases a warning that it is deprecated; on torch 2.9.1 the *new* name was
# > [ignored without a word](https://github.com/pytorch/pytorch/issues/183387). *Cure:* set both names, as above, and on a GPU ask whether it is on:
# > `torch.cuda.memory._snapshot()["allocator_settings"]["expandable_segments"]`.
#
# > **Trap: Kaggle lends two T4s.** *What you see:* "SFTTrainer does not support `nn.DataParallel`"; or "Expected all tensors to be on the same device", with `cuda:0 and cuda:1`; or one GPU is full while the other is empty.
# > *Why:* two GPUs are not one of twice the size. *Cure:* `os.environ["CUDA_VISIBLE_DEVICES"] = "0"` in the same first cell, and `device_map={"": 0}` when you load. Lesson 09 uses both GPUs.
#
# Would the setting have saved these two runs? The rule speaks of one request, and not of the next one. So predict what all of the recorded run needs. It was the small model of this course with 4,096 rows of 512 tokens, and nothing recomputed.

# %% tags=["whole-run"]
from helpers.memory import RunSpec, predict

GIB = 2**30
small = {k: v for k, v in runs["healthy"].model.config.to_dict().items() if k != "quantization_config"}
whole = predict(small, RunSpec(rank=1, batch_size=4096, seq_len=512, checkpoint_every=0), "t4")
print(
    f"{recorded['allocated'] + recorded['asked']:.2f} GiB with the request, {whole.peak_allocated / GIB:.0f} GiB for the whole pass"
)
verdict("the setting could not have saved the recorded run", whole.peak_allocated / GIB > recorded["has"])

# %% [markdown]
# So predict first. If the whole run does not fit, the setting cannot save it. If it should fit, and the rule says holes, set it. Of the thread's run we do not know the
# settings; there it is worth a try.
#
# ### Which setting first?
#
# Now a run that needs several cures: Mistral-7B on a T4 with everything that costs. It fits when what torch reserves and what CUDA itself takes beside it are less than what the GPU has;
# `held_bytes` adds the two up. The cures stand in the order of their price. The first four cost little or nothing. The rows at once cost time. The last two change what
# is learned, so they come last, whatever they save. Before you look at the figure, write down two guesses: which cure saves most in this order, and after how many does the run fit?

# %% tags=["ladder"]
import dataclasses

from helpers.models import PRESETS

cures = {
    "no prepare_model_for_kbit_training": {"upcast_non_quantized": False},
    "key and value heads repeated (lesson 03, trap 2)": {"repeat_kv": True},
    "paged 8-bit Adam": {"optimizer": "paged_adamw_8bit"},
    "double quantization": {"double_quant": True},
    "half the rows at once, twice the accumulation": {"batch_size": 4},
    "a quarter of the rows, four times": {"batch_size": 2},
    "half of max_length: longer rows are cut": {"seq_len": 1024},
    "rank 16: less is trained": {"rank": 16},
}

# %% tags=["ladder-figure"]
costly = RunSpec(rank=64, batch_size=8, seq_len=2048, optimizer="adamw_torch", double_quant=False,
                 upcast_non_quantized=True, attention_kernels="t4")  # fmt: skip
spec, held, tensors = costly, {}, {}
for name, change in ({"everything that costs": {}} | cures).items():
    spec = dataclasses.replace(spec, **change)
    prediction = predict(PRESETS["mistral-7b"].shape, spec, "t4")
    held[name], tensors[name] = prediction.held_bytes("t4") / GIB, prediction.peak_allocated / GIB
needed = [size <= recorded["has"] for size in held.values()].index(True)
title = f"One cure after the other: with the first {needed} of them the run fits a T4"
figure = plots.diagrams.ladder(held, tensors, recorded["has"], title)
plots.show(figure, alt="Predicted memory after each cure: orange bars beyond a T4's memory, then green ones below it")

# %% [markdown]
# Repeated heads save most. Repeating takes a little memory, but without it a T4 falls back to a kernel that writes down a table of all tokens by all tokens. The run fits with the fifth cure, half the rows. Two things may surprise you. Adam's averages and the weights, which most texts speak of, save little here: the activations fill this GPU. And look at the ticks, which mark what the tensors
# alone take: in two of the orange bars the tick lies below the line. These runs would fit if you counted tensors, and yet they do not: torch reserves more than it gives out, and CUDA takes its part. These are predictions; `measurements/measured_pairs.py` prints beside them what was measured on a GPU.
#
# What a cure saves depends on those before it, so the figure holds for this order alone. Three of these five would do. Write down your three, and then run the next cell.

# %% tags=["threes"]
from itertools import combinations


def held_with(*chosen):
    "GiB that the run holds with these cures alone."
    spec = costly
    for name in chosen:
        spec = dataclasses.replace(spec, **cures[name])
    return predict(PRESETS["mistral-7b"].shape, spec, "t4").held_bytes("t4") / GIB


sizes = {" + ".join(three): held_with(*three) for three in combinations(list(cures)[:needed], 3)}
least = sorted(sizes.items(), key=lambda pair: pair[1])
verdict("two of the ten sets fit a T4", least[1][1] <= recorded["has"] < least[2][1])
table(least[:3], "{:.1f}", columns=("three cures", "GiB held"))

# %% [markdown]
# The first two sets fit, and the third does not quite. Repeated heads and half the rows are in each of them.
#
# Activation checkpointing is missing from the list because `SFTConfig` switches it on by itself. If you switched it off, switch it on first. On your own model let
# `python -m helpers memory predict MODEL --gpu t4 --plan` choose.
#
# ## 10 A half-written checkpoint
#
# *Met by [people who resumed](https://github.com/open-mmlab/mmdetection/issues/4835).* A kill, or a full disk, can hit while a checkpoint is being written. Then the folder with the highest
# number is there, and one of its files has no end. Train a tiny model for four steps, cut a file of the last checkpoint, and resume.

# %%
from transformers import LlamaConfig, PrinterCallback, Trainer, TrainingArguments

checkpoints = run.folder / "half-written"
tiny = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)


def tiny_trainer(labels=(1, 2, 3)):
    arguments = TrainingArguments(
        str(checkpoints), max_steps=4, save_steps=1, logging_steps=1, use_cpu=True, report_to="none", disable_tqdm=True
    )
    rows = [{"input_ids": [1, 2, 3], "labels": list(labels)}] * 32
    trainer = Trainer(AutoModelForCausalLM.from_config(tiny), arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    return trainer


# %% tags=["half-written"]
shutil.rmtree(checkpoints, ignore_errors=True)
tiny_trainer().train()
last = checkpoints / "checkpoint-4"
print(last.name, "holds", *sorted(file.name for file in last.glob("*.pt")))
(last / "optimizer.pt").write_bytes((last / "optimizer.pt").read_bytes()[:200])  # as a kill may leave it
found = provoke(lambda: tiny_trainer().train(resume_from_checkpoint=True))

# %% [markdown]
# `resume_from_checkpoint=True` takes the highest number, whole or not. The cure is to name a whole one. What `torch.save` writes is a zip file, whose table of contents stands at its
# end, so a cut file is easy to tell:

# %% tags=["copy"]
# Which checkpoints can be resumed from? (The weights, in safetensors files, are not looked at.)
import zipfile
from pathlib import Path


def whole_checkpoints(folder):
    found = sorted(Path(folder).glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    there = [path for path in found if (path / "optimizer.pt").is_file() and (path / "trainer_state.json").is_file()]
    return [path for path in there if all(zipfile.is_zipfile(file) for file in path.glob("*.pt*"))]


# %%
newest = whole_checkpoints(checkpoints)[-1]
resumed = tiny_trainer().train(resume_from_checkpoint=str(newest))
print("resumed from", newest.name)
verdict("the half one is recognised, and from the one before it the run goes on to its end",
        (found, newest.name, resumed.global_step) == ("half-checkpoint", "checkpoint-3", 4))  # fmt: skip

# %% [markdown]
# Lesson 03 does this for you, and looks at the safetensors files too. Keep two checkpoints (`save_total_limit=2`), or the cure has nothing to go back to.
#
# A run is often killed when the merged model is saved, because memory runs out then ([a run that ended so](https://github.com/Lightning-AI/litgpt/issues/1181)). Here are three
# sizes, and what `recognise` says of the only word that such a run leaves, "Killed".

# %% tags=["while-saving"]
from transformers import PreTrainedModel

per_file = inspect.signature(PreTrainedModel.save_pretrained).parameters["max_shard_size"].default
adapter = (run.folder / "healthy" / "adapter_model.safetensors").stat().st_size
of_mistral = predict(PRESETS["mistral-7b"].shape, RunSpec(rank=16), "t4").parts["adapters"]
print(f"an adapter of the small model: {adapter / 1e6:.1f} MB, of Mistral-7B: {of_mistral / 1e6:.0f} MB (rank 16)")
merged = PRESETS["mistral-7b"].download_bytes
print(f"Mistral-7B merged, in 16 bits: {merged / 1e9:.1f} GB, in files of up to {per_file}")
log = "saving the merged model\nKilled"
print(log, recognise(log), sep="\n")

# %% [markdown]
# > **Trap: memory runs out while saving.** A free Colab computer has 12.7 GB of memory beside its GPU (lesson 02), and its users [know the message](https://github.com/googlecolab/colabtools/issues/2538).
# >
# > *What you see:* on Colab "Your session crashed after using all available RAM"; on Kaggle "Your notebook tried to allocate more memory than is available. It has restarted."; in a terminal "Killed" (exit code 137), without a traceback, and a file without an end. It may also be "CUDA out of memory", where the merge
# > makes 16-bit weights on the GPU beside the 4-bit ones. *Why:* transformers puts a 7B model into [one file](https://github.com/huggingface/transformers/pull/42734), and safetensors copies all that goes into a file from the GPU into
# > the computer's memory before it writes. *Cure:* save the adapter first; it is small. Then, in a fresh kernel, merge with `python -m helpers merge`, which holds a few rows at a time (lesson 05). If the merged model is on the
# > GPU already, pass `max_shard_size="1GB"` to `save_pretrained`: then one such file at a time is copied.
#
# ## 11 Masked too much
#
# In run C of section 1 the last label of each row was masked. What if all of them are? *Met in [rows that were cut before their answer](https://github.com/huggingface/trl/issues/6668):* the prompt alone is as long as
# `max_length`. It also happens when the marker at which the answer begins is not in the template. Train the tiny model of section 10 on rows without a label.

# %% tags=["all-masked"]
masked = tiny_trainer(labels=(-100, -100, -100))
masked.train()
log = masked.state.log_history[:-1]  # the last entry sums up the run
print(log[0], recognise(str(log[0])), sep="\n")
zeros = [float(entry["loss"]) == 0 == float(entry["grad_norm"]) for entry in log]
verdict("with every label masked, the log shows a loss and a gradient of 0", zeros and all(zeros))

# %% [markdown]
# The log shows a loss of 0, as in run E, and here too the real one is NaN: a mean over no labels is 0 divided by 0. The gradient tells the two apart: it is NaN where numbers died, and exactly 0 where nothing was asked. `SFTTrainer` takes care of it since release 1.16: it leaves such rows out. But only the name of a progress bar
# says so, and nobody counts for you how many rows are left. If none is, the error speaks of something else. Shorten `max_length` until that happens:

# %% tags=["nothing-left"]
questions = run.rows["heldout"].select_columns(["instruction", "output"])
questions = questions.rename_columns({"instruction": "prompt", "output": "completion"})


def trainer_for(max_length):
    arguments = SFTConfig(str(run.folder / "cut"), max_length=max_length, use_cpu=True, bf16=False, report_to="none",
                          activation_checkpointing=True)  # today's name, or TRL would warn of the old one # fmt: skip
    model = AutoModelForCausalLM.from_config(tiny)
    return SFTTrainer(model, arguments, train_dataset=questions, processing_class=runs["healthy"].tokenizer)


rows_left = {length: len(trainer_for(length).train_dataset) for length in (64, 10, 4)}
found = provoke(lambda: trainer_for(4).train())
print(rows_left)
verdict("rows are left out in silence, and an error comes when none is left",
        rows_left[64] > rows_left[10] > rows_left[4] == 0 and found == "no-rows")  # fmt: skip

# %% [markdown]
# *Cure:* a `max_length` beyond your longest prompt and answer. *Check:* compare `len(trainer.train_dataset)` with the rows that you gave, and look at one batch: each row should have labels that are not -100, and its end
# among them (exercise 4).

# %%
record(
    right={name: ended.right for name, ended in runs.items()}, ends={name: ended.ends for name, ended in runs.items()},
    template=grid,
    ladder_gib=held, cures_needed=needed,
)  # fmt: skip
healthy = runs["healthy"]
verdict("the healthy run answers nearly all, and no broken one answers half",
        healthy.right > 0.8 and all(runs[name].right < 0.5 for name in "ABCDE"),
        look_at="With another seed, or few questions, a share may come out differently. The table of section 1 has all of them.")  # fmt: skip

# %% [markdown]
# ## Exercises
#
# Put your answer in place of the dots and run the cell: it is checked at once. Exercise 1 stands in section 2. The dots after the minutes say how hard it is.
#
# **2. Write** (10 minutes, ••). Write `why_full(message)`, which reads what a GPU said and returns one of three words, by the rule of section 9. `"holes"`: what was asked for is at most what is free and what is reserved but unallocated, together. `"others"`:
# it would be, if what other processes hold were free as well; each of them has a sentence such as "Process 442 has 710.00 MiB memory in use". `"full"`: not even then. Sizes are in MiB or in GiB, and no limit was set. (In a container your own run may have such a sentence, in place of "this process has": compare its size with
# what is allocated and reserved. The messages of this exercise all say "this process has".)

# %%
example = (
    "CUDA out of memory. Tried to allocate 224.00 MiB. GPU 0 has a total capacity of 14.56 GiB of which 208.00 MiB is free. "
    "Process 442 has 2.31 GiB memory in use. Including non-PyTorch memory, this process has 12.05 GiB memory in use. "
    "Of the allocated memory 11.60 GiB is allocated by PyTorch, and 180.00 MiB is reserved by PyTorch but unallocated."
)


def why_full(message):
    return ...  # for the example: "holes"


check("06.2", why_full)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import re
#
#
# def sizes(message, before, after=""):
#     "Every size that stands between two texts, in GiB."
#     found = re.findall(before + r"([\d.]+) ([MG])iB" + after, message)
#     return [float(number) / (1024 if unit == "M" else 1) for number, unit in found]
#
#
# def why_full(message):
#     room = sizes(message, "of which ")[0] + sizes(message, "", " is reserved by PyTorch")[0]
#     missing = sizes(message, "allocate ")[0] - room
#     if missing <= 0:
#         return "holes"
#     return "others" if missing <= sum(sizes(message, r"Process \d+ has ")) else "full"
#
#
# check("06.2", why_full)
# ```
# </details>
#
# **3. Repair** (10 minutes, ••). Settings from an old text. Write `todays(old)`: it returns them for the installed TRL on a T4, under today's names and with the same meaning, and in the number format in which
# a T4 is fast. (A warm-up below 1 is a share of all steps today.) The check builds an `SFTConfig` from what you return.

# %%
old = {"max_seq_length": 256, "evaluation_strategy": "no", "warmup_ratio": 0.1, "bf16": True, "learning_rate": 2e-4}
todays = ...
check("06.3", todays)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def todays(old):
#     names = {"max_seq_length": "max_length", "evaluation_strategy": "eval_strategy", "warmup_ratio": "warmup_steps"}
#     return {names.get(name, name): value for name, value in old.items()} | {"fp16": True, "bf16": False}
#
#
# check("06.3", todays)
# ```
# </details>
#
# **4. Write** (5 minutes, ••). Write the check that finds a model that will never stop before it is trained. `labels` is a list of rows, each a list of token ids, with -100 where a token is masked; `eos` is the id of
# the end. `learns_to_stop(labels, eos)` returns True if *every* row has an end among its labels.


# %%
def learns_to_stop(labels, eos):
    "Whether every row teaches the model to stop."
    return ...


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
# **5. Write** (10 minutes, •••). Write `died_at(log)`: the first step at which a run was dead, from a trainer's log, without the summary at its end, such as `[{"step": 5, "loss": "1.9", "grad_norm": "0.4"}, ...]`, or None. Numbers may come as text. A single NaN
# in grad_norm may be the scaler, which skips a step; so a run is dead from the first NaN after which every grad_norm is NaN, even if it is the last line. (A gradient that overflowed may also have the norm inf; no log of this exercise has one.)


# %%
def died_at(log):
    "The step of the first NaN after which all are NaN; None if the run lives."
    return ...


check("06.5", died_at)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import math
#
#
# def died_at(log):
#     dead = None
#     for entry in reversed(log):
#         if not math.isnan(float(entry["grad_norm"])):
#             break
#         dead = entry["step"]
#     return dead
#
#
# check("06.5", died_at)
# ```
# </details>
#
# **6. Repair** (5 minutes, ••). A colleague's function should halve the rows at once, and leave what one step sees as it is. It runs, and it is wrong for some numbers. Write it right, as `halved`. A single row
# cannot be halved: then return both numbers as they are. If the rows at once are odd, round the half down. Then let a step see as few more rows as possible, and never fewer than before.


# %%
def their_halved(rows, accumulation):
    return rows // 2, accumulation * 2


halved = ...
check("06.6", halved)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def halved(rows, accumulation):
#     if rows == 1:
#         return rows, accumulation
#     fewer = rows // 2
#     return fewer, -(-rows * accumulation // fewer)  # rounded up
#
#
# check("06.6", halved)
# ```
# </details>
#
# **7. Predict, then run** (5 minutes, ••). Of all cures of the ladder in section 9, somebody applies a single one to the first bar: a quarter of the rows at once. What does not shrink with the rows is this: weights and
# adapters 5.3 GiB, Adam's averages 1.3, CUDA 0.3, and a part of what torch reserves and does not give out. (Gradients of weights are not there yet at the peak.) How many GiB will be held? Reckon or guess; the check predicts it, and takes what is within a tenth.

# %%
my_guess = ...
check("06.7", my_guess)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# stays, first_bar = 5.3 + 1.3 + 0.3, 36.3  # GiB
# my_guess = stays + (first_bar - stays) / 4
# check("06.7", my_guess)
# ```
#
# The activations shrink to a quarter, and the rest stays. So a quarter of the rows is not a quarter of the memory. By this sum the run would just fit a T4. The check predicts more, and it does not quite fit: what torch reserves and does not give
# out shrinks less than the rows do.
# </details>
#
# **8. Write** (5 minutes, ••). Write `first_difference(trained, used)`: the place of the first character in which two prompts differ, or None if they are the same text. One may be the beginning of the other.


# %%
def first_difference(trained, used):
    "The place of the first difference between two texts, or None."
    return ...


check("06.8", first_difference)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def first_difference(trained, used):
#     for place, (a, b) in enumerate(zip(trained, used)):
#         if a != b:
#             return place
#     return None if trained == used else min(len(trained), len(used))
#
#
# check("06.8", first_difference)
# ```
# </details>
#
# ## What you did
#
# You named five faults that say nothing, from the loss, the gradient and the answers alone. You caused or replayed failures that say what is wrong, read them from their end, and saw what cures them. And when a GPU is full, you first predict the
# whole run, and then change settings in the order of their price.
#
# When none of it fits: reduce the failure to the smallest cell that still fails, search [the page](../site/failures.md) and the library's issues for its last line, and put what `python -m helpers doctor` prints
# into your question.
#
# Next: [07 Your own data](07_your_own_data.ipynb) takes a table of your own and trains a chat model on it.
