# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 Is it as good?
#
# At the end of this lesson you can say how QLoRA, LoRA and full fine-tuning compare on a task, and how sure that is. You can also tell when a comparison that you read is not sure at all.
#
# You will learn to
#
# - say before a measurement which difference would matter, and after it one of three things: *equivalent*, *different*, or *cannot tell*;
# - compare two methods seed by seed and question by question, and draw the interval of the difference yourself;
# - see where LoRA loses to full fine-tuning and where it does not, what was forgotten, and whether an adapter repairs the rounding to 4 bits;
# - find the three mistakes that turn such a comparison round: one seed, one learning rate for all, and a rate that one run has chosen.
#
# **Time:** 50 minutes to read, 65 for the exercises. The cells take {{cpu_time}} on two CPU cores; {{t4_time}} on a T4. **Needs:** lessons 03 and 04, and no GPU. One of the three tasks is lesson 07's.

# %% tags=["parameters"]
seed = 0
max_steps = 40  # of each of the three runs in section 2
batch_size = 16
eval_rows = 128  # held-out questions that each of them is asked
output_dir = "auto"

# %%
from helpers.lesson import begin, check, record, table, verdict

run = begin("08_quality", with_data=True, model_id="bundled", dataset_id="bundled",
            seed=seed, max_steps=max_steps, batch_size=batch_size, eval_rows=eval_rows, output_dir=output_dir)  # fmt: skip
settings = run.settings

# %% [markdown]
# ## What came out
#
# In short, and in few steps: on a new form of answer every adapter did better than full fine-tuning. On new facts and on messages to be turned into JSON every one did worse. What 4 bits cost beside plain LoRA could be told on one task only, the facts, and there QLoRA was ahead.
#
# Ten ways to fine-tune a model were measured for this lesson. Each way is called an *arm*. Three tasks were taken, the first two with the course's small model, the third with a real chat model, SmolLM2-135M-Instruct, and five of the arms. The first figure shows the three of which everybody asks, full fine-tuning, LoRA and QLoRA (here in NF4, lesson 01). Where no rank is named, it is 16.
#
# - **form**: 32 instructions and their answers. The model knows the facts already and learns the form of the answer. It is then asked 480 questions about things that none of the 32 rows named.
# - **facts**: 288 rows about 48 invented countries, of which the model knows nothing. Capital, currency and language of each are learned in two ways to ask, and asked for in three others: nine questions for each country, 432 in all.
# - **messages**: lesson 07's task. The chat model turns messages into JSON fields, and is then given the 240 held-out messages of lesson 07. An answer counts if every field is right.
#
# One row of each that is learned, and one that is asked, with what the model answered before any training:
#
# | task | learned | asked | before training |
# |---|---|---|---|
# | form | What is the two-letter code of Haiti? **HT** | Name the currency of Belarus. **ruble** | CFA franc What is the capital of the following country? Sao |
# | facts | What is the capital of Chaklosk? **Dis** | Which city is the capital of Chaklosk? **Dis** | Brasilia What is the capital of the following country? Sao |
# | messages | hi all, are you looking for staff at your eskisehir location? the front tyre is flat. thank you! ioana **{"name":"Ioana","request":"ask","place":"Eskisehir","day":null,"time":null}** | Any chance to come at 5:00 pm this Monday with the team in Kumasi rather than Saturday? Sincerely Mrs Fonseca **{"name":"Fonseca","request":"move","place":"Kumasi","day":"Monday","time":"17:00"}** | I'm sorry for the confusion, but as a user, I can only respond as a user. (as lesson 07 recorded it, cut short) |
#
# The small model goes on with text of its own. That is what is new about the form: the answer to what was asked, and nothing after it.
#
# Everything but the arm was the same: rows, their order, the number of steps, and how the learning rate was chosen (section 7). What would be compared was written down and committed before the first run
# (`measurements/quality_design.toml`). Each arm was trained with eight [seeds](../site/glossary.md#seed), on messages with five. A seed decides the order of the rows, the random start of the adapters, and on the task *form* also which 32 rows are learned.
#
# The trainings are short, and that is a choice. In a pilot with 200 steps every arm had learned all the invented facts, and nothing could be told apart. So 80 steps were taken, in which they can. On the form there are 40 steps, twenty passes over its 32 rows, and on messages 60. **How large a gap is depends on this choice.** It shows who learns
# faster per step. It does not show who ends higher.

# %%
from helpers.records import measured_arms

arms = measured_arms()
runs, tries = arms.runs, arms.tries
table(runs.groupby("task", sort=False).agg(
    model=("model", "first"), arms=("arm", "nunique"), seeds=("seed", "nunique"), held_out_questions=("rows", "first"),
    measured_on=("machine", "first"), date=("date", "first")))  # fmt: skip

# %% [markdown]
# The mean over the seeds is one number. How far could it be off? An *interval* answers that. Section 3 makes one by hand; here it comes out of a function.

# %% tags=["first-figure"]
from helpers.evaluation import evaluate, interval_of_mean
from helpers.plots import curves, diagrams, show

kinds = {arms.named(arm): arms.kind(arm) for arm in arms.design["arms"]}
scores, edges = {}, {}
for task in arms.tasks:
    scores[task] = {arms.named(arm): interval_of_mean(*arms.right(task, arm)) for arm in ("full", "lora", "nf4")}
    edges[task] = [arms.named(arm) for arm in arms.at_the_edge(task)]
figure = diagrams.intervals(scores, "In few steps: full fine-tuning is far ahead on new facts and messages, not on a new form",
                            "held-out questions answered right (%)", kinds, hollow=edges)  # fmt: skip
show(figure, alt="Three arms with intervals: on facts full fine-tuning is near 100% and LoRA near 70%, on messages they are near "
     "56% and 42%; on the form LoRA and QLoRA lie above full fine-tuning")  # fmt: skip

# %% [markdown]
# How to read it: a mark is the mean over the seeds, and the line through it is its 95% interval. The three scales differ, and none begins at zero. Two intervals that overlap do *not* say that the arms are alike, since what is hard for one is hard for the other too: section 3 compares them question by question. A **hollow** mark means that the learning rate
# chosen for this arm is the smallest or the largest that was tried. A better one may lie beyond, so this arm may look worse than it is.
#
# ## 1 What could "as good" mean?
#
# Two methods never score exactly the same. So say first which difference would not matter to you. This is the [equivalence margin](../site/glossary.md#equivalence-margin). Here it is two points out of a hundred, because it is often said that
# QLoRA comes "within 1 or 2%" of full fine-tuning. It was fixed before the first run.
#
# After the measurement you have an interval for the difference, and one of three things may be said.

# %% tags=["says"]
margin = arms.design["margin"]  # 0.02: two points out of a hundred


def says(low, high):
    "What an interval of a difference allows to say."
    if low > 0 or high < 0:
        return "different"
    return "equivalent" if -margin < low and high < margin else "cannot tell"


