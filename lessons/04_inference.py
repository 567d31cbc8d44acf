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
# You load the 4-bit base with the adapter on top, compare tuned and base without loading anything twice, generate in batches
# without spoiling the answers, and count what the KV cache costs.
#
# **Time:** {{cpu_time}} on two CPU cores; {{t4_time}} on a T4. **Needs:** the adapter of lesson 03; without one, this lesson
# trains one first.

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

# %%
from helpers.results import begin, record, table, verdict

run = begin(
    "04_inference", with_data=True,
    model_id=model_id, dataset_id=dataset_id, adapter_dir=adapter_dir, seed=seed, quant_type=quant_type,
    double_quant=double_quant, max_new_tokens=max_new_tokens, eval_rows=eval_rows, output_dir=output_dir,
)  # fmt: skip
settings = run.settings

# %%
from helpers.quick import adapter_for

adapter, made_now = adapter_for(run)
verdict("there is an adapter for this base model", (adapter / "adapter_model.safetensors").is_file())

# %% [markdown]
# ## 1 The base in 4 bits, the adapter on top
#
# An adapter is useless without the base it was trained on. Its config names that base and its shape: look before you load.

# %%
import json

config = json.loads((adapter / "adapter_config.json").read_text())
print("base =", "/".join(config["base_model_name_or_path"].split("/")[-2:]))
for name in ("peft_type", "r", "lora_alpha", "target_modules"):
    print(name, "=", sorted(config[name]) if isinstance(config[name], list) else config[name])

# %%
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from helpers.workarounds import keep_4bit_layout, repeat_kv_heads

repeat_kv_heads(run.machine)
quantization = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type=settings.quant_type, bnb_4bit_use_double_quant=settings.double_quant,
    bnb_4bit_compute_dtype=run.machine.torch_dtype,
)  # fmt: skip
base = AutoModelForCausalLM.from_pretrained(
    run.model.path, quantization_config=quantization, dtype=run.machine.torch_dtype, device_map=run.machine.device_map
)
tokenizer = AutoTokenizer.from_pretrained(adapter)
model = PeftModel.from_pretrained(keep_4bit_layout(base), adapter).eval()

# %% [markdown]
# ## 2 Tuned and base, one model in memory
#
# The adapter is a branch beside each layer. `disable_adapter()` closes the branch for a while, and what is left is the base.
# First the prompt: it must be the template of the training, to the letter.

# %%
from helpers.data import alpaca_prompt

row = run.rows["heldout"][0]
prompt = alpaca_prompt(row["instruction"], row["input"])
print(prompt)

# %%
from helpers.data import answer

prompts = [alpaca_prompt(r["instruction"], r["input"]) for r in run.rows["heldout"].select(range(4))]
tuned = answer(model, tokenizer, prompts, settings.max_new_tokens)
with model.disable_adapter():
    untuned = answer(model, tokenizer, prompts, settings.max_new_tokens)
expected = [r["output"] for r in run.rows["heldout"].select(range(4))]

# %% tags=["nbval-ignore-output"] reason="what the base model says after its answer varies with the processor"
table([{"expected": e, "tuned": t, "base": u} for e, t, u in zip(expected, tuned, untuned, strict=True)])

# %% [markdown]
# Did switching leave anything behind? Once the branch is open again, the answers are the same as before.

# %%
verdict("switching the adapter off changes the answers", untuned != tuned)
verdict("switching it on again brings them back", answer(model, tokenizer, prompts, settings.max_new_tokens) == tuned)

# %% [markdown]
# ## 3 Batches: pad on the left
#
# Prompts of a batch have different lengths, so the short ones are padded. A model that generates goes on from the last position.
# With padding on the right, that position holds padding. With padding on the left it holds the prompt's last token.
# One at a time needs no padding: those answers are the yardstick.

# %%
import torch


def generate(prompts, side):
    tokenizer.padding_side = side
    batch = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)
    with torch.no_grad():
        tokens = model.generate(**batch, max_new_tokens=settings.max_new_tokens, do_sample=False)
    return tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1]:])


def text_of(answers):
    return [a.split(tokenizer.eos_token)[0].strip() for a in answers]


