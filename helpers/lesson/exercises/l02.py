"""Checks of the exercises of lesson 02."""

from helpers.lesson.checks import exercise, near

DOTS = "put your answer in place of the dots"


@exercise("02.1", takes="n")
def weight_bytes(answer):
    n = 4096 * 14336
    given, right = answer(n), n * (1 / 2 + 1 / 64 + 4 / (64 * 256))
    if given is ...:
        return DOTS
    if near(given, right, 1e-4):
        return None
    if near(given, n / 2, 1e-4):
        return "those are the codes; each block of 64 has a constant, and each 256 constants one more"
    if near(given, n * (1 / 2 + 4 / 64), 1e-4):
        return "that is without double quantization: there each block of 64 keeps four bytes"
    if near(given, n * (1 / 2 + 1 / 64), 1e-4):
        return "nearly: the one-byte constants share a float32 for each 256 of them"
    if near(given, 8 * right, 1e-3):
        return "those are bits; eight make a byte"
    return "half a byte per weight, one byte for each 64 weights, four for each 64 * 256"


@exercise("02.2", takes="matrices, layers and r")
def lora_bytes(answer):
    matrices, layers, r = [(10, 6), (4, 8)], 5, 3
    given, right = answer(matrices, layers, r), 16 * 5 * 3 * (10 + 6 + 4 + 8)
    if given is ...:
        return DOTS
    hints = {
        right * 3 // 4: "one of the four is missing: values, gradients, and two averages",
        right // 2: "that is two of the four, or two bytes for each of the four; float32 takes four bytes",
        right // 4: "those are the values alone; add gradients and two averages",
        right // 16: "that is how many numbers there are; each takes four times four bytes",
        right // layers: "that is one layer; the model has several",
        right // r: "the rank is missing: A has r rows, and B has r columns",
        16 * 5 * 3 * (10 + 6): "one matrix of each layer is right; add up over all of them",
        16 * 5 * 3 * (60 + 32): "that counts the weight matrix; an adapter has r * (inputs + outputs) numbers",
        16 * 5 * (60 + 32): "that counts the weight matrix; an adapter has r * (inputs + outputs) numbers",
    }
    return None if given == right else hints.get(given, "four float32 numbers for each r * (inputs + outputs)")


@exercise("02.3", takes="layers, rows, tokens and hidden")
def kept_bytes(answer):
    given, right = answer(32, 4, 512, 4096), 32 * 4 * 512 * 4096 * 2
    if given is ...:
        return DOTS
    hints = {
        right // 64: "that is what it said before: read again what is kept, and how wide a number of float16 is",
        right // 32: "that is one layer; each of them keeps its input",
        right // 2: "that is one byte per value; float16 takes two",
        right * 2: "that is float32; float16 takes two bytes per value",
        right // 4: "that is one row; there are several",
        right // 4096: "each token has a list of `hidden` values",
    }
    return None if given == right else hints.get(given, "layers * rows * tokens * hidden * bytes per value")


@exercise("02.4", takes="tokens and vocabulary")
def loss_bytes(answer):
    for tokens, vocabulary in ((10_240, 152_064), (2048, 32_000), (2048, 128_256), (16_384, 32_000)):
        given, right = answer(tokens, vocabulary), 2 * min(tokens, 4096) * min(vocabulary, 32_768)
        if given is ...:
            return DOTS
        if given == right:
            continue
        asked = f"for {tokens:,} tokens and a vocabulary of {vocabulary:,}"
        if given == 14 * tokens * vocabulary:
            return f"{asked} that is the whole table with its float32 copies; a tile is one part of it, in 16 bits"
        if given in (2 * tokens * vocabulary, tokens * vocabulary) and right != given:
            return f"{asked} that is the whole table: a tile has at most 4,096 tokens and 32,768 entries"
        if given == 2 * tokens * min(vocabulary, 32_768):
            return f"{asked} the tile is too high: it has at most 4,096 tokens"
        if given == 2 * min(tokens, 4096) * vocabulary:
            return f"{asked} the tile is too wide: it has at most 32,768 entries of the vocabulary"
        if given == 2 * 4096 * 32_768:
            return f"{asked} the tile is smaller than the largest one: it ends where the tokens or the entries end"
        if given == right // 2:
            return f"{asked} those are the numbers of a tile; each takes two bytes"
        return f"{asked} a tile takes 2 * {right // 2:,} bytes, and your function says {given}"
    return None


