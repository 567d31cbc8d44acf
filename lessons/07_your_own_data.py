# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 Your own data
#
# At the end of this lesson you have taken a table such as a spreadsheet exports, trained a chat model on it, and can say in numbers what the model does with rows
# that it has never seen.
#
# You will learn to
#
# - read a CSV file without losing anything in it, and turn its rows into conversations;
# - see what the model sees: its template, the tokens that are learned, the lengths;
# - hold rows out so that the score means something, and write a score that fits your task;
# - read the worst answers, and decide whether you need more data or better data;
# - notice what the model has learned by heart, and what it has forgotten.
#
# The task: customers of a chain of bicycle workshops write messages, and the front desk notes down who wants what, where and when. The model is to write that note
# as JSON. The messages were made by a script of this course ([their page](../assets/messages/README.md) says how they are labelled), and sixty more were written by hand.
# Your own file may hold something else, such as labels, or questions with answers in sentences. Section 2 says what to change for it.
#
# **Time:** 50 minutes to read, 70 for the exercises. The cells take {{cpu_time}} on two CPU cores; {{t4_time}} on a T4. **Needs:** lessons 00 and 03.

# %% tags=["parameters"]
model_id = "auto"  # on a CPU the bundled model; "smollm2-135m" is a real chat model, small enough for a CPU
data_file = "auto"  # the course's messages, or a CSV file of your own: then change the three lines in section 2 as well
encoding = "auto"  # of a file of your own that is not UTF-8, such as "cp1252"
seed = 0
rank = "auto"
lora_alpha = "auto"
lora_dropout = "auto"
target_modules = "auto"
quant_type = "nf4"
double_quant = True
max_steps = "auto"
batch_size = "auto"
gradient_accumulation = "auto"
max_length = 256
learning_rate = "auto"
optimizer = "auto"
checkpointing = "auto"
cuda_graphs = "auto"
save_steps = "auto"
eval_rows = 60
max_new_tokens = 72
plain = False
output_dir = "auto"

# %%
from helpers import COURSE_ROOT
from helpers.lesson import begin, check, record, table, verdict

run = begin(
    "07_your_own_data", chat_model=True,
    model_id=model_id, data_file=data_file, encoding=encoding, seed=seed, rank=rank, lora_alpha=lora_alpha, lora_dropout=lora_dropout,
    target_modules=target_modules, quant_type=quant_type, double_quant=double_quant, max_steps=max_steps, batch_size=batch_size,
    gradient_accumulation=gradient_accumulation, max_length=max_length, learning_rate=learning_rate, optimizer=optimizer, checkpointing=checkpointing,
    cuda_graphs=cuda_graphs, save_steps=save_steps, eval_rows=eval_rows, max_new_tokens=max_new_tokens, plain=plain, output_dir=output_dir,
)  # fmt: skip
settings = run.settings

# %% [markdown]
# ## What you will have
#
# Here is what was measured with the real chat model, SmolLM2-135M-Instruct, whose 135 million parameters are few for a language model. Before
# training the model answered sixty held-out messages, afterwards all 240. An answer counts as right when every field of it is right.

# %%
import pandas

from helpers.records import read_rows

measured = pandas.DataFrame(read_rows(COURSE_ROOT / "measurements" / "smollm2_own_data.jsonl"))
result = measured.query("what == 'result'")
table(result[["scored", "rows", "valid", "right", "low", "high"]], "{:.0%}", rows="{:.0f}",
      columns=("asked", "rows", "valid JSON", "right in every field", "from", "to"))  # fmt: skip

# %% [markdown]
# *From* and *to* are the ends of the 95% interval: how far the share could be off with this number of rows. The messages by hand are harder, because people write what no script
# thinks of. They are the better forecast of what you would see in use. Which fields went wrong in them?

# %%
from helpers.plots import curves, grouped_bars, histogram, show, tokens_in_colour

held_out, by_hand = (100 * pandas.Series(fields) for fields in result.fields.iloc[-2:])
panels = {"right (%)": {"held out": held_out.tolist(), "by hand": by_hand.tolist()}}
figure = grouped_bars(list(by_hand.index), panels, "By hand, the place is what the model gets wrong most often")
figure.axes[0].set_xlim(0, 100)
show(figure, alt=f"By hand the place is right in {by_hand.place:.0f}%, and each other field in more of the answers")

# %% [markdown]
# The training had 480 steps of 16 rows and took three minutes on an H100 that was held to a T4's precision. On two CPU cores it would take more than an hour.
#
# By default a CPU trains the bundled model here, so that the lesson takes {{cpu_time}}. That model cannot write JSON: in all that it has read there is no brace. So you work on the
# workshop's file up to section 4. Then the bundled model gets rows of its own, questions with one word for an answer, and every step is the same.
#
# For the real chat model, fetch it with `python -m helpers model smollm2` and set `model_id = "smollm2-135m"`. On a CPU it then trains for about a minute on 80 rows. That is a ninety-sixth part of what the
# table above took, so expect a beginning and no more: answers that are JSON, and a few that are right in every field. For the whole, best on a GPU, set `max_steps = 480`, `batch_size = 16`, `rank = 32` and `learning_rate = 1e-3` as well.
#
# ## 1 Read your file, and look at it
#
# You have a spreadsheet? In Excel choose *Save as* and *CSV UTF-8*, in Google Sheets *Download* and *Comma-separated values*. Four things go wrong when a table is read. The encoding: spreadsheets often begin a file with a *byte order mark*, which `utf-8-sig` takes away, and older ones on Windows write `cp1252`. The separator: in half of
# Europe it is a semicolon. The types: `09:00` or a telephone number should stay text, which `dtype=str` sees to. And empty cells: see the box below.
#
# For a file of your own, give its whole path as `data_file`. The table above then says which separator and how many rows were found. If it is not written in UTF-8, the run stops there with one line that says so; the encoding is
# never guessed, since a wrong guess turns letters into others.


# %% tags=["read-table"]
def read_table(file, encoding="utf-8-sig", sep=","):
    "A CSV file as text: nothing is guessed, and an empty cell stays empty."
    rows = pandas.read_csv(file, dtype=str, keep_default_na=False, encoding=encoding, sep=sep)
    return rows.rename(columns=str.strip).apply(lambda column: column.str.strip())


ours = COURSE_ROOT / "assets" / "messages"
file = ours / "messages.csv" if settings.data_file == "auto" else settings.data_file
frame = read_table(file, **run.csv_form)
frame.head(4)

# %% [markdown]
# > **Trap: an empty cell becomes a number.** By default pandas, and so `load_dataset("csv")`, reads an empty cell as NaN, "not a number", and the words NA, None and null as well.
# >
# > *What you see:* a customer from Namibia, whose code is NA, without a country, and answers that are no JSON. *Cure:* `keep_default_na=False`, and decide yourself what an empty cell means.
#
# > **Trap: personal data goes along.** A model learns some rows by heart, and an adapter can repeat what stood in them.
# >
# > *What you see:* nothing, until the model answers a stranger with somebody else's telephone number. *Cure:* before you upload a file to Colab, train on it or share an adapter, put words such as NAME, PHONE and ORDER in place of
# > names, telephone numbers and order numbers.

