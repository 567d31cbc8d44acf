"""Train the bundled base model from nothing: tokenizer, Llama-architecture model, and the record training.json.

python assets/train_base_model.py                              # one GPU, minutes
python assets/measure_base_model.py --record                   # adds what the model knows to training.json
python assets/train_base_model.py --device cpu --steps 5 --batch 4 --documents 2000 --out /tmp/smoke
"""

import argparse
import json
import math
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ASSETS = Path(__file__).resolve().parent
sys.path.insert(0, str(ASSETS))

from make_corpus import SEED, documents, load_facts  # noqa: E402

VOCABULARY = 3072
LENGTH = 256  # tokens a sequence, in training


def train_tokenizer(texts):
    """A byte-level BPE tokenizer that puts <s> in front, as Llama's does; padding has a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<pad>", "<s>", "</s>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def new_model(tokenizer, layers=6):
    """A small Llama (six layers: 5.5 million parameters); linear layers' sizes are multiples of 64, NF4's block size."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def token_stream(tokenizer, texts):
    """All texts as one int64 tensor of token ids: <s> text </s> <s> text </s> ..."""
    rows = tokenizer.backend_tokenizer.encode_batch(texts)
    return torch.tensor([token for row in rows for token in (*row.ids, tokenizer.eos_token_id)])


def train(model, stream, steps, batch, peak_rate, seed, device, log_every=100):
    """Train on random windows of the stream, AdamW, cosine schedule; returns [(step, loss)], means of `log_every`."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        lr=peak_rate,
        betas=(0.9, 0.95),
    )
    generator = torch.Generator().manual_seed(seed)
    stream = stream.to(device)
    offsets = torch.arange(LENGTH, device=device)
    curve, total = [], torch.zeros((), device=device)
    model.train()
    for step in range(1, steps + 1):
        rate = peak_rate * min(step / 100, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(stream) - LENGTH, (batch, 1), generator=generator).to(device)
        tokens = stream[starts + offsets]
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        total += loss.detach()
        if step % log_every == 0 or step == steps:
            curve.append((step, round(total.item() / (step - (curve[-1][0] if curve else 0)), 4)))
            total.zero_()
            print(f"step {step:5}  loss {curve[-1][1]:.4f}", flush=True)
    return curve


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=ASSETS / "base_model")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--documents", type=int, default=120_000)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()

    started = time.perf_counter()
    torch.manual_seed(options.seed)
    texts = list(documents(options.documents, options.seed))
    tokenizer = train_tokenizer(texts[:30_000])
    stream = token_stream(tokenizer, texts)
    print(f"{len(texts)} documents, {len(stream)} tokens, {time.perf_counter() - started:.0f} s", flush=True)
    model = new_model(tokenizer, options.layers).to(options.device)
    training = time.perf_counter()
    curve = train(model, stream, options.steps, options.batch, options.learning_rate, options.seed, options.device)
    train_seconds = time.perf_counter() - training

    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.cpu().half().save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)

    record = {
        "seed": options.seed,
        "steps": options.steps,
        "tokens_per_step": options.batch * LENGTH,
        "peak_learning_rate": options.learning_rate,
        "documents": len(texts),
        "corpus_tokens": len(stream),
        "facts": len(load_facts()),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "final_loss": curve[-1][1],
        "loss_curve": dict(curve),
        "train_seconds": round(train_seconds, 1),
        "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor() or "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: version(name) for name in ("transformers", "tokenizers")},
        },
    }
    (options.out / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"final loss {curve[-1][1]:.4f} after {train_seconds:.0f} s")


if __name__ == "__main__":
    main()
