# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 Inference
#
# You check a base model before you train it, put an adapter on top and take it off again, generate in batches without spoiling the
# answers, keep several adapters on one base, say how good the answers are and how sure you can be of that, and find out what a token costs.
#
# **Time:** {{cpu_time}} on two CPU cores; {{t4_time}} on a T4. **Needs:** the adapter of lesson 03. Another Colab notebook is another
# machine and does not have it, unless both lessons began with `output_dir="drive"`; without one, this lesson trains a small one first. The
# fourth cell says which it takes.

# %% tags=["parameters"]
model_id = "auto"
dataset_id = "auto"
adapter_dir = "auto"  # what lesson 03 left
seed = 0
quant_type = "nf4"
double_quant = True
max_new_tokens = 16
eval_rows = 128
output_dir = "auto"

# %% tags=["nbval-ignore-output"] reason="which adapter is there depends on what ran before"
from helpers.lesson import begin, check, record, table, verdict

run = begin(
    "04_inference", with_data=True,
    model_id=model_id, dataset_id=dataset_id, adapter_dir=adapter_dir, seed=seed, quant_type=quant_type,
    double_quant=double_quant, max_new_tokens=max_new_tokens, eval_rows=eval_rows, output_dir=output_dir,
)  # fmt: skip
settings = run.settings

# %% [markdown]
# Two adapters are needed. The first is lesson 03's: it answers questions. Section 8 wants a second one on the same base that does something
# else, so it gets another task: say whether the prompt brings an input along, yes or no. A few steps are enough for that. Both are made
# before the base is loaded, since training loads a base of its own and lets it go again.

# %%
import gc

from helpers.quick import adapter_for, train_adapter

adapter, made_now = adapter_for(run)
some_rows = run.rows["train"].select(range(min(128, len(run.rows["train"]))))
yes_or_no = some_rows.map(lambda row: {"output": "yes" if row["input"] else "no"})
second_adapter = run.folder / "adapter-yes-or-no"
train_adapter(
    run.model, run.machine, yes_or_no, second_adapter, steps=24, batch_size=4, rank=8, seed=settings.seed,
    quant_type=settings.quant_type, double_quant=settings.double_quant,
)  # fmt: skip
gc.collect()  # what the training held goes before the base comes
verdict(
    "there are two adapters for this base model",
    all((a / "adapter_model.safetensors").is_file() for a in (adapter, second_adapter)),
)

# %% [markdown]
# ## 1 Before a long training run: does it generate?
#
# A wrong token or a wrong template shows itself after hours of training, or in a few seconds before it. The next two cells are made to be
# copied in front of a training run of your own. The first is the check: it generates, and lists faults. It takes what the trainer will
# take, a model, its tokenizer and rows, and needs nothing of this course.

# %% tags=["early-check"]
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig


def early_check(model, tokenizer, pairs, max_length=512):
    "What is wrong with a base model, its tokenizer and (prompt, completion) pairs: a line for each fault, [] for none."
    faults, stops, heard = [], model.generation_config.eos_token_id, ""
    if tokenizer.eos_token_id is None:
        faults.append("the tokenizer has no end-of-sequence token: no answer could end")
    elif tokenizer.eos_token_id not in (stops if isinstance(stops, list) else [stops]):
        faults.append(f"generate() stops at token {stops}, training ends answers with {tokenizer.eos_token_id}")
    if tokenizer.pad_token_id is None:
        faults.append("the tokenizer has no padding token: no batch could be made")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        faults.append("the tokenizer has more tokens than the model has embeddings")
    for prompt, completion in pairs:
        ids, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + completion)["input_ids"]
        if whole[: len(ids)] != ids:
            faults.append(f"{prompt[-6:]!r} and {completion[:6]!r} merge into other tokens than the prompt has alone")
        if tokenizer.unk_token_id in ids or (len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id):
            faults.append(f"unknown tokens, or the first one twice, in {prompt[:20]!r}")
        if len(whole) >= max_length:
            faults.append(f"a row of {len(whole)} tokens, and training cuts at {max_length}")
        inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
        out = model.generate(
            **inputs, max_new_tokens=8, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        heard += tokenizer.decode(out.sequences[0, len(ids) :], skip_special_tokens=True).strip()
        if not all(logits.isfinite().all() for logits in out.logits):
            faults.append("logits that are not finite: too large for this dtype?")
    return faults if heard else [*faults, "it generates no text at all"]


# %% [markdown]
# The second loads what the check is to judge: the base in 4 bits, exactly as the training loads it, and a few rows in exactly the template
# that the training writes. `keep_4bit_layout` and `repeat_kv_heads` are two cures of lesson 03; most machines do without them.

# %%
from helpers.data import alpaca_prompt
from helpers.training import keep_4bit_layout, repeat_kv_heads

repeat_kv_heads(run.machine)
quantization = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type=settings.quant_type, bnb_4bit_use_double_quant=settings.double_quant,
    bnb_4bit_compute_dtype=run.machine.torch_dtype,
)  # fmt: skip
base = AutoModelForCausalLM.from_pretrained(
    run.model.path, quantization_config=quantization, dtype=run.machine.torch_dtype, device_map=run.machine.device_map
)
base, tokenizer = keep_4bit_layout(base).eval(), AutoTokenizer.from_pretrained(run.model.path)
pairs = [(alpaca_prompt(row["instruction"], row["input"]), row["output"]) for row in run.rows["train"].select(range(4))]
faults = early_check(base, tokenizer, pairs)
print("\n".join(faults) or "no fault found")

# %% [markdown]
# A check that never complains is worth nothing. So plant three faults and run it again: a tokenizer without an end, a template that ends
# with a space, and rows longer than the training keeps.

# %%
import copy

without_end = copy.deepcopy(tokenizer)
without_end.eos_token = None
planted = {
    "no end-of-sequence token": early_check(base, without_end, pairs[:1]),
    "a space after the template": early_check(
        base, tokenizer, [(prompt + " ", completion) for prompt, completion in pairs[:1]]
    ),
    "rows cut at 16 tokens": early_check(base, tokenizer, pairs[:1], max_length=16),
}
table({name: "; ".join(found) or "nothing" for name, found in planted.items()}, columns=("planted", "said"))