# %%
import json

careless = pandas.read_csv(file, **run.csv_form)
with_gap = careless[careless.isna().any(axis=1)].head(1).to_dict("records")
if with_gap:
    print(json.dumps(with_gap[0], ensure_ascii=False)[-120:])
    verdict("read without care, an empty cell is written as NaN, which is no JSON", "NaN" in json.dumps(with_gap))

# %% [markdown]
# Now look. How many values has each column, how many cells are empty, and what is the most frequent value? A column with one value teaches nothing. A rare value will hardly be learned: `frame["Request"].value_counts()` lists how often each value of a column stands there.

# %%
looked = pandas.DataFrame({"different values": frame.nunique(), "empty": (frame == "").mean()})
most = frame.mode().iloc[0].replace("", "(empty)").str[:30]
looked["most frequent"] = most.where(frame.nunique() < len(frame), "-")
table(looked.reset_index(names="column"), empty="{:.0%}")

# %% [markdown]
# Read at least fifty rows with your own eyes before you train. Most of what goes wrong later can be seen here: rows in two languages, answers by two people who mean different
# things by one word, a column that was filled in only since March. Here are five; run the cell again with another `random_state` for others.

# %%
table(frame.sample(min(5, len(frame)), random_state=settings.seed))

# %% [markdown]
# ## 2 From a row to a conversation
#
# TRL, the library that trains, takes conversations: a list of messages, each with a role, *system* for the task, *user* for what comes in, *assistant* for what the model shall write. The prompt is given
# and the completion is learned.
#
# > **Rows of your own?** Change the first three lines. `ASKED` is the column that the model gets. `FIELDS` says what it shall write, and from which column each value comes. `TASK` is the sentence that tells it so.
# > Begin with one field: its value is written alone, without JSON.
# >
# > - *Labels:* `FIELDS = {"topic": "Category"}` and `TASK = "Reply with the topic."` If there are few values, name them: `"Reply with the team: billing, repairs or sales."` As the score stands, `Billing` for `billing` is wrong; `FORGIVING` in section 5 changes that.
# > - *Answers in sentences:* `FIELDS = {"answer": "Answer"}` and `TASK = "Answer as our help desk does."`, and in the cell of parameters `max_new_tokens = 300` and `max_length = 512`. The score compares word for word, so it says about 0% for good answers too.
# >   Watch the loss on held-out rows instead (it is of sixteen rows here, so only large differences count), and mark the sheet that section 7 writes.
# > - *A message in two columns:* join them in a cell of your own before, and take the new column as `ASKED`: `frame["Text"] = frame["Subject"] + "\n" + frame["Body"]`.
# >
# > The bundled model shows that your file, your three lines and your split work. It has read nothing but English quiz pages, so expect few right answers, and broken sentences. For answers that you can use, train `smollm2-135m`, or a larger model on a GPU.
#
# > **Trap: answers teach how you answer, and hardly what is true.** Four hundred answers teach a model your tone and form. They are a poor way to teach facts, as [lesson 00](00_start_here.ipynb) says.
# >
# > *What you see:* a fluent answer with a price or a rule that the model made up, since the question does not hold it. *Cure:* put the paragraph that holds the fact into the prompt, in training and in use:
# > `frame["Text"] = frame["Paragraph"] + "\n" + frame["Question"]`. To look that paragraph up for each question is called [retrieval](../site/glossary.md#retrieval).
#
# A row without a message teaches nothing and is left out. So is one with nothing to note, since perhaps nobody has labelled it. If somebody did, and there is nothing to say, write `none` into the cell: such rows keep the model from inventing something.


# %% tags=["to-row"]
ASKED = "Message"
FIELDS = {"name": "Name", "request": "Request", "place": "Place", "day": "Day", "time": "Time"}
TASK = f"Reply in JSON with {', '.join(FIELDS)}."
missing = {ASKED, *FIELDS.values()} - set(frame.columns)
assert not missing, f"no column {sorted(missing)} in {file}: it has {list(frame.columns)}. Change the three lines."

filled = (frame[ASKED] != "") & (frame[list(FIELDS.values())] != "").any(axis=1)
usable = frame[filled].reset_index(drop=True)
print(f"{len(usable):,} of {len(frame):,} rows have a message and something to note")

# %% [markdown]
# The note is written as JSON, or as the word alone where there is one field. `read` turns an answer back into JSON, so that one score fits both.


# %% tags=["write-and-read"]
def note(row, fields):
    "What the front desk notes down: None where the message does not tell."
    return {field: None if row[column] in ("", "none") else row[column] for field, column in fields.items()}


def write(noted):
    "A note as the model should write it."
    if len(noted) == 1:
        return next(iter(noted.values())) or "none"
    return json.dumps(noted, ensure_ascii=False, separators=(",", ":"))


def read(answer, noted):
    "An answer as JSON; `noted` has its fields."
    return answer if len(noted) > 1 else json.dumps(dict.fromkeys(noted, None if answer == "none" else answer))


# %% [markdown]
# An example holds what a row asks and the note that is wanted, and `to_row` makes a conversation of it.


# %% tags=["rows"]
def examples(frame, asked=ASKED, fields=FIELDS, task=TASK):
    "Each row of a table as an example."
    return [{"task": task, "asked": row[asked], "note": note(row, fields)} for row in frame.to_dict("records")]


def turns_of(text, task=TASK):
    "What the model is asked about a text."
    return [{"role": "system", "content": task}, {"role": "user", "content": text}]


def to_row(example):
    "An example as a prompt and a completion."
    answer = {"role": "assistant", "content": write(example["note"])}
    return {"prompt": turns_of(example["asked"], example["task"]), "completion": [answer]}


# %%
rows = examples(usable)
first = to_row(rows[0])
print(first["prompt"][1]["content"], first["completion"][0]["content"], sep="\n")

# %% [markdown]
# Three choices are hidden in there. The keys always stand in one order, so that the model need not learn that the order is free. There are no spaces between them, which saves tokens. And a
# missing value is written as `null`: a model that never sees a missing value makes one up.
#
# ## 3 What the model sees
#
# A chat model was tuned with its own [chat template](../site/glossary.md#chat-template), a small program that writes a conversation as one text. Use that one. The bundled model has none, so
# it gets one here. A template of your own has two duties: what it writes for a question alone must be the beginning of what it writes for the whole conversation, and the end-of-sequence
# token must follow the answer.

# %%
from transformers import AutoTokenizer

OWN_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}\n{% endif %}"
    "{% if m.role == 'user' %}### {{ m.content }}\n### Answer:\n{% endif %}"
    "{% if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
tokenizer = AutoTokenizer.from_pretrained(run.model.path)
if not tokenizer.chat_template:
    tokenizer.chat_template = OWN_TEMPLATE


