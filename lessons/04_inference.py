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
# At the end of this lesson you can use what you have trained: you ask one model with its adapter and without, hold a conversation with it, answer many
# questions at once, and say how good the answers are and what a token costs.
#
# You will learn to
#
# - put an adapter on a 4-bit base model, switch it off, and keep two of them on one base;
# - ask in the form that the model was trained in, and see what another form costs;
# - stop a model in time, and batch questions without spoiling the answers;
# - say how sure a score is;
# - predict how many bytes and how many steps an answer takes, and what a server needs.
#
# **Time:** 40 minutes to read, 50 for the exercises. The cells take {{cpu_time}} on two CPU cores; {{t4_time}} on a T4. **Needs:** lesson 03, and best its
# adapter. Another Colab notebook is another machine and does not have it, unless both lessons began with `output_dir="drive"`. Without one, this
# lesson trains a small one first. The table under the cell that begins with `run = begin(` says which it takes.

# %% tags=["parameters"]
model_id = (
    "auto"  # the base of your adapter; else the bundled model, on a GPU a small one; or a preset, a folder, a hub id
)
dataset_id = "auto"  # or rows of your own, as in lesson 03
columns = "auto"
encoding = "auto"
adapter_dir = "auto"  # what lesson 03 left, or a folder
seed = 0
quant_type = "nf4"
double_quant = True
max_length = "auto"  # tokens after which a held-out row is cut: take what you trained with
max_new_tokens = 16  # of an answer that is scored
eval_rows = 128
output_dir = "auto"

# %% tags=["nbval-ignore-output"] reason="which adapter is there depends on what ran before"
from helpers.lesson import begin, check, record, table, verdict

run = begin(
    "04_inference", with_data=True,
    model_id=model_id, dataset_id=dataset_id, columns=columns, encoding=encoding, adapter_dir=adapter_dir, seed=seed,
    quant_type=quant_type, double_quant=double_quant, max_length=max_length, max_new_tokens=max_new_tokens,
    eval_rows=eval_rows, output_dir=output_dir,
)  # fmt: skip
settings = run.settings

# %% [markdown]
# ## 1 Base and tuned, side by side
#
# Two adapters are used below. The first is lesson 03's, which answers questions. The second does something else on the same base: it says whether a question
# brings an input along (some rows have one, such as a name of a month), yes or no. Section 6 needs it. It is trained here in a few seconds, and so is the first one if there is none. (Training loads a base of its own
# and lets it go, so it comes first.)

# %%
from helpers.data import to_chat
from helpers.quick import adapter_for

adapter, made_now = adapter_for(run)
second_adapter, _ = adapter_for(run, "yes or no")

# %% [markdown]
# An adapter is useless without the base that it was trained on. Its configuration names that base, and says which layers have a branch. `PeftConfig` reads the configuration alone, and no weights. Look at it before you
# load somebody else's adapter. The last two lines name what is loaded next; in a notebook of your own you would type such names.

# %%
from peft import PeftConfig

about = PeftConfig.from_pretrained(adapter)
print("base:", "/".join(about.base_model_name_or_path.split("/")[-2:]), "rank:", about.r, "alpha:", about.lora_alpha)
print("layers:", *sorted(about.target_modules))
base_name, dtype, place = run.model.path, run.machine.torch_dtype, run.machine.device_map
tokenizer_from = adapter if (adapter / "tokenizer_config.json").is_file() else base_name

# %% [markdown]
# Now load. The base comes in 4 bits, as in training. `PeftModel.from_pretrained` puts the adapter on: it adds a branch beside each layer that the configuration names, and does not copy
# the base. The tokenizer comes from the adapter's folder, because whatever was saved there is what the adapter was trained with.
# (This cell and others that begin with `# Step` run in a notebook of your own as they stand: none of them needs this course. There, say first what to load, with names of your own.)
#
# ```python
# base_name, place = "Qwen/Qwen2.5-7B", {"": 0}  # {"": "cpu"} without a GPU
# adapter = tokenizer_from = "my_adapter"  # its folder
# dtype, quant_type, double_quant = "float16", "nf4", True  # as in training
# ```

# %% tags=["copy"]
# Step 1: the base in 4 bits, the adapter on it, and the tokenizer that was saved beside the adapter
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TextStreamer

four_bits = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=double_quant, bnb_4bit_compute_dtype=dtype
)  # fmt: skip
base = AutoModelForCausalLM.from_pretrained(base_name, quantization_config=four_bits, dtype=dtype, device_map=place)
for layer in base.modules():  # some CPUs only: a short cut of bitsandbytes 0.50 that is wrong (lesson 03)
    layer.support_avx512bf16_for_cpu = False
model = PeftModel.from_pretrained(base, adapter, adapter_name="answers").eval()
tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)

# %% [markdown]
# One model in memory is both, base and tuned: `disable_adapter()` closes the branches for a while. Here are [held-out](../site/glossary.md#held-out-rows) questions, answered
# with the adapter and without.

# %% tags=["nbval-ignore-output"] reason="what the base model says after its answer varies with the processor"
from helpers.evaluation import answer, decode_times, evaluate, prompt_texts

asked = run.rows["heldout"].select(range(min(32, len(run.rows["heldout"]))))
prompts = [text or tokenizer.eos_token for text in prompt_texts(tokenizer, asked)]
tuned = answer(model, tokenizer, prompts, settings.max_new_tokens)
with model.disable_adapter():
    untuned = answer(model, tokenizer, prompts[:4], settings.max_new_tokens)
headings = ("asked", "input", "expected", "tuned", "base")
table(zip(asked["instruction"], asked["input"], asked["output"], tuned, untuned), base="{:.40}", columns=headings)

# %% [markdown]
# Does the bundled base not know that the pigeon coos? It does. The pages of a quiz that it has read give each answer on a line of its own, behind `Answer:`. Asked in that form it answers 32 of these 32 questions, and in the form above
# none: "A text as the stop" in "Further down" counts them. So the adapter did not teach it these facts. It taught the form.
#
# ## 2 The form of the question
#
# What is the form? With the bundled model it is Alpaca's, which ends with `### Response:` and one newline, and there the answer begins. Alpaca has two kinds of prompt, and the training had both: where a row has an input, the
# input stands under a heading of its own, and the sentence at the top announces it. Now ask the same questions in other forms. Some differ by one character, and one is ChatML, the form of Qwen's chat models. These functions take a prompt and its row, and write the
# question anew.


# %%
def ending(end):
    return lambda prompt, row: prompt.removesuffix("\n") + end


def question_alone(prompt, row):
    return f"{row['instruction']}\n{row['input']}".strip() + "\n"


def another_chat_format(prompt, row):
    return f"<|im_start|>user\n{row['instruction']} {row['input']}<|im_end|>\n<|im_start|>assistant\n"


# %%
forms = {
    "as in training": ending("\n"),
    "no newline at the end": ending(""),
    "a space at the end": ending("\n "),
    "two newlines at the end": ending("\n\n"),
    "no header": lambda prompt, row: prompt.split("\n\n", 1)[-1],
    "the question alone": question_alone,
    "ChatML, a chat format": another_chat_format,
}

# %% [markdown]
# The header is the sentence at the top, "Below is an instruction ...". Which of these forms will cost the most answers: the missing header, the space at the end, or the chat
# format? And which will cost nothing? Write down a guess, then run the cell.


# %%
def rights(answers):
    return [a == row["output"].strip() for a, row in zip(answers, asked)]


said, shares = {}, {}
for name, write in forms.items():
    said[name] = answer(model, tokenizer, list(map(write, prompts, asked)), settings.max_new_tokens)
    shares[name] = sum(rights(said[name])) / len(asked)

# %%
from helpers.plots import bars, diagrams, show

percent = [100 * share for share in shares.values()]
title = f"{percent[1:].count(0)} of {len(percent) - 1} other forms lose every answer"
colours = ["orange", *["blue"] * (len(percent) - 1)]
figure = bars(list(shares), percent, title, f"answered exactly (% of {len(asked)})", colours, numbers="{:.0f}")
show(
    figure, alt="Share of questions answered exactly, for seven forms; the first and orange bar is the form of training"
)

