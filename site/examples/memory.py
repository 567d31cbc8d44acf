from helpers.memory import GPUS, RunSpec, fits, predict

config = {  # what a model's config.json says; this is Mistral-7B's
    "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip
run = RunSpec(rank=16, lora_dropout=0.0, batch_size=4, seq_len=512, repeat_kv=True)
found = predict(config, run, "t4")
print(f"{found.held_bytes('t4') / 1e9:.2f} of {GPUS['t4'].total_bytes / 1e9:.2f} GB, most of it in the {found.moment}")
print("fits" if fits(found, "t4") else "does not fit")

two = predict(config, run, "t4", gpus=2, way="split")  # the layers divided over two GPUs
print(two.layers, [f"{each.peak_allocated / 1e9:.2f} GB" for each in two.each])
