"""A 4-bit base, loaded as lesson 03 loads it."""

from helpers.models import Model
from helpers.training import keep_4bit_layout, repeat_kv_heads


def load_4bit(model: Model, machine, quant_type: str = "nf4", double_quant: bool = True):
    """(model, tokenizer): the base in 4 bits, in eval mode, with the config that lesson 03 explains."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    repeat_kv_heads(machine)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=machine.torch_dtype,
    )
    base = AutoModelForCausalLM.from_pretrained(
        model.path, quantization_config=quantization, dtype=machine.torch_dtype, device_map=machine.device_map
    )
    return keep_4bit_layout(base).eval(), AutoTokenizer.from_pretrained(model.path)