prompts = [alpaca_prompt(r["instruction"], r["input"]) for r in run.rows["heldout"].select(range(24))]
alone = text_of([generate([p], "left")[0] for p in prompts])
raw = generate(prompts, "right")
left, right = text_of(generate(prompts, "left")), text_of(raw)

# %% tags=["nbval-ignore-output"] reason="wrong answers vary with the processor"
print("as one at a time, padded left: ", sum(a == b for a, b in zip(alone, left)), "of", len(prompts))
print("as one at a time, padded right:", sum(a == b for a, b in zip(alone, right)), "of", len(prompts))
wrong = [i for i in range(len(prompts)) if alone[i] != right[i]][:4]
table([{"prompt": run.rows["heldout"][i]["instruction"], "alone": alone[i], "padded right": raw[i][:40]} for i in wrong])

# %% [markdown]
# The column "padded right" shows the raw tokens. After padding, the tuned model ends at once or says something else. transformers warns of
# right padding; the warning is easily overlooked, and there is no error.

# %%
same_left = sum(a == b for a, b in zip(alone, left)) / len(prompts)
same_right = sum(a == b for a, b in zip(alone, right)) / len(prompts)
verdict("padding on the left keeps at least 9 answers in 10", same_left >= 0.9)
verdict("padding on the right spoils more answers than padding on the left", same_right < same_left)

# %% [markdown]
# ## 4 When to stop
#
# Training ended each answer with the end-of-sequence token. `generate` stops at it. Take the stop away and the model
# has to go on to the limit, past an answer that was complete. The second line forbids the token until then.

# %%
batch = tokenizer(prompts[0], return_tensors="pt").to(model.device)
with torch.no_grad():
    stopped = model.generate(**batch, max_new_tokens=settings.max_new_tokens, do_sample=False)
    forced = model.generate(**batch, max_new_tokens=12, min_new_tokens=12, do_sample=False)
print(tokenizer.decode(stopped[0, batch["input_ids"].shape[1]:]))
print(repr(tokenizer.decode(forced[0, batch["input_ids"].shape[1]:])))
if run.model.bundled:
    verdict("the tuned model ends its answer by itself", stopped[0, -1].item() == tokenizer.eos_token_id)

# %% [markdown]
# `TextStreamer` prints tokens as they come, which is how a reader wants a long answer. One word hardly shows it: try it on a long one.

# %%
from transformers import TextStreamer

with torch.no_grad():
    model.generate(
        **batch, max_new_tokens=settings.max_new_tokens, do_sample=False,
        streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    );  # fmt: skip

# %% [markdown]
# Greedy decoding takes the likeliest token each time and gives the same answer every time. Sampling draws the next token at random, likely
# ones more often; a higher temperature makes unlikely ones more common. For questions with one right answer, greedy is the right choice.

# %% tags=["nbval-ignore-output"] reason="sampling draws differ between torch versions"
torch.manual_seed(settings.seed)
for temperature in (0.7, 1.5, 3.0):
    with torch.no_grad():
        drawn = model.generate(
            **batch, max_new_tokens=settings.max_new_tokens, do_sample=True, temperature=temperature, top_k=0,
            num_return_sequences=4,
        )  # fmt: skip
    texts = tokenizer.batch_decode(drawn[:, batch["input_ids"].shape[1]:], skip_special_tokens=True)
    print(f"temperature {temperature}:", [t.strip() for t in texts])

# %% [markdown]
# ## 5 How good, on all of them
#
# A few good answers prove little. The same exact match as in lesson 03, base against tuned.

# %%
from helpers.data import exact_match

heldout = run.rows["heldout"].select(range(min(settings.eval_rows, len(run.rows["heldout"]))))
exact_match_tuned = exact_match(model, tokenizer, heldout, settings.max_new_tokens)
with model.disable_adapter():
    exact_match_base = exact_match(model, tokenizer, heldout, settings.max_new_tokens)
print(f"{len(heldout)} rows: the base answers {exact_match_base:.0%} exactly, the tuned model at least "
      f"{min(95, int(100 * exact_match_tuned))}%")  # fmt: skip
verdict("the tuned model answers no fewer of them than the base", exact_match_tuned >= exact_match_base)

