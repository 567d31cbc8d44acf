"""The monitor sees what happens and costs nearly nothing; each workaround is still needed and still cures."""

import contextlib
import inspect
import os
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from helpers.machine import MemoryMonitor
from helpers.machine import hardware as machine
from helpers.models import BUNDLED_MODEL
from helpers.training import workarounds
from tests.upstream import source_of


def test_the_monitor_sees_a_large_allocation_and_names_its_phase():
    with MemoryMonitor(interval=0.01) as monitor:
        with monitor.phase("large"):
            block = torch.ones(200_000_000, dtype=torch.uint8)
            time.sleep(0.05)
        del block
    assert monitor.peaks["large"] - monitor.samples[0][2] > 180e6
    assert monitor.peak_bytes == max(monitor.peaks.values())
    assert [s[0] for s in monitor.samples] == sorted(s[0] for s in monitor.samples)


def test_phases_nest_and_the_outer_one_goes_on():
    with MemoryMonitor(interval=10) as monitor, monitor.phase("outer"):
        with monitor.phase("inner"):
            monitor.sample()
        monitor.sample()
    names = [s[1] for s in monitor.samples]
    assert names.index("inner") > names.index("outer")
    assert names[-2] == "outer" or "outer" in names[names.index("inner") :]


def test_the_monitor_stops_its_thread_when_the_block_fails():
    monitor = MemoryMonitor(interval=0.01)
    with pytest.raises(ZeroDivisionError), monitor:
        1 / 0  # noqa: B018
    assert not monitor._thread.is_alive()


def test_watching_costs_less_than_one_percent_of_a_step():
    """One sample's processor time, times samples a second; and the marks of one step against a step of the bundled model."""
    with MemoryMonitor(interval=10) as monitor:
        begun = time.process_time()
        for _ in range(2000):
            monitor.sample()
        seconds_a_sample = (time.process_time() - begun) / 2000
    assert seconds_a_sample / MemoryMonitor().interval < 0.01
    shortest_step = 0.3  # seconds, batch 32 of the bundled model; a T4's 7B step takes longer
    samples_a_step = 8 + shortest_step / MemoryMonitor().interval  # marks, and what the thread takes meanwhile
    assert samples_a_step * seconds_a_sample / shortest_step < 0.01


def load_4bit(cured: bool):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(
        BUNDLED_MODEL, quantization_config=quantization, device_map={"": "cpu"}
    )
    return workarounds.keep_4bit_layout(model).eval() if cured else model.eval()


def changed_by_a_forward_pass(model) -> bool:
    weight = model.model.layers[0].mlp.up_proj.weight
    before = weight.data.clone()
    with torch.no_grad():
        model(torch.ones(1, 8, dtype=torch.long))
    return weight.data.shape != before.shape or not torch.equal(weight.data, before)


def test_cured_4bit_weights_survive_a_forward_pass():
    assert not changed_by_a_forward_pass(load_4bit(cured=True))


def test_the_cure_for_4bit_weights_is_still_needed(still_needed):
    from bitsandbytes.nn.modules import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this processor has no AVX512-BF16: bitsandbytes does not repack here")
    still_needed(
        changed_by_a_forward_pass(load_4bit(cured=False)), "bitsandbytes no longer repacks: drop keep_4bit_layout"
    )


def test_the_cure_for_bfloat16_adapters_is_still_needed(still_needed):
    cast = "param.data = param.data.to(torch.bfloat16)" in source_of("trl", "trainer/sft_trainer.py")
    still_needed(cast, "TRL casts adapters no longer: drop adapters_to_float32")


def test_the_cure_for_grouped_queries_is_still_needed_and_reverts_nothing_on_a_cpu(monkeypatch, still_needed):
    from transformers.integrations import sdpa_attention

    original = sdpa_attention.use_gqa_in_sdpa
    blind = "capability" not in inspect.getsource(original)
    still_needed(blind, "transformers looks at the GPU now: drop repeat_kv_heads")
    assert not workarounds.repeat_kv_heads(machine.detect())
    assert sdpa_attention.use_gqa_in_sdpa is original
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", original)  # restored afterwards
    assert workarounds.repeat_kv_heads(machine.Machine("cuda", "Tesla T4", 2**34, 2**34, 2, (7, 5)))
    assert not sdpa_attention.use_gqa_in_sdpa(None, torch.ones(1), torch.ones(1))