# %%
verdict(
    "a tokenizer without an end is noticed",
    any("end-of-sequence" in line for line in planted["no end-of-sequence token"]),
)
verdict("so are rows that are cut", any("cuts at 16" in line for line in planted["rows cut at 16 tokens"]))
if run.model.bundled:
    verdict("the bundled model has none of the faults", faults == [])
    verdict(
        "a template that ends with a space is noticed",
        any("merge" in line for line in planted["a space after the template"]),
    )

# %% [markdown]
# The second fault is the sly one. Alone, the prompt ends with a token for the space; followed by an answer, the space becomes part of the
# answer's first token. The model would train on one row of tokens and be asked with another.
#
# ## 2 The adapter on top, and off again
#
# An adapter is useless without the base it was trained on. Its config names that base and its shape: look before you load.

# %%
import json

config = json.loads((adapter / "adapter_config.json").read_text())
print("base =", "/".join(config["base_model_name_or_path"].split("/")[-2:]))
for name in ("peft_type", "r", "lora_alpha", "target_modules"):
    print(name, "=", sorted(config[name]) if isinstance(config[name], list) else config[name])

# %% [markdown]
# `PeftModel.from_pretrained` puts the adapter on: a branch beside each of those layers. It does not copy the base. `disable_adapter()`
# closes the branches for a while. Is what is left then really the base? Compare the logits, bit for bit.

# %%
from peft import PeftModel

inputs = tokenizer(pairs[0][0], return_tensors="pt").to(base.device)
with torch.no_grad():
    logits_of_base = base(**inputs).logits
    model = PeftModel.from_pretrained(base, adapter, adapter_name="answers").eval()
    logits_tuned = model(**inputs).logits
    with model.disable_adapter():
        logits_off = model(**inputs).logits
verdict("with the adapter off, the logits are the base's, bit for bit", torch.equal(logits_off, logits_of_base))
verdict("with the adapter on, they are others", not torch.equal(logits_tuned, logits_of_base))

# %% [markdown]
# So one model in memory is both, and you never load two to compare them. Held-out questions, answered with the adapter on and off:

# %%
from helpers.evaluation import answer, evaluate, wilson_interval

asked = run.rows["heldout"].select(range(min(32, len(run.rows["heldout"]))))
prompts = [alpaca_prompt(row["instruction"], row["input"]) for row in asked]
tuned = answer(model, tokenizer, prompts, settings.max_new_tokens)
with model.disable_adapter():
    untuned = answer(model, tokenizer, prompts[:4], settings.max_new_tokens)


def share_right(answers):
    return sum(a == row["output"].strip() for a, row in zip(answers, asked)) / len(asked)


learned = share_right(tuned) >= 0.5  # what follows makes sense of answers only for an adapter that gives some

# %% tags=["nbval-ignore-output"] reason="what the base model says after its answer varies with the processor"
table(zip(asked["output"], tuned, untuned), columns=("expected", "tuned", "base"))

# %%
verdict(
    "switching the adapter off and on leaves nothing behind",
    answer(model, tokenizer, prompts, settings.max_new_tokens) == tuned,
)
print(
    "half of the answers or more are right:",
    "yes" if learned else "no, so what wrong settings cost cannot be seen with this adapter",
)

# %% [markdown]
# ## 3 What a wrong template costs
#
# The adapter saw every prompt in one template. Ask the same questions in others: some differ by one character, one is the chat format
# of another family of models.


# %%
def with_other_end(end):
    return lambda row: alpaca_prompt(row["instruction"], row["input"]).removesuffix("\n") + end


templates = {
    "as in training": with_other_end("\n"),
    "no newline at the end": with_other_end(""),
    "a space at the end": with_other_end("\n "),
    "two newlines at the end": with_other_end("\n\n"),
    "no header": lambda row: alpaca_prompt(row["instruction"], row["input"]).split("\n\n", 1)[1],
    "the question alone": lambda row: f"{row['instruction']}\n{row['input']}".strip() + "\n",
    "another model's chat format": lambda row: (
        f"<|im_start|>user\n{row['instruction']} {row['input']}<|im_end|>\n<|im_start|>assistant\n"
    ),
}
answers = {
    name: answer(model, tokenizer, [template(row) for row in asked], settings.max_new_tokens)
    for name, template in templates.items()
}
shares = {name: share_right(given) for name, given in answers.items()}

# %%
from helpers import plots

worst = min(shares, key=shares.get)
figure = plots.bars(
    list(shares), [100 * share for share in shares.values()],
    f"The same questions, other templates: {shares['as in training']:.0%} as in training, {shares[worst]:.0%} with '{worst}'",
    f"answered exactly (% of {len(asked)})", colours=[plots.COLOURS["green"]] + [plots.COLOURS["blue"]] * (len(shares) - 1), numbers="{:.0f}",
)  # fmt: skip
plots.show(figure, alt="Share of questions answered exactly for seven templates; that of the training first")

# %% tags=["nbval-ignore-output"] reason="wrong answers vary with the processor"
tail = {
    name: tokenizer.convert_ids_to_tokens(tokenizer(template(asked[0]))["input_ids"][-3:])
    for name, template in templates.items()
}
ends = {name: (" | ".join(tail[name]), answers[name][0][:30]) for name in templates}
table(ends, the_first_answer="{!r}", columns=("template", "its last tokens", "the first answer"))

# %%
if learned:
    verdict(
        "no other template is clearly better than the one of the training",
        shares["as in training"] >= max(shares.values()) - 0.1,
    )
if learned and run.model.bundled:
    right = shares["as in training"]
    verdict(
        "one space more at the end loses at least a quarter of the answers",
        shares["a space at the end"] <= 0.75 * right,
    )
    verdict("another model's chat format loses at least half", shares["another model's chat format"] <= 0.5 * right)
    verdict("leaving out the header loses less than that space", shares["no header"] > shares["a space at the end"])

