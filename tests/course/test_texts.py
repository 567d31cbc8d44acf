"""What the two texts of the ledger say of libraries, tried on the installed ones where no other test does."""

import torch


def test_trl_pads_by_length_and_keeps_an_eos_that_is_the_padding_token():
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    eos = 2
    rows = [{"input_ids": [5, 6, 7, eos]}, {"input_ids": [8, eos]}]
    labels = DataCollatorForLanguageModeling(pad_token_id=eos)(rows)["labels"].tolist()
    assert labels == [[5, 6, 7, eos], [8, eos, -100, -100]]


def test_peft_counts_each_4_bit_weight_as_one():
    import bitsandbytes as bnb
    from peft import LoraConfig, get_peft_model

    model = torch.nn.Sequential(bnb.nn.Linear4bit(128, 64, bias=False)).to("cpu")  # .to() quantizes
    assert model[0].weight.numel() == 128 * 64 // 2  # two codes per byte
    trained, total = get_peft_model(model, LoraConfig(r=4, target_modules=["0"])).get_nb_trainable_parameters()
    assert (trained, total) == (4 * (128 + 64), 128 * 64 + 4 * (128 + 64))