def estimated(config: dict, tokens: int, r: int) -> dict[str, float]:
    """The terms of exercise 02.5, in bytes."""
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    kv = hidden * config["num_key_value_heads"] // config["num_attention_heads"]
    matrices = [(hidden, hidden)] * 2 + [(hidden, kv)] * 2 + [(hidden, inner)] * 3
    trained = layers * sum(r * (i + o) for i, o in matrices)
    tables = 1 if config["tie_word_embeddings"] else 2
    return {
        "codes": layers * sum(i * o for i, o in matrices) * (1 / 2 + 1 / 64 + 4 / (64 * 256)),
        "tables": 2 * tables * config["vocab_size"] * hidden,
        "adapters": 4 * trained,
        "averages": 8 * trained,
        "gradients": 4 * trained,
        "kept": 2 * layers * tokens * hidden,
        "at work": 2 * tokens * (12 * hidden + 6 * inner) + 2 * hidden * inner,
        "loss": 2 * min(tokens, 4096) * min(config["vocab_size"], 32_768),
    }


def at_peak(terms: dict[str, float], *left_out: str) -> float:
    """The sum of exercise 02.5, without the terms that are left out."""
    terms = terms | dict.fromkeys(left_out, 0)
    staying = sum(terms[name] for name in ("codes", "tables", "adapters", "averages"))
    return staying + max(terms["kept"], terms["gradients"]) + max(terms["at work"], terms["loss"])