# %% [markdown]
# Look at the end of each prompt (`Ċ` is how the tokenizer writes a newline, `Ġ` a space). For the bundled model the header hardly matters.
# What matters is where the answer is to begin: the adapter learned to speak after one newline token. Two newlines are one other token,
# which it never saw there, and the space is the one that the early check complained of. How much each of the small changes costs differs from
# one training to the next: train with another seed and some bars move far. Nothing in the training decided what happens there, so do
# not rely on it. Write the template once, in one function, and call that function in training and at use.
#
# ## 4 When to stop
#
# Training ended each answer with the end-of-sequence token, and `generate` stops at it. Without that stop the model goes on to the limit,
# past an answer that was complete.

# %%
one = tokenizer(prompts[0], return_tensors="pt").to(model.device)
start = one["input_ids"].shape[1]
with torch.no_grad():
    stopped = model.generate(**one, max_new_tokens=settings.max_new_tokens, do_sample=False)[0, start:]
    endless = model.generate(**one, max_new_tokens=settings.max_new_tokens, do_sample=False, eos_token_id=None)[
        0, start:
    ]
if learned and settings.max_new_tokens >= 12:  # room for an answer and its end
    verdict("the tuned model ends its answer by itself", stopped[-1].item() == tokenizer.eos_token_id)
verdict("without a stop it uses all the tokens it may", len(endless) == settings.max_new_tokens)

# %% tags=["nbval-ignore-output"] reason="what follows the answer varies with the processor"
print("stops at its end:", repr(tokenizer.decode(stopped)))
print("without a stop:  ", repr(tokenizer.decode(endless)))

# %% [markdown]
# The base never learned to end an answer. For such a model a text can be the stop: `stop_strings` ends the generation where that text
# turns up, wherever the tokens break. It needs the tokenizer. The bundled base read its facts as quiz pages: a question, `Answer:`, and the
# answer on a line of its own; so the end of a line is where to stop it.

# %%
quiz = tokenizer(f"{asked[0]['instruction']}\n{asked[0]['input']}".strip() + "\nAnswer:\n", return_tensors="pt").to(
    model.device
)
with torch.no_grad(), model.disable_adapter():
    line = model.generate(**quiz, max_new_tokens=24, do_sample=False, stop_strings=["\n"], tokenizer=tokenizer)
    page = model.generate(**quiz, max_new_tokens=24, do_sample=False)
line, page = (tokenizer.decode(tokens[0, quiz["input_ids"].shape[1] :]) for tokens in (line, page))
verdict("up to the stop both say the same", page.startswith(line))
if run.model.bundled:
    verdict("with a stop the base says one line, without it more", line.count("\n") == 1 < page.count("\n"))

# %% [markdown]
# ## 5 Batches: pad on the left
#
# Prompts of a batch have different lengths, so the short ones are padded. Attention never looks at padding. But a model that
# generates goes on from the last position: with padding on the right, that position holds padding, with padding on the left it holds the
# prompt's last token.


# %%
def picture(side):
    tokenizer.padding_side = side
    mask = tokenizer(prompts[:4], padding=True, return_tensors="pt")["attention_mask"]
    return ["".join("#" if real else "." for real in row) + ">" for row in mask.tolist()]


for side in ("left", "right"):
    print(f"{side} (# a token, . padding, > where it goes on)", *picture(side), sep="\n  ")

# %% [markdown]
# One prompt at a time needs no padding: those answers are the yardstick.


# %%
def generate(prompts, side):
    tokenizer.padding_side = side
    batch = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    with torch.no_grad():
        tokens = model.generate(**batch, max_new_tokens=settings.max_new_tokens, do_sample=False)
    return tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :])


def text_of(answers):
    return [a.split(tokenizer.eos_token)[0].strip() for a in answers]


some = prompts[:16]
alone = text_of([generate([prompt], "left")[0] for prompt in some])
raw = generate(some, "right")
left, right = text_of(generate(some, "left")), text_of(raw)
same_left, same_right = (sum(a == b for a, b in zip(alone, batch)) / len(some) for batch in (left, right))

# %% tags=["nbval-ignore-output"] reason="wrong answers vary with the processor"
print(f"as one at a time: {same_left:.0%} of {len(some)} padded on the left, {same_right:.0%} padded on the right")
wrong = [i for i in range(len(some)) if alone[i] != right[i]][:4]
rows = [(asked[i]["instruction"], alone[i], raw[i]) for i in wrong]
table(rows, padded_on_the_right="{:.40}", columns=("prompt", "alone", "padded on the right"))

# %% [markdown]
# The last column shows the raw tokens. After padding, the tuned model ends at once or says something else. transformers warns of
# right padding; the warning is easily overlooked, and there is no error. A tokenizer is often saved with right padding, because training
# pads there, so set the side yourself.

# %%
tokenizer.padding_side = "left"
if learned and len(some) >= 8:
    verdict("padding on the left keeps at least 9 answers in 10", same_left >= 0.9)
    verdict("padding on the right spoils more answers than padding on the left", same_right < same_left)

# %% [markdown]
# Why not all of them, always? The same product in another shape adds up in another order and rounds otherwise. Where two tokens are almost
# equally likely, that can tip the choice.
#
# ## 6 Greedy or sampled
#
# Greedy decoding takes the likeliest token each time. Sampling draws the next token at random, the likely ones more often: from
# `softmax(logits / temperature)`. A low temperature sharpens that distribution, a high one flattens it. transformers also cuts it to the 50
# likeliest tokens unless you say `top_k=0`. How many of the questions are still answered right?


# %%
def sampled(temperature, top_k):
    batch = tokenizer(prompts[:24], return_tensors="pt", padding=True).to(model.device)
    torch.manual_seed(settings.seed)
    with torch.no_grad():
        tokens = model.generate(
            **batch, max_new_tokens=settings.max_new_tokens, do_sample=True, temperature=temperature, top_k=top_k
        )  # fmt: skip
    return text_of(tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :]))


temperatures = (0.5, 2.0, 3.0)
drawn = {(t, k): sampled(t, k) for t in temperatures for k in (0, 50)}
kept = {key: sum(a == row["output"].strip() for a, row in zip(said, asked)) / len(said) for key, said in drawn.items()}
verdict("the same seed draws the same answers again", sampled(2.0, 0) == drawn[2.0, 0])

