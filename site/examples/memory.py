from helpers.memory import GPUS, RunSpec, fits, predict
from helpers.models import PRESETS

run = RunSpec(rank=16, batch_size=4, seq_len=512, lora_dropout=0.0, repeat_kv=True)
found = predict(PRESETS["qwen2.5-7b"].shape, run, "t4")
print(f"{found.held_bytes('t4') / 1e9:.2f} of {GPUS['t4'].total_bytes / 1e9:.2f} GB are held at the peak")
print("it fits:", fits(found, "t4"))

# It prints:
#   7.37 of 15.63 GB are held at the peak
#   it fits: True
