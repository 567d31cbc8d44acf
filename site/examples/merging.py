from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from helpers.merging import merge_adapter
from helpers.models import BUNDLED_MODEL

base = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL)
random = LoraConfig(target_modules="all-linear", init_lora_weights=False)  # as if it was trained
get_peft_model(base, random).save_pretrained("my_adapter")
made = merge_adapter(BUNDLED_MODEL, "my_adapter", "my_model", progress=False)
print(made["merged"], "of", made["tensors"], "tensors got an update")

# It prints:
#   42 of 56 tensors got an update