# %%
of = len(prompts[:24])
greedy = sum(a == row["output"].strip() for a, row in zip(tuned[:24], asked)) / of
figure = plots.curves(
    {"greedy": (temperatures, [100 * greedy] * len(temperatures)),
     "sampled, the 50 likeliest": (temperatures, [100 * kept[t, 50] for t in temperatures]),
     "sampled, all tokens": (temperatures, [100 * kept[t, 0] for t in temperatures])},
    f"Greedy answers {greedy:.0%} right; sampled at temperature 3, {kept[3.0, 50]:.0%}, without top_k {kept[3.0, 0]:.0%}",
    "temperature", f"answered exactly (% of {of})",
)  # fmt: skip
figure.axes[0].set_ylim(bottom=0)
plots.show(figure, alt="Share of questions answered exactly against the temperature of sampling; greedy is a flat line")

# %% tags=["nbval-ignore-output"] reason="sampling draws differ between torch versions"
firsts = {t: (drawn[t, 50][0], drawn[t, 0][0]) for t in temperatures}
table(firsts, temperature="{:.1f}", all_tokens="{:.30}", columns=("temperature", "the 50 likeliest", "all tokens"))

# %%
if learned and run.model.bundled and of >= 24:
    verdict("a high temperature loses answers that greedy decoding has", kept[3.0, 0] < greedy)

# %% [markdown]
# For questions with one right answer, greedy is the right choice; for a story, the same story every time is not. Say `do_sample` in either
# case: what happens otherwise stands in the model's `generation_config.json`, and a model may switch sampling on there.
#
# ## 7 Streaming
#
# A reader would rather see the first word now than the whole text later. `TextStreamer` prints the text as it comes, whole words only.
# Answers here are one word, so let the base write on, which is longer.

# %% tags=["nbval-ignore-output"] reason="the continuation varies with the processor and the model"
from transformers import TextStreamer

opening = tokenizer("Norway is a country", return_tensors="pt").to(model.device)
with torch.no_grad(), model.disable_adapter():
    written = model.generate(
        **opening, max_new_tokens=40, do_sample=False, streamer=TextStreamer(tokenizer, skip_special_tokens=True)
    )

# %% [markdown]
# A program needs the pieces in its own hands. `TextIteratorStreamer` hands them over one by one, while `generate` works in a thread of its
# own. It also shows what a user waits for: the time to the first piece, and the time between pieces.

# %%
import time
from threading import Thread

from transformers import TextIteratorStreamer

streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=120)
work = dict(**opening, max_new_tokens=40, do_sample=False, streamer=streamer)
pieces, arrivals, begun = [], [], time.perf_counter()
with model.disable_adapter():
    thread = Thread(target=model.generate, kwargs=work)
    thread.start()
    for piece in streamer:
        pieces.append(piece)
        arrivals.append(time.perf_counter() - begun)
    thread.join()
whole = tokenizer.decode(written[0, opening["input_ids"].shape[1] :], skip_special_tokens=True)
verdict("the pieces together are the text that comes without streaming", "".join(pieces) == whole)

# %% tags=["nbval-ignore-output"] reason="seconds vary"
print(f"first piece after {1000 * arrivals[0]:.0f} ms, all {len(pieces)} after {1000 * arrivals[-1]:.0f} ms")
print("the first pieces:", pieces[:6])

# %% [markdown]
# An empty piece is a token that does not complete a word yet. Streaming makes nothing faster: it shows what there is.
#
# ## 8 Several adapters on one base
#
# Loading a second adapter adds its branches beside the first one's. `set_adapter` says which of them is open.

# %%
model.load_adapter(second_adapter, adapter_name="yes or no")
said = {}
for name in ("yes or no", "answers"):
    model.set_adapter(name)
    said[name] = answer(model, tokenizer, prompts, settings.max_new_tokens)
with model.disable_adapter():
    said["no adapter"] = answer(model, tokenizer, prompts[:4], settings.max_new_tokens)
verdict("back on the first adapter, it answers as before", said["answers"] == tuned)

# %% tags=["nbval-ignore-output"] reason="what the base model says varies with the processor"
table(zip(asked["input"], *said.values()), input="{!r}", no_adapter="{:.34}", columns=("input", *said))

# %%
expected = ["yes" if row["input"] else "no" for row in asked]
right_task = sum(a == e for a, e in zip(said["yes or no"], expected)) / len(expected)
if run.model.bundled:
    verdict("the second adapter does another task: yes or no, nine times in ten the right one", right_task >= 0.9)
if run.model.bundled and learned:
    verdict("no prompt gets the same answer from both", all(a != b for a, b in zip(said["answers"], said["yes or no"])))

# %% [markdown]
# One batch can even mix them: `adapter_names` gives each row its adapter, `"__base__"` for none. The base's part of the work is done once
# for all rows.

# %%
rows = [(i, name) for i in range(len(prompts[:4])) for name in ("answers", "yes or no", "__base__")]
batch = tokenizer([prompts[i] for i, _ in rows], return_tensors="pt", padding=True).to(model.device)
names = [name for _, name in rows]
with torch.no_grad():
    tokens = model.generate(**batch, max_new_tokens=settings.max_new_tokens, do_sample=False, adapter_names=names)
mixed = dict(zip(rows, text_of(tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :]))))
if run.model.bundled and learned:
    for name in ("answers", "yes or no"):
        own = all(mixed[i, name] == said[name][i] for i, each in rows if each == name)
        verdict(f"in a mixed batch the rows of '{name}' answer as that adapter alone does", own)
    others = [{mixed[i, "answers"], mixed[i, "yes or no"]} for i, each in rows if each == "__base__"]
    without = [mixed[i, "__base__"] for i, each in rows if each == "__base__"]
    verdict("and the rows without an adapter as neither", not any(a in b for a, b in zip(without, others)))

# %% [markdown]
# What does another adapter cost, against another base? Count the bytes of the tensors.


# %%
def bytes_of(tensors):
    return sum(t.numel() * t.element_size() for t in {t.data_ptr(): t for t in tensors}.values())


