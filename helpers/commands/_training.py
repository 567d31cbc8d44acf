"""What each process of a training by a file of settings does: load, train or go on, save, record."""

import contextlib
import dataclasses
import json
import os
import time
from types import SimpleNamespace
from typing import Any

from helpers import CourseError, data, models, saving
from helpers.evaluation import completion_loss, rendered
from helpers.files import adapter_fault, read_object, write_whole
from helpers.memory import GPUS, CannotPredict, RunSpec, fits, gpu_of, predict, shape_of
from helpers.training import (
    adapters_to_float32,
    goes_padding_free,
    keep_4bit_layout,
    repeat_kv_heads,
    require_targets,
    stop_at_max_steps,
    stop_when_not_finite,
)


class Training:
    """One process's part of a run; `gpus` are those that it uses, [] on a CPU."""

    def __init__(self, job, here, gpus: list[int]):
        self.job, self.here, self.gpus = job, here, gpus
        self.model = models.resolve_model(job.parameters["model_id"], here, large=True)
        recipe = models.recipe_for(self.model)
        chosen = {name: recipe[name] for name, value in job.parameters.items() if value == "auto" and name in recipe}
        self.settings: Any = SimpleNamespace(**job.parameters | chosen)
        asked = job.parameters["optimizer"]
        self.settings.optimizer = job.way.optimizer(asked, self.settings.optimizer)
        if self.settings.padding_free and not goes_padding_free(self.model.path, self.settings.max_length):
            raise CourseError(
                f"padding_free is true, and attention of {self.model.name} is not known to work so: leave it false"
            )
        self.way = job.way.with_layers(self.model.path, self.spec, self.gpu)
        wanted = self.settings.dataset_id
        wanted = "bundled" if wanted == "auto" and self.model.bundled else wanted
        self.load_rows(wanted)
        self.template = data.read_template(self.settings.template) or self.settings.template

    def load_rows(self, wanted: str) -> None:
        """Read the rows: `rows`, `data_name`, and of rows of one's own what was understood, and a digest.

        The digest stands for the rows in what makes this run this run: other rows are another one.
        """
        found = data.load_instructions(wanted, self.here, self.settings.seed, **self.job.how_to_read)
        self.rows, self.data_name, understood = found
        self.understood = [f"{what}: {words}" for what, words in understood.lines()] if understood else []
        self.data_digest = understood.digest if understood else ""

    @property
    def spec(self) -> RunSpec:
        """The run as helpers.memory knows it; without padding as many tokens go through at once as a padded batch may have."""
        at_once = {"padding_free": True, "batch_size": 1, "seq_len": self.tokens_at_once}
        more = at_once if self.settings.padding_free else {}
        like_t4 = self.here.device == "cpu" or not self.here.native_bfloat16  # on a CPU it is predicted for T4s
        return RunSpec.of_settings(self.settings, like_t4, **more)

    @property
    def tokens_at_once(self) -> int:
        return self.settings.batch_size * self.settings.max_length

    @property
    def gpu(self) -> str:
        """The GPU that predictions are for; on a CPU a T4."""
        return gpu_of(self.here.name) if self.here.device == "cuda" else "t4"

    def outlook(self) -> str:
        """What the run will do and take, in words, before anything is loaded."""
        way, total = self.way, self.job.gpu_bytes or self.here.gpu_bytes or GPUS[self.gpu].total_bytes
        on = f", {' and '.join(map(str, way.layers))} layers" if way.layers else ""
        at_once = f"at most {self.tokens_at_once:,} tokens" if self.settings.padding_free else self.settings.batch_size
        there = len(self.rows["train"])
        self.require_a_step(there)
        of = f"{self.rows_per_step} rows" if there >= self.rows_per_step else f"{there} rows, all that there are"
        lines = [
            f"{self.model.name}, {way.name} on {way.gpus} GPU{'s' * (way.gpus > 1)}{on}: {self.settings.max_steps} steps of "
            f"{of}, {at_once} at once",
            *self.understood,
        ]
        if self.here.device == "cpu":
            lines.append("no GPU can be seen: it would train on the CPU; what follows is predicted for T4s")
        try:
            shape = shape_of(self.model.path)
            found = self.with_waiting_gradients(
                predict(shape, self.spec, self.gpu, way.gpus, way.name, way.layers or None)
            )
        except CannotPredict as unknown:
            return "\n".join([*lines, f"memory: no prediction ({unknown})"])
        for number, one in enumerate(found.each or (found,)):
            lines.append(
                f"GPU {number}: {one.peak_allocated / 1e9:.2f} GB at the peak, {one.held_bytes(self.gpu) / 1e9:.2f} GB held"
                f" of {total / 1e9:.2f} GB; predicted"
            )
        why = found.why_not_loaded(self.gpu, total)
        lines.append("fits" if fits(found, self.gpu, total) else "does not fit" + (why and f": {why}"))
        return "\n".join(lines)

    def with_waiting_gradients(self, found):
        """A prediction, which is of one batch, for a step of several: the gradients of the earlier ones wait, four bytes each.

        FSDP2 keeps waiting gradients whole on each GPU (torch's `set_requires_gradient_sync`); that was not measured.
        """
        if self.settings.gradient_accumulation == 1:
            return found
        share = self.way.gpus if self.way.name == "fsdp2" else 1

        def waits(one):
            more = share * one.parts["adapters"]
            peaks = {"peak_allocated": one.peak_allocated + more, "peak_reserved": one.peak_reserved + more}
            return dataclasses.replace(one, **peaks)

        return dataclasses.replace(waits(found), each=tuple(waits(one) for one in found.each))

    @property
    def identity(self) -> dict:
        """What makes this run this run: another one gets other checkpoints, and another adapter."""
        about = {"data": self.data_name, "rows": self.data_digest, "template": self.template}
        way = {"way": self.way.name, "gpus": self.way.gpus, "layers": self.way.layers}
        return vars(self.settings) | self.model.identity | about | way

    def run(self, callbacks=()) -> dict | None:
        """Train and save; what was found, in the first process, and None in the others."""
        from accelerate.utils import gather_object
        from transformers import AutoTokenizer, set_seed

        from helpers.training import padding_free

        if self.settings.checkpointing == "offload" and self.here.device == "cpu":
            raise CourseError(
                "checkpointing is 'offload', which needs a GPU, and none can be seen: set it to true or false"
            )
        set_seed(self.settings.seed)
        folder = saving.checkpoint_folder(self.job.folder, **self.identity)
        last = saving.last_complete_checkpoint(folder, self.way.processes)
        first = os.environ.get("RANK", "0") == "0"
        if last and int(last.name.partition("-")[2]) >= self.settings.max_steps:
            recorded = self.recorded(folder)
            if first:
                kept = "its adapter stands there" if recorded else "its adapter is saved from that"
                print(
                    f"This training has taken its {self.settings.max_steps} steps: {last} is the last one, and {kept}"
                )
            if recorded:
                return recorded if first else None
        if not last and first:
            self.say_what_is_kept(folder)
        tokenizer = data.with_template(AutoTokenizer.from_pretrained(self.model.path), self.settings.template)
        rows, said = self.used_rows(tokenizer)
        said += self.lost_of_heldout(tokenizer)
        for line in [*self.understood, *said] if first else []:
            print(line)
        model = self.load()
        before = self.heldout_loss(model, tokenizer)
        trainer = self.trainer(model, tokenizer, rows, callbacks)
        begun = time.perf_counter()
        with padding_free(trainer, self.tokens_at_once) if self.settings.padding_free else contextlib.nullcontext():
            trainer.train(resume_from_checkpoint=last and str(last))
        seconds = time.perf_counter() - begun
        peaks = gather_object([self.peaks()])
        after = self.heldout_loss(trainer.model.eval(), tokenizer)
        self.save(trainer, tokenizer)
        if not trainer.is_world_process_zero():
            return None
        history = trainer.state.log_history
        found = {
            "run": folder.name,
            "way": self.way.name, "gpus": self.way.gpus, "layers": list(self.way.layers), "machine": str(self.here),
            "model": self.model.name, "data": self.data_name, "rows_per_step": min(self.rows_per_step, len(rows)),
            "losses": [entry["loss"] for entry in history if "loss" in entry],
            "gradient_norms": [entry["grad_norm"] for entry in history if "grad_norm" in entry],
            "heldout_loss_before": before, "heldout_loss_after": after, "resumed_from": last and last.name,
            "peak_bytes": [peak for process in peaks for peak in process], "train_seconds": seconds,
        }  # fmt: skip
        write_whole(self.job.folder / "train.json", json.dumps(found | {"parameters": vars(self.settings)}, indent=1))
        return found

    def recorded(self, folder) -> dict | None:
        """What was recorded of this run, whose checkpoints lie in `folder`, if its record and its whole adapter are there."""
        adapter = self.job.folder / "adapter"
        about = saving.about_adapter(adapter)
        try:
            found = read_object(self.job.folder / "train.json")
        except ValueError:  # it is not there
            return None
        own = found.get("run") == f"checkpoints-{about.get('run')}" == folder.name
        return found if own and adapter_fault(adapter) is None else None

    def say_what_is_kept(self, folder) -> None:
        """One line, before hours go by, where another run's checkpoints lie beside `folder`, which this run has not begun yet."""
        others = {state.parents[1] for state in self.job.folder.glob("checkpoints-*/checkpoint-*/trainer_state.json")}
        if others - {folder}:
            print(
                "This training begins from its start: the base model's files, the rows, the settings or the course are not those "
                f"of the checkpoints in {', '.join(sorted(map(str, others - {folder})))}. They are kept; to go on from them, put "
                "back what changed"
            )

    @property
    def rows_per_step(self) -> int:
        return self.settings.batch_size * self.settings.gradient_accumulation * self.way.processes

    def load(self):
        """The base in 4 bits, where this way wants it."""
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        repeat_kv_heads(self.here)
        dtype, rank = self.here.torch_dtype, self.gpus[0] if self.gpus else 0
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.settings.quant_type,
            bnb_4bit_use_double_quant=self.settings.double_quant,
            bnb_4bit_compute_dtype=dtype,
            **self.way.quantization(dtype),
        )
        layers, tied = 0, False
        if self.way.name == "split":  # other ways need no formula of the model
            shape = shape_of(self.model.path)
            layers, tied = shape.layers, shape.tied
        where = self.way.device_map(layers, tied, rank, self.here.device)
        base = AutoModelForCausalLM.from_pretrained(
            self.model.path, quantization_config=quantization, dtype=dtype, device_map=where
        )
        require_targets(base, self.settings.target_modules)
        return keep_4bit_layout(base).eval()

    def trainer(self, model, tokenizer, rows, callbacks=()):
        """TRL's trainer as this way needs it."""
        import torch
        from peft import LoraConfig
        from transformers import PrinterCallback
        from trl import SFTTrainer

        if self.way.name == "fsdp2" and self.gpus:  # divided where it lies, the GPU would hold it one and a half times
            model.to("cpu")
            torch.cuda.empty_cache()
        chosen = self.settings.target_modules
        trainer = SFTTrainer(
            model=model,
            args=self.arguments(model),
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=LoraConfig(
                r=self.settings.rank,
                lora_alpha=self.settings.lora_alpha,
                lora_dropout=self.settings.lora_dropout,
                target_modules=chosen if chosen == "all-linear" else chosen.split(","),
                task_type="CAUSAL_LM",
            ),
            callbacks=list(callbacks),
        )
        trainer.remove_callback(PrinterCallback)
        return self.way.after_building(stop_at_max_steps(stop_when_not_finite(adapters_to_float32(trainer))))

    def arguments(self, model):
        """SFTConfig: lesson 03's settings, and what this way adds."""
        from trl import SFTConfig

        chosen = self.settings
        rows, batches = chosen.batch_size, chosen.gradient_accumulation
        if chosen.padding_free:  # all rows of a step are one batch, which is cut by its tokens
            rows, batches = rows * batches, 1
        recompute = {"every_n_layers": 1, "offload": chosen.checkpointing == "offload"}
        return SFTConfig(
            output_dir=str(saving.checkpoint_folder(self.job.folder, **self.identity)),
            max_steps=chosen.max_steps,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=batches,
            max_length=chosen.max_length,
            learning_rate=chosen.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.03 if chosen.max_steps > 1 else 0,  # of a single step it would be all, at a rate of 0
            weight_decay=0.0,
            max_grad_norm=0.3,
            optim=chosen.optimizer,
            seed=chosen.seed,
            fp16=self.here.dtype == "float16",
            bf16=self.here.dtype == "bfloat16",
            use_cpu=self.here.device == "cpu",
            activation_checkpointing=bool(chosen.checkpointing),
            activation_checkpointing_kwargs=recompute if chosen.checkpointing else None,
            gradient_checkpointing=None,
            logging_steps=1,
            save_strategy="steps",
            save_steps=chosen.save_steps,
            save_total_limit=2,
            report_to="none",
            disable_tqdm=True,
            **self.way.arguments(model),
        )

    def used_rows(self, tokenizer) -> tuple[Any, list[str]]:
        """The rows that the steps of this run come to, as lesson 03 shuffles and shapes them; and what is said of those left out
        and of those that are cut.

        TRL leaves out, without a word, a row whose question alone fills max_length. Were rows counted before that, those
        left would be repeated while others are never used. And a pass over the rows has whole steps alone, so that each step has
        the same rows whatever the way. CourseError, one line, if no row keeps a part of its answer, or too few for a step.
        """
        rows, longest = self.rows["train"].shuffle(seed=self.settings.seed), self.settings.max_length
        kept: list[int] = []
        lengths: list[int] = []  # of those that are kept, with their answers
        too_long: list[int] = []
        for number, row in enumerate(rows):
            if len(kept) == self.settings.max_steps * self.rows_per_step:
                break
            asked, whole = row_lengths(tokenizer, row)
            if asked < longest:
                kept.append(number)
                lengths.append(whole)
            else:
                too_long.append(asked)
        why = f"max_length = {longest} leaves nothing of their answers"
        if not kept:
            raise CourseError(
                f"none of the {len(rows):,} rows can be learned: {why}; the shortest question alone takes {min(too_long):,} "
                "tokens, so set it higher"
            )
        said = [f"left out: {len(too_long):,} of {len(kept) + len(too_long):,} rows, since {why}"] if too_long else []
        steps, over = divmod(len(kept), self.rows_per_step)
        self.require_a_step(len(kept))
        if not steps:
            said.append(
                f"rows in a step: {len(kept)}, all that there are, and not {self.rows_per_step}: add rows, or lower batch_size "
                "or gradient_accumulation"
            )
        elif over:  # in the last step of each pass several processes would fill up theirs with rows of the first
            said.append(f"left out: {over} of {len(kept):,} rows, so that all steps have {self.rows_per_step}")
            kept = kept[:-over]
        cut = [whole for whole in lengths[: len(kept)] if whole > longest]
        if cut:
            said.append(
                f"cut: {len(cut):,} of {len(kept):,} rows lose the end of their answers at max_length = {longest}: set it "
                f"higher, up to {max(cut):,}, the tokens of the longest"
            )
        return rows.select(kept).map(data.to_chat, remove_columns=rows.column_names), said

    def require_a_step(self, rows: int) -> None:
        """Raise CourseError, one line, where several processes have fewer rows than a step takes: some would get none."""
        if self.way.processes == 1 or rows >= self.rows_per_step:
            return
        cure = "lower batch_size or gradient_accumulation"
        if rows < self.way.processes:
            cure = f"add rows, at least one for each of the {self.way.processes} GPUs, or train on one"
        raise CourseError(f"a step takes {self.rows_per_step} rows, and there are {rows}: {cure}")

    @property
    def heldout(self):
        """The held-out rows that are scored."""
        return self.rows["heldout"].select(range(min(self.settings.eval_rows, len(self.rows["heldout"]))))

    def lost_of_heldout(self, tokenizer) -> list[str]:
        """What is said of held-out rows that max_length leaves no answer: they are not in the held-out loss."""
        longest, scored = self.settings.max_length, self.heldout
        lost = sum(row_lengths(tokenizer, row)[0] >= longest for row in scored)
        if not lost:
            return []
        return [
            f"held out: {lost:,} of {len(scored):,} rows are not in the loss, since max_length = {longest} leaves nothing of "
            "their answers"
        ]

    def heldout_loss(self, model, tokenizer) -> float:
        """On the same rows in every process: what the trainer logs depends on who had which rows.

        Never more rows at once than in training: that is what was planned, and more may not fit.
        """
        at_once = min(self.settings.batch_size, 32 if self.model.bundled else 4)
        return completion_loss(model, tokenizer, self.heldout, at_once, self.settings.max_length)

    def peaks(self) -> list[int]:
        """The most bytes that torch has allocated on each of this process's GPUs."""
        import torch

        return [torch.cuda.max_memory_allocated(gpu) for gpu in self.gpus]

    def save(self, trainer, tokenizer) -> None:
        """Save the adapter, whole; every process has to come by, since each may hold a part of it."""
        state = self.way.adapter(trainer)
        if trainer.is_world_process_zero():
            with saving.adapter_folder(self.job.folder / "adapter", "train", **self.identity) as new:
                trainer.accelerator.unwrap_model(trainer.model).save_pretrained(new, state_dict=state)
                tokenizer.save_pretrained(new)
        trainer.accelerator.wait_for_everyone()


def row_lengths(tokenizer, row: dict) -> tuple[int, int]:
    """The tokens of a row's question, and of the question with its answer."""
    chat = data.to_chat(row)
    texts = [rendered(tokenizer, chat["prompt"], True), rendered(tokenizer, chat["prompt"] + chat["completion"], False)]
    asked, whole = map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])
    return asked, whole