# %% [markdown]
# These are the tokens of the first row. The coloured ones are learned, the grey ones are only read. The system's line and the message cost tokens in each row; the loss does not see them.


# %%
def ids_of(turns, ask=False):
    "The token ids of a conversation; `ask`: up to where the model answers."
    return tokenizer.apply_chat_template(turns, add_generation_prompt=ask, return_dict=True)["input_ids"]


def prompt_of(turns):
    "A conversation as text, up to where the model answers."
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


asked, whole = ids_of(first["prompt"], ask=True), ids_of(first["prompt"] + first["completion"])
verdict("the question alone is the beginning of the whole conversation", whole[: len(asked)] == asked)
verdict("the end of the answer is learned", tokenizer.eos_token_id in whole[len(asked) :])
tokens_in_colour(whole, [i >= len(asked) for i in range(len(whole))], tokenizer.decode)

# %% [markdown]
# ### How long?
#
# A row that is longer than `max_length` loses its end. That is where the answer stands, so the row teaches nothing, or teaches an answer that is cut off. A `max_length` that is far too large costs nothing by itself, but one row of ten thousand
# tokens decides how much memory its batch takes. So look at the lengths, and at the longest rows. If many of yours are cut, raise `max_length` above; memory and time per row grow with it. In e-mails it helps to cut off
# signatures and quoted replies first. An answer, too, can be too long: one that needs more than `max_new_tokens` is cut when the model is asked, and then counts as wrong. Section 5 prints the longest.

# %%
lengths = [len(ids_of(row["prompt"] + row["completion"])) for row in map(to_row, rows)]
cut = sum(n > settings.max_length for n in lengths)
assert cut < len(rows), f"every row has more than {settings.max_length} tokens: raise max_length, or shorten the texts"
title = f"The longest row has {max(lengths)} tokens; max_length is {settings.max_length}, so {cut} rows are cut"
figure = histogram(lengths, title, "tokens in a row", "rows", line=settings.max_length, line_label="max_length")
show(figure, alt=f"How many rows have how many tokens; {cut} of them are longer than max_length")

# %% [markdown]
# ## 4 Hold rows out, so that the score means something
#
# If you hold out rows by chance, the same sentence with another name stands on both sides, and the score says how well the model remembers. The course's held-out messages have sentences, names and
# towns that no training message has. How often does a message of each kind share seven words in a row with a training message?


# %%
def runs(text, length=7):
    words = text.casefold().split()
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


def share_known(asked, learned):
    known = set().union(*map(runs, learned))
    return sum(bool(runs(text) & known) for text in asked) / len(asked)


