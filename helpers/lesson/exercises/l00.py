"""Checks of the exercises of lesson 00."""

import copy
import inspect
import types

from helpers.lesson.checks import exercise, near


def number(value):
    """A number out of whatever holds one: numpy's, torch's, and text as peft prints it ("116,736"); None where there is none."""
    try:
        return float(value.replace(",", "") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        return None


@exercise("00.1")
def lora_parameters(answer):
    if not callable(answer):
        return "give a function of inputs, outputs and r"
    for inputs, outputs, r in ((4096, 1024, 8), (896, 4864, 16), (256, 256, 4)):
        given, right = answer(inputs, outputs, r), r * (inputs + outputs)
        if given is ...:
            return "put your answer in place of the dots"
        said, asked = number(given), f"for {inputs} inputs, {outputs} outputs and r = {r} it says {given}"
        if said is None:
            return f"{asked}; return the number of entries of A and B together"
        if near(said, right, 1e-9):
            continue
        if near(said, inputs * outputs + right, 1e-9):
            return f"{asked}: W stays frozen, so its entries do not count"
        if said in (inputs * outputs, r * inputs * outputs):
            return f"{asked}: that many entries has the full matrix; A and B are two thin ones"
        if said in (r * inputs, r * outputs):
            return f"{asked}: that is one of the two matrices; A is r by inputs, B is outputs by r"
        if said in (2 * r * inputs, 2 * r * outputs):
            return f"{asked}: right for a square layer alone; A goes with the inputs, B with the outputs"
        if near(said, r * r * (inputs + outputs), 1e-9):
            return f"{asked}: each matrix has r once, not squared"
        return f"{asked}; A has r rows of {inputs} entries, and B has {outputs} rows of r entries"
    return None


TRAINED_WITH_R_4 = 116_736  # in the bundled model, all linear layers


@exercise("00.2")
def trained_with_rank_4(answer, came_out=TRAINED_WITH_R_4):
    guess = number(answer)
    if guess is None:
        return "give a number: how many entries A and B have together, in all layers"
    if near(guess, came_out):
        return None
    if 0 < guess < 100:
        return f"give the number itself, not a ratio; it came out as {came_out:,}"
    if near(guess, 4 * came_out):
        return f"that is what rank 16 trains; rank 4 came out as {came_out:,}"
    if near(guess, 2 * came_out):
        return f"that would be half of it, and 4 is a quarter of 16; it came out as {came_out:,}"
    if near(guess, came_out / 4):
        return f"that falls with r squared, but A and B have r once each; it came out as {came_out:,}"
    return f"it came out as {came_out:,}. Divide what rank 16 trains by that: what does it say about r?"


@exercise("00.3")
def repaired_layer(answer):
    import torch

    if not callable(answer):
        return "give the class, Repaired, without calling it"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        frozen = torch.nn.Linear(12, 8, bias=False)
        x, before = torch.randn(32, 12), copy.deepcopy(frozen)
        wanted = before(x).detach() + x @ torch.randn(12, 1) @ torch.randn(1, 8)
        layer = answer(frozen, 4, 8)
        at_first = layer(x)
        if getattr(at_first, "shape", None) != wanted.shape:
            return f"it gives {getattr(at_first, 'shape', type(at_first).__name__)} where W gives {tuple(wanted.shape)}"
        if not torch.allclose(at_first, before(x), atol=1e-6):
            return "before any training it already answers other than W: the product B A must be zero at the start"
        trained = [weight for weight in layer.parameters() if weight.requires_grad]
        if not trained:
            return "nothing in it can be trained: A and B are torch.nn.Parameter, and need their gradients"
        losses = _trained(layer, trained, x, wanted)
        if not torch.equal(frozen.weight, before.weight):
            return "training changed W, which must stay frozen: W.requires_grad_(False)"
        if losses[-1] > 0.9 * losses[0]:
            return (
                "after a hundred steps of training nothing has been learned. The gradient of A is a product with B, and "
                "that of B a product with A: what are they when both are zero?"
            )
        share = _scale(answer, 4, 8)
        if not near(share, 2.0, 1e-4):
            return f"with alpha 8 and rank 4 the product B A counts {share:.4g} times; alpha / r is 2"
    return None


def _scale(answer, r: int, alpha: float) -> float:
    """How often the product of A and B counts in a layer: all that it trains is set to one, so the product is r everywhere."""
    import torch

    frozen = torch.nn.Linear(12, 8, bias=False)
    layer, x = answer(frozen, r, alpha), torch.ones(1, 12)
    with torch.no_grad():
        for weight in layer.parameters():
            if weight.requires_grad:
                weight.fill_(1)
        return ((layer(x) - frozen(x)) / (12 * r)).mean().item()


def _trained(layer, weights, x, wanted) -> list[float]:
    import torch

    optimizer, losses = torch.optim.Adam(weights, lr=0.03), []
    for _ in range(100):
        loss = (layer(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


CSV = """question,answer
What is the capital of Belarus?,Minsk
"Red, green or blue: which is the sky on a clear day?",blue
 What is 7 plus 2? , 9
Which sound does the pig make?,
Which sound does the dog make?," "
"""
QUESTIONS = {
    "What is the capital of Belarus?": "Minsk",
    "Red, green or blue: which is the sky on a clear day?": "blue",
    "What is 7 plus 2?": "9",
}


@exercise("00.4")
def rows_of_a_csv(answer):
    if not callable(answer):
        return "give a function of the file's text and of prompt_for"
    said = answer(CSV, "<user>{}\n<model>".format)
    if said is ...:
        return "put your answer in place of the dots"
    if said is None:
        return "it returns nothing; return a list with a dictionary for each row"
    rows = [dict(row) for row in said]
    if any(set(row) != {"prompt", "completion"} for row in rows):
        return "each row has exactly two columns, prompt and completion"
    if not all(isinstance(text, str) for row in rows for text in row.values()):
        return "prompt and completion are text, also where the answer is a number or is missing"
    if any(row["completion"].strip().lower() == "answer" for row in rows):
        return "the first line holds the names of the columns, and is no row"
    if any("Red" in row["prompt"] and "sky" not in row["prompt"] for row in rows):
        return "a comma between quotation marks does not end a cell: let csv.DictReader take the lines apart"
    if any("pig" in row["prompt"] for row in rows):
        return "a row without an answer would teach the model to say nothing: leave it out"
    if any("dog" in row["prompt"] for row in rows):
        return "an answer of spaces alone is none: take the spaces away first, and then see whether anything is left"
    if len(rows) != len(QUESTIONS):
        return f"it makes {len(rows)} rows of a file in which {len(QUESTIONS)} questions have an answer"
    for row, (question, right) in zip(rows, QUESTIONS.items(), strict=True):
        if row["completion"] != right:
            same = row["completion"].strip() == right
            return f"the completion is {row['completion']!r}; " + ("take the spaces away" if same else f"not {right!r}")
        wanted = f"<user>{question}\n<model>"
        if row["prompt"] != wanted:
            return f"the prompt is {row['prompt']!r}; with the prompt_for that was given it should be {wanted!r}"
    return None


FITTING = {"T4": "qlora", "24 GB": "lora", "80 GB": "lora"}


@exercise("00.5")
def ways_that_fit(answer):
    if isinstance(answer, list | tuple) and len(answer) == len(FITTING):
        answer = dict(zip(FITTING, answer, strict=True))
    if not isinstance(answer, dict) or set(answer) != set(FITTING):
        return f"give a dictionary with the keys {', '.join(map(repr, FITTING))}"
    chosen = {card: str(way).strip().lower().replace("full fine-tuning", "full") for card, way in answer.items()}
    if unknown := [way for way in chosen.values() if way not in ("full", "lora", "qlora")]:
        return f'{unknown[0]!r} is none of "full", "LoRA" and "QLoRA"'
    for card, right in FITTING.items():
        way = chosen[card]
        if way == "full":
            return f"{card}: the bar of full fine-tuning ends to the right of every card's line"
        if way == "lora" and right == "qlora":
            return f"{card}: with 16-bit weights the bar of LoRA ends to the right of the T4's line"
        if way == "qlora" and right == "lora":
            return f"{card}: QLoRA fits, and so does LoRA, which need not round the weights"
    return None


@exercise("00.6")
def one_template(answer):
    if not (isinstance(answer, list | tuple) and len(answer) == 2 and all(map(callable, answer))):
        return "give both functions, as (row_for, asking)"
    row_for, asking = answer
    for question, right in (("What is 7 plus 2?", "9"), ("Name a colour.", "blue"), ("Spell it out:\n16", "sixteen")):
        row, asked = row_for(question, right), asking(question)
        if not isinstance(row, dict) or set(row) != {"prompt", "completion"}:
            return "row_for returns a dictionary with prompt and completion"
        if not isinstance(asked, str):
            return "asking returns the text that the model is to continue"
        if question not in asked or question not in row["prompt"]:
            return "the question must stand in the text as it was asked"
        if row["completion"] != right:
            return f"the completion is {row['completion']!r}, and should be the answer alone, {right!r}"
        if row["prompt"] != asked:
            at = next((i for i, (a, b) in enumerate(zip(row["prompt"], asked, strict=False)) if a != b), None)
            at = min(len(row["prompt"]), len(asked)) if at is None else at
            trained, used = row["prompt"][max(0, at - 12) :][:24], asked[max(0, at - 12) :][:24]
            return f"they part at character {at}: it is trained on ...{trained!r} and asked with ...{used!r}"
        if asked != asked.rstrip(" \t"):
            return "the form ends with a space: in training it melts into the answer's first token, and in asking it stands alone"
    if not _tied(row_for, asking):
        return "they agree today, but each has the form in a copy of its own, and one may be changed: let one call the other"
    return None


def _tied(row_for, asking) -> bool:
    """Whether one of two functions leads to the other, or both lead to one thing, such as a template."""
    return bool(_led_to(row_for, {}).keys() & _led_to(asking, {}).keys())


def _led_to(thing, met: dict) -> dict:
    """By its id, everything that a function's code names, with the function itself, through all functions that it calls."""
    if id(thing) not in met and not isinstance(thing, types.ModuleType):
        met[id(thing)] = thing
        parts = [getattr(thing, name, None) for name in ("__self__", "__func__", "func", "args", "keywords")]
        if isinstance(thing, types.FunctionType):
            named = inspect.getclosurevars(thing)
            parts += [*named.nonlocals.values(), *named.globals.values()]
        for part in parts:
            if part is not None:
                _led_to(part, met)
    return met
