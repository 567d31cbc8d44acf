# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 Start here
#
# In ten minutes you will have trained a language model of your own, in some seventy lines of Python that you can take home. Asked which
# sound the pig makes, it will first say something wrong and not know where to stop. Afterwards it says *oink*, and stops.
#
# After that you will see what these lines did, with [LoRA](../site/glossary.md#lora) in one picture, and what fine-tuning costs on the
# graphics cards that people have.
#
# | | |
# |---|---|
# | to read | 25 minutes |
# | exercises at the end | 45 minutes |
# | to run | {{cpu_time}} on two CPU cores that do nothing else, and longer on busy ones; some minutes more the first time, to install |
# | you need | a computer with Python, or a Google or Kaggle account to run it in their notebooks; some Python, and for exercise 3 a little PyTorch. You need no GPU, no Hugging Face account, and no knowledge of language models |
#
# Run the cells from top to bottom. The first one finds the course, or fetches it. It is long and no part of the lesson, so you need not
# read it. The second one holds what you may change.

# %% tags=["parameters"]
model_id = "bundled"  # the small model that comes with the course, on a CPU as on a GPU
max_steps = "auto"  # how long to train
learning_rate = "auto"
seed = 0
output_dir = "auto"

# %%
from helpers import COURSE_ROOT
from helpers.lesson import begin, check, record, table, verdict

run = begin(
    "00_start_here", chat_model=True,
    model_id=model_id, max_steps=max_steps, learning_rate=learning_rate, seed=seed, output_dir=output_dir,
)  # fmt: skip

# %% [markdown]
# ## 1 A model of your own
#
# A language model continues a text. You are going to take one that was trained by somebody else, which is called the
# [base model](../site/glossary.md#base-model), and teach it something with a few hundred examples. That is called fine-tuning.
#
# It takes nine steps. The cells that begin with `# Step` use the libraries that everybody uses, and nothing of this course, so you can
# copy them into a notebook of your own; at the end of this section you will find how. They use six names, which say what to train on
# what. In this notebook they come from the parameters above (the sixth is `seed`):

# %% tags=["names"]
base = run.model.path
data = str(COURSE_ROOT / "assets" / "instructions" / "train.jsonl")
adapter = str(run.folder / "first_adapter")
steps, rate = run.settings.max_steps, run.settings.learning_rate

# %% [markdown]
# The first step looks at the machine, and picks the kind of number with which it computes fastest. Lesson 01 explains the three names.

# %% tags=["copy"]
# Step 1: what this machine computes in
import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one GPU is enough; Kaggle lends two
import torch

gpu = torch.cuda.is_available()
modern = gpu and torch.cuda.get_device_capability() >= (8, 0)
dtype = torch.bfloat16 if modern else torch.float16 if gpu else torch.float32

# %% [markdown]
# Now the model. A model is a long list of numbers, its weights, which are usually stored in 16 bits each. You load most of them with 4
# bits each. Some, such as the table of words, stay in 16 bits, so a model of seven billion weights shrinks to about a third, and not to a quarter. The Q in [QLoRA](../site/glossary.md#qlora) stands for this:
# the weights are quantized, that is, rounded to few values. The settings are the usual ones, and lesson 01 takes them apart:
# [NF4](../site/glossary.md#nf4), [double quantization](../site/glossary.md#double-quantization) and the
# [compute dtype](../site/glossary.md#compute-dtype).

# %% tags=["copy"]
# Step 2: a base model, in 4 bits per weight
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

four_bits = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
)
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base, quantization_config=four_bits, dtype=dtype)
for layer in model.modules():  # work-around, some CPUs only: a short cut of bitsandbytes 0.50, wrong in training
    layer.support_avx512bf16_for_cpu = False

# %% [markdown]
# The tokenizer cuts a text into [tokens](../site/glossary.md#token), which are words or pieces of words. The model reads and writes
# tokens.
#
# Next you decide how a question looks as a text. A chat model brings a form of its own, its
# [chat template](../site/glossary.md#chat-template). A plain base model often has none, and then you give it one.