# %%
bundled = run.model.bundled and settings.dataset_id in ("auto", "bundled")
usual = bundled and shares["as in training"] >= 0.5  # what follows claims something of answers only then
if usual:
    verdict("one space more at the end costs at least a quarter of the answers, and more than a missing header does",
            shares["a space at the end"] <= min(0.75 * shares["as in training"], shares["no header"]))  # fmt: skip

# %% [markdown]
# Compare your guesses. In the run shown, the missing header costs nothing. The chat format, which the model never saw, costs every answer, and the space most of them. But one newline too few costs every answer as well, and so does one newline too many. Look at the tokens at the end of each prompt, and at the token that is the likeliest behind them. (`Ċ` is how this tokenizer writes a newline, and `Ġ` a space.)


# %%
def last_tokens(prompt):
    return " ".join(tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"][-3:]))


@torch.no_grad()
def next_token(prompt):
    batch = tokenizer(prompt, return_tensors="pt").to(model.device)
    return tokenizer.convert_ids_to_tokens(model(**batch).logits[0, -1].argmax().item())


# %% tags=["nbval-ignore-output"] reason="wrong answers vary with the processor"
rows = []
for name, write in forms.items():
    text = write(prompts[0], asked[0])
    with model.disable_adapter():
        of_base = next_token(text)
    rows.append((name, last_tokens(text), of_base, next_token(text), said[name][0]))
headings = ("form", "its last three tokens", "the base goes on with", "the tuned model with", "and answers")
table(rows, and_answers="{!r:.30}", columns=headings)

# %% [markdown]
# > **Trap: one space too many.** *What you will see:* no error, and worse answers than in training. *Why:* a tokenizer joins a space with the word behind it. With
# > a space at its end the prompt ends in a token that stood there in no row of the training, and the model must go on from a place where it has never been. *The cure:* write the form once, in one function, and call that function in training and at use.
#
# And the newlines? The table shows a likely reason. With none at the end, and with two, the base goes on with a newline. It does the same behind an answer, and there training taught the model to write the token that ends
# an answer (`</s>`; section 4). The tuned model writes it here too, and both answers are empty. "The question alone" has almost nothing of the training but its last newline, and still gets most answers. So the last tokens matter more than the words above them. They are not all that matters: ChatML ends with a newline, too. But its markers are no tokens of this model. They are cut into pieces (`<`, `|`, `im` and more), and behind them the tuned model goes on as the base does, with another quiz question.
#
# How much each of the small changes costs differs from one training to the next: with another seed, or some more steps, a bar may move far. (With so few questions, a gap of three answers says little; section 7 shows why.) Nothing in the training decided what happens there, so do not
# rely on it.
#
# ## 3 A conversation
#
# A chat model brings its form along, its [chat template](../site/glossary.md#chat-template): a small program, kept with the tokenizer, that writes a conversation as text. `apply_chat_template` runs it.
# The bundled model is no chat model and has none, so lesson 03 gave it the form of the training as its template, and kept that beside the adapter. Where the tokenizer has none, `FORM` is Alpaca's form, with and without an input. The tokenizer stays as it is: whatever asks the model later
# must find the template that belongs to the adapter. (`eos_token` marks the end of an answer; section 4 is about it.)
#
# Mind an adapter whose folder holds no tokenizer. Then the base's is loaded, and some base models carry the template of their chat model. If the training had Alpaca's form, write `tokenizer.chat_template = None` before step 2, or you make the mistake of section 2.

# %% tags=["copy"]
# Step 2: a conversation as text, in the tokenizer's chat template, where it has one
FORM = (
    "{% for m in messages %}{% if m.role == 'user' and m.content %}Below is an instruction that describes a task"
    "{% if m.input %}, paired with an input that provides further context{% endif %}. Write a response that appropriately "
    "completes the request.\n\n### Instruction:\n{{ m.instruction if m.input else m.content }}\n\n"
    "{% if m.input %}### Input:\n{{ m.input }}\n\n{% endif %}### Response:\n"
    "{% elif m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
has_own = tokenizer.chat_template is not None


def as_text(messages, answer_next=True):  # answer_next: with the words that open the next answer
    how = {"chat_template": None if has_own else FORM, "add_generation_prompt": answer_next, "tokenize": False}
    text = tokenizer.apply_chat_template(messages, **how)
    start = tokenizer.decode(tokenizer("")["input_ids"])  # what the tokenizer puts in front of every text
    return text.removeprefix(start)  # or it would stand there twice


# %% [markdown]
# `FORM` and the template that lesson 03 keeps for the bundled model write what the user and the assistant say. They leave out a system message without a word, so what it would say must stand in the question. Print `as_text(messages)` before you trust a template.
#
# A model remembers nothing between two calls. A chat is a list of messages that grows, and this code reads all of it again for each answer. `TextStreamer` shows the text as it is made, so that
# nobody has to wait for the end. `do_sample=False` takes the likeliest token each time, which is called *greedy*. The other way is *sampling*: the next token is drawn at random, a likelier one more often. The
# [temperature](../site/glossary.md#temperature) says how freely, and 0 means greedy.


# %% tags=["copy"]
# Step 3: the next answer in a conversation, shown as it is made
def reply_to(messages, longest=64):
    text = as_text(messages) or tokenizer.eos_token  # where nothing is asked, a model needs a token to go on from
    tokens = tokenizer(text, return_tensors="pt").to(model.device)
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with torch.no_grad():
        out = model.generate(**tokens, max_new_tokens=longest, do_sample=False, pad_token_id=pad, streamer=streamer)
    return tokenizer.decode(out[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True).strip()


# %% [markdown]
# The message of a question has a `role` and a `content`. Where the question has an input, name both parts beside the content, as `instruction` and `input`: then the input gets the heading that it had in training. With the content alone both
# would stand under one heading, a form that no row of the training had. (A chat model's own template reads the content alone.)

# %% tags=["copy", "nbval-ignore-output"] reason="what a model says varies with the processor"
# Step 4: ask it, first without an input, then with one
sound = reply_to([{"role": "user", "content": "Name the sound of the pigeon."}])
what, about = "What is the following word in Italian?", "February"
word = reply_to([{"role": "user", "content": f"{what}\n\n{about}", "instruction": what, "input": about}])

# %% [markdown]
# Now a conversation. For a real chat model, begin lesson 03 and this one with `model_id = "smollm2-135m"` (`python -m helpers model smollm2` fetches it without the hub), another id of the hub, or a folder.
# `to_chat` of lesson 03 makes such a message of a row.

# %% tags=["nbval-ignore-output"] reason="what a model says varies with the processor"
messages = []
for row in asked.select(range(min(3, len(asked)))):
    messages += to_chat(row)["prompt"]
    print("you:  ", " ".join(messages[-1]["content"].split()), "\nmodel:", end=" ")
    messages.append({"role": "assistant", "content": reply_to(messages)})
    print("tokens in the conversation so far:", len(tokenizer(as_text(messages, answer_next=False))["input_ids"]))

# %% [markdown]
# Each answer makes the next prompt longer. The conversation must fit into what the model can read, and long before that the first token of each answer comes later: section 8 measures how much. And an adapter that was trained on single questions, like this one, never saw a second turn: what it makes of one is luck. Exercise 7 is about what
# to leave out when it becomes too long.
#
# ## 4 When to stop
#
# Training put the end-of-sequence token ([eos](../site/glossary.md#eos)) behind each answer, and `generate` stops at it. What happens without that stop?

# %%
one = tokenizer(prompts[0], return_tensors="pt").to(model.device)
start, room = one["input_ids"].shape[1], max(12, settings.max_new_tokens)
with torch.no_grad():
    stopped = model.generate(**one, max_new_tokens=room, do_sample=False)[0, start:]
    endless = model.generate(**one, max_new_tokens=room, do_sample=False, eos_token_id=None)[0, start:]
print(f"with the stop {len(stopped)} tokens, without it {len(endless)}")
if usual:
    verdict("the tuned model ends its answer by itself", stopped[-1].item() == tokenizer.eos_token_id)

# %% tags=["nbval-ignore-output"] reason="what follows the answer varies with the processor"
print("stops at its end:", repr(tokenizer.decode(stopped)))
print("without a stop:  ", repr(tokenizer.decode(endless)))

# %% [markdown]
# Without the stop the model goes on past an answer that was complete.
#
# > **Trap: it never stops.** *What you will see:* the right answer, then nonsense up to `max_new_tokens`. *Why:* either the model never learned to write eos (lesson 03 shows how labels hide it), or
# > `generate` waits for another token than the one that was trained: a chat model may end its turns with `<|im_end|>` and its texts with `<|endoftext|>`. *The cure:* look at
# > `model.generation_config.eos_token_id`, which may be a list, and at the last token of a training row. `stop_faults` in "Further down" compares the tokenizer's eos with the tokens at which `generate` stops.
#
# ## 5 Many questions at once
#
# The prompts of a batch have different lengths, so the short ones are filled up with [padding](../site/glossary.md#padding). No token looks at padding. But the next token is read off the last place of each row. Which token stands
# there, if the padding is on the left, and which if it is on the right?


# %%
def places(side):
    mask = tokenizer(prompts[:4], padding=True, padding_side=side, return_tensors="pt")["attention_mask"]
    return ["".join("#" if real else "." for real in row) + ">" for row in mask.tolist()]


for side in ("left", "right"):
    print(f"{side} (# a token, . padding, > where it goes on)", *places(side), sep="\n  ")

# %% [markdown]
# On the left, the last place holds the prompt's last token. On the right, it holds padding. How many of the answers will be the same as when each question is asked alone? Write down a guess for either side.


# %% tags=["copy"]
# Step 5: many questions at once
def answer_batch(prompts, longest=64, side="left"):
    if tokenizer.pad_token is None:  # Mistral's and Llama's have none, and any token will do
        tokenizer.pad_token = tokenizer.eos_token
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side=side).to(model.device)
    with torch.no_grad():
        out = model.generate(**batch, max_new_tokens=longest, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    made = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in made]


# %%
some, longest = prompts[:16], settings.max_new_tokens
alone = [answer_batch([prompt], longest)[0] for prompt in some]
left, right = answer_batch(some, longest), answer_batch(some, longest, side="right")
same_left, same_right = (sum(map(str.__eq__, alone, batch)) / len(some) for batch in (left, right))
if usual:
    verdict("padding on the left keeps at least nine answers in ten, and padding on the right spoils more", same_left >= 0.9 > same_right)  # fmt: skip

# %% tags=["nbval-ignore-output"] reason="wrong answers vary with the processor"
print(f"the same as alone: {same_left:.0%} of {len(some)} padded on the left, {same_right:.0%} padded on the right")
batch = tokenizer(some, return_tensors="pt", padding=True, padding_side="right").to(model.device)
begun = model.generate(**batch, max_new_tokens=1, do_sample=False)[:4, -1]
print("padded on the right, four answers begin with", *tokenizer.convert_ids_to_tokens(begun))
headings = ("alone", "padded on the left", "padded on the right")
table(list(zip(alone, left, right))[:4], padded_on_the_left="{!r}", padded_on_the_right="{!r}", columns=headings)

# %% [markdown]
# One of 16 is 6%: the longest prompt, which needs no padding. All others go on from a padding token, where training never asked for an answer. `''` is an empty answer: each of these four begins with eos, `</s>`, as the second printed line shows. (In the drawing the longest of four prompts has no padding. The table comes from a batch of 16, where a longer prompt pads this one too.)
#
# > **Trap: padding on the right.** *What you will see:* empty or odd answers for the shorter prompts, and at most a warning of transformers in red. *Why:* a tokenizer is often saved with right padding, because
# > training pads there. *The cure:* pad on the left when you generate, as step 5 does. (Right padding is not wrong in itself. Exercise 4 looks in the right place.)
#
# With step 2, `answer_batch([as_text([message]) for message in messages])` answers many messages, each for itself.
#
# Why may even the left side change an answer? The same product in another shape adds its numbers up in another order, and rounds otherwise. Where two tokens are nearly equally likely, that can tip
# the choice.
#
# ## 6 Two adapters, one base
#
# A second adapter adds its branches beside the first one's. `set_adapter` says which of them is open. And one batch may even mix them: `adapter_names` gives each row its adapter, with `"__base__"` for
# none. The base's part of the work is done once for all rows.

# %%
model.load_adapter(second_adapter, adapter_name="yes or no")
model.set_adapter("yes or no")
other = answer(model, tokenizer, prompts, settings.max_new_tokens)
model.set_adapter("answers")
expected = ["yes" if row["input"] else "no" for row in asked]
if usual:
    right_task = sum(map(str.__eq__, other, expected)) / len(asked)
    verdict("the second adapter does the other task, nine times in ten the right way", right_task >= 0.9)

# %% tags=["nbval-ignore-output"] reason="what the base model says varies with the processor"
three = ("answers", "yes or no", "__base__")
batch = tokenizer([prompts[0]] * 3, return_tensors="pt").to(model.device)
with torch.no_grad():
    made = model.generate(**batch, max_new_tokens=settings.max_new_tokens, do_sample=False, adapter_names=list(three))
mixed = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
if usual:
    verdict("in a mixed batch each row answers as its adapter does alone", [m.strip() for m in mixed[:2]] == [tuned[0], other[0]])  # fmt: skip
table(zip(three, mixed), in_one_batch="{:.60}", columns=("adapter of the row", "in one batch"))

# %% [markdown]
# What does another adapter cost? A layer's weights grow with the square of its width, and an adapter only with the width itself. So the wider the model, the smaller is the share of an adapter. The table "How many rows fit on a
# T4?" in "Further down" has this share, of the layers in 4 bits, for four models. (The bundled model is so small that an adapter is a fair part of it.)
#
# What was put on can come off again: `unload` takes the branches away and returns the base. Are its [logits](../site/glossary.md#logits), the scores for the next token, those that the model gave with the adapter
# switched off, to the last bit?

# %%
with torch.no_grad():
    on = model(**one).logits
    with model.disable_adapter():
        off = model(**one).logits
    base = model.unload()
    bare = base(**one).logits
verdict("switched off, the model is its base, bit for bit; switched on, it is not", torch.equal(off, bare) and not torch.equal(on, off))  # fmt: skip
model = PeftModel.from_pretrained(base, adapter, adapter_name="answers").eval()

# %% [markdown]
# ## 7 Better or not?
#
# A few good answers prove little. `evaluate`, which lesson 03 uses too, scores base and tuned model on the same held-out rows, here the first `eval_rows` of them: the loss on the expected answer, and
# [exact match](../site/glossary.md#exact-match) with its interval. (Exact match asks for form and stop too: whoever knows the answer and goes on talking is wrong here.) It follows the settings of this run: a row is cut at `max_length` tokens, as in training, and an answer at `max_new_tokens`. Lesson 05 scores merged models with it.

# %% tags=["score"]
heldout = run.rows["heldout"].select(range(min(settings.eval_rows, len(run.rows["heldout"]))))
how = {"max_length": settings.max_length, "max_new_tokens": settings.max_new_tokens}
how |= {"batch_size": 64 if run.model.bundled else 8}  # rows at once; logits of a large vocabulary take memory
scored = {"tuned": evaluate(model, tokenizer, heldout, **how)}
with model.disable_adapter():
    scored["base"] = evaluate(model, tokenizer, heldout, **how)

# %% tags=["nbval-ignore-output"] reason="losses vary with the processor"
rows = {name: (score.loss, score.exact_match, *score.interval) for name, score in scored.items()}
headings = ("model", "held-out loss", "exact match", "95% interval: from", "to")
if usual and len(heldout) >= 32:
    apart = scored["tuned"].interval[0] > scored["base"].interval[1]
    verdict("the tuned model is better than chance could explain: the intervals do not touch", apart)
table(rows, "{:.1%}", held_out_loss="{:.3f}", columns=headings)

# %% [markdown]
# For the loss of the bundled model there is a yardstick: who guesses blindly among its 3,072 tokens scores $\ln 3072 = 8.0$. The base is worse than a blind guess, because it is sure of something else. The answers of the training end with eos. Behind
# an answer the base is nearly sure of a newline, and of another quiz question after it.
#
# The rows are a sample of all the questions that could be asked. Another sample would give another share. The [interval](../site/glossary.md#confidence-interval) lists the true shares that fit our result. If the truth lay outside it, a result like ours would be rare. It is Wilson's interval (1927), and the function below computes it from
# two numbers: how many answers were right, and of how many. "Why Wilson's interval?" in "Further down" has its formula, and shows where the formula that most people know fails.
#
# How many rows do you need? The width goes with one over the square root of their number: four times the rows, half the width.


# %%
from math import sqrt


def wilson(right, n, z=1.96):
    p, shrink = right / n, 1 + z * z / n
    half = z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return (p + z * z / (2 * n) - half) / shrink, (p + z * z / (2 * n) + half) / shrink


spans = {n: wilson(round(0.9 * n), n) for n in (8, 32, 128, 512, 2048)}
rows = [(n, low, high, high - low) for n, (low, high) in spans.items()]
table(rows, "{:.1%}", columns=("rows", "about nine in ten right: from", "to", "width"))

# %% [markdown]
# An interval is about one model. To say which of two models is better, look at which of the same rows each has right: "The same rows, answered twice" in "Further down" does that.
#
# ## 8 What a token costs
#
# What does `generate` do inside? First it reads the prompt, all tokens at once: that is [prefill](../site/glossary.md#prefill), and it ends with the first new token. Then it makes one token after the other, each from the
# one before: that is [decoding](../site/glossary.md#decoding). What attention needs of earlier tokens, a *key* and a *value* in each layer, was computed before and is kept: that is the
# [KV cache](../site/glossary.md#kv-cache). Written out, it is a loop of three lines:


# %%
@torch.no_grad()
def greedy(ids, new_tokens):
    out = model(ids, use_cache=True, logits_to_keep=1)  # prefill: the whole prompt
    made = [out.logits[:, -1:].argmax(-1)]
    while len(made) < new_tokens:
        out = model(made[-1], cache=out.cache, use_cache=True)  # decode: one token
        made.append(out.logits[:, -1:].argmax(-1))
    return torch.cat(made, dim=1), out.cache  # older releases of transformers say past_key_values


# %%
sentence = tokenizer("The capital of Peru is", return_tensors="pt").to(model.device)["input_ids"]
made = greedy(sentence, 4)[0]
texts = [[tokenizer.decode([i]) for i in ids[0].tolist()] for ids in (sentence, made)]
title = "Prefill reads the prompt in one pass through the weights; each later token needs a pass of its own"
figure = diagrams.prefill_and_decode(*texts, title)
show(
    figure,
    alt="In prefill all prompt tokens pass the layers at once; in a decode step one does, and attention reads the cache",
)

# %% [markdown]
# Nothing stops this loop, so it goes on behind the full stop. Does it make the same tokens as `model.generate`?

# %%
by_hand = greedy(one["input_ids"], len(stopped))[0][0]
if run.model.bundled:  # another model's generation_config.json may ask for more than the likeliest token
    verdict("the loop makes the tokens that generate() makes", torch.equal(by_hand, stopped))

# %% [markdown]
# Prefill works on many tokens per pass through the weights, a decode step on one per row. Now time them. How many per cent of the time of making 512 tokens does it take to read 512? And if 16 rows are decoded at once in place of one,
# how many times as many tokens per second come out? Write down two guesses.
#
# (`decode_times` is the loop with a clock. It measures each size several times, in turn, and keeps the shortest time, because whatever else the computer does can only add to it. Trust only the ratios of such times: a busy computer is slower in all of them.)

# %% tags=["nbval-ignore-output"] reason="seconds vary"
sizes = [(1, 128), (1, 512), (4, 128), (16, 128)]
times = decode_times(model, sizes, turns=8)
one_step = times[1, 128][1]  # the unit of the table: a decode step of one row
gain = 16 * one_step / times[16, 128][1]
verdict("reading a token of the prompt costs less than making a token", times[1, 512][0] / 512 < times[1, 512][1])
verdict("16 rows make more than twice the tokens per second of one row", gain > 2)
print(f"Reading 512 tokens takes {times[1, 512][0] / (512 * times[1, 512][1]):.1%} of the time of making 512.")
print(f"16 rows make {gain:.1f} times the tokens per second of one row.")
print(f"Reading 16 prompts takes {times[16, 128][0] / times[1, 128][0]:.0f} times as long as reading one.")
rows = [
    (*size, first / one_step, later / one_step, size[0] * one_step / later) for size, (first, later) in times.items()
]
headings = ("rows", "prompt tokens", "first token", "each later token", "tokens of all rows in a unit of time")
table(rows, "{:,.1f}", rows="{}", prompt_tokens="{}", columns=headings)

# %% [markdown]
# The unit of time is one decode step of a single row in this run, after a prompt of 128 tokens. The first two printed lines answer your guesses. The times of a small model on a busy CPU are noisy: run the cell again to see how far they move.
#
# A decode step goes through all the weights, for one row or for many. So each step has fixed costs, such as unpacking the weights here, which all rows share, and more rows make more tokens per second. On a GPU with a large model, fetching the weights from memory is that cost, which is said as: decoding is limited by memory bandwidth.
# Prefill has the fixed costs once for all tokens of the prompt; it is limited by arithmetic, and a batch does not spare that. So every prompt token, in every row, delays the first new token, and a batch helps far less with reading than with decoding. The third printed line shows it: sixteen times would be no gain at all, and
# more than that is noise. (Timed five times more on a busy computer, it was between 7 and 17.) Each row for itself gets its tokens no faster, and often slower. The ratios hold for
# this machine and this model. On a T4, mind trap 2 of lesson 03 with long prompts: attention that falls back to a slow kernel.
#
# ## 9 The KV cache
#
# The cache is what decides how many rows fit. For $L$ layers with $h$ key-value heads of $d$ numbers, of $b$ bytes each, $n$ tokens take
#
# $$\underbrace{2}_{\text{key, value}} \cdot\; L \cdot h \cdot d \cdot b \cdot n \quad \text{bytes per row,}$$
#
# and padding counts like any token. `kv_cache_bytes` computes this from the model's configuration. Count the tensors of a real cache beside it.

# %%
from helpers.memory import kv_cache_bytes

rows = []
for batch, length in ((1, 32), (1, 100), (4, 100)):
    layers = greedy(torch.full((batch, length), 5, device=model.device), 5)[1].layers
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in layers)
    tokens = length + 4  # the fifth new token was never fed back
    rows.append((batch, tokens, kv_cache_bytes(model.config, tokens, batch, run.machine.dtype), real))
verdict("every real cache has the predicted size, to the byte", all(row[2] == row[3] for row in rows))
table(rows, "{:,}", columns=("rows", "tokens in a row", "predicted bytes", "real bytes"))

# %% [markdown]
# Now models that people use. Eight users with 4,096 tokens each, in float16:

# %%
names = ("qwen2.5-0.5b", "qwen2.5-7b", "mistral-7b", "llama-3.1-8b")
rows = [(name, kv_cache_bytes(name, 1), kv_cache_bytes(name, 4096, 8) / 1e9) for name in names]
table(rows, "{:,}", eight_rows_of_4_096_tokens_GB="{:.2f}", columns=("model", "bytes per token", "eight rows of 4,096 tokens (GB)"))  # fmt: skip

# %% [markdown]
# The size of a model says little about its cache. Qwen2.5-7B has 28 query heads in a layer and 4 key-value heads, which they share; Mistral-7B and Llama-3.1-8B have 8 for 32. For Llama that gives $2 \cdot 32 \cdot 8 \cdot 128 \cdot 2 = 131{,}072$ bytes per token. Without this sharing, called
# [grouped-query attention](../site/glossary.md#grouped-query-attention), their caches would be four to seven times as large. "Further down" shows how many rows fit on a T4 beside the weights.

# %%
record(
    exact_match_base=scored["base"].exact_match, exact_match_tuned=scored["tuned"].exact_match,
    interval_base=scored["base"].interval, interval_tuned=scored["tuned"].interval, rows=len(heldout),
    heldout_loss_base=scored["base"].loss, heldout_loss_tuned=scored["tuned"].loss, adapter_made_now=made_now,
    by_form=shares, same_padded_left=same_left, same_padded_right=same_right,
    kv_cache_bytes_a_token=kv_cache_bytes(model.config, 1, 1, run.machine.dtype), tokens_of_16_rows=gain,
    chat_template="the tokenizer's" if has_own else "Alpaca's",
    seconds_first_and_later_token={f"{b} x {n}": list(pair) for (b, n), pair in times.items()},
)  # fmt: skip

# %% [markdown]
# ## 10 Serving it to many
#
# Everything above used one process and one batch at a time. A server gets requests at any moment, of any length, for several adapters. Engines are made for that, and now you know what they are about: they batch whatever is
# waiting, since one decode step for many rows costs far less than a step for each of them, and they cut the KV cache into small pages, since it decides how many rows fit. vLLM is a widely used one.
#
# To serve your adapter *without merging it*, on the 4-bit base that it was trained on, vLLM needs:
#
# ```
# pip install vllm "bitsandbytes>=0.46.1"
# vllm serve Qwen/Qwen2.5-7B --quantization bitsandbytes --enable-lora --max-lora-rank 16 --lora-modules mine=path/to/adapter
# ```
#
# The server then answers requests such as this one. Its prompt has the form of the training:
#
# ```
# curl http://localhost:8000/v1/completions -H "Content-Type: application/json" -d '{
#   "model": "mine", "temperature": 0, "max_tokens": 64,
#   "prompt": "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\nName the sound of the pigeon.\n\n### Response:\n"}'
# ```
#
# - **The request.** Say `temperature` and `max_tokens` yourself. Without `max_tokens`, a request to `/v1/completions` is
#   [cut after 16 tokens](https://github.com/vllm-project/vllm/blob/d5dba2d7b0ab9b98096560c69db7126b54b14d79/vllm/entrypoints/openai/completion/protocol.py), and one to `/v1/chat/completions` may
#   [run on until the context is full](https://github.com/vllm-project/vllm/blob/00a5fdd20935ba7679750db22997dcf539ca4591/vllm/entrypoints/serve/utils/api_utils.py). Without `temperature`, both draw at random, at temperature 1. The model's `generation_config.json` may name other values.
#   Section 1 was greedy: temperature 0.
# - **The rank.** `--max-lora-rank` is 16 unless you say otherwise, and an adapter of a higher rank is [refused](https://github.com/vllm-project/vllm/issues/2847): take the smallest of
#   [1, 8, 16, 32, 64, 128, 256, 320 and 512](https://github.com/vllm-project/vllm/blob/01230b40128e570a58e54e75f7e55c4d5cd9246d/vllm/config/lora.py) that holds your adapters, because [room for it is reserved](https://github.com/vllm-project/vllm/pull/22782).
# - **The kind of adapter.** Plain and rank-stabilized LoRA (`use_rslora=True`) are read; DoRA (`use_dora=True`, a variant that also trains the length of each weight vector) and layers that were trained whole (`modules_to_save`) are
#   [refused](https://github.com/vllm-project/vllm/blob/02143692ba86a7ba6198a67e12982c5317c8bd2f/vllm/lora/peft_helper.py), so merge these first (lesson 05).
# - **The name.** A client asks for the adapter as if it were [a model](https://github.com/vllm-project/vllm/blob/05863f17683849086f056a80d1163edb761b3449/docs/features/lora.md), here `"model": "mine"`.
# - **The form.** A chat goes through the template of the tokenizer that is served, and that is the base's: section 2's mistake, made by the server. Name the one that lies beside your adapter, `--chat-template path/to/adapter/chat_template.jinja`, or send whole prompts to `/v1/completions`. That template leaves out system messages here as well. (The bundled model's template also reads `message.input`: try whether a request may carry it.)
#
# <details><summary>More about vLLM: the base, several adapters, long conversations, the hardware</summary>
#
# - **The base, quantized as in training.** `--quantization bitsandbytes` has vLLM quantize a 16-bit base while it loads it, to NF4 with double quantization as this course does
#   ([its page](https://github.com/vllm-project/vllm/blob/1de5d6b656f14be46d9d677ddccd63c26016f08c/docs/features/quantization/bnb.md),
#   [the loader](https://github.com/vllm-project/vllm/blob/0406fb9fb92d0e562d3c8201b7f1940e088be3f4/vllm/model_executor/model_loader/bitsandbytes_loader.py)); if you trained with FP4 or without double quantization, name a base that was saved in 4 bits that way.
# - **Several adapters.** Name them all behind `--lora-modules`, and set `--max-loras`: it says how many of them share one batch, and in
#   [the version that was read](https://github.com/vllm-project/vllm/blob/01230b40128e570a58e54e75f7e55c4d5cd9246d/vllm/config/lora.py) it is 1 by default. `--max-cpu-loras`, how many wait in the computer's memory, is no more unless you say so.
# - **A long conversation.** With [prefix caching](https://github.com/vllm-project/vllm/blob/0fdc121666ceaea138003c6a0a66c271275a76a6/docs/features/automatic_prefix_caching.md) a server keeps the keys and values of a beginning that it has read, so a chat that grows is not read anew for each answer, as section 3 does.
# - **The hardware.** bitsandbytes is [listed](https://github.com/vllm-project/vllm/blob/0328802bed2bb6ca346ea10acb61221a0c607768/docs/features/quantization/README.md) for NVIDIA GPUs from Volta to Hopper, a T4 among them, and for no CPU; the 4-bit products are computed
#   [in bfloat16](https://github.com/vllm-project/vllm/blob/01f5395fdf04e971bac08504ccf5a2c7c0c7cda6/vllm/model_executor/layers/quantization/bitsandbytes.py), for which a T4 has no units.
#
# </details>
#
# This was read on 2026-11-26 and 27, in the versions that the links name; they are not the newest. Nobody has run it for this course. vLLM changes fast: look at [its documentation](https://docs.vllm.ai) before you build on it, and compare its
# first answers, at temperature 0, with those of section 1. For a laptop, or a server without a GPU, lesson 05 makes a GGUF file for llama.cpp.
#
# ## Exercises
#
# Put your answer in place of the dots and run the cell: it is checked at once. The bullets after the minutes say how hard it is. The solutions are folded away.
#
# **1. Write** (5 minutes, •). Write `kv_bytes(layers, heads, size, tokens, rows, window=None)`: the bytes of a KV cache in float16. `heads` are key-value heads, `size` is the number of values in one. A model with a
# sliding `window` keeps no more than the last `window - 1` tokens of each row: the newest token is itself the last of the window.


# %%
def kv_bytes(layers, heads, size, tokens, rows, window=None):
    "Bytes of the keys and values that are kept, two bytes per number."
    return ...


check("04.1", kv_bytes)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def kv_bytes(layers, heads, size, tokens, rows, window=None):
#     kept = min(tokens, window - 1) if window else tokens
#     return 2 * layers * heads * size * 2 * kept * rows
#
#
# check("04.1", kv_bytes)
# ```
#
# For Llama-3.1-8B (32 layers, 8 key-value heads of 128) that is 131,072 bytes per token.
# </details>
#
# **2. Repair** (5 minutes, ••). A colleague cuts off what a model writes behind the end of its answer. `stops` is a set, because a chat model may have several end tokens. Her function runs, and nonsense is still
# shown to the users. Write it right, as `cut`.


# %%
def their_cut(tokens, stops):
    return [token for token in tokens if token not in stops]


cut = ...
check("04.2", cut)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def cut(tokens, stops):
#     for place, token in enumerate(tokens):
#         if token in stops:
#             return tokens[:place]
#     return tokens
#
#
# check("04.2", cut)
# ```
#
# Hers takes the end tokens out, and what stands behind them stays.
# </details>
#
# **3. Write** (10 minutes, •••). Two models were scored on the same rows, for instance by the loss of each row. Could chance alone explain the difference? `differences` says of each row by how much the second model's score lies above the first one's. If the models were equally good, each difference might as well have
# the other sign. Write `sign_flips(differences)`: of all $2^n$ ways to choose the signs, the share whose sum lies at least as far from zero as the sum that was seen. This share is the [p-value](../site/glossary.md#p-value): where it is small, chance alone is a poor explanation. (Two sums that are equal on paper may differ in their last digits; allow for 1e-9.)


# %%
def sign_flips(differences):
    "The two-sided p-value, from 0 to 1, of the paired test that flips signs; for at most some 15 rows."
    return ...


check("04.3", sign_flips)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# from itertools import product
#
#
# def sign_flips(differences):
#     seen, as_far, ways = abs(sum(differences)), 0, list(product((1, -1), repeat=len(differences)))
#     for signs in ways:
#         as_far += abs(sum(sign * one for sign, one in zip(signs, differences))) >= seen - 1e-9
#     return as_far / len(ways)
#
#
# check("04.3", sign_flips)
# ```
#
# With differences of 1, 0 and -1, for right and wrong answers, it gives the p-value of McNemar's test, which stands in "Further down". For more than some twenty rows nobody counts all ways: draw some thousands of them at random.
# </details>
#
# **4. Write** (10 minutes, •••). Padding on the right is no sin if you look in the right place. Write `next_token_logits(model, tokenizer, prompts)`: it pads on the *right*, calls the model once, and returns the logits of the next
# token, one row for each prompt. The check calls it with the model that is running here, on prompts of its own, and with a tokenizer that is set to pad on the right.

# %%
next_token_logits = ...
check("04.4", next_token_logits if next_token_logits is ... else (next_token_logits, model, tokenizer))

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def next_token_logits(model, tokenizer, prompts):
#     batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="right").to(model.device)
#     with torch.no_grad():
#         logits = model(**batch).logits
#     last = batch["attention_mask"].sum(dim=1) - 1
#     return logits[torch.arange(len(prompts)), last]
#
#
# check("04.4", (next_token_logits, model, tokenizer))
# ```
# </details>
#
# **5. Predict, then run** (5 minutes, ••). A server reads 2,000 prompt tokens per second and decodes 25 tokens per second for one user. A request has a prompt of 1,000 tokens and gets an answer of 101 tokens. Now the prompt becomes four
# times as long. How many times as long does the user wait for the complete answer? Guess or reckon; the check computes it and takes what is within 0.1.

# %%
my_guess = ...
check("04.5", my_guess)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# my_guess = (4000 / 2000 + 100 / 25) / (1000 / 2000 + 100 / 25)  # the first of the 101 tokens comes out of prefill
# check("04.5", my_guess)
# ```
#
# Decoding is most of the wait, and it does not grow in this reckoning. (In truth each step reads a longer cache, too.)
# </details>
#
# **6. Decide** (5 minutes, ••). How should each of these be served? `"adapters"`: adapters on one 4-bit base, not merged. `"merged"`: one merged model (lesson 05).
#
# - `customers`: 40 customers, each with an adapter of rank 16 on the same 7B base; one GPU of 24 GB
# - `laptop`: one adapter, to be handed out as one single file for llama.cpp on laptops
# - `DoRA`: an adapter that was trained with `use_dora=True`, to be served with vLLM
# - `trial`: three adapters from this week; you want to compare them on the same requests before you keep one

# %%
served = {"customers": ..., "laptop": ..., "DoRA": ..., "trial": ...}
check("04.6", served)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# served = {"customers": "adapters", "laptop": "merged", "DoRA": "merged", "trial": "adapters"}
# check("04.6", served)
# ```
# </details>
#
# **7. Write** (10 minutes, •••). A conversation has become too long. Write `fit(messages, count, room)`: `count(messages)` says how many tokens a list of messages takes, and at most `room` may be used. Return a list with the newest messages, as
# many as fit. What is kept must begin with a message of the user. If the first message is of the role `"system"`, which many chat models know, keep it in front, whatever else goes. If not even the newest message fits, return the system message alone, or an empty list.


# %%
def fit(messages, count, room):
    "The newest messages that fit, behind the system message if there is one."
    return ...


check("04.7", fit)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def fit(messages, count, room):
#     system = [m for m in messages[:1] if m["role"] == "system"]
#     rest = messages[len(system) :]
#     while rest and (rest[0]["role"] != "user" or count(system + rest) > room):
#         rest = rest[1:]
#     return system + rest
#
#
# check("04.7", fit)
# ```
# </details>
#
# ## What you did
#
# You used one base with an adapter, without it, and with another, and saw that one character in the form of a question can cost more than a whole sentence. You measured how sure a score is, and you know why a prompt is read fast, an answer
# is made slowly, and one decode step for many rows costs far less than a step for each of them. You know what a server needs. "Further down" begins with three checks for your next training.
#
# Next: [05 Merging](05_merging.ipynb) makes one model of base and adapter, without losing what was learned.
#
# ## Further down
#
# What follows is for readers who want to know more. Nothing later depends on it.
#
# ### Checks before you serve, and before you train again
#
# Two faults cost hours if you find them after training, and seconds if you look before: a row whose tokens differ from those at use, and an end that is never learned. Each of these functions takes what the trainer will take, looks for one kind of fault, and returns a list of what it found. They
# need nothing of this course: copy them in front of a training or a server of your own. The first looks at your rows, as pairs of prompt and completion.


# %% tags=["copy", "early-check"]
# Step 6: before training, are the rows cut into tokens as they will be at use?
def row_faults(tokenizer, pairs, max_length):
    faults = []
    for prompt, completion in pairs:
        ids, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + completion)["input_ids"]
        if whole[: len(ids)] != ids:
            faults.append(f"{prompt[-6:]!r} and {completion[:6]!r} merge into other tokens than the prompt has alone")
        if tokenizer.unk_token_id in ids or (len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id):
            faults.append(f"unknown tokens, or the first one twice, in {prompt[:20]!r}")
        if len(whole) >= max_length:
            faults.append(f"a row of {len(whole)} tokens and its end, and training cuts at {max_length}")
    return faults