stored = dict(model.state_dict())  # of a 4-bit layer: codes and constants
held = {name: bytes_of(t for key, t in stored.items() if f".{name}." in key) for name in ("answers", "yes or no")}
held["base"] = bytes_of(t for key, t in stored.items() if "lora_" not in key)
print(", ".join(f"{name}: {size:,} bytes" for name, size in held.items()))
verdict("a second adapter takes less than a second base would", held["yes or no"] < held["base"])

# %% [markdown]
# The bundled model is so small that an adapter is a fair part of its size. But an adapter grows with the width of a layer, the layer with
# its square. For the models that people use, an adapter is a few percent of its base:

# %%
from helpers.machine import GIB
from helpers.memory import GPUS, adapter_bytes, kv_cache_bytes, shape_of, weight_bytes
from helpers.models import PRESETS

rows = []
for name in ("qwen2.5-0.5b", "qwen2.5-7b", "mistral-7b"):
    shape = shape_of(PRESETS[name].shape)
    of_base = sum(weight_bytes(shape, settings.quant_type, settings.double_quant).values())
    of_adapter = adapter_bytes(shape.linears, shape.layers, 16, 4)  # in float32, as lesson 03 leaves them
    rows.append((name, of_base / 1e9, of_adapter / 1e6, of_adapter / of_base))
headings = ("model", "base in 4 bits (GB)", "rank 16 on all layers (MB)", "of the base")
table(rows, "{:.2f}", rank_16_on_all_layers_MB="{:.0f}", of_the_base="{:.1%}", columns=headings)

# %% [markdown]
# ## 9 Better or not?
#
# A few good answers prove little. The harness of `helpers/evaluation/scores.py` scores base and tuned model on the same held-out rows: the loss
# on the expected answer, as in training, and exact match with an interval. It knows nothing of adapters; lesson 05 gives it merged models.

# %%
heldout = run.rows["heldout"].select(range(min(settings.eval_rows, len(run.rows["heldout"]))))
scored = {"tuned": evaluate(model, tokenizer, heldout, settings.max_new_tokens)}
with model.disable_adapter():
    scored["base"] = evaluate(model, tokenizer, heldout, settings.max_new_tokens)
if settings.adapter_dir == "auto":  # an adapter of yours may have learned another task
    verdict("on held-out rows the tuned model has the lower loss", scored["tuned"].loss < scored["base"].loss)

# %% tags=["nbval-ignore-output"] reason="losses vary with the processor"
rows = {name: (e.loss, e.exact_match, *e.interval) for name, e in scored.items()}
headings = ("model", "held-out loss", "exact match", "95% interval: from", "to")
table(rows, "{:.1%}", held_out_loss="{:.3f}", columns=headings)

# %% [markdown]
# The rows are a sample of all questions that could be asked. Another sample would give another share. The interval holds every true share
# that is compatible with what was seen: for a true share outside of it, a result as far off as this one comes up in fewer than one of 20
# samples. By that rule two models whose intervals do not touch differ; where they overlap widely, these rows do not show a difference.
#
# The usual formula, share ± 2 standard errors, breaks down near 0% and 100%, where good models are: with all answers right its interval has
# no width. This is Wilson's, from 1927. How often does each hold the truth? Add up the chances of all results for a model whose true
# share is 98%.

# %%
from math import comb, sqrt


def usual_interval(right, of):
    share = right / of
    half = 1.96 * sqrt(share * (1 - share) / of)
    return share - half, share + half


def holds_the_truth(interval, of, truth):
    chance = [comb(of, k) * truth**k * (1 - truth) ** (of - k) for k in range(of + 1)]
    return sum(c for k, c in enumerate(chance) if interval(k, of)[0] <= truth <= interval(k, of)[1])


coverage = {f.__name__: holds_the_truth(f, 128, 0.98) for f in (wilson_interval, usual_interval)}
print("128 rows, 95% wanted:", ", ".join(f"{name} {share:.1%}" for name, share in coverage.items()))
verdict(
    "near 100%, Wilson's interval holds the truth more often", coverage["wilson_interval"] > coverage["usual_interval"]
)

# %% [markdown]
# And how many rows do you need? The width shrinks with the square root of their number: four times the rows, half the width.

# %%
intervals = {of: wilson_interval(round(0.9 * of), of) for of in (8, 32, 128, 512, 2048)}
rows = [(of, low, high, high - low) for of, (low, high) in intervals.items()]
table(rows, "{:.1%}", columns=("rows", "a model that answers nine in ten: from", "to", "width"))

# %%
clear = scored["tuned"].interval[0] > scored["base"].interval[1]
if run.model.bundled and learned and len(heldout) >= 8:  # of a few rows all intervals touch
    verdict("base and tuned model differ: their intervals do not touch", clear)

# %% [markdown]
# ## 10 What a token costs: prefill and decode
#
# What does `generate` do inside? First it reads the prompt, all tokens at once: that is the prefill, and it ends with the first new token.
# Then it makes one token after the other, each from the one before: that is decoding. Write it out, with a clock. A GPU works on after Python
# has gone on, so wait for it before you read the clock.


# %%
def now():
    if run.machine.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


@torch.no_grad()
def greedy_by_hand(model, ids, new_tokens):
    "(tokens, seconds to the first one, seconds for each later one, the cache) of `ids`, batch x length without padding."
    begun = now()
    out = model(ids, use_cache=True, logits_to_keep=1)  # prefill
    tokens, clock = [out.logits[:, -1:].argmax(-1)], [now()]
    for _ in range(new_tokens - 1):
        out = model(tokens[-1], cache=out.cache, use_cache=True)  # decode
        tokens.append(out.logits[:, -1:].argmax(-1))
        clock.append(now())
    later = [b - a for a, b in zip(clock, clock[1:])]
    return torch.cat(tokens, dim=1), clock[0] - begun, later, out.cache


by_hand = greedy_by_hand(model, one["input_ids"], settings.max_new_tokens)[0][0]
verdict("its first token is the one that generate() makes", by_hand[0].item() == stopped[0].item())
if run.model.bundled:  # another model's generation_config.json may ask for more than the likeliest token
    verdict("and so are all others, up to its end", torch.equal(by_hand[: len(stopped)], stopped))