# %% [markdown]
# ## 6 What the KV cache costs
#
# Attention compares each new token with all earlier ones. For that it needs two vectors of each earlier token in each layer, the key and
# the value, each of `key-value heads x head size` numbers. Keeping them saves computing them again: that is the KV cache.

# %%
shape = model.config
tokens = 100
head_size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
bytes_a_number = torch.finfo(run.machine.torch_dtype).bits // 8
computed = 2 * shape.num_hidden_layers * shape.num_key_value_heads * head_size * tokens * bytes_a_number
with torch.no_grad():
    cache = model(torch.ones(1, tokens, dtype=torch.long, device=model.device)).past_key_values
measured = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
print(f"KV cache of {tokens} tokens: {computed:,} bytes computed")
verdict("the cache holds exactly the bytes that were computed", measured == computed)

# %% [markdown]
# The same arithmetic for three of the presets, for one prompt of 4,096 tokens in float16. Mistral-7B shares each key-value head among
# four heads (grouped-query attention). Without that, its cache would be four times as large.

# %%
from helpers.models import PRESETS

for name in ("qwen2.5-0.5b", "qwen2.5-7b", "mistral-7b"):
    s = PRESETS[name].shape
    bytes_a_token = 2 * s["num_hidden_layers"] * s["num_key_value_heads"] * s["head_dim"] * 2
    print(f"{name}: {bytes_a_token:,} bytes a token, {4096 * bytes_a_token / 2**30:.2f} GiB for 4,096 tokens")

# %% [markdown]
# ## 7 Speed
#
# One step makes one token for every prompt of the batch, and much of its cost is the same for one prompt or sixteen. So more prompts make
# more tokens a second, though not sixteen times as many. Each batch is timed three times, and the best counts.

# %% tags=["nbval-ignore-output"] reason="speed varies with the machine"
import time

speeds = {}
for size in (1, 2, 4, 8, 16):
    batch = tokenizer(prompts[:1] * size, return_tensors="pt").to(model.device)
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        with torch.no_grad():
            model.generate(**batch, max_new_tokens=24, min_new_tokens=24, do_sample=False)
        seconds.append(time.perf_counter() - begun)
    speeds[size] = 24 * size / min(seconds)
    print(f"batch {size}: {speeds[size]:,.0f} tokens a second")

# %%
from helpers import plots

figure = plots.curves(
    {"tuned model": (list(speeds), list(speeds.values())),
     "if n prompts were n times as fast": (list(speeds), [n * speeds[1] for n in speeds])},
    f"Sixteen prompts make {speeds[16] / speeds[1]:.1f} times the tokens of one", "prompts in a batch", "tokens a second",
)  # fmt: skip
plots.show(figure, alt="Tokens generated a second against the number of prompts in a batch")

# %%
verdict("a batch of 16 makes more tokens a second than a batch of 1", speeds[16] > speeds[1])
record(
    exact_match_base=exact_match_base, exact_match_tuned=exact_match_tuned, kv_cache_bytes_a_token=computed // tokens,
    same_padded_left=same_left, same_padded_right=same_right, tokens_a_second={str(k): v for k, v in speeds.items()},
    adapter_made_now=made_now,
)  # fmt: skip

# %% [markdown]
# ## Exercises
#
# **1.** Llama-3.1-8B has 32 layers, 8 key-value heads and a head size of 128. How many bytes does its KV cache take for each token, in
# float16?

# %%
from helpers.checks import check

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
# ## What you saw

# %% tags=["nbval-ignore-output"] reason="the numbers of this run"
table([
    {"question": "exact match", "this run": f"base {exact_match_base:.1%}, tuned {exact_match_tuned:.1%}"},
    {"question": "answers kept in a batch", "this run": f"padded left {same_left:.0%}, padded right {same_right:.0%}"},
    {"question": "KV cache", "this run": f"{computed // tokens:,} bytes a token"},
    {"question": "tokens a second", "this run": f"{speeds[1]:,.0f} for one prompt, {speeds[16]:,.0f} for sixteen"},
])  # fmt: skip

# %% [markdown]
# Next: [05 Merging](05_merging.ipynb) makes one model of base and adapter, without losing what was learned.