# %% [markdown]
# The second looks at where answers end. (Some tokenizers, Llama's and Mistral's among them, have no padding token. That is no fault: TRL takes eos for it, and its collator masks by length.)


# %% tags=["copy", "early-check"]
# Step 7: does generation stop at the token that training puts behind an answer?
def stop_faults(model, tokenizer):
    faults, stops = [], model.generation_config.eos_token_id
    if tokenizer.eos_token_id is None:
        faults.append("the tokenizer has no end-of-sequence token: no answer could end")
    elif tokenizer.eos_token_id not in (stops if isinstance(stops, list) else [stops]):
        faults.append(f"generate() stops at token {stops}, training ends answers with {tokenizer.eos_token_id}")
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        faults.append("the tokenizer has more tokens than the model has embeddings")
    return faults


# %% [markdown]
# The third asks the model itself: does it say anything, in numbers that are finite?


# %% tags=["copy", "early-check"]
# Step 8: does the model compute, and does it say anything?
import torch


def answer_faults(model, tokenizer, prompts):
    faults, heard = [], ""
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
        with torch.no_grad():
            if not model(**inputs).logits.isfinite().all():
                faults.append(f"logits that are not finite after {prompt[-20:]!r}: too large for this dtype?")
            out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        heard += tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    return faults if heard else [*faults, "it generates no text at all"]