# %% [markdown]
# Now time it: prompts of three lengths one at a time, and batches of three sizes. Whatever else the computer does in between can only
# add to a time, so the shortest of many is the closest to what the work takes. All sizes take turns, so that a busy moment does not hit
# one of them alone.


# %%
def best_times(model, sizes, turns=3, new_tokens=7):
    "For each size (rows, tokens a prompt): the shortest seconds to the first token, and of a decode step."
    best = {size: (float("inf"), float("inf")) for size in sizes}
    ids = {size: torch.randint(3, model.config.vocab_size, size, device=model.device) for size in sizes}
    for size in list(sizes) * turns:
        _, first, later, _ = greedy_by_hand(model, ids[size], new_tokens)
        best[size] = min(best[size][0], first), min(best[size][1], *later)
    return best


torch.manual_seed(settings.seed)
lengths, batches = (32, 128, 512), (1, 4, 16)
times = best_times(model, [(1, length) for length in lengths] + [(batch, 128) for batch in batches[1:]])

# %% tags=["nbval-ignore-output"] reason="seconds vary"
rows = {(b, n): (1000 * first, b * n / first, 1000 * later, b / later) for (b, n), (first, later) in times.items()}
headings = ("batch", "prompt", "first token (ms)", "prompt tokens/s", "each later token (ms)", "new tokens/s")
table(rows, "{:,.0f}", each_later_token_ms="{:.1f}", columns=headings)

# %%
gain = times[1, 128][1] * 16 / times[16, 128][1]
figure, (ax, bx) = plots.axes(
    f"A prompt of 512 tokens, not 32: the first token takes {times[1, 512][0] / times[1, 32][0]:.1f} times as long, a later one "
    f"{times[1, 512][1] / times[1, 32][1]:.1f} times; 16 rows make {gain:.1f} times the tokens of one", "", "", size=(9.2, 4.2), ncols=2,
)  # fmt: skip
for i, (name, mark) in enumerate({"first token": "o-", "each later token": "s--"}.items()):
    ax.plot(
        lengths, [1000 * times[1, n][i] for n in lengths], mark, color=plots.COLOURS[("blue", "orange")[i]], label=name
    )
bx.plot(batches, [b / times[b, 128][1] for b in batches], "o-", color=plots.COLOURS["green"], label="all rows together")
bx.plot(batches, [1 / times[b, 128][1] for b in batches], "s--", color=plots.COLOURS["red"], label="each row")
ax.set(xscale="log", xticks=lengths, xticklabels=lengths, ylim=(0, None))
ax.set(xlabel="prompt (tokens), one row", ylabel="milliseconds")
bx.set(xticks=batches, ylim=(0, None), xlabel="rows in a batch, prompts of 128 tokens", ylabel="new tokens a second")
ax.minorticks_off()
for each in (ax, bx):
    each.legend(frameon=False, fontsize=9)
plots.show(
    figure,
    alt="Left: time to the first token grows with the prompt, that of a later token hardly. Right: tokens a second grow with the batch",
)

# %%
if run.machine.device == "cpu":  # a GPU may be faster with a small model than Python is in asking
    verdict("a longer prompt delays the first token more than it slows the later ones",
            times[1, 512][0] / times[1, 32][0] > times[1, 512][1] / times[1, 32][1])  # fmt: skip
verdict("reading a prompt token costs less than making a token", times[1, 512][0] / 512 < times[1, 512][1])
verdict("16 rows make more than twice the tokens a second of one", gain > 2)

# %% [markdown]
# Prefill works on all tokens of the prompt at once, so its time grows with them. A decode step works on one token of each row and has to go
# through all the weights for it. That way is the same for one row or for many, so more rows make more tokens a second. It is no gift:
# each row for itself gets its tokens no faster, and often slower. The milliseconds hold for this machine and this model.
#
# ## 11 What the KV cache costs
#
# A decode step feeds one token, yet attention compares it with all earlier ones. What it needs of each of those, a key and a value in each
# layer, was computed before and kept: that is the KV cache. Without it each token would cost another prefill. `kv_cache_bytes` predicts
# its size from the configuration alone. Count the tensors of a real one.

# %%
rows = []
for batch, length in ((1, 32), (1, 100), (4, 100)):
    ids = torch.randint(3, model.config.vocab_size, (batch, length), device=model.device)
    cache = greedy_by_hand(model, ids, 5)[3]
    measured = bytes_of(t for layer in cache.layers for t in (layer.keys, layer.values))
    tokens = length + 4  # the fifth new token was never fed back
    predicted = kv_cache_bytes(model.config, tokens, batch, run.machine.dtype)
    rows.append((batch, tokens, predicted, measured))
    verdict(f"{batch} x {tokens} tokens: predicted to the byte", measured == predicted)
table(rows, "{:,}", columns=("rows", "tokens a row", "predicted bytes", "measured bytes"))

# %% [markdown]
# The function is one product: keys and values, layers, key-value heads, head size, bytes a number, tokens. Padding counts like any token.
# Mistral-7B shares each key-value head among four heads (grouped-query attention), without which its cache would be four times as large.
# Version 0.1, the one here, also attends to the last 4,096 tokens only, so no row keeps more than that. Against a T4:

# %%
contexts = [2**n for n in range(8, 16)]
names, t4 = ("qwen2.5-0.5b", "qwen2.5-7b", "mistral-7b"), GPUS["t4"].total_bytes
of_weights = {name: sum(weight_bytes(shape_of(PRESETS[name].shape), "nf4", True).values()) for name in names}


def first_over(name, limit, rows=8):
    "The tokens a row at which the cache of so many rows outgrows `limit` bytes, None up to the longest context drawn."
    shape = PRESETS[name].shape
    return next((n for n in range(1, contexts[-1] + 1) if kv_cache_bytes(shape, n, rows) > limit), None)


def said_of(tokens):
    return f"at {tokens:,}" if tokens else f"not up to {contexts[-1]:,}"


where = ", ".join(f"{name} {said_of(first_over(name, t4 - of_weights[name]))}" for name in names)

