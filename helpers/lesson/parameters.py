"""The parameters of lessons: one name means the same in every lesson, and an impossible value stops the run with one line."""

import codecs
import difflib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from helpers import CourseError, data

OPTIMIZERS = ("adamw_torch", "adamw_8bit", "paged_adamw_32bit", "paged_adamw_8bit")
REPORTERS = ("tensorboard", "trackio", "wandb")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class ParameterError(CourseError, ValueError):
    """A parameter's name or value that no lesson can run with."""


@dataclass(frozen=True)
class Rule:
    allowed: str  # completes "allowed: ..."
    holds: Callable[[object], bool]


def _integer(low: int, high: int) -> Rule:
    def holds(value):
        return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high

    return Rule(f"a whole number from {low} to {high}", holds)


def _number(low: float, high: float) -> Rule:
    def holds(value):
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

    return Rule(f"a number from {low:g} to {high:g}", holds)


def _one_of(*values) -> Rule:
    def holds(value):
        return type(value) is type(values[0]) and value in values

    shown = ", ".join(f'"{value}"' if isinstance(value, str) else str(value) for value in values)
    return Rule(f"one of {shown}", holds)


def _or_auto(rule: Rule) -> Rule:
    """The rule, or "auto": what the recipe for the model at hand says (helpers/models/presets.py)."""
    return Rule(
        f'"auto" or {rule.allowed}', lambda value: (isinstance(value, str) and value == "auto") or rule.holds(value)
    )


def _is_text(value) -> bool:
    return isinstance(value, str) and bool(value.strip()) and len(value) < 1000 and value.isprintable()


def _is_path(value) -> bool:
    if not _is_text(value) or any(len(os.fsencode(part)) > 255 for part in value.split("/")):
        return False
    return not value.startswith("~") or os.path.expanduser(value) != value  # "~nobody" stays as it is


def _names_columns(value) -> bool:
    try:
        return _is_text(value) and (value == "auto" or bool(data.parse_columns(value)))
    except data.DataError:
        return False


def _is_encoding(value) -> bool:
    try:
        return _is_text(value) and (value == "auto" or bool(codecs.lookup(value)._is_text_encoding))
    except (LookupError, ValueError):
        return False


_text = Rule("text that is not empty", _is_path)
_flag = Rule("True or False", lambda v: isinstance(v, bool))

RULES: dict[str, Rule] = {
    "model_id": Rule(
        '"auto", a preset, a local folder or a hub id such as "Qwen/Qwen2.5-0.5B"',
        _is_path,
    ),
    "dataset_id": Rule('"auto", "bundled", "alpaca", a file or folder of rows, or a data set on the hub', _is_path),
    "data_file": Rule('"auto", or a CSV file of your own', _is_path),
    "columns": Rule('"auto", or which column is which, such as "prompt=Question,completion=Answer"', _names_columns),
    "encoding": Rule('"auto", or the encoding of a text file, such as "cp1252"', _is_encoding),
    "split": Rule('"auto", or a split of a data set on the hub, such as "train"', _is_text),
    "revision": Rule('"auto", or a branch, a tag or a commit of a data set on the hub', _is_text),
    "template": Rule(
        '"auto", "alpaca", "question", or a file that ends in .jinja and holds a chat template',
        lambda v: _is_path(v) and (v in ("auto", "alpaca", "question") or str(v).endswith(".jinja")),
    ),
    "adapter_dir": Rule('"auto" or an adapter\'s folder', _is_path),
    "output_dir": Rule('"auto", in Colab "drive", or a folder that can be written', _is_path),
    "merged_dir": Rule('"auto", in Colab "drive", or a folder that can be written', _is_path),
    "seed": _integer(0, 2**32 - 1),
    "rank": _or_auto(_integer(1, 1024)),
    "lora_alpha": _or_auto(_number(0.001, 4096)),
    "lora_dropout": _or_auto(_number(0, 0.9)),
    "target_modules": _or_auto(
        Rule(
            'projections such as "q_proj,k_proj,v_proj,o_proj", or "all-linear"',
            lambda v: isinstance(v, str) and (v == "all-linear" or set(v.split(",")) <= set(PROJECTIONS)),
        )
    ),
    "max_steps": _or_auto(_integer(1, 1_000_000)),
    "epochs": _or_auto(_number(0.001, 10_000)),
    "batch_size": _or_auto(_integer(1, 1024)),
    "gradient_accumulation": _or_auto(_integer(1, 1024)),
    "max_length": _or_auto(_integer(16, 131_072)),
    "learning_rate": _or_auto(_number(1e-8, 1)),
    "optimizer": _or_auto(_one_of(*OPTIMIZERS)),
    "checkpointing": Rule(
        '"auto", True, False or "offload"',
        lambda v: isinstance(v, bool) or (isinstance(v, str) and v in ("auto", "offload")),
    ),
    "cuda_graphs": _or_auto(_flag),
    "plain": _flag,
    "report_to": _one_of("none", *REPORTERS),
    "save_steps": _or_auto(_integer(1, 1_000_000)),
    "hub_repo": Rule(
        '"none" or owner/name on the Hugging Face hub',
        lambda v: isinstance(v, str) and (v == "none" or re.fullmatch(r"[\w.-]+/[\w.-]+", v) is not None),
    ),
    "quant_type": _one_of("nf4", "fp4"),
    "double_quant": _flag,
    "block_size": _one_of(*(2**n for n in range(5, 13))),
    "eval_rows": _integer(1, 100_000),
    "max_new_tokens": _or_auto(_integer(1, 4096)),
}