# %% [markdown]
# A check that never complains is worth nothing. So look at the real rows, and then plant four faults, which set off most of its complaints: a space at the end of the form, rows that are longer than training keeps, a tokenizer without an end, and a weight
# that is not a number.

# %%
import copy

two = run.rows["train"].select(range(2))
pairs = list(zip(prompt_texts(tokenizer, two), two["output"], strict=True))
found = {"nothing planted": row_faults(tokenizer, pairs, settings.max_length) + stop_faults(model, tokenizer)}
with model.disable_adapter():  # before training there is no adapter
    found["nothing planted"] += answer_faults(model, tokenizer, [prompt for prompt, _ in pairs])
found["a space"] = row_faults(tokenizer, [(pairs[0][0] + " ", pairs[0][1])], settings.max_length)
found["rows cut at 16"] = row_faults(tokenizer, pairs[:1], 16)

# %%
without_end = copy.deepcopy(tokenizer)
without_end.eos_token = None
found["no end"] = stop_faults(model, without_end)
norm = [weight for weight in model.parameters() if weight.dim() == 1 and weight.is_floating_point()][-1]
kept_weight, norm.data = norm.data, norm.data * float("nan")
found["not a number"] = answer_faults(model, tokenizer, [prompts[0]])
norm.data = kept_weight
table({name: "; ".join(faults) or "nothing" for name, faults in found.items()}, columns=("planted", "found"))