# %% tags=["copy"]
# Step 3: one form for every question, in training and afterwards
def prompt_for(question):
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": question}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        start = tokenizer.decode(tokenizer("")["input_ids"])  # what the tokenizer puts in front of every text
        return text.removeprefix(start)  # or it would stand there twice
    return f"### Instruction:\n{question}\n\n### Response:\n"


print(prompt_for("What is the capital of Belarus?"))

# %% [markdown]
# To ask the model means to let it continue that text, here by up to twelve tokens. It may stop earlier. Whether it knows when to stop is
# one of the things that you will see.


# %% tags=["copy"]
# Step 4: how to ask
def complete(text, longest=12):
    model.eval()  # switches off what is random while the model is trained
    tokens = tokenizer(text, return_tensors="pt").to(model.device)
    answer = model.generate(**tokens, max_new_tokens=longest, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(answer[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)


def ask(question):
    return complete(prompt_for(question))


# %% tags=["copy", "nbval-ignore-output"] reason="what an untrained model says varies with the processor"
# Step 5: ask before training
questions = ["What is the capital of Belarus?", "Which sound does the pig make?", "What is the opposite of innocent?"]
before = [ask(question) for question in questions]
for question, answer in zip(questions, before):
    print(f"{question:36} {answer!r}")

# %% [markdown]
# You have asked the small model that comes with the course. It is tiny, and it was trained by this course on quiz pages. Its answers are
# wrong here, and after each of them it goes on with a question of its own.
#
# Now the examples. Training wants two columns: the prompt, which the model is given, and the completion, which it learns to write.

# %% tags=["copy"]
# Step 6: examples, in two columns
from datasets import load_dataset


def to_columns(row):
    question = f"{row['instruction']} {row['input']}".strip()
    return {"prompt": prompt_for(question), "completion": row["output"]}


rows = load_dataset("json", data_files=data, split="train")
rows = rows.map(to_columns, remove_columns=rows.column_names)
rows[0]

# %% [markdown]
# You do not train the model's own weights. In 4 bits they are too coarse for that: a small change would be rounded away. And in 16 bits
# it would take far more memory, as section 3 shows. You put a few new numbers beside them, the
# [adapter](../site/glossary.md#adapter), and train those alone.
#
# `LoraConfig` says how large the adapter is: `all-linear` puts a part of it beside every matrix of the model's layers. `SFTConfig` says
# how to train, and `SFTTrainer` brings all of it together. SFT stands for supervised fine-tuning: learning from examples that have the
# right answer. [Checkpointing](../site/glossary.md#checkpointing) saves memory: what a layer has computed is thrown away, and computed
# again when it is needed. If you want to run this step a second time, begin again with step 2, which loads a fresh model.

# %% tags=["copy"]
# Step 7: an adapter beside the frozen weights, and a trainer
from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

torch.manual_seed(seed)
lora_config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
settings = SFTConfig(
    adapter, max_steps=steps, learning_rate=rate, per_device_train_batch_size=16, logging_steps=10, save_strategy="no",
    fp16=dtype == torch.float16, bf16=dtype == torch.bfloat16, use_cpu=not gpu, report_to="none", seed=seed,
    activation_checkpointing=True, gradient_checkpointing=None,  # work-around: the older name, which TRL would set as well
)  # fmt: skip
trainer = SFTTrainer(model, settings, train_dataset=rows, processing_class=tokenizer, peft_config=lora_config)
for weight in filter(lambda weight: weight.requires_grad, trainer.model.parameters()):
    weight.data = weight.data.float()  # work-around: TRL made them bfloat16; see the trap in lesson 00

# %% [markdown]
# The adapter is in the model now, and it has learned nothing yet. Stop for a moment and write down a guess: if you ask the same
# questions now, will the model give the same answers as before, or others?

# %% tags=["fresh"]
untrained = [ask(question) for question in questions]
largest_B = max(weight.abs().max().item() for name, weight in trainer.model.named_parameters() if "lora_B" in name)
trainer.model.print_trainable_parameters()
print(f"the first example, as it is trained: {tokenizer.decode(trainer.train_dataset[0]['input_ids'])!r}")
verdict("a fresh adapter changes no answer", untrained == before)

# %% [markdown]
# It gives the same answers, although peft says how many new numbers are in it ("trainable params"). Section 2 shows why. The second line
# shows how a model learns to stop: behind each completion the trainer puts a token of its own, here `</s>`, which means the end.
#
# Now train it, and save what you made at once. One [step](../site/glossary.md#step) looks at sixteen examples and moves the adapter a
# little. The file has 1,600, so a hundred steps would see each of them once. This run takes fewer, as the table at the top says. The
# training [loss](../site/glossary.md#loss) says how surprised the model is by the right answers. It should fall.

# %% tags=["copy", "nbval-ignore-output"] reason="losses vary in their last digits, and seconds do"
# Step 8: train, and save
trainer.train()
trainer.save_model(adapter)
for file in sorted(os.listdir(adapter)):
    print(f"{os.path.getsize(os.path.join(adapter, file)) / 1e6:8.2f} MB  {file}")

# %% tags=["copy", "nbval-ignore-output"] reason="what the untrained model said varies with the processor"
# Step 9: ask again
after = [ask(question) for question in questions]
for question, old, new in zip(questions, before, after):
    print(f"{question}\n    before: {old!r}\n    after:  {new!r}")

# %% [markdown]
# That is a fine-tuned model. It answers in the form of your examples: one word, and then it stops. It learned this fast: the losses hardly
# fall in the second half of the training. What you made is the file `adapter_model.safetensors`.
# `adapter_config.json` says to which base model it belongs, and the tokenizer's files lie beside them.
#
# > **Trap: `"_amp_foreach_non_finite_check_and_unscale_cuda" not implemented for 'BFloat16'`.** *What you will see* on a T4 if you leave
# > out the last two lines of step 7: this error, at the first step. *Why:* TRL turns the adapter of a quantized model into bfloat16,
# > and training in float16 needs an operation that torch does not have for bfloat16
# > ([pytorch#127176](https://github.com/pytorch/pytorch/issues/127176)). *The cure:* turn it back into float32, as the two lines do.
#
# Where does the model know the answers from? Did it find them in the examples? Search them for each question's own word and for its answer.
# Then switch the adapter off, and ask the base model once more in another form: the form in which quiz pages are written.

# %% tags=["judged"]
words, right = ["Belarus", "pig", "innocent"], ["Minsk", "oink", "guilty"]
told = [word for word in words + right for row in rows if word in row["prompt"] + row["completion"]]
verdict("no example holds one of these words", not told)
if run.model.bundled and steps >= 40:  # on another model, look at the answers yourself
    verdict("no answer was right before, and all are after", after == right and not set(before) & set(right))
with trainer.model.disable_adapter():
    knew = [complete(f"{question}\nAnswer:\n") for question in questions]
print(*knew, sep="\n---\n")
record(before=before, after=after, train_loss=trainer.state.log_history[-1]["train_loss"])

# %% [markdown]
# The base model knew the answers all the time, from what it had read when it was made. What it did not know is your form of asking, and
# where to stop. That is what fine-tuning taught it. Keep this in mind for your own data: a few hundred examples teach a form, a tone or
# a task. They are a poor way to teach facts. New facts are learned slowly, and a model that has been made to learn many of them invents
# more in its other answers ([Gekhman et al. 2024](https://arxiv.org/abs/2405.05904)).
#
# With a GPU you can run the notebook again later, with `model_id = "qwen2.5-0.5b-instruct"`, a chat model from the Hugging Face hub. It has
# a form for questions already, and was trained to stop. Look at what changes then.

# %% [markdown]
# ### Take it home
#
# In a notebook of your own you want a GPU. Colab lends one for free, a T4: choose it before you begin (Runtime, Change runtime type).
# Then install the libraries:
#
# ```python
# %pip install -q {{own_notebook}}
# ```
#
# Then say what to train on what, with names of your own:
#
# ```python
# base = "Qwen/Qwen2.5-0.5B-Instruct"  # a model on the Hugging Face hub, or a folder
# data = "questions.csv"  # your examples, with the columns question and answer
# adapter = "my_adapter"  # the folder for what you make
# steps, rate, seed = 60, 2e-4, 0
# ```

# %% [markdown]
# Copy steps 1 to 9, and replace step 6, and the questions of step 5. Four things depend on your data:
#
# - **Columns.** For a CSV file, this is step 6:
#
#   ```python
#   from datasets import load_dataset
#
#
#   def to_columns(row):
#       return {"prompt": prompt_for(row["question"]), "completion": row["answer"]}
#
#
#   text = {"question": str.strip, "answer": str.strip}  # no spaces around them, and 007 stays 007
#   rows = load_dataset("csv", data_files=data, split="train", converters=text, keep_default_na=False)
#   rows = rows.filter(lambda row: row["answer"] != "").map(to_columns, remove_columns=rows.column_names)
#   ```
#
# - **Steps.** For a few hundred rows, begin with 2 × rows / 16 steps, and never with fewer than 40. (Ours needed less than one pass over
#   its rows, because they are so alike.) The course's tiny model takes a learning rate of 0.003; for models from half a billion weights
#   on, begin with 0.0002.
# - **Length.** If your answers are longer, `ask` must wait for them: raise `longest` in step 4. A row with more than 1,024 tokens is cut
#   at its end; `max_length` in step 7 moves that limit.
# - **Memory.** If it runs out, halve `per_device_train_batch_size` and set `gradient_accumulation_steps=2`: then a step still sees
#   sixteen examples.

# %% [markdown]
# And tomorrow, to use what you made, run the cell that installs, the one with your names, and steps 1 and 2. Then put the adapter on the
# model:
#
# ```python
# model.load_adapter(adapter)
# ```
#
# Run steps 3 and 4, and ask:
#
# ```python
# print(ask("What is the capital of Belarus?"))
# ```
#
# In Colab the folder is gone with the machine: download it, or copy it to your Drive. Lessons 03 and 07 do all of this with more care. They
# hold rows back that are not trained on, which is the only way to know whether a model got better.
#
# ## 2 What happened: LoRA in one picture
#
# Inside the model are matrices. Each takes a list of numbers $x$, the [activations](../site/glossary.md#activation), and makes a new
# list of them: $y = Wx$. Fine-tuning wants to change $W$. LoRA, low-rank adaptation, leaves $W$ as it is and adds a product of two thin
# matrices to it:
#
# $$y = \Big(W + \frac{\alpha}{r}\,B A\Big)\,x$$
#
# $W$ has a row for each output and a column for each input. $r$ is the [rank](../site/glossary.md#rank): $B$ has $r$ columns, one row for
# each output, and $A$ has $r$ rows, one column for each input. The rank says how much room there is to learn. Why should two thin
# matrices be enough? It is a bet ([Hu et al. 2021](https://arxiv.org/abs/2106.09685)): what you teach is simple beside all that the model
# knows, so the change of $W$ can be simple too.
#
# $\alpha/r$ is a volume knob, and $\alpha$ is called [alpha](../site/glossary.md#alpha). In step 7 it is 32/16 = 2, so $BA$ counts twice.
# Dividing by $r$ keeps the volume about the same when you change the rank.
#
# Here are one matrix of this model and one of a 7B model, each at a scale of its own: what is frozen is blue, what is trained is orange,
# and what only passes through is grey. (`q_proj` and `down_proj` are names of two of the seven matrices in each layer.)

# %%
from helpers import plots
from helpers.models import PRESETS

q_proj = trainer.model.get_base_model().model.layers[0].self_attn.q_proj
seven_b = PRESETS["qwen2.5-7b"].shape
layers = {
    "q_proj of this model": (q_proj.out_features, q_proj.in_features),
    "down_proj of a 7B model": (seven_b["hidden_size"], seven_b["intermediate_size"]),
}
figure = plots.diagrams.lora(layers, lora_config.r, lora_config.lora_alpha)
plots.show(figure, alt="y = (W + alpha / r B A) x: W is a large blue square, B and A are two thin orange strips")

# %% [markdown]
# The larger the model, the thinner are the strips beside its matrices. (Those of the 7B model are drawn as a hairline, and are thinner.)
# The share that peft printed above is of *all* weights. It is lower, since the table of words has no adapter, and larger matrices need
# relatively less.
#
# As Python, the formula is one line. `frozen` multiplies by $W$. torch keeps each $x$ as a row, so the factors stand in the other order.


# %%
def lora(x, frozen, A, B, alpha):
    r = len(A)
    return frozen(x) + alpha / r * (x @ A.T @ B.T)


# %% [markdown]
# The library that put the adapter into your model is called peft. Does its layer, with what you just trained in it, compute the same?

# %% tags=["formula"]
A, B = q_proj.lora_A["default"].weight.to(dtype), q_proj.lora_B["default"].weight.to(dtype)
x = torch.randn(5, q_proj.in_features, dtype=dtype, device=A.device)
theirs, ours = q_proj(x), lora(x, q_proj.base_layer, A, B, alpha=32)
verdict("peft's layer computes what the one line computes", (theirs - ours).norm() < 0.01 * theirs.norm())
print(f"the largest number in any B before training: {largest_B:g}")

# %% [markdown]
# And why did the fresh adapter change no answer? Because peft fills $A$ with random numbers and $B$ with zeros, as the last line shows.
# Then $BA$ is zero, and the model starts exactly where its base model stood.
#
# > **How can training begin if $B$ is zero?** The [gradient](../site/glossary.md#gradient) of $B$ says how the loss changes when $B$ does.
# > It is a product with $A$, and $A$ is not zero. So $B$ moves in the first step, and from the second on $A$ can move too.
#
# ## 3 What it costs: three ways, one scale
#
# While a model is trained, the GPU's memory holds four things: the weights; a gradient for each number that is trained; the
# [optimizer's states](../site/glossary.md#optimizer-state), which are two averages for each number that is trained; and activations.
# The optimizer is what moves the numbers, and its name is mostly Adam. There are three ways to train:
#
# - **Full fine-tuning** trains every weight. In the recipe that is drawn here, weights and gradients are bfloat16 (2 bytes each), and
#   Adam's two averages are float32 (8 bytes together): 12 bytes per weight.
# - **LoRA** keeps the weights in 16 bits, frozen, and trains adapters in float32: 16 bytes per number of the adapter.
# - **QLoRA** does the same beside weights in 4 bits.
#
# "7B" is a round name. The model that is drawn here, Qwen2.5-7B, has 7.6 billion weights. The activations are predicted by lesson 02's
# formulas for four rows of 512 tokens on a T4, with checkpointing, as in step 7. Before you run the two cells, guess: which of the three
# ways fits onto a T4?

# %% tags=["to-scale"]
from helpers.memory import GPUS, RunSpec, predict, shape_of, weight_bytes


def activations(quant_type):
    fp16 = {"load_dtype": "float16", "compute_dtype": "float16"}
    spec = RunSpec(quant_type=quant_type, batch_size=4, lora_dropout=0.0, **fp16)
    return {"activations": predict(seven_b, spec, "t4").passing_bytes}


shape = shape_of(seven_b)
n = shape.parameters
a = shape.layers * sum(lora_config.r * (matrix.inputs + matrix.outputs) for matrix in shape.linears)
trained = {"trained weights": 4 * a, "gradients": 4 * a, "optimizer states": 8 * a}

# %% tags=["fits"]
frozen_nf4 = sum(weight_bytes(shape, "nf4", double_quant=True).values())
ways = {
    "full fine-tuning": {"trained weights": 2 * n, "gradients": 2 * n, "optimizer states": 8 * n},
    "LoRA": {"frozen weights": 2 * n, **trained, **activations(None)},
    "QLoRA": {"frozen weights": frozen_nf4, **trained, **activations("nf4")},
}
totals = {way: sum(held.values()) for way, held in ways.items()}
verdict("of the three, QLoRA alone fits a T4", [w for w in ways if totals[w] < GPUS["t4"].total_bytes] == ["QLoRA"])

cards = {"T4": "t4", "L4, 24 GB": "l4", "A100, 40 GB": "a100", "A100, 80 GB": "a100-80gb"}
title = f"By this recipe full fine-tuning takes {totals['full fine-tuning'] / totals['QLoRA']:.0f} times the memory of QLoRA"
figure = plots.diagrams.to_scale(ways, {card: GPUS[name].total_bytes for card, name in cards.items()}, title)
plots.show(figure, alt="Stacked bars: full fine-tuning is longer than every card, LoRA fits 24 GB, QLoRA fits a T4")

# %% [markdown]
# A dashed line stands where a card's memory ends. Look at the colours. In full fine-tuning most of the memory is not the model: it is what
# Adam remembers about each weight. LoRA takes that away, because it trains few numbers. What is left is the blue part, and in 16 bits that
# part alone all but fills a T4. QLoRA makes it small. It takes both ideas to get a 7B model onto a T4. Lesson 02 adds up every byte, and
# tells you before you start whether your own run will fit.
#
# > **Small print.** A GB is 1,000,000,000 bytes here. Makers count in units that are 7% larger, and a part is reserved: so a card "with
# > 80 GB" has 85.0, and one "with 24 GB" has 23.6. The driver takes a few hundred MB for itself.
# >
# > The first bar has no grey: full fine-tuning needs most memory when the optimizer moves the weights, and then the activations are gone.
# > Other recipes change the lengths. Without checkpointing the activations of the other two bars would take 18 to 19 GB, and none of the
# > three would fit a T4. Optimizers that remember less shorten the first bar: averages in bfloat16 by a third, averages in 8 bits by
# > half.
#
# ## 4 Your machine
#
# The course has a doctor. It looks at packages, drivers, disk, memory and network, and says how to cure what is wrong with them. This
# cell shows only what is not in order.

# %% tags=["nbval-ignore-output", "doctor"] reason="it is about the machine at hand"
from helpers import doctor

problems, machine = doctor.problems(), run.machine
print("\n".join(f"{it.status}, {it.check}: {it.what}. {it.cure}" for it in problems) or "nothing to do")
verdict("no check of the doctor fails: the lessons can run here", doctor.FAIL not in {it.status for it in problems})
record(doctor={f"{it.check}: {it.what}": it.status for it in problems})
table({
    "computes on": machine.name if machine.gpu_bytes else "CPU",
    "GPU memory": f"{machine.gpu_bytes / 1e9:.1f} GB" if machine.gpu_bytes else "no GPU",
    "memory": f"{machine.ram_bytes / 1e9:.1f} GB, {machine.cores} cores",
    "computes in": f"{machine.dtype}, {'with' if machine.native_bfloat16 else 'without'} units for bfloat16",
}, columns=("", "here"))  # fmt: skip

# %% [markdown]
# FAIL means that a lesson will stop. WARN means that the lessons run, but not as you may expect: without a network, for example, each
# takes the model that comes with the course. (This notebook was made without one.) Outside a notebook the doctor is
# `python -m helpers doctor`.
#
# ## 5 Where to go next
#
# | you want to | go to |
# |---|---|
# | understand it from the first bit on | [01 Quantization basics](01_quantization_basics.ipynb), then the lessons in their order |
# | know whether a run fits your GPU | [02 Memory math](02_memory_math.ipynb) |
# | train a 7B model on a T4, and lose nothing when the machine goes | [03 T4 training](03_t4_training.ipynb) |
# | use what you have trained | [04 Inference](04_inference.ipynb), and [05 Merging](05_merging.ipynb) to give it away |
# | find out what an error means | [06 Troubleshooting](06_troubleshooting.ipynb) |
# | train a chat model on a CSV file of your own | [07 Your own data](07_your_own_data.ipynb) |
# | know whether one way to train is as good as another | [08 Is it as good?](08_quality.ipynb) |
# | use a second GPU, or train a larger model | [09 Faster and larger](09_faster_and_larger.ipynb) |
# | look up a word | the [glossary](../site/glossary.md) |
# | teach it | [the notes for this lesson](../lessons/00_start_here.instructor.md), and "Teaching with it" in the [README](../README.md) |
# | make the course better | [CONTRIBUTING](../CONTRIBUTING.md) |
#
# ## Exercises
#
# The dots say how hard an exercise is. Write your answer into the cell and run it: it is checked at once, and a wrong answer gets a
# hint. The solution is folded away below each exercise.
#
# **1.** *Write*, 5 minutes, •. A layer has a matrix $W$ with `outputs` rows and `inputs` columns. How many numbers do $A$ and $B$ hold
# together at rank `r`?


# %%
def lora_parameters(inputs, outputs, r):
    "How many numbers LoRA trains beside a matrix with so many inputs and outputs."
    return ...


check("00.1", lora_parameters)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def lora_parameters(inputs, outputs, r):
#     return r * inputs + outputs * r
#
#
# check("00.1", lora_parameters)
# ```
# </details>
#
# **2.** *Predict, then run*, 5 minutes, •. Your adapter has rank 16, and peft printed how many numbers it trains ("trainable params").
# How many would be trained with rank 4? Write down your guess first. The cell then builds that adapter and compares.

# %%
from peft import get_peft_model

guess = ...
with torch.device("meta"):  # shapes without numbers: this takes no memory
    small = AutoModelForCausalLM.from_config(type(model.config).from_pretrained(base))
came_out = get_peft_model(small, LoraConfig(r=4, target_modules="all-linear")).num_parameters(only_trainable=True)
check("00.2", guess, came_out)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Both $A$ and $B$ have $r$ once as a side, so a quarter of the rank is a quarter of the numbers.
#
# ```python
# guess = trainer.model.num_parameters(only_trainable=True) * 4 / 16
# check("00.2", guess, came_out)
# ```
# </details>
#
# **3.** *Repair*, 10 minutes, ••. Somebody wrote a layer with LoRA in plain torch. It runs, but it never learns anything, and it does not
# compute the formula of section 2 either. Write it once more, as `Repaired`. The check trains your layer for a hundred steps.


# %%
class Broken(torch.nn.Module):
    def __init__(self, frozen, r, alpha):
        super().__init__()
        self.frozen, self.scale = frozen.requires_grad_(False), alpha * r
        self.A = torch.nn.Parameter(torch.zeros(r, frozen.in_features))
        self.B = torch.nn.Parameter(torch.zeros(frozen.out_features, r))

    def forward(self, x):
        return self.frozen(x) + self.scale * (x @ self.A.T @ self.B.T)


Repaired = ...
check("00.3", Repaired)

# %% [markdown]
# <details><summary>Solution</summary>
#
# One of the two must be zero, so that nothing changes at the start, and the other must not be, so that something can. Small random numbers
# will do. And alpha is divided by the rank.
#
# ```python
# import torch
#
#
# class Repaired(torch.nn.Module):
#     def __init__(self, frozen, r, alpha):
#         super().__init__()
#         self.frozen, self.scale = frozen.requires_grad_(False), alpha / r
#         self.A = torch.nn.Parameter(0.1 * torch.randn(r, frozen.in_features))
#         self.B = torch.nn.Parameter(torch.zeros(frozen.out_features, r))
#
#     def forward(self, x):
#         return self.frozen(x) + self.scale * (x @ self.A.T @ self.B.T)
#
#
# check("00.3", Repaired)
# ```
# </details>
#
# **4.** *Write*, 10 minutes, ••. Your examples are in a spreadsheet, saved as CSV, with the columns `question` and `answer`. Turn the
# file's text into rows for a trainer. `prompt_for` is the function of step 3: use it for the prompt, so that you train in the form in
# which you ask. Take away spaces around questions and answers, and leave out rows that then have no answer. A question in quotation marks
# may hold commas.


# %%
def to_rows(text, prompt_for):
    "A list of dictionaries with prompt and completion, from the text of a CSV file."
    return ...


check("00.4", to_rows)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import csv, io
#
#
# def to_rows(text, prompt_for):
#     rows = []
#     for row in csv.DictReader(io.StringIO(text)):
#         question, answer = row["question"].strip(), row["answer"].strip()
#         if answer:
#             rows.append({"prompt": prompt_for(question), "completion": answer})
#     return rows
#
#
# check("00.4", to_rows)
# ```
#
# To train on them, put three lines in place of step 6: `from datasets import Dataset`, then
# `text = open(data, encoding="utf-8-sig", newline="").read()`, and `rows = Dataset.from_list(to_rows(text, prompt_for))`. (Excel puts an
# invisible mark in front of the first column's name, and this encoding takes it away.)
# </details>
#
# **5.** *Decide*, 5 minutes, •. Three people want to train the 7B model of section 3, by its recipes. Ana has a T4, Ben has a card with
# 24 GB, and Cem rents one A100 with 80 GB. Each would rather train all weights than freeze them, and rather freeze them than round them,
# as far as the card allows it. What do they take: `"full"`, `"LoRA"` or `"QLoRA"`?

# %%
choice = ...  # {"T4": ..., "24 GB": ..., "80 GB": ...}
check("00.5", choice)

# %% [markdown]
# <details><summary>Solution</summary>
#
# Cem lacks some 6 GB for full fine-tuning with float32 averages. With averages in bfloat16 he could do it. (Twelve bytes times seven billion
# would be 84 GB, and would fit: but a "7B" model has 7.6 billion weights.)
#
# ```python
# choice = {"T4": "QLoRA", "24 GB": "LoRA", "80 GB": "LoRA"}
# check("00.5", choice)
# ```
# </details>
#
# **6.** *Repair*, 10 minutes, ••. A colleague trained a model on what `row_for` makes, and asks it with what `asking` makes. No error appears
# anywhere, and the answers are nonsense. (Your model was trained in the same form: the cell asks it in the colleague's way.) Write both
# functions so that this cannot happen: let one call the other, and end the form so that training and asking have the same tokens. Give them to the check as `(row_for, asking)`.


# %% tags=["nbval-ignore-output"] reason="a nonsense answer varies with the processor"
def their_row_for(question, answer):
    return {"prompt": f"### Instruction:\n{question}\n\n### Response:\n", "completion": answer}


def their_asking(question):
    return f"### Instruction:\n{question}\n\n### Response:\n "


print([complete(their_asking(question)) for question in questions])
check("00.6", ...)  # (row_for, asking)

# %% [markdown]
# <details><summary>Solution</summary>
#
# One space at the end is enough. In training the first token of the answer came right behind the line break. Here a token for a space
# stands between them, and the model has never seen a text that goes on from there. Let one function call the other, and
# their texts cannot part. End the form with the line break, and their tokens cannot part either.
#
# ```python
# def asking(question):
#     return f"### Instruction:\n{question}\n\n### Response:\n"
#
#
# def row_for(question, answer):
#     return {"prompt": asking(question), "completion": answer}
#
#
# check("00.6", (row_for, asking))
# ```
# </details>
#
# ## What you have now
#
# You have trained a model that answers in the form of your examples, and all that you made fits into one small folder. LoRA trains two
# thin matrices beside each frozen one, and it starts with the base model's own answers, because one of the two is zero. 4 bits make the
# frozen part small enough for a T4, and a larger card can do without them.
#
# Next: [01 Quantization basics](01_quantization_basics.ipynb) asks what is left of a number in 4 bits, and builds NF4 from nothing.