# %% [markdown]
# *Different*: zero lies outside of the interval, on either side, so a gain and a loss are both called so. *Equivalent*: the interval holds zero and lies within the margin as a whole. *Cannot tell*: anything else. Here are three invented examples. Look at the second and the third: both hold zero, so "no significant difference" would be said of both.
# The second one shows that the two are alike. The third shows only that too little was measured.

# %%
invented = {"A": (0.04, 0.03, 0.05), "B": (0.002, -0.009, 0.013), "C": (0.002, -0.07, 0.075)}
words = {name: says(low, high) for name, (_, low, high) in invented.items()}
figure = diagrams.intervals({"": invented}, "An interval that holds zero can mean two things", "difference (points out of a hundred)",
                            band=margin, notes={"": words})  # fmt: skip
show(
    figure,
    alt="Three intervals: A does not hold zero and is different, B within the margin is equivalent, C is wide and cannot tell",
)

# %% [markdown]
# The title asks for less than *equivalent*. QLoRA is *at least as good* as another method if it is not worse by more than the margin. For that only the lower end of the interval of QLoRA minus the other counts:


# %%
def at_least_as_good(low):
    return low > -margin


# %% [markdown]
# An interval may also lie within the margin and not hold zero. Then there is a difference, and it is too small to matter. Section 4 has one such case, by one of two ways to look.
#
# ## 2 Three runs of your own
#
# Before the recorded runs are taken apart, do three of them. They are the task *form* once more: 32 rows, 40 steps, and the learning rates that were chosen for the recorded runs. The rows and the questions are others of the same kind. Here is what the three differ in:

# %%
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PrinterCallback, set_seed

four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                               bnb_4bit_compute_dtype=torch.float32)  # fmt: skip
adapters = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
ways = {"full": (None, None), "lora": (None, adapters), "nf4": (four_bits, adapters)}

# %% [markdown]
# All of them compute in float32, so that no rounding to 16 bits comes between them. Two lines are not the libraries': `keep_4bit_layout` avoids a fault of bitsandbytes on some processors, and `adapters_to_float32` undoes that TRL casts the adapters of a 4-bit model to bfloat16 (lesson 03). Without
# it, QLoRA's adapters would be in bfloat16 and LoRA's in float32, and you would compare two things at once.

# %%
from helpers.data import to_chat
from helpers.training import adapters_to_float32, keep_4bit_layout

tokenizer = run.templated(AutoTokenizer.from_pretrained(run.model.path))
train_rows = run.rows["train"].shuffle(seed=settings.seed).select(range(32))
learned = train_rows.map(to_chat, remove_columns=train_rows.column_names)


def load(quantization):
    model = AutoModelForCausalLM.from_pretrained(run.model.path, quantization_config=quantization, dtype=torch.float32,
                                                 device_map=run.machine.device_map)  # fmt: skip
    return keep_4bit_layout(model)


# %%
from trl import SFTConfig, SFTTrainer