# %%
if usual:
    verdict("the bundled model and its rows have none of these faults, and each planted one is found",
            found["nothing planted"] == [] and all(found[name] for name in list(found)[1:]))  # fmt: skip

# %% [markdown]
# ### The same rows, answered twice
#
# Section 7 asks how good a model is. Often the question is whether one is better than another: base or adapter, this adapter or that one, merged or not. If both answered the *same* rows, compare them row by row. Rows that both have right, or both wrong, say nothing. Only those count where the two *differ*. If the models were equally
# good, each such row would go to either one like the toss of a coin. So toss a coin for each of these rows. How often is the split at least as uneven, in either direction? That chance is the [p-value](../site/glossary.md#p-value). For $n$ rows that differ, $k$ of them on the smaller side, it is
#
# $$p = \min\Big(1,\; 2 \sum_{i=0}^{k} \binom{n}{i} \Big/ 2^n\Big).$$
#
# This is [McNemar's test](../site/glossary.md#mcnemars-test), in its exact form. How many rows must differ, all of them to one side, until $p$ is below 0.05? Write down a guess.


# %%
from math import comb
from operator import gt, lt


def mcnemar(only_first, only_second):
    "The p-value, if one model alone is right on so many rows, and the other one alone on so many."
    n, k = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)


table({n: (mcnemar(n, 0),) for n in range(3, 9)}, "{:.3f}", columns=("rows that differ, all to one side", "p"))