if settings.data_file == "auto":
    held_out = read_table(ours / "heldout.csv")
    messages = usable.Message.sample(frac=1, random_state=settings.seed).tolist()
    by_chance = share_known(messages[: len(messages) // 5], messages[len(messages) // 5 :])
    apart = share_known(held_out.Message, messages)
    print(
        f"share seven words with a training row: {by_chance:.0%} of rows held out by chance, {apart:.0%} of the course's"
    )
    verdict("held out by chance, many rows are half known", by_chance > 0.25 > 10 * apart)

# %% [markdown]
# For data of your own, hold out what will be new in use: other customers, later months, other products. If a column says so, name it as `GROUP`, and all rows with one value of it stay on one side. Groups are chosen by chance, as many as fit into the share
# that is held out, so a group that is larger than that is always learned. Without such a column copies and near copies stay on one side (`split_rows` of [lesson 03](03_t4_training.ipynb) does both). If many rows
# share an answer, as when one text answers forty questions, name the column of the answers as `GROUP`, and see how much the score falls.
#
# One row in ten is held out. Of a small file it is sixty rows, or a third where that is less, because a score of fewer rows says little: of 400 rows, 60 are held out and 340 are left to learn.
#
# The last line says how many of the held-out rows share seven words in a row with a row to learn. Look at some of them. Greetings and signatures do no harm. Whole sentences do: then name a `GROUP`.
#
# For later months cut by the date instead, after the next cell. Dates are text here, and as text `02.01.2027` stands before `15.03.2026`, so make dates of them first:
# `when = pandas.to_datetime(usable["Date"], dayfirst=True)`, and then `learn, held_out = usable[when < "2026-09"], usable[when >= "2026-09"]`.

# %% tags=["split"]
from datasets import Dataset

from helpers.data import split_rows

GROUP = None  # or a column of your file, such as "Customer"
learn = usable
if settings.data_file != "auto":
    numbered = pandas.DataFrame({"instruction": usable[ASKED], "input": "", "output": usable.index.astype(str)})
    numbered["group"] = usable[GROUP or ASKED]
    HELD = max(len(usable) // 10, min(60, len(usable) // 3), 1)
    *parts, told = split_rows(Dataset.from_pandas(numbered), settings.seed, by_group=GROUP is not None, held_out=HELD)
    learn, held_out = (usable.loc[map(int, part["output"])] for part in parts)
    known = share_known(held_out[ASKED], learn[ASKED])
    print(f"{len(learn):,} rows to learn and {len(held_out):,} held out. {told}")
    print(f"{known:.0%} of those held out share seven words in a row with a row to learn")

# %% [markdown]
# > **You change trains here** if the bundled model is the one that trains and you gave no file. It gets rows of its own, questions with one word for an answer, and all that follows is done with those. The messages come back in section 7, with
# > the answers that the real chat model gave to them.

# %% tags=["choose-rows"]
import random
from pathlib import Path

form, named = (ASKED, FIELDS, TASK), Path(file).stem
quiz = run.model.bundled and settings.data_file == "auto"
if quiz:
    facts = COURSE_ROOT / "assets" / "instructions"
    learn, held_out = (pandas.read_json(facts / f"{part}.jsonl", lines=True) for part in ("train", "heldout"))
    for part in (learn, held_out):
        part["asked"] = (part.instruction + " " + part.input).str.strip()
    form, named = ("asked", {"answer": "output"}, "Answer in a word."), "quiz"
train_rows, held_rows = examples(learn, *form), examples(held_out, *form)
train_rows = random.Random(settings.seed).sample(train_rows, len(train_rows))
held_rows = random.Random(settings.seed).sample(held_rows, min(settings.eval_rows, len(held_rows)))
SENTENCES = len(form[1]) == 1 and pandas.Series([len(write(row["note"]).split()) for row in train_rows]).median() > 4
print(f"{len(train_rows):,} rows to learn, such as {train_rows[0]['asked']!r}; {len(held_rows)} held out for this run")

# %% [markdown]
# ## 5 Ask before you train
#
# The model is loaded in 4 bits, as in lesson 03, which explains the plan and the cures. On a GPU the plan decides how many rows are taken at once. Without one it is an example, for a 7B model on a T4.

# %%
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, set_seed

plan = run.plan_training()
cures = run.cures(plan)
set_seed(settings.seed)
quantization = BitsAndBytesConfig(
    load_in_4bit=True, bnb_4bit_quant_type=settings.quant_type, bnb_4bit_use_double_quant=settings.double_quant,
    bnb_4bit_compute_dtype=run.machine.torch_dtype,
)  # fmt: skip
print(plan)


# %%
def load():
    "The base model in 4 bits."
    placed = {"dtype": run.machine.torch_dtype, "device_map": run.machine.device_map}
    model = AutoModelForCausalLM.from_pretrained(run.model.path, quantization_config=quantization, **placed)
    return cures.after_loading(model, tokenizer, [train_rows[0]["asked"]]).eval()


cures.before_loading()
with plan.guarded():
    model = load()

# %% [markdown]
# To ask is to write the prompt in the same template and to let the model go on. Prompts of one batch are padded on the left, so that each answer begins where its prompt ends.


# %%
@torch.no_grad()
def ask(model, prompts, max_new_tokens=settings.max_new_tokens, at_once=64):
    "How the model goes on, greedy, without what marks the end."
    said, how = [], {"add_special_tokens": False, "padding": True, "padding_side": "left", "return_tensors": "pt"}
    for i in range(0, len(prompts), at_once):
        batch = tokenizer(prompts[i : i + at_once], return_token_type_ids=False, **how).to(model.device)
        tokens = model.generate(
            **batch, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        said += tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in said]


longest = max(len(tokenizer(write(row["note"]))["input_ids"]) for row in train_rows)
print(f"the longest answer to learn has {longest} tokens, and max_new_tokens is {settings.max_new_tokens}")

# %% [markdown]
# The base model gets twelve of the held-out rows. It is also asked for four capitals, which it may know already: at the end you will see whether it still does. The bundled model is no chat model, so it goes on with sentences.


# %% tags=["nbval-ignore-output"] reason="what an untrained model says varies with the machine's rounding"
def from_before(country):
    "A question from before: a chat model is asked, the bundled model goes on with a sentence."
    if run.model.bundled:
        return f"{tokenizer.bos_token}The capital of {country} is"
    return prompt_of([{"role": "user", "content": f"What is the capital of {country}?"}])


countries = ["Italy", "Peru", "Kenya", "Japan"]
asked = [prompt_of(row["prompt"]) for row in map(to_row, held_rows)]
with plan.guarded():
    knew, before = ask(model, list(map(from_before, countries)), 8), ask(model, asked[:12])
print(held_rows[0]["asked"], "\n->", before[0][:200])

# %% [markdown]
# Look at what comes after the first line. A base model may know an answer, and go on with more questions: it has not learned the form, and not where to stop.

# %%
from helpers.evaluation import fields_right, score_fields

FORGIVING = ("name", "place")  # in these fields capitals and spaces may differ


def scored(answers, rows):
    "How many answers to these rows are JSON, right in each field, and right in all of them."
    wanted = [row["note"] for row in rows]
    return score_fields(map(read, answers, wanted), wanted, FORGIVING)


def words(score):
    "A score in words: where there is one field, its share alone."
    low, high = score.interval
    how = "the same word for word" if SENTENCES else "right"
    return str(score) if len(form[1]) > 1 else f"{score.whole:.0%} {how} ({low:.0%} to {high:.0%})"


score_before, in_all = scored(before, held_rows[:12]), " in every field" if len(form[1]) > 1 else ""
if settings.data_file == "auto":
    verdict(f"before training no answer is right{in_all}", score_before.whole == 0)

# %% [markdown]
# ## 6 Train
#
# The arguments are those of lesson 03. An *epoch* is one pass over the rows; the table says how many this run makes. Two or three are a rule of thumb, since a model that sees its rows more often begins to learn them by heart. The
# loss on held-out rows decides. If you gave a file and left `max_steps` at `"auto"`, the next cell sets it to two epochs, or to twenty steps where that is more.

# %%
from peft import LoraConfig, PeftModel
from trl import SFTConfig, SFTTrainer

rows_per_step = settings.batch_size * settings.gradient_accumulation
if settings.data_file != "auto" and max_steps == "auto":
    settings.max_steps = max(20, -(-2 * len(train_rows) // rows_per_step))  # two epochs
lora = LoraConfig(
    r=settings.rank, lora_alpha=settings.lora_alpha, lora_dropout=settings.lora_dropout, bias="none", task_type="CAUSAL_LM",
    target_modules="all-linear" if settings.target_modules == "all-linear" else settings.target_modules.split(","),
)  # fmt: skip
table({
    "steps": f"{settings.max_steps} of {rows_per_step} rows", "rows to learn": f"{len(train_rows):,}",
    "epochs": f"{settings.max_steps * rows_per_step / len(train_rows):.2f}",
    "learning rate": settings.learning_rate, "rank": settings.rank,
}, columns=("", "this run"))  # fmt: skip

# %%
every = {"every_n_layers": plan.checkpoint_every, "offload": plan.offload} if plan.checkpoint_every else None
common = {
    "per_device_train_batch_size": settings.batch_size, "gradient_accumulation_steps": settings.gradient_accumulation,
    "max_length": settings.max_length, "lr_scheduler_type": "cosine", "warmup_steps": 0.03, "max_grad_norm": 0.3,
    "optim": settings.optimizer, "fp16": run.machine.dtype == "float16", "bf16": run.machine.dtype == "bfloat16",
    "use_cpu": run.machine.device == "cpu", "activation_checkpointing": plan.checkpoint_every > 0,
    "activation_checkpointing_kwargs": every, "gradient_checkpointing": None,
    "pad_to_multiple_of": cures.pad_to_multiple_of, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "seed": settings.seed,
}  # fmt: skip

# %% [markdown]
# The next cell makes a trainer from rows, a number of steps and a learning rate, because it will be used twice. It measures the loss on sixteen held-out rows at the beginning, halfway and at the end.

# %%
from transformers import PrinterCallback


def trainer_for(model, rows, steps, learning_rate):
    arguments = SFTConfig(
        output_dir=str(run.checkpoints), max_steps=steps, learning_rate=learning_rate, eval_strategy="steps", eval_on_start=True,
        eval_steps=-(-steps // 2), logging_steps=max(1, steps // 10), per_device_eval_batch_size=min(16, plan.full_rows), **common,
    )  # fmt: skip
    learned, asked = (Dataset.from_list(list(map(to_row, part))) for part in (rows, held_rows[:16]))
    trainer = SFTTrainer(model=model, args=arguments, processing_class=tokenizer, peft_config=lora,
                         train_dataset=learned, eval_dataset=asked)  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return cures.after_building(trainer)


with plan.guarded():
    trainer = trainer_for(model, train_rows, settings.max_steps, settings.learning_rate)

# %%
of_trainer = trainer.data_collator([trainer.train_dataset[0]])
ids = [n for n, label in zip(of_trainer["input_ids"][0].tolist(), of_trainer["labels"][0].tolist()) if label != -100]
print("learned of the first row after shuffling:", repr(tokenizer.decode(ids)))
verdict("the trainer learns the answer and its end", tokenizer.eos_token_id in ids and len(ids) < len(of_trainer["input_ids"][0]),
        look_at="A row that is cut at max_length loses its end, and its answer first: see the lengths in section 3.")  # fmt: skip

# %% tags=["nbval-ignore-output", "train"] reason="seconds vary with the machine"
with cures.while_training(trainer):
    trained = trainer.train()
print(f"{trained.global_step} steps in {trained.metrics['train_runtime']:.0f} s")


def losses_of(trainer, name):
    return [(entry["step"], entry[name]) for entry in trainer.state.log_history if name in entry]


# %% [markdown]
# Save first, then judge.

# %% tags=["nbval-ignore-output"] reason="the sizes of cards vary with versions"
adapter = run.folder / f"adapter-of-{named}"
trainer.model.save_pretrained(adapter)
tokenizer.save_pretrained(adapter)
print(adapter.name, f"{(adapter / 'adapter_model.safetensors').stat().st_size / 1e6:.1f} MB")

# %% tags=["nbval-ignore-output"] reason="losses vary with the machine's rounding"
train_losses, held_losses = losses_of(trainer, "loss"), losses_of(trainer, "eval_loss")
verdict("the loss on held-out rows fell", held_losses[-1][1] < held_losses[0][1])
if held_losses[-1][1] > min(loss for _, loss in held_losses):
    print("It was lower before the end: fewer steps would do better on rows like these.")
table(held_losses, "{:.3f}", columns=("step", "loss on held-out rows"))

# %% [markdown]
# ## 7 Measure what matters to you
#
# The loss says that something was learned. Whether the answers can be used, a score of your own task must say: how many are right, and where an answer is JSON, how many are valid and how many are right in each field. Behind the share that is right
# stands its 95% interval. With few held-out rows it is wide, and then two scores that differ may mean the same.
#
# An answer is right in a field if it has exactly the value that was wanted. In the fields that `FORGIVING` names capitals and spaces may differ, since people write them as they like.

# %% tags=["nbval-ignore-output"] reason="shares vary with the machine's rounding"
model = trainer.model.eval()
with plan.guarded():
    after, knows = ask(model, asked), ask(model, list(map(from_before, countries)), 8)
score_after = scored(after, held_rows)
print(f"before: {words(score_before)}\nafter:  {words(score_after)}")
usual = settings.data_file == "auto" and settings.max_steps >= 30
if usual and in_all:
    verdict("at least nine of ten answers are valid JSON", score_after.valid >= 0.9)
if usual and len(held_rows) >= 60 and (not in_all or settings.max_steps * rows_per_step >= 1900):
    verdict(f"most answers are right{in_all}", score_after.interval[0] > 0.5)

# %% [markdown]
# A share means little by itself. So the table sets beside it what a program without any model would get: one that always answers with the most frequent value of the training rows. The bundled model's quiz is easy: one field, and facts that it had read. So the
# real chat model's recorded scores for the messages stand below it.


# %% tags=["nbval-ignore-output"] reason="shares vary with the machine's rounding"
def beside_a_program(name, fields, whole, learned, held):
    "What share of each field is right, and what it is if the answer is always the most frequent value."
    learned, held = (pandas.DataFrame([row["note"] for row in part]).fillna("none") for part in (learned, held))
    same = held == learned.mode().iloc[0]
    shares = pandas.DataFrame({"rows": len(held), "right": fields, "always the most frequent value": same.mean()})
    if len(fields) > 1:
        shares.loc["every field"] = len(held), whole, same.all(axis=1).mean()
    return shares.rename(index=lambda field: f"{name}: {field}")


shares = beside_a_program(named, score_after.fields, score_after.whole, train_rows, held_rows)
if quiz:
    scores, asked_then = result.iloc[1], examples(read_table(ours / "heldout.csv"))
    shares = pandas.concat([shares, beside_a_program("messages", scores.fields, scores.right, rows, asked_then)])
table(shares.reset_index(names="held out"), "{:.0%}", rows="{:.0f}")

# %% [markdown]
# A score of your own is a function of one answer and its row. This one is stricter where it matters: a note with a wrong day or time is worth nothing, since it costs a customer an hour. Change
# `STRICT` and what follows for your task. (A field that your rows do not have is never wrong.)


# %% tags=["own-score"]
STRICT = ("day", "time")


def score(answer, right):
    "0 for an answer with a wrong value in a strict field, else the share of fields that are right."
    marks = fields_right(read(answer, right), right, FORGIVING)
    kept = all(marks.get(field, True) for field in STRICT)
    return sum(marks.values()) / len(marks) if kept else 0.0


# %% [markdown]
# ### Answers in sentences: a sheet to mark
#
# A good answer in other words than yours scores 0, so somebody has to read it. If your answers are sentences, the next cell writes `sheet.csv` into the run's folder: up to thirty held-out questions, each with your answer and the model's, in random order and
# without a name. Mark each answer: are the facts right, is the tone right, would you send it? Only then open `key.csv`, which says who wrote what, and count. Compare the model's share with that of your own answers.

# %% tags=["sheet", "nbval-ignore-output"] reason="what the model says varies with the machine's rounding"
pairs = [(row["asked"], write(row["note"]), said) for row, said in zip(held_rows[:30], after)]
sheet = pandas.DataFrame(pairs, columns=["asked", "you", "the model"]).melt("asked", var_name="by", value_name="answer")
sheet = sheet.sample(frac=1, random_state=settings.seed).sort_values("asked", kind="stable", ignore_index=True)
to_mark = sheet[["asked", "answer"]].assign(**{"facts right?": "", "tone right?": "", "would I send it?": ""})
if SENTENCES:
    to_mark.to_csv(run.folder / "sheet.csv", index_label="row", encoding="utf-8-sig")
    sheet[["by"]].to_csv(run.folder / "key.csv", index_label="row", encoding="utf-8-sig")
table(to_mark.head(6)) if SENTENCES else None

# %% [markdown]
# ### Read the worst ten
#
# A number says how much is wrong, the answers say what. Read them, and sort the mistakes into heaps: the model could not know it, the model should have known it, the label is wrong. Only the heap in the middle is
# cured by training. Each time you change something because of held-out answers that you have read, they are a little less held out. So read one half of them as often as you like, and score the other half once, at the end. After the bundled model's quiz, in which it makes no mistakes, you read the recorded answers to the messages by hand. (With answers in sentences nearly all scores are 0. Then the ten are any ten, and the ones to read are those that you marked lowest.)

# %% tags=["nbval-ignore-output"] reason="which answers are wrong varies with the machine's rounding"
own_score = sum(score(answer, row["note"]) for answer, row in zip(after, held_rows)) / len(held_rows)
print(f"{own_score:.2f} of 1 by your own score")
worst_of, said = held_rows, after
if quiz:
    worst_of, said = examples(read_table(ours / "by_hand.csv")), result.answers.iloc[-1]
order = sorted(range(len(said)), key=lambda i: score(said[i], worst_of[i]["note"]))[:10]
worst = [(worst_of[i]["asked"][:200], write(worst_of[i]["note"]), said[i][:600]) for i in order]
table(worst, columns=("message", "wanted", "answered"))

# %% [markdown]
# Of the sixty answers to the messages by hand 25 have a wrong place. In 21 of these the model wrote `null`, and the four other towns all stand in their messages: it never invents one. Which towns does it miss? Perhaps those that no training
# message has. Perhaps those that stand by themselves, as in "Abena, Tema", and not after a word, as in "your shop in Ghent". Write down which you believe, and run the cell.


# %% tags=["towns"]
import re


def with_town(name):
    "The messages of a file that name a town, and whether a word stands right before it."
    has_one = read_table(ours / f"{name}.csv").query("Place != ''")
    led = [bool(re.search(r"[^\W\d_]\s+" + re.escape(row.Place), row.Message, re.I)) for row in has_one.itertuples()]
    return has_one.assign(led=led)


in_training, towns = with_town("messages"), with_town("by_hand")
towns["right"] = [fields_right(result.answers.iloc[-1][i], {"place": towns.Place[i]})["place"] for i in towns.index]
known = towns.Place.isin(in_training.Place)
print(f"{in_training.led.mean():.1%} of the towns in training follow a word")
heaps = {"stands in training": known, "new": ~known, "follows a word": towns.led, "by itself": ~towns.led}
table(
    [(name, heap.sum(), towns.right[heap].sum()) for name, heap in heaps.items()], columns=("town", "messages", "right")
)

# %% [markdown]
# Whether a town is known matters little. What counts is the form: of the towns by themselves the model finds one in seventeen, because no training message has such a town. That explains most of the mistakes, and not all: of the towns behind a word a third are missed too. The
# script's held-out messages could not show that: their towns are new as well, but all of them follow a word, and 95% of the places are right. So the heap is the middle one, and the first cure to try is messages in which the town stands by itself.
#
# ## 8 More rows, or other rows?
#
# Train on fewer rows and look whether more of them helped. The curve below was recorded with the real chat model. Each point had the same 240 steps, so what changes is how
# many different rows it saw in them, and how often it saw each: 77 times with 50 rows, once with all. A shorter run on the 50 might do a little better. 120 held-out rows were asked, so each point may be off by up to nine points. The lines show it. If your curve still climbs at its end, collect more rows. If it is flat, more rows of the same kind
# will not help.

# %%
curve = measured.query("what == 'curve'").sort_values("learned")
right, low, high = (100 * curve[name] for name in ("right", "low", "high"))
figure = curves({"SmolLM2-135M-Instruct": (curve.learned.astype(int), right)}, "Up to 960 rows, more rows clearly help", "rows to learn",
                "right in every field (%)", doubling=True, intervals={"SmolLM2-135M-Instruct": (low, high)})  # fmt: skip
show(figure, alt=f"With more rows the share of right notes rises from {right.iloc[0]:.0f}% to {right.iloc[-1]:.0f}%")

# %% [markdown]
# Does this curve still climb at its end? One cannot tell: the last step is smaller than what chance explains. Up to 960 rows it clearly does.
#
# Then read the worst answers, and ask what they have in common. This happened with these data: the script that writes the messages began with 52 sentences that say what is wanted. After training, too many
# requests in other words were taken for another request. The model had learned the sentences, and not what a request is. So 274 sentences were added, by somebody who had not seen the held-out
# ones. These two runs had equally many rows, and equally many steps. With 120 rows asked, each share may be off by up to nine points:

# %%
kinds = measured[measured.what.str.endswith("sentences")].sort_values("right")
table([(row.what, row.learned, row.right, *row.fields.values()) for row in kinds.itertuples()], "{:.0%}",
      columns=("made of", "rows", "every field", *kinds.fields.iloc[0]), rows="{:,.0f}")  # fmt: skip

# %% [markdown]
# The requests gained ten points, which is perhaps more than chance. (It is the largest of six differences, with one run each.) The gain in all fields together and the loss in the time may be chance. That is what "better data" means: not cleaner rows, but rows that differ from each other as the ones in use will differ. The next mistakes to mend were towns: the model wrote "Istanbul" where the message said
# "Izmir", which it had never learned. More names and towns followed, and with them other settings and more steps. The table at the top is what came of all that together. By hand the towns are right as often as before. Section 7 says why: the new towns too were put behind a word. [Their page](../assets/messages/README.md) says what was looked at, and when.
#
# One point live: the same model and the same learning rate, on twelve rows (with a real chat model for eight steps at most, to save time). What will the training loss do, and what the held-out loss? Write down a guess, then run the cells.

# %% tags=["nbval-ignore-output"] reason="losses vary with the machine's rounding"
import gc

few = train_rows[:12]
steps_of_few = settings.max_steps if run.model.bundled else min(settings.max_steps, 8)
trainer = model = None  # a GPU has no room for two models, and the adapter is saved
gc.collect()
with plan.guarded():
    small = trainer_for(load(), few, steps_of_few, settings.learning_rate)
    with cures.while_training(small):
        small.train()
few_train, few_losses = losses_of(small, "loss")[-1][1], losses_of(small, "eval_loss")
few_held = few_losses[-1][1]
print(f"{len(few)} rows: training loss {few_train:.4f}, held-out loss {few_held:.4f}")
print(f"all rows: training loss {train_losses[-1][1]:.4f}, held-out loss {held_losses[-1][1]:.4f}")

# %% tags=["nbval-ignore-output"] reason="losses vary with the machine's rounding"
if settings.data_file == "auto":
    verdict("few rows are learned better than what was held out", few_train < few_held)
if settings.data_file == "auto" and steps_of_few == settings.max_steps:
    verdict("with as many steps, more rows give a lower loss on held-out rows", held_losses[-1][1] < few_held)
table(few_losses, "{:.4f}", columns=("step", f"loss on held-out rows, {len(few)} rows learned"))

# %% [markdown]
# In the run that is stored here, twelve rows help a great deal: compare the first value with the last. All rows help far more. The training loss hides this, since by it the run on twelve rows looks better. Only rows that were held out show it.
#
# Is the value in the middle lower than the last one? Then the run went on too long for so few rows: it learned them by heart, and got worse on others. That is *overfitting*. Take fewer steps, or collect more rows.
#
# If a line above begins with NOT SO, its claim did not hold in your run. Mostly both losses were then still falling at the end, and the run was too short: train longer.
#
# ## 9 What it forgot
#
# Fine-tuning on one task can cost other abilities. Does the model still know the four capitals, and does it answer as before?

# %% tags=["nbval-ignore-output"] reason="answers vary with the machine's rounding"
small = None  # what learned twelve rows makes room for the model of the next cell
gc.collect()
table(list(zip(countries, knew, knows)), columns=("the capital of", "before", "after"))

# %% [markdown]
# In the run that is stored here the bundled model still knows its four, and now it stops after the answer. (Its own rows ask for capitals too, so for it that is no wonder. With the chat model and the messages the question is a real one.) Longer trainings cost more: a model that was trained on one task alone may answer everything as if it were that task. There are three cures. Mix general conversations into the training rows, one in ten. Train fewer steps, at a lower
# rate. Or accept it: an adapter is a file that you put on for one task and take off for another, as [lesson 04](04_inference.ipynb) shows.
#
# **Now ask your model yourself.** Put a message of your own into the first line, and run the cell as often as you like. The first time it loads the model that you tuned, since section 8 needed the room. (The bundled model has learned questions of a quiz, such as the one that stands there.)

# %% tags=["ask-it", "nbval-ignore-output"] reason="what the model says varies with the machine's rounding"
mine = held_rows[-1]["asked"]  # or a text of your own, between quotation marks, as it will come in use
if model is None:
    with plan.guarded():
        model = PeftModel.from_pretrained(load(), str(adapter)).eval()
answer = ask(model, [prompt_of(turns_of(mine, held_rows[-1]["task"]))])[0]
print(f"asked: {mine}\nanswered: {answer}\nby the adapter in the folder {adapter.name}")

# %% [markdown]
# That folder lies where the first table of this lesson says "writes to", and holds the tokenizer and the chat template too. [Lesson 04](04_inference.ipynb) serves such a folder (section 10), and [lesson 05](05_merging.ipynb) makes one model or one file of it.
#
# ## 10 The same on a T4 with a 7B model
#
# On a T4 set `model_id = "Qwen/Qwen2.5-7B-Instruct"` in the cell of parameters, and `max_steps` for the number of epochs that you want: at `"auto"` the recipe for large models makes 60 steps of 16 rows, which is a quarter of one pass over the messages. (For a
# file of your own, section 6 sets the steps.) Leave the rest at `"auto"`: the recipe, the plan and the cures of lesson 03 do what a T4 needs. The download has 15 GB. No score of a 7B model on these messages was measured here yet.

# %%
record(
    whole_before=score_before.whole, whole_after=score_after.whole, valid_after=score_after.valid,
    interval_after=list(score_after.interval), fields_after=score_after.fields, heldout_loss_before=held_losses[0][1],
    heldout_loss_after=held_losses[-1][1], few_rows_heldout_loss=few_held, few_rows_train_loss=few_train,
    train_seconds=trained.metrics["train_runtime"], rows_learned=len(train_rows), rows_scored=len(held_rows),
)  # fmt: skip

# %% [markdown]
# ## Exercises
#
# Put your answer in place of the dots and run the cell: it is checked at once. The dots after the minutes say how hard it is. The solutions are folded away.
#
# **1. Write** (10 minutes, ••). Another file has the columns `"Question "` (with a space at the end), `"Topic"` and `"Until"`. Write `my_to_row(row)`: it returns the question as the user's turn without spaces
# at its ends, and as the assistant's turn JSON with the keys `topic` and `until`. An empty cell is null.


# %%
def my_to_row(row):
    "A prompt and a completion, each a list with one message."
    return ...


check("07.1", my_to_row)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import json
#
#
# def my_to_row(row):
#     answer = {"topic": row["Topic"].strip() or None, "until": row["Until"].strip() or None}
#     return {
#         "prompt": [{"role": "user", "content": row["Question "].strip()}],
#         "completion": [{"role": "assistant", "content": json.dumps(answer, ensure_ascii=False)}],
#     }
#
#
# check("07.1", my_to_row)
# ```
# </details>
#
# **2. Write** (10 minutes, ••). Find the leak. Write `leaks(learned, held)`: from two lists of messages it returns those held-out ones that stand among the training messages too, if capitals,
# punctuation and spaces do not count. Digits do, and so do letters with an accent.


# %%
def leaks(learned, held):
    "The held-out messages that were learned."
    return ...


check("07.2", leaks)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import re
#
#
# def leaks(learned, held):
#     def plain(text):
#         return re.findall(r"\w+", text.casefold())
#
#     known = [plain(text) for text in learned]
#     return [text for text in held if plain(text) in known]
#
#
# check("07.2", leaks)
# ```
# </details>
#
# **3. Decide** (10 minutes, ••). A temporary help has labelled these six messages. Three labels break the rules. Which? Give a set of numbers. The rules, in short: the *name* is of whom the appointment is for. The
# *request* is `book` (also to ask for a free time), `move`, `cancel` or `ask`. The *place* is the workshop's, not where somebody lives. The *day* is the day of the week that is wanted, in a move the new one; "tomorrow" names none. The *time* has 24 hours, and the workshops open from 8 to 19 o'clock.
#
# 1. "Please shift me from Monday to Friday." `{"name": null, "request": "move", "place": null, "day": "Friday", "time": null}`
# 2. "Book me in on Tuesday at 4, Oslo. Lars" `{"name": "Lars", "request": "book", "place": "Oslo", "day": "Tuesday", "time": "04:00"}`
# 3. "I live in Turin, but the bike is in your shop in Milan. Is it ready?" `{"name": null, "request": "ask", "place": "Turin", "day": null, "time": null}`
# 4. "Cancel tomorrow, please." `{"name": null, "request": "cancel", "place": null, "day": null, "time": null}`
# 5. "Do you have anything free on Sunday?" `{"name": null, "request": "ask", "place": null, "day": "Sunday", "time": null}`
# 6. "Hana here, my daughter Mei needs new brakes, any time." `{"name": "Mei", "request": "book", "place": null, "day": null, "time": null}`

# %%
wrong = ...
check("07.3", wrong)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# wrong = {2, 3, 5}
# check("07.3", wrong)
# ```
#
# In 2 nobody can come at 4 in the morning: it is 16:00. In 3 the shop is in Milan, and Turin is where somebody lives. In 5 a free time is asked for, which is `book`.
# </details>
#
# **4. Write** (10 minutes, ••). Write `share_right(answer, wanted)`: the share of the wanted fields that the answer has right, from 0 to 1. An answer that is no JSON object scores 0, and a field that is missing is
# wrong, also where null was wanted.


# %%
def share_right(answer, wanted):
    "`answer` is a text, `wanted` a dictionary."
    return ...


check("07.4", share_right)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import json
#
#
# def share_right(answer, wanted):
#     try:
#         found = json.loads(answer)
#     except ValueError:
#         return 0
#     if not isinstance(found, dict):
#         return 0
#     return sum(field in found and found[field] == value for field, value in wanted.items()) / len(wanted)
#
#
# check("07.4", share_right)
# ```
# </details>
#
# **5. Repair** (10 minutes, •••). With this template a model learns to answer, and never to stop. Write it right, as `repaired`. (It is a program in
# [Jinja](https://jinja.palletsprojects.com/); what stands between two braces is written, and what stands between a brace and a per cent sign is done. `OWN_TEMPLATE` in section 3 is a template that ends.)

# %%
endless = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
repaired = ...
check("07.5", repaired)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# repaired = (
#     "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}\n{% endfor %}"
#     "{% if add_generation_prompt %}<assistant>{% endif %}"
# )
# check("07.5", repaired)
# ```
# </details>
#
# **6. Decide** (5 minutes, ••). These are the lengths of a thousand rows. Choose `max_length`, and say which share of the rows is cut there. One in a hundred may lose its end.

# %%
theirs = [60 + (i % 97) * (7 * i % 89) // 70 for i in range(970)] + [190 + 3 * (i % 20) for i in range(29)] + [3800]
figure = histogram(sorted(theirs)[:-1], "999 rows; one more, of 3,800 tokens, is not drawn", "tokens in a row", "rows")
show(figure, alt="Nearly all rows have less than 190 tokens, some up to 250, and one has 3,800")

# %%
chosen = ...  # {"max_length": ..., "cut": ...}
check("07.6", chosen)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# chosen = {"max_length": 256, "cut": 0.001}
# check("07.6", chosen)
# ```
#
# At 256 one row of the thousand is cut, the one of 3,800 tokens. Any length from 220 to 512 passes, with the share that is cut there. Look at that row before you train: it may be two rows that a missing quotation mark joined.
# </details>
#
# **7. Write** (15 minutes, •••). Write twenty rows of a task of your own, as a list of `{"message": ..., "answer": {...}}`. All answers have the same fields. Where there are several, a field is `None` if the message does not tell it; a single field may hold an answer in sentences. The
# check asks whether they could teach a model anything. Then keep them: they are the beginning of your own file.

# %%
twenty = ...
check("07.7", twenty)

# %% [markdown]
# <details><summary>Solution</summary>
#
# There are as many as there are tasks. This one is about a library.
#
# ```python
# books = {
#     "Is Dune on loan": "Dune", "Please keep Emma for me": "Emma", "I lost Ulysses": "Ulysses", "Can I renew Persuasion": "Persuasion",
#     "When is Beloved due": "Beloved", "Do you have It in French": "It", "My son returned Momo": "Momo", "Could you order Solaris": "Solaris",
#     "Who wrote Kim": "Kim", "Somebody tore my copy of She": "She", "Thanks for finding Nana": "Nana", "Where do I find Hunger": "Hunger",
#     "Put me on the list for Dracula": "Dracula", "A page of Candide is missing": "Candide", "How old must one be for Carrie": "Carrie",
#     "We need thirty of Matilda": "Matilda", "Not Middlemarch again": "Middlemarch", "Are you open on Sunday": None,
#     "The lift is broken": None, "Sorry for the delay": None,
# }
# twenty = [{"message": message, "answer": {"book": book}} for message, book in books.items()]
# check("07.7", twenty)
# ```
# </details>
#
# ## What you did
#
# You read a table without losing its empty cells, turned its rows into conversations, and saw which tokens are learned. You held out rows that are new in the way that use will be new,
# and scored the answers field by field. You know what a dozen rows do to a model, and where to look before you write more of them.
#
# [The course's page](../README.md) has what is left: the lessons in their order, and the commands that stand on their own.
#
# ## Further down
#
# What follows is for readers who want to know more. Nothing depends on it.
#
# ### Padding, or packing?
#
# A batch is filled up to its longest row with padding, which is computed and teaches nothing. How much of it is there with rows as they come, and how much if rows of like length go together
# (`train_sampling_strategy="group_by_length"`)? A third way, packing, puts several rows into one of `max_length` tokens (`packing=True`). It needs a mask that keeps the rows apart, which costs time
# without flash attention.


# %%
def padded(order, rows_at_once):
    "The share of padding, if rows go through the model in this order."
    batches = [order[i : i + rows_at_once] for i in range(0, len(order), rows_at_once)]
    return 1 - sum(order) / sum(len(batch) * max(batch) for batch in batches)


at_once = settings.batch_size
shuffled = random.Random(settings.seed).sample(lengths, len(lengths))
as_they_come, grouped = padded(shuffled, at_once), padded(sorted(lengths), at_once)
print(f"padding: {as_they_come:.0%} as they come, {grouped:.1%} grouped by length")
verdict("rows of like length together waste less", grouped <= as_they_come)

# %% [markdown]
# Grouping has a price. transformers sorts stretches of up to fifty batches from long to short, so a step has rows of one kind where kinds differ in length. SmolLM2-135M-Instruct learned this lesson's messages and short instructions at once, and learned both worse when they were grouped ([lesson 09](09_faster_and_larger.ipynb) has the numbers). So this run takes its rows in random order, and leaves
# padding out as lesson 03 does: the rows of a batch lie one behind the other, and each sees only itself. [Section 7 of lesson 09](09_faster_and_larger.ipynb) times all these ways. (The second number is the least there can be: the whole file in order.)
#
# ### The held-out rows as a task for lm-evaluation-harness
#
# [lm-evaluation-harness](https://github.com/EleutherAI/lm-evaluation-harness) runs public benchmarks, and takes a task of your own as a YAML file and rows as JSON lines. Then your score stands beside others,
# and anybody can repeat it. The prompts are written out here as the template writes them.

# %% tags=["harness-task"]
import yaml

harness = run.folder / "lm-eval-task"
harness.mkdir(exist_ok=True)
begun = tokenizer.decode(tokenizer("")["input_ids"])  # what the harness's tokenizer puts in front by itself
lines = [{"asked": text.removeprefix(begun), "wanted": write(row["note"])} for text, row in zip(asked[:16], held_rows)]
pandas.DataFrame(lines).to_json(harness / "rows.jsonl", orient="records", lines=True, force_ascii=False)
own_task = {
    "task": "own_rows", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(harness / "rows.jsonl")}},
    "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{asked}}", "doc_to_target": "{{wanted}}",
    "generation_kwargs": {"until": [tokenizer.eos_token], "max_gen_toks": settings.max_new_tokens},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip
size = (harness / "own_rows.yaml").write_text(yaml.safe_dump(own_task, sort_keys=False), encoding="utf-8")

# %% tags=["nbval-ignore-output", "harness-run"] reason="runs where lm-eval is installed: pip install lm-eval"
import importlib.util

if importlib.util.find_spec("lm_eval"):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_path=str(harness), include_defaults=False)
    asking = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16)
    found = simple_evaluate(asking, tasks=["own_rows"], task_manager=tasks)["results"]["own_rows"]["exact_match,none"]
    again = ask(model, asked[:16])
    exact = sum(answer == line["wanted"] for answer, line in zip(again, lines)) / len(lines)
    print(f"exactly right: {found:.0%} by the harness, {exact:.0%} by this lesson")
    verdict("the harness and this lesson count the same exact answers", abs(found - exact) < 1e-6)
else:
    print("lm-eval is not installed: pip install lm-eval, then run this cell again")

# %% [markdown]
# Exact match is stricter than this lesson's score: it does not forgive a small letter in a name. The harness can take a Python function in place of it, with `!function` in the YAML file.
#
# Next: [08 Is it as good?](08_quality.ipynb) sets QLoRA, LoRA and full fine-tuning side by side on three tasks, this one among them, and says how sure each difference is.