# %%
held_by = {
    name: [(of_weights[name] + kv_cache_bytes(PRESETS[name].shape, n, 8)) / GIB for n in contexts] for name in names
}
figure = plots.curves(
    {f"{name} (weights {of_weights[name] / GIB:.1f} GiB)": (contexts, sizes) for name, sizes in held_by.items()},
    f"Tokens a row at which weights and cache of 8 rows fill a T4: {where}", "tokens a row, 8 rows", "4-bit weights and cache (GiB)",
)  # fmt: skip
ax = figure.axes[0]
ax.axhline(
    t4 / GIB, color=plots.COLOURS["black"], linestyle="--", linewidth=1, label=f"all of a T4 ({t4 / GIB:.2f} GiB)"
)
ax.set_xscale("log", base=2)
ax.set_xticks(contexts, [f"{n:,}" for n in contexts])
ax.set_ylim(bottom=0)
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(0, 0.55))
plots.show(
    figure,
    alt="4-bit weights and KV cache of eight rows against their length for three models, beside the memory of a T4; Mistral's stops growing at its window",
)

# %% [markdown]
# Each curve begins at the weights; what it rises is the cache. So rows times tokens decides what fits, once the weights are small. When does
# the cache of 8 rows outgrow the weights? And the caches of how many rows of 4,096 tokens fit on a T4 beside them, if a twentieth is left
# free? Reading the prompts needs room of its own: do that a few rows at a time.