# %% [markdown]
# Six do, however many rows were asked in all. Now the models of this lesson: adapter and base on the rows that were just scored, and then the adapter in the form of its training beside each other form of section 2. In each of the last two pairs, which are invented, the first model has 90 right of 100, and the second one 96. The column "overlap" asks: do the two 95% intervals overlap?


# %% tags=["nbval-ignore-output"] reason="how many answers are right varies with the processor"
def compared(first, second):
    only = sum(map(gt, first, second)), sum(map(lt, first, second))  # right in one of the two alone
    (low, high), (least, most) = wilson(sum(first), len(first)), wilson(sum(second), len(second))
    return len(first), sum(first), sum(second), *only, low <= most and least <= high, mcnemar(*only)


pairs = {"adapter, base": compared(scored["tuned"].right, scored["base"].right)}
for name, answers in list(said.items())[1:]:
    pairs[f"as in training, {name}"] = compared(rights(said["as in training"]), rights(answers))
pairs["invented: 90 of 100, and the same ones and 6 more"] = compared([1] * 90 + [0] * 10, [1] * 96 + [0] * 4)
pairs["invented: 90 of 100, and 96 with other ones wrong"] = compared([1] * 90 + [0] * 10, [0] * 4 + [1] * 96)
headings = ("first, second", "rows", "right: first", "second", "only first", "only second", "overlap", "p")
table(pairs, p="{:.2g}", columns=headings)