# SmolLM2-135M's shape: so small that what the exercise does not count, such as cuBLAS's room, is 8% of its peak.
NARROW = {
    "model_type": "llama", "vocab_size": 49_152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip


@exercise("02.5", takes="config, tokens and r")
def my_predict(answer):
    from helpers.memory import RunSpec, predict
    from helpers.models import PRESETS

    asked = (
        ("mistral-7b", 4, 512, 16),
        ("qwen2.5-1.5b", 1, 512, 32),
        ("llama-3.1-8b", 2, 1024, 8),
        ("qwen2.5-0.5b", 2, 1024, 8),  # a large tile in a small model, so that adding it shows
        ("mistral-7b", 4, 512, 64),  # inputs and gradients are nearly equal, so adding them shows
        ("smollm2-135m", 4, 1024, 8),  # the loss takes more than the layer at work, so leaving it out shows
    )
    for name, rows, length, r in asked:
        config = PRESETS[name].shape if name in PRESETS else NARROW
        given = answer(dict(config), rows * length, r)
        if given is ...:
            return DOTS
        spec = RunSpec(rank=r, batch_size=rows, seq_len=length, optimizer="adamw_torch_fused", lora_dropout=0.0)
        right = predict(config, spec, "l4").peak_allocated
        if near(given, right, 0.1 if config is NARROW else 0.05):
            continue
        words = f"for {name}, {rows} x {length} tokens and r = {r} predict says {right / 1e9:.2f} GB"
        if not isinstance(given, int | float):
            return f"{words}; return a number of bytes"
        return f"{words} and yours {given / 1e9:.2f}; {_missing(given, estimated(config, rows * length, r), config)}"
    return None


def _missing(given: float, terms: dict[str, float], config: dict) -> str:
    """What explains a wrong estimate."""
    whole = at_peak(terms)
    left_out = {
        "the embeddings and the head are missing": ("tables",),
        "the layers' kept inputs are missing, or the gradients": ("kept", "gradients"),
        "the layer at work is missing": ("at work",),
        "the layer at work is missing, and the loss": ("at work", "loss"),
        "the adapters and their averages are missing": ("adapters", "averages"),
        "the weights are missing": ("codes",),
    }
    if terms["loss"] > terms["at work"]:
        left_out["the loss is missing; in this narrow model it takes more than the layer at work"] = ("loss",)
    mistakes = {fault: at_peak(terms, *names) - whole for fault, names in left_out.items()} | {
        "inputs and gradients are added; of these two only the larger is there at the peak": min(
            terms["kept"], terms["gradients"]
        ),
        "the layer at work and the loss are added; one is over before the other begins": min(
            terms["at work"], terms["loss"]
        ),
        "the weights are counted in 16 bits": 2 * terms["codes"] / (1 / 2 + 1 / 64 + 4 / (64 * 256)) - terms["codes"],
    }
    if config["tie_word_embeddings"]:
        mistakes["the 16-bit tables count twice; this model has one table for both"] = terms["tables"]
    if near(given, whole / 1e9, 0.06):
        return "that is in GB; bytes are asked for"
    fault, change = min(mistakes.items(), key=lambda one: abs(whole + one[1] - given))
    if abs(whole + change - given) < 0.02 * whole:
        return fault
    return "print your terms one by one beside predict's parts, and look where they part"


LEAST, MOST = "averages in float32", "nothing recomputed"  # with the lesson's own parameters


@exercise("02.6")
def costliest_and_cheapest(answer, came_out=None):
    """`answer` has the keys "most" and "least"; `came_out` maps each change to the GB that it adds."""
    came_out = came_out or {LEAST: 0.3, "rank 64": 0.6, "twice the rows": 1.0, "float32 upcast": 1.4, MOST: 12.0}
    if not isinstance(answer, dict) or set(answer) != {"most", "least"}:
        return 'give a dictionary with "most" and "least", such as {"most": "rank 64", "least": "twice the rows"}'
    if set(answer.values()) == {...}:
        return DOTS
    names = {name.lower(): name for name in came_out}
    said = {key: names.get(str(word).strip().lower()) for key, word in answer.items()}
    for key, word in said.items():
        if word is None:
            return f"{answer[key]!r} is none of: {', '.join(came_out)}"
    most, least = max(came_out, key=came_out.get), min(came_out, key=came_out.get)
    if said["most"] == least:
        return f"{least!r} adds least of all, {came_out[least]:.2f} GB"
    hints = {MOST: ": think of all layers at once", LEAST: ": which change leaves weights and activations alone?"}
    for key, right in (("most", most), ("least", least)):
        if said[key] != right:
            adds = f"{said[key]!r} adds {came_out[said[key]]:.2f} GB"
            return f"{adds}, and another change adds {came_out[right]:.2f}{hints.get(right, '')}"
    return None


LEARNED = ("rank", "target_modules", "seq_len", "quant_type", "double_quant", "lora_dropout", "adapter_dtype")
START = {"rank": 16, "batch_size": 4, "seq_len": 1024, "optimizer": "adamw_torch_fused", "checkpoint_every": 0}


@exercise("02.7")
def fits_eight(answer):
    from helpers.memory import CannotPredict, RunSpec, fits, predict
    from helpers.models import PRESETS

    if not isinstance(answer, dict) or not answer:
        return 'give a dictionary of what you change, such as {"optimizer": "paged_adamw_8bit"}'
    if "gradient_accumulation_steps" in answer:
        return "that is right in the trainer; RunSpec only needs batch_size, the rows at once"
    if unknown := sorted(str(name) for name in answer if name not in vars(RunSpec())):
        return f"RunSpec has no {unknown[0]!r}; it has {', '.join(sorted(vars(RunSpec())))}"
    before, after = RunSpec(**START), None
    try:
        after = RunSpec(**START | answer)
        prediction = predict(PRESETS["mistral-7b"].shape, after, "l4")
    except CannotPredict as refused:
        return str(refused)
    if changed := [name for name in LEARNED if getattr(after, name) != getattr(before, name)]:
        return f"{changed[0]} changes what is learned; this run must learn the same"
    if after.batch_size > 4 or 4 % after.batch_size:
        return "a step has four rows: take 1, 2 or 4 at once, and accumulate the rest"
    if "adam" not in after.optimizer:
        return f"{after.optimizer} learns otherwise than Adam; this run must learn the same: take a kind of Adam"
    # The gradients of earlier batches wait while a step is made of several; adapters are as many bytes.
    waiting = prediction.parts["adapters"] if after.batch_size < 4 else 0
    held, tensors = prediction.held_bytes("l4") + waiting, prediction.peak_allocated + waiting
    if fits(prediction, "l4", 8e9 - waiting):
        return None
    if tensors < 8e9:
        tensors = f"the tensors alone would fit, with {tensors / 1e9:.2f} GB"
        return f"{tensors}; with what torch reserves and the CUDA context it is {held / 1e9:.2f} GB"
    if not after.checkpoint_every:
        return f"that takes {held / 1e9:.1f} GB: every layer's activations are still kept"
    return f"that takes {held / 1e9:.2f} GB of the 8"