# %%
of_a_row = {name: kv_cache_bytes(PRESETS[name].shape, 4096) for name in names}
room = {name: int((0.95 * t4 - of_weights[name]) // of_a_row[name]) for name in names}
rows = [(name, said_of(first_over(name, of_weights[name])), of_a_row[name] / GIB, room[name]) for name in names]
headings = (
    "model",
    "8 rows' cache outgrows the weights (tokens)",
    "cache of a row of 4,096 (GiB)",
    "such caches that fit",
)
table(rows, "{:.3f}", such_caches_that_fit="{}", columns=headings)

# %% [markdown]
# ## 12 Is a 4-bit model faster?
#
# It is smaller, and a decode step goes through all weights. So it should be faster? The weights cannot be multiplied as they are:
# they have to be unpacked first. Take one layer of the size of a 7B model's and time its parts for one token and for more at once.

# %%
import bitsandbytes as bnb

plain = torch.randn(4096, 4096, dtype=run.machine.torch_dtype, device=model.device)
packed, state = bnb.functional.quantize_4bit(
    plain, quant_type=settings.quant_type, compress_statistics=settings.double_quant
)
work = {
    f"not quantized, {run.machine.dtype}": lambda x: torch.nn.functional.linear(x, plain),
    "4-bit": lambda x: bnb.matmul_4bit(x, packed.t(), quant_state=state),
    "unpacking alone": lambda x: bnb.functional.dequantize_4bit(packed, state),  # the same work for any x
}


def seconds_of(call, x):
    begun = now()
    call(x)
    return now() - begun


# %%
at_once = (1, 4, 16, 64, 256)
one_layer = {name: [float("inf")] * len(at_once) for name in work}  # milliseconds, the shortest of five turns
for _ in range(5):
    for i, number in enumerate(at_once):
        x = torch.randn(number, 4096, dtype=run.machine.torch_dtype, device=model.device)
        for name, call in work.items():
            one_layer[name][i] = min(one_layer[name][i], 1000 * seconds_of(call, x))
without, with_4_bits, unpacking = one_layer.values()
slower = [b / a for a, b in zip(without, with_4_bits)]

# %%
figure = plots.curves(
    {name: (at_once, ms) for name, ms in one_layer.items()},
    f"One layer, 4-bit: {slower[0]:.1f} times the time for one token, {slower[-1]:.1f} times for {at_once[-1]} at once",
    "tokens at once (rows of a decode step, or tokens of a prompt)", f"milliseconds on this {run.machine.device.upper()}", log=True,
)  # fmt: skip
ax = figure.axes[0]
ax.set_xscale("log", base=2)
ax.set_xticks(at_once, at_once)
plots.show(figure, alt="Time of a 4096 x 4096 layer against tokens at once: unquantized, 4-bit, and unpacking alone")

# %%
small, large = packed.numel() + bytes_of([state.absmax]), bytes_of([plain])
print(f"the layer takes {small:,} bytes in 4 bits, {large:,} bytes in {run.machine.dtype}")
print(
    f"unpacking first moves {small:,} + 2 x {large:,}: {(small + 2 * large) / large:.2f} times the bytes of the unquantized layer"
)
if run.machine.device == "cpu":
    verdict("on this CPU one token takes longer through the 4-bit layer", slower[0] > 1)
    verdict("the more tokens share the unpacking, the less it costs each", slower[-1] < slower[0])

# %% [markdown]
# On a CPU, as it is used here, bitsandbytes 0.50 unpacks the whole layer into memory and then multiplies as usual (for CPUs with AVX512-BF16
# it has a kernel of its own, which `keep_4bit_layout` switches off): it reads the small weights, writes the large
# ones and reads those again. That is more traffic than the unquantized layer has, not less, and the unpacking is the same work for one token
# as for many. So it weighs most on decoding, and less and less the longer the prompt.
#
# That is how these kernels work, and no law. On a GPU bitsandbytes has kernels that unpack while they multiply, for one row since
# [0.40](https://github.com/bitsandbytes-foundation/bitsandbytes/releases/tag/0.40.0) and for small batches since
# [0.50](https://github.com/bitsandbytes-foundation/bitsandbytes/releases/tag/0.50.0). Their authors report products faster than in 16 bits
# for one row; users of 2023 found [whole models slower](https://github.com/bitsandbytes-foundation/bitsandbytes/issues/611). For your GPU,
# believe the figure above once you ran it there, and the next table: the whole model, and the unquantized one where it fits beside it.

# %% tags=["unquantized"]
import psutil

parameters = shape_of(model.config).parameters
needed = parameters * torch.finfo(run.machine.torch_dtype).bits // 8
on_gpu = run.machine.device == "cuda"
free = (
    min(torch.cuda.mem_get_info()[0], run.machine.gpu_bytes - torch.cuda.memory_allocated())
    if on_gpu
    else psutil.virtual_memory().available
)
fits = 1.5 * needed < free
speeds = {"4-bit with adapter": best_times(model, [(1, 256)])[1, 256]}
with model.disable_adapter():
    speeds["4-bit, adapter off"] = best_times(model, [(1, 256)])[1, 256]
if fits:
    unquantized = AutoModelForCausalLM.from_pretrained(
        run.model.path, dtype=run.machine.torch_dtype, device_map=run.machine.device_map
    ).eval()
    speeds[f"not quantized, {run.machine.dtype}"] = best_times(unquantized, [(1, 256)])[1, 256]
    del unquantized

# %% tags=["nbval-ignore-output"] reason="seconds vary"
if not fits:
    print(
        f"The unquantized model needs {needed / 1e9:.1f} GB and half as much again to be safe; {free / 1e9:.1f} GB are free: not loaded."
    )
rows = {name: (1000 * prefill, 1000 * decode) for name, (prefill, decode) in speeds.items()}
table(rows, "{:.1f}", columns=("model", "prefill of 256 tokens (ms)", "a decode step (ms)"))

# %%
if run.model.bundled and run.machine.device == "cpu" and fits:
    verdict(
        "on this CPU the unquantized model decodes faster than the 4-bit one",
        list(speeds.values())[2][1] < speeds["4-bit, adapter off"][1],
    )

# %% [markdown]
# The branches of an adapter cost time in each step as well: two more products a layer. Merging removes them, which is the next lesson. To
# serve many users, people use engines made for that; what you saw here is why they batch, and why they count the bytes of the cache.

# %%
record(
    exact_match_base=scored["base"].exact_match, exact_match_tuned=scored["tuned"].exact_match,
    interval_base=scored["base"].interval, interval_tuned=scored["tuned"].interval,
    heldout_loss_base=scored["base"].loss, heldout_loss_tuned=scored["tuned"].loss, rows=len(heldout),
    by_template=shares, same_padded_left=same_left, same_padded_right=same_right, adapter_made_now=made_now,
    by_temperature={f"{t:g}, top_k {k}": share for (t, k), share in kept.items()}, bytes_held=held,
    kv_cache_bytes_a_token=kv_cache_bytes(model.config, 1, 1, run.machine.dtype),
    seconds_first_and_later_token={f"{b} x {n}": list(pair) for (b, n), pair in times.items()},
    layer_ms=one_layer, seconds_prefill_256_and_decode={name: list(pair) for name, pair in speeds.items()},
)  # fmt: skip

# %% [markdown]
# ## Exercises
#
# **1.** Llama-3.1-8B has 32 layers, 32 heads of which 8 are key-value heads, and a head size of 128. How many bytes does its KV cache take
# for each token, in float16?

# %%
bytes_for_a_token = ...
check("04.1", bytes_for_a_token)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# bytes_for_a_token = 2 * 32 * 8 * 128 * 2
# check("04.1", bytes_for_a_token)
# ```
# </details>
#
# **2.** You batch prompts of 5, 9 and 12 tokens, padded on the left to a common length. At which index, counted from 0, does the first
# real token of the shortest prompt stand?

# %%
first_real_token = ...
check("04.2", first_real_token)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# first_real_token = 12 - 5
# check("04.2", first_real_token)
# ```
# </details>
#
# **3.** A model generates to the limit of `max_new_tokens` every time: the answer, and then nonsense. What was most likely missing from
# the completions it was trained on? One word, or the token's usual short name.

# %%
missing = ...
check("04.3", missing)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# missing = "eos"
# check("04.3", missing)
# ```
# </details>
#
# **4.** Padding on the right is no sin if you look in the right place. Write a function that takes model, tokenizer and prompts, pads on the
# *right*, calls the model once, and returns the logits of the next token for each prompt. The check calls it with the model that is running
# here, on prompts of its own.

# %%
next_token_logits = ...
check("04.4", next_token_logits if next_token_logits is ... else (next_token_logits, model, tokenizer))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def next_token_logits(model, tokenizer, prompts):
#     tokenizer.padding_side = "right"
#     batch = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
#     with torch.no_grad():
#         logits = model(**batch).logits
#     last = batch["attention_mask"].sum(dim=1) - 1
#     return logits[torch.arange(len(prompts)), last]
#
# check("04.4", (next_token_logits, model, tokenizer))
# ```
# </details>
#
# **5.** A server reads 2,000 prompt tokens a second and decodes 25 tokens a second. How many seconds after the start is an answer of 101
# tokens to a prompt of 1,000 tokens complete?

# %%
seconds = ...
check("04.5", seconds)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# seconds = 1000 / 2000 + 100 / 25
# check("04.5", seconds)
# ```
# </details>
#
# **6.** One adapter answers 90 of 100 held-out rows, another one 94 of 100 other rows of the same kind. Is the second one better? `"yes"`,
# `"no"` or `"not shown"`. `wilson_interval(right, of)` may help.

# %%
second_is_better = ...
check("04.6", second_is_better)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# second_is_better = "not shown"
# check("04.6", second_is_better)
# ```
# </details>
#
# ## What you saw

# %% tags=["nbval-ignore-output"] reason="the numbers of this run"
table({
    "exact match": f"base {scored['base'].exact_match:.1%}, tuned {scored['tuned'].exact_match:.1%}",
    "one space more after the template": f"{shares['as in training']:.0%} become {shares['a space at the end']:.0%}",
    "answers kept in a batch": f"padded left {same_left:.0%}, padded right {same_right:.0%}",
    "another adapter": f"{held['yes or no'] / held['base']:.0%} of the base's bytes",
    "16 rows instead of one": f"{gain:.1f} times the tokens a second",
    "KV cache": f"{kv_cache_bytes(model.config, 1, 1, run.machine.dtype):,} bytes a token",
    "one token through a 4-bit layer": f"{slower[0]:.1f} times the time of {run.machine.dtype}, on this {run.machine.device.upper()}",
}, columns=("question", "this run"))  # fmt: skip

# %% [markdown]
# Next: [05 Merging](05_merging.ipynb) makes one model of base and adapter, without losing what was learned.
