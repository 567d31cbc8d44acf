"""A Shape is what transformers would build from the same configuration, or a refusal by name."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM
from transformers import models as transformers_models

from helpers.memory import CannotPredict, predict, shape_of
from helpers.memory.shapes import DEFAULTS, KNOWN
from tests.memory.cases import LEAN, MISTRAL

SIZES = {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "pad_token_id": 0}
BAD_CONFIGS = [
    ({"vocab_size": 0}, "vocab_size is 0"),
    ({"num_attention_heads": 30, "head_dim": None}, "num_attention_heads 30 does not divide hidden_size 4096"),
    ({"num_key_value_heads": 5}, "num_key_value_heads 5 does not divide num_attention_heads 32"),
    ({"model_type": "mixtral"}, "model_type 'mixtral'"),
    ({"model_type": None}, "model_type is None"),
    ({"hidden_size": "large"}, "hidden_size is 'large'"),
    ({"num_experts": 8}, "num_experts is 8"),
    ({"model_type": "newcomer", "num_local_experts": 2}, "num_local_experts is 2"),
    ({"n_routed_experts": 64}, "n_routed_experts is 64"),
    ({"text_config": {"ffn_config": {"moe_num_experts": 16}}}, "moe_num_experts is 16"),
    ({"blocks": [{"kind": "plain"}, {"expert_num": 4}]}, "expert_num is 4"),
    ({"num_experts": [1, 16]}, "num_experts is [1, 16]"),
    ({"num_experts": 8.0}, "num_experts is 8.0"),
    ({"num_experts": "8"}, "num_experts is '8'"),
    ({"mlp": {"experts": [{"size": 64}, {"size": 64}]}}, "experts is [{'size': 64}"),
    ({"sliding_window": 0}, "sliding_window is 0"),
    ({"sliding_window": "4096"}, "sliding_window is '4096'"),
    ({"text_config": [1]}, "is no configuration"),
]


@pytest.mark.parametrize(("change", "message"), BAD_CONFIGS, ids=[message for _, message in BAD_CONFIGS])
def test_an_impossible_model_is_refused_by_field_and_value(change, message):
    with pytest.raises(CannotPredict) as caught:
        predict({**MISTRAL, **change}, LEAN)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "none", [{"num_experts": 1}, {"num_local_experts": 0}, {"n_routed_experts": None}, {"moe": True}]
)
def test_one_expert_or_none_is_a_plain_decoder(none):
    assert shape_of({**MISTRAL, **none}) == shape_of(MISTRAL)


def mixtures() -> list[str]:
    """Architectures of transformers whose modeling file has a class of experts."""
    folders = {name: Path(transformers_models.__file__).parent / name for name in CONFIG_MAPPING}
    code = {name: "".join(f.read_text() for f in folder.glob("modeling_*.py")) for name, folder in folders.items()}
    return sorted(
        name for name, text in code.items() if re.search(r"^class \w*(Experts|SparseMoe\w*|MoE)\(", text, re.M)
    )


def with_experts(given: dict) -> dict:
    """The same configuration with eight experts wherever it has a number of experts; some default to one or none."""
    switched = {}
    for key, value in given.items():
        told = re.fullmatch(r".*num.*_experts|n_.*_experts", str(key)) and not (isinstance(value, int) and value > 1)
        switched[key] = with_experts(value) if isinstance(value, dict) else 8 if told else value
    return switched


@pytest.mark.parametrize("name", mixtures())
@pytest.mark.filterwarnings("ignore")
def test_every_architecture_with_experts_is_refused_for_its_experts(name):
    """Whatever it is called, and with every size that a plain decoder has."""
    config = with_experts(CONFIG_MAPPING[name]().to_dict())
    sizes = ("num_attention_heads", "intermediate_size", "hidden_size", "vocab_size", "num_hidden_layers")
    with pytest.raises(CannotPredict, match="mixtures of experts"):
        shape_of(config | dict.fromkeys(sizes, 64) | {"model_type": "newcomer"})


def test_there_are_many_such_architectures():
    assert len(mixtures()) > 20


@pytest.mark.filterwarnings("ignore")
def test_no_plain_decoder_is_taken_for_a_mixture():
    for name in (*KNOWN, "gemma", "gemma3_text", "glm4", "olmo2", "starcoder2", "cohere", "smollm3"):
        assert shape_of(CONFIG_MAPPING[name]().to_dict()).model_type == name


@pytest.mark.parametrize("name", KNOWN)
def test_what_a_configuration_leaves_out_is_what_its_class_takes(name):
    """One flag after the other left out, and all of them: as the class of transformers fills them in."""
    whole = AutoConfig.for_model(name, **SIZES, num_attention_heads=32, num_key_value_heads=8).to_dict()
    for left_out in [
        *([flag] for flag in DEFAULTS[name]),
        ["tie_word_embeddings"],
        [*DEFAULTS[name], "tie_word_embeddings"],
    ]:
        given = {key: value for key, value in whole.items() if key not in left_out}
        assert shape_of(given) == shape_of(AutoConfig.for_model(**given)), left_out


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_are_counted_as_transformers_counts_them(name):
    flags = ("attention_bias", "mlp_bias", "tie_word_embeddings")
    for values in itertools.product((False, True), repeat=len(flags)):
        config = AutoConfig.for_model(
            name,
            **SIZES,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            **dict(zip(flags, values, strict=True)),
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        assert shape_of(config).parameters == sum(parameter.numel() for parameter in model.parameters()), values


def test_an_unknown_decoder_is_predicted_as_a_llama_and_says_so():
    with pytest.warns(UserWarning, match="'newcomer' is not described here"):
        predicted = predict({**MISTRAL, "model_type": "newcomer"}, LEAN)
    assert predicted.notes == ("newcomer is predicted as a Llama of the same sizes",)
    assert predicted.peak_allocated == predict({**MISTRAL, "model_type": "llama"}, LEAN).peak_allocated


def test_dictionary_folder_and_transformers_config_agree(tmp_path):
    config = AutoConfig.for_model(**MISTRAL)
    config.save_pretrained(tmp_path)
    peaks = {predict(given, LEAN).peak_allocated for given in (MISTRAL, config, tmp_path, str(tmp_path))}
    assert len(peaks) == 1


def test_a_folder_without_a_configuration_is_one_line(tmp_path):
    with pytest.raises(CannotPredict, match="no configuration at"):
        predict(tmp_path / "nothing", LEAN)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CannotPredict, match="config.json is no readable JSON"):
        predict(tmp_path, LEAN)