def counting(method, walks, trainer):
    def counted(*words, **more):
        walks.append(trainer.state.global_step)
        return method(*words, **more)

    return counted


def trained(folder, cured: bool):
    """(walks through the model in one step, mode of a deep module in each forward pass, the adapters) of four steps."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    torch.manual_seed(0)
    model, rows = load_4bit(cured=True), Dataset.from_dict({"text": ["one two three", "four five six"] * 4})
    arguments = SFTConfig(
        output_dir=str(folder), max_steps=4, use_cpu=True, bf16=False, report_to="none", save_strategy="no",
        gradient_checkpointing=None, disable_tqdm=True, per_device_train_batch_size=2, eval_strategy="steps", eval_steps=2,
    )  # fmt: skip
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=rows, eval_dataset=rows.select([0]), peft_config=lora
    )
    workarounds.adapters_to_float32(trainer)
    deep, walks, modes = trainer.model.get_base_model().model.layers[-1].mlp, [], []
    deep.register_forward_pre_hook(lambda module, inputs: modes.append(module.training))
    for name in ("train", "named_modules"):  # what a walk calls on each module that it comes to
        setattr(deep, name, counting(getattr(deep, name), walks, trainer))
    with workarounds.fewer_walks(trainer) if cured else contextlib.nullcontext():
        trainer.train()
    assert len(list(trainer.model.parameters())) > 100  # as before, all of them
    adapters = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return walks.count(1), modes, adapters


def test_fewer_walks_trains_the_same_adapters_and_is_still_needed(tmp_path, still_needed):
    (walks, modes, adapters), (cured, cured_modes, cured_adapters) = trained(tmp_path, False), trained(tmp_path, True)
    still_needed(walks >= 5, "transformers walks through the model less often now: drop fewer_walks")
    assert cured == 0
    assert modes == cured_modes == [True, True, False, True, True, False]
    for name, adapter in adapters.items():
        assert torch.equal(adapter, cured_adapters[name]), name


# --- several GPUs -----------------------------------------------------------------------------------------------


@pytest.fixture
def two_gpus(monkeypatch):
    """A driver with two T4s, and nobody's choice of one."""
    monkeypatch.setattr(machine, "gpus_of_driver", lambda: ("Tesla T4", "Tesla T4"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "remembered, so that it comes back afterwards")
    monkeypatch.setenv(machine.ALL_GPUS, "so is this")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.delenv(machine.ALL_GPUS)
    return monkeypatch


def test_of_two_gpus_the_first_is_chosen_and_the_choice_is_said_and_kept(two_gpus):
    said = machine.choose_one_gpu()
    assert said == "2 are here; this lesson uses the first (it sets CUDA_VISIBLE_DEVICES=0)"
    assert (os.environ["CUDA_VISIBLE_DEVICES"], os.environ[machine.ALL_GPUS]) == ("0", "")
    assert machine.choose_one_gpu() == said


@pytest.mark.parametrize("chosen", ["0,1", "1", ""])
def test_what_somebody_set_is_left_alone(two_gpus, chosen):
    two_gpus.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert machine.choose_one_gpu() == ""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == chosen
    assert machine.ALL_GPUS not in os.environ


def test_one_gpu_is_left_alone(two_gpus):
    two_gpus.setattr(machine, "gpus_of_driver", lambda: ("Tesla T4",))
    assert machine.choose_one_gpu() == ""
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_too_late_to_choose_is_one_line(two_gpus):
    two_gpus.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(
        machine.MachineError, match="^2 GPUs are here, and this session has used them already: TRL refuses"
    ):
        machine.choose_one_gpu()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