# %% [markdown]
# Look at the invented pairs first. Their shares are the same, and so are their intervals, which overlap. The test tells the first pair apart, where the second model has all that the first one has and six more. It does not tell the second pair apart, where each has some that the other has not. So keep which rows were right, not only how many.
#
# Where $p$ is large, these rows do not tell two models apart. That does not show that they are equal: more rows might part them. Where $p$ is small, mind how many tests you made. Of twenty pairs that are equally good, on average at most one comes out below 0.05 by chance. (The exact test is cautious: where six rows differ, it is 3.1% of the pairs, and where eight differ, 0.8%.) So who tests six forms, or ten checkpoints, should ask
# for 0.05 divided by their number. Which forms of section 2 pass that, and which would you have counted before?
#
# For six forms it is 0.05 / 6 = 0.008. In the run shown, four forms differ from that of the training by this measure. "The question alone" has a $p$ of 0.016: you would have counted it before, and now it does not pass. "No header" never differed.
#
# The test is of right and wrong. For losses, `change_from` of lesson 03 compares row by row, and exercise 3 makes a test for any numbers. In code of your own, `scored["tuned"].paired_p(scored["base"])` does what you just wrote.
#
# ### Why Wilson's interval?
#
# The formula that most people know is the share $p$, plus and minus two standard errors. A standard error says how far such a share typically moves from one sample to the next: $\sqrt{p (1 - p) / n}$ for $n$ rows. So the formula is $p \pm 1.96 \sqrt{p (1 - p) / n}$. Say that 32 of 32 answers are right. What does it give? $p (1 - p)$ is zero, so the
# interval has no width: it claims to *know* that the model is always right, from 32 rows. Wilson (1927) asked the other way round, for which true shares this result is no surprise. (1.96 marks the middle 95% of a bell curve, in standard errors.)
#
# $$\frac{1}{1 + z^2/n} \left( p + \frac{z^2}{2n} \pm z \sqrt{\frac{p (1 - p)}{n} + \frac{z^2}{4 n^2}} \right), \qquad z = 1.96$$


# %%
def usual_interval(right, n):
    p = right / n
    half = 1.96 * sqrt(p * (1 - p) / n)
    return p - half, p + half


# %%
right_ones = round(scored["tuned"].exact_match * len(heldout))
by_hand = wilson(right_ones, len(heldout))
agree = all(abs(a - b) < 1e-4 for a, b in zip(by_hand, scored["tuned"].interval))
print("by hand and by evaluate:", "the same interval" if agree else "two intervals")
ends = [f"{end:.1%}" for end in (*usual_interval(32, 32), *wilson(32, 32))]
print("32 of 32 right: the usual formula says {} to {}, Wilson's {} to {}".format(*ends))

# %% [markdown]
# A 95% interval should hold the truth 95 times in a hundred. Does it? Take a model whose true share is 98%, add up the chances of all results that it can have on $n$ rows, and count those whose interval holds 98%.


# %%
def holds_the_truth(interval, n, truth=0.98):
    found = 0
    for right in range(n + 1):
        low, high = interval(right, n)
        if low <= truth <= high:
            found += comb(n, right) * truth**right * (1 - truth) ** (n - right)
    return found


held = {n: (holds_the_truth(usual_interval, n), holds_the_truth(wilson, n)) for n in (32, 128, 512)}
table(held, "{:.1%}", columns=("rows", "the usual formula holds the truth", "Wilson's does"))

# %% [markdown]
# 95% were promised. With 32 rows the usual formula does not even hold the truth half of the time, and Wilson's comes close to what it promises, here and on average. For a truth still nearer to 100% it falls short at times: with 32 rows it holds 99% in 95.9% of the cases and 99.5% in only 85.2%. With 512 rows the two hardly differ for a truth of 98%, but for one of 99.9% the usual formula holds it in 40% of the cases and Wilson's in 91%. So the choice matters where rows are few and the model is
# good, and that is how a fine-tuned model is often judged.
#
# ### Greedy or sampled
#
# Sampling draws the next token with probabilities $\mathrm{softmax}(\text{logits} / T)$. A low temperature $T$ sharpens them, a high one flattens
# them. And transformers draws among the 50 likeliest tokens only, unless you say `top_k=0`. How many questions are still answered right? Each point of the figure is one draw, with one seed.


# %%
def sampled(temperature, top_k):
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    drawing = {"do_sample": True, "temperature": temperature, "top_k": top_k}
    torch.manual_seed(settings.seed)
    with torch.no_grad():
        tokens = model.generate(**batch, max_new_tokens=settings.max_new_tokens, **drawing)
    texts = tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :])
    return sum(rights([text.split(tokenizer.eos_token)[0].strip() for text in texts])) / len(asked)