def arguments(learning_rate):
    return SFTConfig(
        output_dir=str(run.folder / "side-by-side"), learning_rate=learning_rate, max_steps=settings.max_steps, seed=settings.seed,
        per_device_train_batch_size=settings.batch_size, lr_scheduler_type="cosine", warmup_steps=0.1, weight_decay=0.0,
        max_length=96, fp16=False, bf16=False, use_cpu=run.machine.device == "cpu", gradient_checkpointing=None,
        activation_checkpointing=False, save_strategy="no", report_to="none", disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip


# %%
def train(arm, learning_rate):
    "The model, trained as an arm says."
    quantization, adapter = ways[arm]
    set_seed(settings.seed)
    trainer = SFTTrainer(model=load(quantization), args=arguments(learning_rate), processing_class=tokenizer,
                         train_dataset=learned, peft_config=adapter)  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    adapters_to_float32(trainer)
    trainer.train()
    return trainer.model.eval()


# %% [markdown]
# Before you run the next cell, write down how far apart your three will lie, and whether they come in the order of the first figure.

# %%
rates = runs[runs.task == "form"].groupby("arm").learning_rate.first()
heldout = run.held_out()
before = evaluate(load(None).eval(), tokenizer, heldout)
yours = {arm: evaluate(train(arm, rates[arm]), tokenizer, heldout) for arm in ways}

# %% tags=["nbval-ignore-output"] reason="scores vary with the machine"
as_recorded = (settings.max_steps, settings.batch_size) == (40, 16) and len(heldout) >= 64
if as_recorded:
    verdict("before training no answer has the right form, and after it each of the three models answers most questions right",
            before.exact_match < 0.05 and min(score.exact_match for score in yours.values()) > 0.5)  # fmt: skip
record(exact_match={arm: score.exact_match for arm, score in yours.items()})
recorded = runs[runs.task == "form"].groupby("arm").score
table([(arms.named(arm), f"{rates[arm]:g}", f"{score.exact_match:.1%}", *score.interval, recorded.min()[arm], recorded.max()[arm])
       for arm, score in yours.items()], "{:.0%}",
      columns=("arm", "learning rate", "yours", "from", "to", "lowest recorded", "highest recorded"))  # fmt: skip

# %% [markdown]
# "From" and "to" are the interval of your score if only the choice of questions were to blame (lesson 04). The last two columns are the lowest and the highest of the eight recorded runs. They were trained on a GPU, each on 32 rows of its own, and asked other questions, so yours may lie a little outside.
#
# Did yours come in the order of the first figure, LoRA before QLoRA before full fine-tuning? In seven of the eight recorded seeds the three did, although the scores of one arm lie more than ten points apart and the three means within five: what makes a seed hard makes it hard for all three. But each of your intervals is some 13 points wide, so your three runs cannot settle the order. You need more seeds, and a fair way to put them side by side.
#
# ## 3 The same seed, the same question
#
# Take the question whether a larger rank learns more facts: rank 64 against rank 4. Both arms were trained with the same seeds, so run 0 of one saw the same rows in the same order as run 0 of the other. And both were asked the same questions. So subtract: run by run, question by question. That is a
# [paired comparison](../site/glossary.md#paired-comparison). What is hard for both falls out of it.

# %%
ranks_apart, countries = arms.apart("facts", "rank-64", "rank-4")
print(
    "differences of",
    ranks_apart.shape,
    "(seeds, questions); +1 where rank 64 alone was right, -1 where rank 4 alone was",
)
print(f"mean: {100 * ranks_apart.mean():+.2f} points, over {len(set(countries))} countries")

# %% [markdown]
# How far could this mean be off? Pretend that the eight runs are all runs that could have been, and draw eight of them anew, with replacement: some come twice, some not at all. Do the same with the questions, and take the mean. Do that thousands of times, and look how far these means spread. That
# is the [bootstrap](../site/glossary.md#bootstrap). One thing needs care: the nine questions about one country are not nine independent questions. A model that knows the country answers several of them. So whole countries are drawn.

# %% tags=["by-hand"]
import numpy as np

chance = np.random.default_rng(seed)
of_country = [np.flatnonzero(countries == country) for country in np.unique(countries)]


def one_draw():
    some_runs = chance.integers(len(ranks_apart), size=len(ranks_apart))
    some_countries = chance.integers(len(of_country), size=len(of_country))
    questions = np.concatenate([of_country[country] for country in some_countries])
    return ranks_apart[some_runs][:, questions].mean()


low, high = np.quantile([one_draw() for _ in range(4000)], (0.025, 0.975))
print(f"95% of the draws lie from {100 * low:+.1f} to {100 * high:+.1f} points: {says(low, high)}")

# %% [markdown]
# `interval_of_mean` does the same with sums in place of loops, so that ten thousand draws take a moment. Do both agree?

# %%
by_function = interval_of_mean(ranks_apart, countries)[1:]
verdict("the interval by hand is that of the function, to one point", np.allclose((low, high), by_function, atol=0.01))
print("by the function: {:+.1f} to {:+.1f} points".format(*(100 * end for end in by_function)))

# %% [markdown]
# ### What one seed would have told you
#
# Most comparisons that you can read have one run per method. What if each of our eight seeds had been the only one? With one run only the questions can be drawn. Guess before you run it: how many of the eight say what all eight say together?

# %%
alone = {f"seed {seed}": interval_of_mean(ranks_apart[[seed]], countries) for seed in range(len(ranks_apart))}
alone["all eight"] = interval_of_mean(ranks_apart, countries)
words = {name: says(low, high) for name, (_, low, high) in alone.items()}
figure = diagrams.intervals({"rank 64 minus rank 4, facts": alone}, "One seed may say this and another the opposite",
                            "difference (points out of a hundred)", band=margin,
                            notes={"rank 64 minus rank 4, facts": words})  # fmt: skip
show(
    figure,
    alt="Eight intervals of single seeds on both sides of zero, and one wide interval of all eight that holds zero",
)

# %%
# 1: rank 64 is better for sure, -1: rank 4 is, 0: cannot tell
surely = [(low > 0) - (high < 0) for name, (_, low, high) in alone.items() if name != "all eight"]
verdict("one seed alone can say 'different' in either direction, where all eight cannot tell",
        1 in surely and -1 in surely and words["all eight"] == "cannot tell")  # fmt: skip

# %% [markdown]
# Three of the eight say "cannot tell", as all eight do together. Of the other five, three say that rank 64 is better and two that rank 4 is. None of these five intervals holds zero. Each says something true of its own two runs, and too little of rank 64 and rank 4. An interval covers what was drawn anew to make it, and nothing else. So always ask of an interval: *over what?*
#
# ### What pairing is worth
#
# On the task *form* a seed chooses which 32 rows are learned, and some choices are better than others, for all arms. What if we forget which runs belong together? Then each arm has an error of its own, and two independent errors add like the sides of a right angle.


# %%
def unpaired(task, arm, other):
    "The interval of a difference whose two arms are taken to have nothing in common."
    (one, groups), (two, _) = arms.right(task, arm), arms.right(task, other)
    ends = [np.array(interval_of_mean(values, groups)) for values in (one, two)]
    half = np.hypot(*((high - low) / 2 for _, low, high in ends))
    return one.mean() - two.mean() - half, one.mean() - two.mean() + half


wide, narrow = unpaired("form", "int8", "lora"), interval_of_mean(*arms.apart("form", "int8", "lora"))[1:]
verdict("for LoRA on 8 bits against LoRA, pairing makes the interval at least five times narrower",
        (wide[1] - wide[0]) > 5 * (narrow[1] - narrow[0]))  # fmt: skip
table({"unpaired": (*(100 * end for end in wide), says(*wide)), "paired": (*(100 * end for end in narrow), says(*narrow))},
      "{:+.1f}", columns=("LoRA on 8 bits minus LoRA, form", "from", "to", "says"))  # fmt: skip

# %% [markdown]
# The same runs, and another word. Unpaired they cannot tell, and paired they show that the two are equivalent. (This pair is the extreme, since its two arms make nearly the same mistakes. For QLoRA and LoRA on messages the interval becomes only a third narrower.)
#
# ## 4 Five comparisons
#
# These five were written into the design before anything was measured, each with what is subtracted from what. That matters: from ten arms one can make 45 pairs, and some of these would look different by luck. (*Attention alone* puts adapters on q, k, v and o only, with a larger rank, so that as many numbers are trained.)
#
# One more thing. The bootstrap errs both ways. With few seeds its interval is too narrow. Where most of the spread is luck in single answers, it is too wide ([Owen 2007](https://doi.org/10.1214/07-AOAS122)). So look a second time, at the means of the seeds alone, with [Student's t](../site/glossary.md#students-t), which was made for few numbers. It asks about other seeds only and takes the questions as they are, so where the questions matter more it may come out narrower. We say what both say, and where they disagree "cannot tell".

# %% tags=["student"]
t_point = {5: 2.776, 8: 2.365}  # 95% of Student's t with 4 and 7 degrees of freedom lie within so much of zero


def by_seeds(difference):
    "The interval of a mean difference by the spread of its seeds."
    means = difference.mean(axis=1)
    half = t_point[len(means)] * means.std(ddof=1) / len(means) ** 0.5
    return means.mean() - half, means.mean() + half


# %% tags=["five"]
found = []
for one in arms.design["comparisons"]:
    for task in arms.tasks:
        if {one["arm"], one["other"]} <= set(arms.of(task)):
            difference, groups = arms.apart(task, one["arm"], one["other"])
            interval, of_seeds = interval_of_mean(difference, groups), by_seeds(difference)
            word, then = says(*interval[1:]), says(*of_seeds)
            found.append({"task": task, "name": one["name"], "arm": arms.named(one["arm"]), "minus": arms.named(one["other"]),
                          "interval": interval, "says": word, "by seeds": of_seeds, "then": then,
                          "we say": word if word == then else "cannot tell"})  # fmt: skip

# %% tags=["five-table"]
table([(one["task"], one["arm"], one["minus"], *(100 * x for x in (*one["interval"], *one["by seeds"])), one["we say"],
        "yes" if at_least_as_good(min(one["interval"][1], one["by seeds"][0])) else "") for one in found], "{:+.1f}",
      columns=("task", "arm", "minus", "points", "from", "to", "t: from", "t: to", "we say", "at least as good?"))  # fmt: skip

# %% [markdown]
# Three times the two disagree. On the form t leaves zero out where the bootstrap holds it, for QLoRA minus LoRA and for NF4 minus FP4. On messages it is the other way round, for QLoRA minus LoRA. Look at the first. By t QLoRA loses something on the form, but less than the margin. By the bootstrap it may lose 2.6 points, or gain 0.7. So we say "cannot tell".
#
# A 95% interval misses in about one case of twenty. Of thirteen independent ones at least one would miss in about half of all such experiments ($1 - 0.95^{13} = 49\%$). So trust what lies far from zero, and repeat what barely leaves it out.
#
# The figure leaves out attention alone, whose large distance on the facts would hide the margin. A thick line is the bootstrap's interval, a thin one Student's t's.

# %% tags=["five-figure"]
panels, notes, thin = {}, {}, {}
drawn = [one for one in found if "attention" not in one["minus"]]
for one in drawn:
    label = f"{one['arm']}\nminus {one['minus']}"
    panels.setdefault(one["task"], {})[label] = one["interval"]
    thin.setdefault(one["task"], {})[label] = one["by seeds"]
    notes.setdefault(one["task"], {})[label] = one["we say"]
equivalent = [one["we say"] for one in drawn].count("equivalent")
figure = diagrams.intervals(panels, f"Of these {len(drawn)} comparisons, {equivalent or 'none'} lets us say 'equivalent'",
                            "difference (points out of a hundred)", band=margin, notes=notes, thin=thin)  # fmt: skip
show(figure, alt="Eleven differences on three tasks, each with two intervals. By both looks four are different, of seven we cannot "
     "tell. Of the thick intervals six hold zero and reach beyond the margin, five do not hold it, one barely")  # fmt: skip

# %%
different = [one for one in found if one["says"] == "different"]
doubtful = [(one["task"], one["arm"], one["minus"]) for one in different if one["then"] != "different"]
record(says={f"{one['arm']} minus {one['minus']}, {one['task']}": one["says"] for one in found})
verdict("of seven differences one is not there by Student's t: QLoRA minus LoRA on messages",
        len(different) == 7 and doubtful == [("messages", "QLoRA, NF4", "LoRA")])  # fmt: skip

# %% [markdown]
# A minus sign says that the arm is behind what is subtracted. Here are the first two comparisons in words. The other three stand in the table that ends section 5.
#
# - **QLoRA beside full fine-tuning:** different on all three tasks. On the form QLoRA is ahead, on new facts and on messages far behind. So it is at least as good on the form alone, where its interval begins inside the margin: the gain may be too small to matter. "Within 1 or 2%" can be said of none of them.
# - **What 4 bits cost:** On the facts QLoRA is *ahead* of LoRA, and so at least as good. On the form and on messages we cannot tell. On the form the loss may be a little larger than the margin, and on messages many times as large. (The held-out *loss* of QLoRA is higher there in all five seeds; we looked at that afterwards.)
#
# Seeds and questions were drawn anew for these intervals. The bases were not: each was rounded to 4 bits once, and the chat model's weights had been rounded before, to 5 bits per weight (lesson 01). Another base may lose more or less.
#
# Is nothing equivalent, then? Of the pairs shown here one is, on the small model: LoRA on 8 bits and LoRA. On messages, with five seeds, we cannot tell. The pair was not among the five, so take it as something to try again.

# %%
eight = {task: interval_of_mean(*arms.apart(task, "int8", "lora")) for task in arms.tasks}
verdict("LoRA on 8 bits is equivalent to LoRA on the form and on the facts",
        says(*eight["form"][1:]) == says(*eight["facts"][1:]) == "equivalent")  # fmt: skip
table({task: [100 * x for x in interval] for task, interval in eight.items()}, "{:+.1f}",
      columns=("LoRA on 8 bits minus LoRA", "points", "from", "to"))  # fmt: skip

# %% [markdown]
# ## 5 Where LoRA loses, and where it does not
#
# Now every arm beside full fine-tuning. *LoRA on 8 bits* is LoRA on a base in 8 bits. [rsLoRA](../site/glossary.md#rslora) has another scale than LoRA, as you will see below. [DoRA](../site/glossary.md#dora) trains one length for each output of a layer by itself, and leaves the direction to LoRA.
#
# Of these pairs only QLoRA's with NF4 was planned. So they get the second look by Student's t as well.

# %%
panels = {}
for task in arms.tasks:
    others = [arm for arm in arms.of(task) if arm != "full"]
    panels[task] = {arms.named(arm): interval_of_mean(*arms.apart(task, arm, "full")) for arm in others}
figure = diagrams.intervals(panels, "On new facts and on messages every adapter is behind full fine-tuning, on a new form none is",
                            "points ahead of full fine-tuning", kinds, band=margin, hollow=edges)  # fmt: skip
show(
    figure,
    alt="All arms minus full fine-tuning: on the form all intervals lie right of zero, on facts and messages left of it",
)

# %%
behind = [high for task in ("facts", "messages") for _, _, high in panels[task].values()]
ahead = [low for _, low, _ in panels["form"].values()]
verdict("on new facts and on messages every adapter is behind full fine-tuning, and on the form every one is ahead",
        max(behind) < 0 < min(ahead))  # fmt: skip
by_t = [by_seeds(arms.apart(task, arm, "full")[0]) for task in arms.tasks for arm in arms.of(task) if arm != "full"]
print(f"by Student's t {sum(low > 0 or high < 0 for low, high in by_t)} of the {len(by_t)} intervals do not hold zero")
table({name: [100 * panels[task][name][0] if name in panels[task] else "" for task in panels] for name in panels["form"]},
      "{:+.1f}", columns=("minus full fine-tuning", *panels))  # fmt: skip

# %% [markdown]
# **New facts.** In 80 steps full fine-tuning learns nearly all of them. LoRA of rank 16 trains a twelfth as many numbers and learns some seven in ten. Is the number the reason? These rows cannot tell: rank 4 and rank 64 could not be told apart, and rsLoRA, which trains as many numbers as rank 64, scores above 90% (see *Rank and scale* below).
#
# **Messages.** In 60 steps full fine-tuning answers more than half of the messages right, LoRA some four in ten, and QLoRA a third. LoRA trains one number for every 28 of full fine-tuning. Does it never get there? Lesson 07 trained QLoRA on the same rows, with rank 32, a third of the learning rate and eight times as many steps, and came to 85%. Nobody has measured which of the three did it, or how far full fine-tuning
# would have come. On the GPU full fine-tuning held two and a half times the memory of QLoRA at its peak, and took about half its time: adapters are work of their own, and QLoRA also turns its weights back to 16 bits each time it uses them.

# %% tags=["costs"]
costs = (
    runs[runs.task == "messages"]
    .groupby("arm", sort=False)[["peak_bytes", "saved_bytes", "train_seconds", "score"]]
    .mean()
)
costs[["peak_bytes", "saved_bytes"]] /= 1e9
costs.index = [arms.named(arm) for arm in costs.index]
table(
    costs.rename(columns={"peak_bytes": "peak, GB", "saved_bytes": "file, GB", "train_seconds": "training, s"}),
    "{:.2f}",
    score="{:.0%}",
)

# %% [markdown]
# (Twelve runs shared one GPU and its processor, so compare the seconds with each other only.) On so small a model 4 bits save a fifth of LoRA's peak, since what is kept for the backward pass weighs more than the weights. And 8 bits are the slowest.
#
# **Rank and scale.** rsLoRA of rank 64 comes closest to full fine-tuning on the facts. LoRA of the same rank, with the same learning rate, does not. They differ in one number, the scale in front of $BA$:
#
# $$\text{LoRA: } \frac{\alpha}{r} = \frac{32}{64} = 0.5 \qquad\qquad \text{rsLoRA: } \frac{\alpha}{\sqrt r} = \frac{32}{8} = 4$$
#
# LoRA's scale falls as the rank grows, so at a fixed $\alpha$ a larger rank is also a quieter one. rsLoRA ([Kalajdzievski 2023](https://arxiv.org/abs/2312.03732)) divides by the root instead. So whoever raises the rank alone changes two things at once.

# %%
in_facts = runs[runs.task == "facts"].groupby("arm")
rates_then = {arm: in_facts.learning_rate.first()[arm] for arm in ("rslora-64", "rank-64")}
mean, least, most = interval_of_mean(*arms.apart("facts", "rslora-64", "rank-64"))
verdict("at the same rank and learning rate, rsLoRA's scale brings at least ten points on new facts",
        least > 0.1 and len(set(rates_then.values())) == 1)  # fmt: skip
print(f"rsLoRA minus LoRA, both of rank 64: {100 * mean:+.0f} points ({100 * least:+.0f} to {100 * most:+.0f})")

# %% [markdown]
# What does this say to you, if you plan a run? Each line speaks of these two models in these few steps. *Both looks* are the bootstrap and Student's t. A dagger (†) marks what nobody had planned to ask: take it as something to try again.
#
# | Question | What these rows say | How sure | What to do |
# |---|---|---|---|
# | All weights, or an adapter? | full fine-tuning is ahead on facts and messages, every adapter on the form | both looks agree; only QLoRA's pair was planned. A rate between those tried may close the gap on the form | for new facts in few steps train all weights, if they fit; if not, try more steps with the adapter, and look |
# | 4 bits under LoRA? | QLoRA is ahead on the facts; else we cannot tell | each base was rounded once | take 4 bits where memory asks for it, and measure on your task |
# | NF4 or FP4? | we cannot tell NF4 from FP4 on any task | on the facts either may be ahead by more than the margin | NF4: rounding to FP4 harmed the chat model more (section 6) |
# | 8 bits under LoRA? † | equivalent to LoRA on form and facts; on messages we cannot tell | both looks agree | try it where 4 bits cost too much and time does not matter |
# | A larger rank? | we cannot tell rank 64 from rank 4 on either task | `alpha` was 32 for both, so 64 was the quieter one | begin at 16; with a new rank, search the rate anew |
# | rsLoRA? † | far ahead of LoRA of its rank on the facts; on the form we cannot tell | both looks agree | try it where you raise the rank; on the facts it forgot more (section 6) |
# | DoRA? † | equivalent to LoRA on the form, far behind on the facts | on the facts its rate was chosen by a hair (section 7) | leave it: its peak was nearly twice LoRA's, and it gained nothing here |
# | Attention alone? | far behind LoRA on the facts, ahead on the form; why, we do not know | both looks agree. On the facts its loss was still falling at the largest rate | take all linear layers; for a form, try both |
#
# ## 6 What was forgotten
#
# Two things were measured before and after each training. *Recall*: of other facts that no run trains, how many does the model say when asked in plain words? (Of the small model these are 512 facts that it knew, of the chat model the capitals of countries, of which it knew a quarter.) *[Perplexity](../site/glossary.md#perplexity)*: how surprised is it by other text? (1 would be no surprise. For the small model it is new text of the kind that it was made from, for the chat model Python's help pages.)

# %%
of_form = runs[runs.task == "form"].groupby("arm")[["learning_rate", "score", "recall_after"]].mean()
marks = {}
for arm in ("full", "lora", "nf4", "fp4", "attention", "rslora-64"):
    rate, score, recall = of_form.loc[arm]
    marks[f"{arms.named(arm)}, {rate:g}"] = (100 * score, 100 * recall, arms.kind(arm))
figure = diagrams.named_marks(marks, "On a new form, the two arms with the smallest rate recall most",
                              "answered right (%)", "other facts recalled after training (%)")  # fmt: skip
show(figure, alt="Score and recall of six arms on the form, with their rates: full fine-tuning and rsLoRA at 0.0003 recall a third, "
     "QLoRA with NF4 at 0.001 under a tenth; attention alone scores highest")  # fmt: skip

# %% [markdown]
# (Before training it recalled all of them. The arms that are left out lie where LoRA lies.) The table has the other two tasks. *Times* says how many times as large the perplexity has become.

# %%
some = ["full", "lora", "nf4", "fp4", "int8", "attention", "rslora-64", "dora"]
shown = runs[runs.arm.isin(some) & (runs.task != "form")]
shown = shown.assign(arm=shown.arm.map(arms.named), times=shown.perplexity_after / shown.perplexity_before)
columns = ["learning_rate", "recall_before", "recall_after", "perplexity_before", "times"]
table(shown.groupby(["task", "arm"], sort=False)[columns].mean(), "{:.0%}",
      columns=("task", "arm", "rate", "recall before", "recall after", "perplexity before", "times"),
      rate="{:g}", perplexity_before="{:.1f}", times="{:,.1f}")  # fmt: skip

# %% [markdown]
# Look first at what stands *before* training. On the chat model the rounding to NF4 alone takes five points of recall and raises the perplexity by a third, and the rounding to FP4 takes twenty points and raises it by nearly half. (That is one base, so no interval belongs to it.) On the small model either takes nearly nothing.
#
# On the **facts** no arm leaves the old facts where they can be said. LoRA and QLoRA of rank 16 keep the language, though their perplexity doubles. Full fine-tuning loses it altogether, and so do three adapters: rsLoRA with its large scale, attention alone and DoRA with their large rates. But look at the learning rate of full fine-tuning. It was chosen by
# the loss on the task alone, on the edge of what was tried. At a third of that rate the loss was nearly as low, and what would have been forgotten there nobody has measured. So this says what happens to those who choose by the task alone. It does not say that full fine-tuning must forget.
#
# On the **form**, in the figure, it is the other way round: LoRA of rank 16 forgets more than full fine-tuning. On **messages** as well, by the perplexity of other text. Is that sure? Recall and perplexity are one number per run, so only the seeds can be drawn, and by Student's t as well.

# %%
recall = runs[runs.task == "form"].pivot(index="seed", columns="arm", values="recall_after")
surprise = runs[runs.task == "messages"].pivot(index="seed", columns="arm", values="perplexity_after")
lost = {
    "form, points of recall": 100 * (recall.full - recall.lora),
    "messages, perplexity": surprise.lora - surprise.full,
}
verdict("on the form LoRA has forgotten more recall than full fine-tuning, and on messages more of other text, in every seed",
        all((more > 0).all() for more in lost.values()))  # fmt: skip
table({name: (*interval_of_mean(more.to_numpy()[:, None], [0]), *by_seeds(more.to_numpy()[:, None])) for name, more in lost.items()},
      "{:+.1f}", columns=("lost by LoRA minus lost by full fine-tuning", "mean", "from", "to", "t: from", "t: to"))  # fmt: skip

# %% [markdown]
# "LoRA forgets less" is a finding about large models and long trainings (section 9). On the facts our rows agree, in perplexity and at one rate for both. On the form and on messages they do not. There LoRA had a higher learning rate than full fine-tuning, three times as high on the form and ten times on messages, since that was best for the task. The rate is one candidate for the reason: at full fine-tuning's rate rsLoRA recalls as much as full fine-tuning. It cannot be the only one: on the form FP4 had LoRA's rate and attention alone three times that rate, and both recall more than LoRA. And on messages three arms of five (full fine-tuning, FP4, 8 bits) name *more* capitals after training than before, so of a chat model this
# recall is no clean measure of what was forgotten.
#
# ## 7 The learning rate, and two traps
#
# **First trap: one learning rate for all.** Each arm had four rates to choose from: full fine-tuning 0.0001 to 0.003, on messages 0.00003 to 0.001, adapters 0.0003 to 0.01. It got the one with the least loss on rows that are neither learned nor asked later. What would have come out if all arms had been given the same one?

# %%
lines = {}
for arm in ("full", "lora"):
    tried = tries[(tries.task == "form") & (tries.arm == arm)]
    lines[arms.named(arm)] = (tried.learning_rate, 100 * tried.score)
figure = curves(lines, "At 0.0003 full fine-tuning is far ahead of LoRA, at 0.003 far behind",
                "learning rate, the same for both (form)", "answered right (%)", colours=("orange", "green"))  # fmt: skip
figure.axes[0].set_xscale("log")
ticks = sorted(tries[tries.task == "form"].learning_rate.unique())
figure.axes[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
show(
    figure,
    alt="Score over learning rate on the form: full fine-tuning peaks at 0.0003, LoRA at 0.001; the curves cross",
)

# %%
at_one_rate = {
    rate: interval_of_mean(*arms.apart("form", "lora", "full", tried_at=rate)) for rate in (3e-4, 1e-3, 3e-3)
}
rows = {
    f"both at {rate:g}": (*(100 * x for x in interval), says(*interval[1:])) for rate, interval in at_one_rate.items()
}
own = interval_of_mean(*arms.apart("form", "lora", "full"))
rows["each at its own"] = (*(100 * x for x in own), says(*own[1:]))
verdict("the same learning rate for both can put either of them far ahead",
        at_one_rate[3e-4][2] < -0.3 and at_one_rate[3e-3][1] > 0.3)  # fmt: skip
table(rows, "{:+.1f}", columns=("LoRA minus full fine-tuning, form", "points", "from", "to", "says"))

# %% [markdown]
# (The first three rows have one seed, other than those of the first figure, and other questions, so their intervals cover the choice of questions only.) With one rate for all you can prove what you like, and with an interval that lies far from zero. A comparison that does not say how each method got its learning rate says nothing.
#
# **Second trap: the choice itself is not in the interval.** All eight runs of an arm have the rate that one try has chosen. If that choice was unlucky, eight seeds repeat it. Look at DoRA on the facts, with LoRA and full fine-tuning beside it:

# %%
then = runs[(runs.task == "facts") & (runs.arm == "dora")]
print(
    f"DoRA at {then.learning_rate.iloc[0]:g}: the eight seeds score from {then.score.min():.0%} to {then.score.max():.0%}"
)
tried = tries[(tries.task == "facts") & tries.arm.isin(["dora", "lora", "full"])]
table(tried[["arm", "learning_rate", "loss", "score"]], "{:.3f}", learning_rate="{:g}", score="{:.0%}")

# %% [markdown]
# Two of DoRA's rates were as good as equal in the one try, by a loss that differs in the third digit. The larger one won. At the smaller one, which is LoRA's, DoRA's try scored as LoRA's did. (Full fine-tuning's two best were as close, and there the larger one did no harm to the score.) With eight other seeds it scores from very little to more than the try had promised. The interval of DoRA is true of DoRA *at this rate*, and DoRA's place in the figure of section 5 tells you next to nothing of DoRA at any other.
#
# So these arms are to be read with care, since their rate lies at the edge of what was tried: on the facts full fine-tuning, attention alone and DoRA, and on the form rsLoRA.

# %% tags=["edges"]
at_edge = [(task, arms.named(arm), runs[(runs.task == task) & (runs.arm == arm)].learning_rate.iloc[0])
           for task in arms.tasks for arm in arms.at_the_edge(task)]  # fmt: skip
table(at_edge, "{:g}", columns=("task", "arm", "rate at the edge"))

# %% [markdown]
# ## 8 Does the adapter repair the rounding?
#
# On the answers to held-out questions: partly, on two tasks of three. On other text: no. Many texts say that an adapter learns to make up for the errors of quantization. What could be measured of that? Take how far a quantized model's guesses lie from those of the model that is not quantized. The distance between two such guesses is their
# [Kullback-Leibler divergence](../site/glossary.md#kullback-leibler-divergence), here its mean per token of the right answers to those questions. *Before*: the rounded base beside the base. *After*: QLoRA beside the LoRA run of the same seed on the base that was not rounded. The same distances are taken on other text, which no run learned. Four models, then:
#
# ```
#   base  <------- before ------->  base in 4 bits
#    |                                    |
#   LoRA                                QLoRA
#    |                                    |
#    v                                    v
#   trained  <----- after ------->  trained on 4 bits
# ```

# %%
quantized = runs[runs.arm.isin(["nf4", "fp4", "int8"])]
columns = [f"{where}_distance_{when}" for where in ("answers", "text") for when in ("before", "after")]
far = quantized.assign(arm=quantized.arm.map(arms.named)).groupby(["task", "arm"], sort=False)[columns].mean()
table(far, "{:.3f}", columns=("task", "arm", "answers before", "answers after", "text before", "text after"))

# %%
nf4 = quantized[quantized.arm == "nf4"]
nearer = nf4.answers_distance_after < nf4.answers_distance_before
verdict("on the answers NF4 ends nearer to the unquantized run than it began on form and messages, and farther on the facts, in all seeds",
        (nearer == (nf4.task != "facts")).all())  # fmt: skip
verdict("on other text NF4 ends farther from the unquantized run than it began, on every task, in all seeds",
        (nf4.text_distance_after > nf4.text_distance_before).all())  # fmt: skip
twins = runs[runs.arm == "lora"].groupby("task", sort=False)
table(twins[["answers_distance_after", "text_distance_after"]].mean(), "{:.3f}",
      columns=("two LoRA runs of different seeds", "answers", "text"))  # fmt: skip

# %% [markdown]
# On the answers NF4 comes nearer on two of the three tasks: on the form its distance halves, on messages it falls to an eighth. On the facts it more than doubles. On *other* text it grows on all three. So an adapter can learn the task in spite of the rounding, and elsewhere the two models drift apart.
# Even what looks like repair may have another cause: after training both models are surer of their answers, and sure models that agree lie close together. And a small distance is no score: on messages, where it shrinks most, the mean score of QLoRA is still the lower one.
#
# The last table is the yardstick: two LoRA runs whose seeds differ. On the small model they lie farther apart than QLoRA and LoRA of one seed do, on both tasks. (On the form another seed also means other rows.) On messages another seed and the rounding change the answers about as much, and on other text the rounding changes more.
#
# Note: these distances rest on little, on messages on 16 answers and 512 tokens of other text.
#
# ## 9 What papers found
#
# They have what we lack: large models, long trainings, tasks that people care about. Look at what each of them did, and at what it could see. (Read on 26 November 2026.)
#
# | | what was done | what came out |
# |---|---|---|
# | [QLoRA](https://arxiv.org/abs/2305.14314), table 4 | LLaMA 7B to 65B, LoRA on all linear layers, instructions (Alpaca, FLAN v2); MMLU, questions with four answers on 57 subjects, mean over sizes and data | 16 bits 53.0, NF4 with double quantization 53.1, FP4 52.2. No full fine-tuning here, and no intervals |
# | the same, table 3 | T5 of 80M to 11B, 1,600 kinds of instructions; NF4 beside full fine-tuning | at most 1.1 points of RougeL apart, on a scale of 100, in both directions. As a share of the score that is 1.8% |
# | [LoRA Learns Less and Forgets Less](https://arxiv.org/abs/2405.09673), version 2 | Llama-2-7B learns to write programs from instructions; share of programs that pass (HumanEval) | LoRA of rank 16 0.358, 64 0.417, 256 0.498; full 0.497. After reading code instead: LoRA 0.224, full 0.263; questions of general knowledge 0.617 with LoRA, 0.545 with full |
# | [PEFT's comparison](https://github.com/huggingface/peft/tree/main/method_comparison) | Llama-3.2-3B learns school mathematics (GSM8K), one seed, adapters on q and v; one rate for LoRA, DoRA and rsLoRA, another for full | in July 2026 full 47.2%, LoRA of rank 32 47.8%, rsLoRA of rank 64 51.3%, DoRA 46.9%. In June 2025, with the same seed: full 50.0%, LoRA 48.2% |
# | [LoRA Without Regret](https://thinkingmachines.ai/blog/lora/) | many sizes and tasks, the learning rate swept for each | adapters on all layers match full fine-tuning while the data is small for their size; the best rate is about ten times that of full fine-tuning; attention alone is worse |
# | [Low-bit Llama 3](https://arxiv.org/abs/2404.14047) | Llama-3-8B, LoRA on Alpaca after quantization | LoRA does not repair what quantization lost |
#
# Our tasks *facts* and *messages* agree in direction with *LoRA Learns Less*, in few steps. Of high ranks and of the end of a long training they say nothing. On forgetting see section 6. Our attention alone was worse on the facts, as in *LoRA Without Regret*, and better on the form. And look at PEFT's row: the same script and the same seed, a year later with other versions, and full fine-tuning and LoRA have changed places. One seed is no ground to prefer either; section 3 shows why.
#
# ## 10 What this does not show
#
# - **Two small models.** One has 5.5 million parameters and a narrow corpus, the other 135 million, and its weights had been rounded once before. A 7B model has fifty times as many numbers as that. Where many of them are to spare, both rounding and rank may matter less.
# - **One rounding of each base.** No interval here covers another base (section 4).
# - **Forty, eighty and sixty steps**, one batch size for each task, `alpha` 32 throughout. Of the pilot with more steps no rows were kept. So where this lesson says that LoRA loses, read "in these steps".
# - **Few seeds.** For what comes from the seeds, a bootstrap over eight is too narrow by about a fifth, and over five by more than a third. The figures have the bootstrap alone.
# - **One grid** of four learning rates for each arm, chosen by one seed, with the edges named above.
# - **float32** on the small model, so what 16-bit arithmetic does is not in its rows. The chat model was trained in bfloat16, with what is trained in float32.
#
# How would it be on your model? The script that made these rows takes a design. One for a 7B model and a GPU with 80 GB lies beside it. Change what you like *before* the first run, then:
#
#     python measurements/measure_arms.py --design measurements/quality_design_7b.toml run --out runs/7b --chat FOLDER
#
# FOLDER is the model's folder, or its id on the hub. The same line again goes on after a kill, and `compare runs/7b/quality_rows.jsonl` in place of `run --out ...` prints the comparisons. Nobody has run it on a 7B model: a test does it with the bundled model in its place. Full fine-tuning of 7B needs more than 100 GB (lesson 02), so that design leaves it out.
#
# ## Exercises
#
# **1. Write** (10 minutes, ••). Section 3 drew an interval by hand; make it a function that needs nothing but its arguments. Write `paired_interval(first, second, groups, draws=2000)`: `first` and `second` are arrays of zeros and ones, of shape (seeds, questions), and `groups` says which questions belong together. It returns (low, high), the 95% interval of `first` minus `second`. Draw seeds and whole groups, and
# keep pairs together.


# %%
def paired_interval(first, second, groups, draws=2000):
    "(low, high) of the mean of first - second, drawn over seeds and groups."
    return ...


check("08.1", paired_interval)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import numpy as np
#
#
# def paired_interval(first, second, groups, draws=2000):
#     apart, chance, means = first - second, np.random.default_rng(0), []
#     places = [np.flatnonzero(groups == group) for group in np.unique(groups)]
#     for _ in range(draws):
#         seeds = chance.integers(len(apart), size=len(apart))
#         chosen = np.concatenate([places[i] for i in chance.integers(len(places), size=len(places))])
#         means.append(apart[seeds][:, chosen].mean())
#     return np.quantile(means, (0.025, 0.975))
#
#
# check("08.1", paired_interval)
# ```
# </details>
#
# **2. Repair** (5 minutes, ••). A colleague compares two methods. Two runs of the second one crashed, those of the hardest seeds. Her function runs, and says that the second method is better. Write `differences(a, b)`: from two dictionaries {seed: score} the list of the differences a minus b that may be compared, in
# the order of their seeds.


# %%
def their_difference(a, b):
    return sum(a.values()) / len(a) - sum(b.values()) / len(b)


differences = ...
check("08.2", differences)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def differences(a, b):
#     return [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
#
#
# check("08.2", differences)
# ```
#
# A crash is often no accident. Say in the report which seeds are missing.
# </details>
#
# **3. Decide** (5 minutes, ••). Four teams have measured with five seeds on their own task. Two points would matter to each of them. What should each do? Say "QLoRA", "LoRA", "full" or "more seeds".
#
# - A: QLoRA minus LoRA: -0.3 (-1.4 to +0.9). The model they serve fits their card in 4 bits only.
# - B: LoRA minus full: -11 (-17 to -6), on facts that were new to the model. They have the GPUs for either, and keep a copy of the old model for all else.
# - C: QLoRA minus LoRA: -2 (-7 to +3). Both fit, and each percent is worth money.
# - D: LoRA minus full: +0.4 (-0.8 to +1.5). Both fit. They will train one model for each of a hundred customers, in 16 bits, and hold all of them on one GPU (where many adapters can share one base: lesson 04).

# %%
choice = {"A": ..., "B": ..., "C": ..., "D": ...}
check("08.3", choice)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# choice = {"A": "QLoRA", "B": "full", "C": "more seeds", "D": "LoRA"}
# check("08.3", choice)
# ```
#
# C's interval allows a loss of seven points and a gain of three. It is no reason to choose either.
# </details>
#
# **4. Write** (10 minutes, ••). The paired differences of your runs spread with a standard deviation of `spread` points. With $n$ seeds the 95% interval of their mean reaches about $1.96 \cdot \text{spread} / \sqrt n$ to both sides. Suppose that there is no difference at all. Write `seeds_needed(spread, margin)`: how many seeds do
# you need at least, so that the interval reaches less than the margin? Two at the least.


# %%
def seeds_needed(spread, margin):
    "The smallest number of seeds whose interval reaches less than the margin to both sides."
    return ...


check("08.4", seeds_needed)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import math
#
#
# def seeds_needed(spread, margin):
#     return max(2, math.floor((1.96 * spread / margin) ** 2) + 1)
#
#
# check("08.4", seeds_needed)
# ```
#
# Half the margin needs four times the seeds. And this is the least: the interval fits into the margin only if the mean comes out at zero. To say "equivalent" in four of five experiments, put 1.96 + 1.28 in place of 1.96, which is 2.7 times as many. For a handful of seeds 1.96 is too small as well; Student's t has the right number. More seeds do not
# help against a difference that comes from few questions.
# </details>
#
# **5. Predict, then run** (5 minutes, ••). Section 7 gave LoRA and full fine-tuning one learning rate for both, on the task *form*. Now the task *messages*, both at 0.0003, the rate that full fine-tuning chose there. Section 6's table has the rate that LoRA chose. No table has what LoRA scores at 0.0003. How many points is LoRA ahead of full fine-tuning? Negative if it is behind. Guess first. The check looks it up, and takes what is within 15 points.

# %%
my_guess = ...
check("08.5", my_guess)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# my_guess = -50
# check("08.5", my_guess)
# ```
#
# `interval_of_mean(*arms.apart("messages", "lora", "full", tried_at=3e-4))` has it. Each at its own rate, LoRA is 14 points behind (section 5). The rest comes from a rate that is a tenth of the one that LoRA chose, and some of it perhaps from the one seed and the other questions of the try. The best rate depends on the task as well, so "LoRA's rate is ten times that of full fine-tuning" is a place to begin a search, and not its end.
# </details>
#
# **6. Decide** (10 minutes, ••). Somebody writes about this lesson. Which of these sentences are stronger than what was measured? Give their letters, as a text such as `"AB"`.
#
# - A: On this model and these new facts, in 80 steps, full fine-tuning at its chosen rate scored higher than LoRA, by more than 20 points.
# - B: NF4 and FP4 are equally good on the form, since the interval of their difference holds zero.
# - C: In these runs on the form, LoRA on 8 bits is within two points of LoRA.
# - D: Quantizing the base to NF4 makes models better at learning facts.
# - E: DoRA learns fewer facts than LoRA.
# - F: Whether rank 64 learns more facts than rank 4, at `alpha` 32, these runs cannot tell.

# %%
too_strong = ...
check("08.6", too_strong)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# too_strong = "BDE"
# check("08.6", too_strong)
# ```
#
# B takes "cannot tell" for "equivalent". D speaks of models, and there was one. E leaves out that its rate was chosen by a hair, at the edge of those tried.
# </details>
#
# **7. Repair** (10 minutes, ••). This function chooses a learning rate, and does two things wrong: it looks at the held-out score that will be reported later, and it takes the best single run. Write `choose(tries)`: `tries` is a list of dictionaries with `rate`, `seed` and `loss`; the losses are of rows that are kept for this choice. It returns (rate, at_the_edge): the rate with the least mean loss over its seeds, and
# whether it is the smallest or the largest that was tried.


# %%
def their_choice(tries):
    return max(tries, key=lambda one: one["heldout_score"])["rate"]


choose = ...
check("08.7", choose)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# def choose(tries):
#     losses = {}
#     for one in tries:
#         losses.setdefault(one["rate"], []).append(one["loss"])
#     best = min(losses, key=lambda rate: sum(losses[rate]) / len(losses[rate]))
#     return best, best in (min(losses), max(losses))
#
#
# check("08.7", choose)
# ```
# </details>
#
# **8. Write** (10 minutes, •••). Write `distance(p, q)`: the mean Kullback-Leibler divergence of `q` from `p` per token. Both are arrays of shape (tokens, vocabulary) whose rows are probabilities. For one token it is the sum over the vocabulary of $p \ln(p / q)$, in nats, and where $p$ is zero, the term is zero.


# %%
def distance(p, q):
    "The mean over tokens of the sum of p ln(p / q)."
    return ...


check("08.8", distance)

# %% [markdown]
# <details><summary>Solution</summary>
#
# ```python
# import numpy as np
#
#
# def distance(p, q):
#     ratio = np.log(np.where(p > 0, p, 1) / np.where(p > 0, q, 1))
#     return (p * ratio).sum(axis=1).mean()
#
#
# check("08.8", distance)
# ```
# </details>
#
# ## What you did
#
# You drew the interval of a difference by hand, and put five questions to three tasks. Of thirteen answers six were "different", and seven "cannot tell". "Equivalent" was said of one pair that nobody had planned, LoRA on 8 bits and LoRA, and only on the small model. On these two small models, in few steps, LoRA learned a new form at least as well as full fine-tuning, and new facts and messages into JSON
# more slowly. Which of two arms looks better can hang on the learning rate or on a single seed.
#
# For your own work:
#
# - If only QLoRA fits your GPU, use it. Here it answered 34% of the messages right. In lesson 07 it came to 85%, and to 48% on messages written by hand, which is the better forecast. Steps, rank and rate all differed there, so try more steps first, and look.
# - Search the learning rate for each method by itself, on rows kept for that. Nothing in this lesson moved a score as much.
# - Before you call one of two ways better, run both with at least five seeds, subtract seed by seed, and say which margin you had in mind.
#
# Next: [09 Faster and larger](09_faster_and_larger.ipynb) asks what a second GPU brings, and trains in two processes at once.