# What other programs, and people, call a parameter; the first of several that a lesson has is meant.
CALLED = {
    "rank": "r lora_r lora_rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "target_modules": "lora_target_modules lora_target modules targets",
    "learning_rate": "lr",
    "epochs": "epoch num_epochs num_train_epochs n_epochs",
    "max_steps": "steps num_steps train_steps num_train_steps epochs epoch num_epochs num_train_epochs n_epochs",
    "batch_size": "per_device_train_batch_size per_gpu_train_batch_size train_batch_size micro_batch_size batch bs",
    "gradient_accumulation": "gradient_accumulation_steps grad_accum grad_accum_steps grad_accumulation accumulation_steps "
    "accumulate_grad_batches",
    "max_length": "max_seq_length max_seq_len seq_len seq_length sequence_len sequence_length cutoff_len context_length "
    "model_max_length",
    "model_id": "model base_model model_name model_name_or_path model_path",
    "dataset_id": "dataset data data_path dataset_name dataset_path train_file data_files rows",
    "data_file": "dataset data data_path dataset_name dataset_path train_file data_files rows",
    "optimizer": "optim",
    "checkpointing": "gradient_checkpointing use_gradient_checkpointing activation_checkpointing",
    "quant_type": "bnb_4bit_quant_type",
    "double_quant": "bnb_4bit_use_double_quant use_double_quant",
    "template": "chat_template",
    "seed": "random_seed random_state",
    "output_dir": "output out output_folder",
    "gpus": "num_gpus n_gpus gpu num_processes nproc_per_node",
    "gpu_gib": "gpu_memory max_memory",
}


def _meant(name: str, known: set[str]) -> str | None:
    """The parameter that somebody means who writes `name`, in words; None where there is none like it."""
    written = name[:80].lower().replace("-", "_")
    called = next((ours for ours, others in CALLED.items() if ours in known and written in others.split()), None)
    if called == "max_steps" and "epoch" in written:
        return "max_steps, which counts steps and not passes over the rows"
    return called or next(iter(difflib.get_close_matches(written, known, n=1)), None)


def _shown(value) -> str:
    """A value as Python writes it, cut where it is long; Python does not write out a number of thousands of digits."""
    try:
        text = repr(value)
    except ValueError:
        text = f"what holds a number of more than {sys.get_int_max_str_digits()} digits"
    return text if len(text) <= 80 else text[:77] + "..."


def validate(
    parameters: dict, known: set[str] | None = None, rules: dict[str, Rule] = RULES, shown: Callable = _shown
) -> None:
    """Raise ParameterError, one line with name, value and what is allowed, for the first bad one.

    `known` names the parameters a lesson has; None means all that there are `rules` for. `shown` writes a value as its reader
    would write it.
    """
    known = set(rules) if known is None else known
    for name, value in parameters.items():
        if name not in known:
            meant = _meant(name, known)
            hint = f"; did you mean {meant}?" if meant else "."
            raise ParameterError(f"no parameter {_shown(name)}{hint} There are: {', '.join(sorted(known))}")
        rule = rules[name]
        if not rule.holds(value):
            raise ParameterError(f"{name} = {shown(value)} is not possible; allowed: {rule.allowed}")
    if parameters.get("data_file") == "auto" and parameters.get("encoding", "auto") != "auto":
        raise ParameterError(f"encoding = {parameters['encoding']!r} is for a file of your own: name it as data_file")
    if "auto" not in (parameters.get("epochs", "auto"), parameters.get("max_steps", "auto")):
        both = f"epochs = {parameters['epochs']} and max_steps = {parameters['max_steps']}"
        raise ParameterError(f'{both} both say how long to train: leave one of them at "auto"')