# %%
from helpers import plots

temperatures = (0.3, 0.7, 1.0, 1.5, 2.0, 2.5, 3.0)
lines = {"drawn among the 50 likeliest": 50, "drawn among all tokens": 0}
lines = {name: (temperatures, [100 * sampled(t, top_k) for t in temperatures]) for name, top_k in lines.items()}
at_two = lines["drawn among all tokens"][1][temperatures.index(2.0)] / 100
title = f"Greedy answers {shares['as in training']:.0%} right; drawn among all tokens at temperature 2, {at_two:.0%}"
greedy_line = {"line": 100 * shares["as in training"], "line_label": "greedy"}
figure = plots.curves(lines, title, "temperature", f"answered exactly (% of {len(asked)})", **greedy_line)
show(
    figure,
    alt="Share of questions answered exactly, by temperature: a high one loses answers, more if drawn among all tokens",
)

# %%
if usual:
    verdict("a high temperature loses answers that greedy decoding has", at_two < shares["as in training"])

# %% [markdown]
# In the run shown, drawing loses little or nothing up to a temperature of 1: the model is that sure of these answers. The fall begins above it. For questions with one right answer take greedy decoding all the same: it costs nothing, and gives the same answer each time. For a story, the same story every time is not what you want. Say `do_sample` in either case: what happens otherwise stands in the model's
# `generation_config.json`, and a chat model often switches sampling on there.
#
# ### A text as the stop
#
# A model that never learned eos can be stopped by a text: `stop_strings` ends the generation where that text turns up, however it is cut into tokens. The bundled base has read quiz pages, with each answer on a
# line of its own. The cell asks it all questions of section 1 in that form.

# %% tags=["nbval-ignore-output"] reason="what the base says varies with the processor"
pages = [question_alone("", row) + "Answer:\n" for row in asked]
quiz = tokenizer(pages, return_tensors="pt", padding=True, padding_side="left").to(model.device)
how = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
with torch.no_grad(), model.disable_adapter():
    line = model.generate(**quiz, **how, stop_strings=["\n"], tokenizer=tokenizer)[:, quiz["input_ids"].shape[1] :]
    page = model.generate(**quiz, **how)[:, quiz["input_ids"].shape[1] :]
    in_our_form = [text.split("\n")[0] for text in answer(model, tokenizer, prompts, 24)]
for name, tokens in {"with the stop": line, "without": page}.items():
    print(f"{name:14}{tokenizer.decode(tokens[0])!r}")
on_a_page = [text.strip() for text in tokenizer.batch_decode(line, skip_special_tokens=True)]
print(f"right on a quiz page: {sum(rights(on_a_page))} of {len(asked)}")
print(f"right in the form of the training: {sum(rights(in_our_form))} of {len(asked)}")

# %% [markdown]
# ### Answers piece by piece, for a program
#
# A program needs the pieces in its own hands. `TextIteratorStreamer` hands them over one by one, while `generate` works in a thread of its own. It also shows what a user waits for: the time to the first piece, and the
# time between pieces. Each token gives one piece, which is empty where the text has to wait for the next token, as a full stop does. One more piece comes at the end, with whatever was still held back.

# %%
import time
from threading import Thread

from transformers import TextIteratorStreamer

opening = tokenizer("Norway is a country", return_tensors="pt").to(model.device)
streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=120)
pieces, arrivals, begun = [], [], time.perf_counter()
with model.disable_adapter():
    thread = Thread(
        target=model.generate, kwargs=dict(**opening, max_new_tokens=40, do_sample=False, streamer=streamer)
    )
    thread.start()
    for piece in streamer:
        pieces.append(piece)
        arrivals.append(time.perf_counter() - begun)
    thread.join()

# %% tags=["nbval-ignore-output"] reason="seconds vary"
between = (arrivals[-1] - arrivals[0]) / max(1, len(pieces) - 2)  # the last piece needs no decode step
print(
    f"{len(pieces)} pieces: the first after {1000 * arrivals[0]:.0f} ms, then {1000 * between:.0f} ms from one to the next"
)
print("".join(pieces))

# %% [markdown]
# ### How many rows fit on a T4?
#
# Weights in 4 bits, one adapter, and the cache of so many rows of 4,096 tokens, with a twentieth of the memory left free. (Reading the prompts needs room of its own: do that a few rows at a time.)

# %%
from helpers import memory, models

t4, rows = memory.GPUS["t4"].total_bytes, []
for name in names:
    shape = memory.shape_of(models.PRESETS[name].shape)
    parts = memory.weight_bytes(shape, "nf4", True)
    weights, in_4_bits = sum(parts.values()), parts["quantized weights"] + parts["quantization scales"]
    cache = kv_cache_bytes(name, 4096)
    rank_16 = memory.adapter_bytes(shape.linears, shape.layers, 16, 4)  # on all layers, in float32
    left = 0.95 * t4 - weights - rank_16
    rows.append((name, weights / 1e9, rank_16 / in_4_bits, cache / 1e9, int(left // cache)))
headings = (
    "model",
    "weights (GB)",
    "adapter of rank 16, of the 4-bit layers",
    "cache of one row (GB)",
    "rows that fit",
)
table(rows, "{:.2f}", adapter_of_rank_16_of_the_4_bit_layers="{:.1%}", rows_that_fit="{}", columns=headings)

# %% [markdown]
# ### Is a 4-bit model faster?
#
# A decode step goes through all weights, and in 4 bits they are smaller. But they have to be unpacked before they are multiplied. Take one layer of the size of a 7B model's, and time its parts for one token and for more at once.

# %%
import bitsandbytes as bnb

plain = torch.randn(4096, 4096, dtype=dtype, device=model.device)
packed, state = bnb.functional.quantize_4bit(plain, quant_type=quant_type, compress_statistics=double_quant)
work = {
    f"not quantized, {run.machine.dtype}": lambda x: torch.nn.functional.linear(x, plain),
    "4-bit": lambda x: bnb.matmul_4bit(x, packed.t(), quant_state=state),
    "unpacking alone": lambda x: bnb.functional.dequantize_4bit(packed, state),  # the same work for any x
}


# %%
def milliseconds(call, x):
    begun = time.perf_counter()
    call(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begun)


at_once = (1, 4, 16, 64, 256)
layer_ms = {}
for number in at_once:
    x = torch.randn(number, 4096, dtype=dtype, device=model.device)
    turns = [[milliseconds(call, x) for call in work.values()] for _ in range(10)]  # a busy moment hits all three
    layer_ms[number] = [min(times_of_one) for times_of_one in zip(*turns)]

# %% tags=["nbval-ignore-output"] reason="seconds vary"
rows = [(number, four_bit / plain, unpacked / four_bit) for number, (plain, four_bit, unpacked) in layer_ms.items()]
headings = ("tokens at once", "4-bit, times as long as not quantized", "unpacking, of the 4-bit time")
table(rows, "{:.1f}", unpacking_of_the_4_bit_time="{:.0%}", columns=headings)

# %%
if run.machine.device == "cpu":
    verdict("on this CPU one token takes longer through the 4-bit layer, and 256 tokens at once lose less",
            1 < layer_ms[1][1] / layer_ms[1][0] > layer_ms[256][1] / layer_ms[256][0])  # fmt: skip

# %% [markdown]
# On the CPU of the run shown: no. Compare the first row with the last, because those between them are noisy. With the short cut of step 1 switched off, bitsandbytes 0.50 unpacks the whole layer into memory and then multiplies as usual. That is the same work for one token as for many, so it weighs most on decoding, and least where many tokens share it.
#
# On a GPU bitsandbytes has kernels that unpack while they multiply, for one row since [0.40](https://github.com/bitsandbytes-foundation/bitsandbytes/releases/tag/0.40.0) and for small batches since
# [0.50](https://github.com/bitsandbytes-foundation/bitsandbytes/releases/tag/0.50.0). For your GPU, believe the table above once you ran it there. The branches of an adapter cost time in each step as well: two more products for each layer. Merging removes them.
#
# Next: [05 Merging](05_merging.ipynb) makes one model of base and adapter, without losing what was learned.
