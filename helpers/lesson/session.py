"""What a run found: begun once, recorded as it goes, kept as one JSON a lesson; verdicts; and where files outlive a machine."""

import datetime
import functools
import json
import math
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from helpers import COURSE_ROOT, CourseError, course, data, machine, models, records, saving
from helpers.files import finish_replacing, on_drive, output_folder, whereabouts, write_whole
from helpers.lesson import parameters
from helpers.lesson.own_table import look_at_table
from helpers.lesson.publishing import to_settle
from helpers.lesson.reports import prepare_reports
from helpers.lesson.tables import table
from helpers.packages import recorded_versions

NOT_SO = "NOT SO in this run: "  # begins an untrue verdict, as it is shown
OF_SCORES = {"eval_rows", "max_new_tokens"}  # say how a model is scored, and change nothing of what is trained


@dataclass
class Run:
    """One run of one lesson: where it writes, on what, and what it has recorded so far."""

    lesson: str
    folder: Path
    parameters: dict
    machine: Any = None
    model: Any = None
    settings: SimpleNamespace | None = None  # the parameters, with "auto" replaced by the recipe for the model
    rows: Any = None  # a DatasetDict, where the lesson asks for one
    data_name: str = ""
    data_digest: str = ""  # of rows of the learner's own
    csv_form: dict = field(default_factory=lambda: {"encoding": "utf-8-sig", "sep": ","})  # of data_file, for pandas
    found: dict = field(default_factory=dict)  # what the lesson has recorded
    verdicts: list = field(default_factory=list)

    @functools.cached_property
    def about(self) -> dict:
        """What a record says of the run itself, as far as it does not change while the run goes on."""
        source = COURSE_ROOT / "lessons" / f"{self.lesson}.py"
        return {
            "lesson": self.lesson,
            "parameters": self.parameters,
            "machine": str(self.machine),
            "model": getattr(self.model, "name", None),
            "data": self.data_name,
            "python": sys.version.split()[0],
            "date": datetime.date.today().isoformat(),
            "gpus": len(machine.gpus_of_driver()),  # how many the machine has; a lesson uses one
            "versions": recorded_versions(),
            "source_sha256": course.source_hash(source) if source.is_file() else None,  # of which lesson this is
        }

    @property
    def adapter(self) -> Path:
        """Where lesson 03 leaves the adapter, and 04 and 05 look for it."""
        return self.folder / "adapter"

    @property
    def identity(self) -> dict:
        """What makes this run this run: settings, model and data. Another one gets other checkpoints, another adapter."""
        own = {"rows": self.data_digest} if self.data_digest else {}
        own |= {"template": self.template_text} if self.template_text else {}
        trained = {name: value for name, value in vars(self.settings).items() if name not in OF_SCORES}
        return trained | self.model.identity | {"data": self.data_name} | own

    @functools.cached_property
    def template_text(self) -> str:
        """The text of the learner's own template as it was when this was first asked; "" where there is none."""
        return data.read_template(getattr(self.settings, "template", "auto"))

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints of just this run belong."""
        return saving.checkpoint_folder(self.folder, **self.identity)

    def last_checkpoint(self) -> str | None:
        """The newest whole checkpoint of this run, for `train(resume_from_checkpoint=...)`; None if there is none."""
        found = saving.last_complete_checkpoint(self.checkpoints)
        return str(found) if found else None

    def new_adapter(self):
        """A context that yields a folder to save into; it becomes `adapter` once all of it is whole and on the disk."""
        return saving.adapter_folder(self.adapter, made_by=f"lesson {self.lesson[:2]}", **self.identity)

    def forget_checkpoints(self) -> None:
        """Delete this run's checkpoints, once the adapter is saved."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)

    def measured_before(self) -> dict:
        """What this lesson recorded on a GPU last, with the name of the GPU and the date (measurements/*_lessons.jsonl)."""
        rows = [row for row in records.measured_lessons() if row["lesson"] == self.lesson and "bundled" in row["model"]]
        newest = max(rows, key=lambda row: row["date"])
        return newest["recorded"] | {name: newest[name] for name in ("device", "machine", "model", "date")}

    def measurements(self, name: str) -> list[dict]:
        """The rows of measurements/<name>.jsonl, in their order; [] where nobody has measured it yet."""
        file = records.MEASUREMENTS / f"{name}.jsonl"
        return records.read_rows(file) if file.is_file() else []

    def held_out(self):
        """The held-out rows that this run scores: settings.eval_rows of them, or all there are."""
        rows = self.rows["heldout"]
        return rows.select(range(min(self.settings.eval_rows, len(rows))))

    @staticmethod
    def prompts(tokenizer, rows) -> list[str]:
        """What each of `rows` (instruction, input, output) asks, as text in the tokenizer's template."""
        from helpers.evaluation import prompt_texts  # late: it imports torch

        return prompt_texts(tokenizer, rows)

    def training_of(self, adapter: Path) -> dict:
        """What lesson 03 recorded of training this adapter; {} where it did not train it, or recorded nothing."""
        made_by = saving.about_adapter(adapter).get("made_by", "lesson 03")
        return (
            records.read_record(self.folder, "03_t4_training")
            if (adapter, made_by) == (self.adapter, "lesson 03")
            else {}
        )

    def usual(self, adapter: Path) -> bool:
        """Whether claims on numbers can be made: the bundled model and rows, an adapter made by the recipe, 32 rows."""
        settings: Any = self.settings
        given = self.training_of(adapter).get("run", {}).get("parameters", {})
        by_recipe = all(given.get(name, "auto") == "auto" for name in ("max_steps", "epochs", "learning_rate", "rank"))
        own = settings.adapter_dir != "auto" or settings.dataset_id not in ("auto", "bundled")
        return self.model.bundled and by_recipe and not own and settings.eval_rows >= 32

    @property
    def licences(self) -> dict:
        """Of the base and of the rows, for a record: licence, licence_known, data_licence (None where it is not known)."""
        known = self.model.bundled or self.model.download_bytes > 0  # of a preset; nobody told us that of other models
        return {
            "licence": self.model.licence,
            "licence_known": known,
            "data_licence": data.licence_of_rows(self.data_name),
        }

    def before_publishing(self) -> dict[str, str]:
        """What to settle before others may see a model of this run, as rows for `table`."""
        return to_settle(self.licences, self.merged, bool(self.data_digest))

    def watch(self):
        """A MemoryMonitor that has begun to watch this process's memory, or the GPU's."""
        return machine.MemoryMonitor().start()

    def plan_training(self, lengths=None):
        """The run's TrainingPlan (helpers.training). On a GPU it sets how a step is split: settings.batch_size and its kin.

        `lengths`: the tokens of each row that will be trained, so that the longest batch is known.
        """
        from helpers import training  # late: it imports torch

        settings = self.settings
        found = training.plan_training(
            self.model, self.machine, settings, self.parameters, settings.plain, lengths=lengths
        )
        if found.own and found.chosen:
            self.settings.batch_size = found.rows_at_once
            self.settings.gradient_accumulation = found.gradient_accumulation
            self.settings.checkpointing = (
                "offload" if found.spec.checkpoint_offload else found.spec.checkpoint_every > 0
            )
        return found

    def cures(self, plan):
        """What the course adds to the libraries' own calls in this run (helpers.training.Cures)."""
        from helpers import training  # late: it imports torch

        settings = self.settings
        graphs, length, targets = settings.cuda_graphs, settings.max_length, settings.target_modules
        return training.Cures(plan, self.machine, self.model.name, graphs, length, targets)

    def templated(self, tokenizer, adapter: Path | None = None):
        """The tokenizer with the run's template: what the parameter `template` says, "auto" where a lesson has none.

        With `adapter`, the folder of one, it is the template that this adapter was trained with.
        """
        return data.with_template(tokenizer, getattr(self.settings, "template", "auto"), adapter)

    def forget_side_runs(self) -> None:
        """Delete the folders of helpers.quick's side runs: they are for a look, and hold nothing that is used later."""
        from helpers import quick  # late: it imports torch

        quick.forget_side_runs(self)

    def beside_the_recipe(self) -> list[tuple]:
        """Rows for `table`: a parameter of training, its value in this run, and what "auto" means for a 7B model."""
        large = models.RECIPES["other"] | models.RECIPES.get(models.AUTO_LARGE, {})
        return [(name, str(getattr(self.settings, name)), str(value)) for name, value in large.items()]

    @property
    def bulky(self) -> Path:
        """Where gigabytes go that are not to be kept: `folder`, but this machine's disk when `folder` is on Drive."""
        return output_folder("auto") if on_drive(self.folder) else self.folder

    @property
    def merged(self) -> Path:
        """Where a merged model goes: settings.merged_dir, or beside the rest, but never on Drive unless that is named."""
        settings: Any = self.settings
        named = settings.merged_dir
        return (self.bulky if named == "auto" else output_folder(named, "merged_dir")) / "merged"

    def save(self) -> Path:
        """Write what was found so far to <folder>/<lesson>.json; returns that file."""
        file, about = self.folder / f"{self.lesson}.json", self.about | {"peak_resident_bytes": machine.peak_resident()}
        write_whole(file, json.dumps(self.found | {"verdicts": self.verdicts, "run": about}, indent=1) + "\n")
        return file


_current: Run | None = None


def begin(
    lesson: str, *, large_model: bool = False, chat_model: bool = False, with_data: bool = False, **values
) -> Run:
    """Check the parameters, look at the machine, find model and data, and show all in one short table.

    Raises a one-line CourseError for a bad value, before anything heavy is imported, or for what cannot be found.
    """
    global _current
    parameters.validate(values)
    run = Run(lesson, output_folder(values.get("output_dir", "auto")), values)
    prepare_reports(values.get("report_to", "none"), run.folder)
    finish_replacing(run.folder)

    # What was named is looked at first: the next line imports torch, which takes seconds.
    named = values.get("model_id", "auto") != "auto"
    run.model = models.resolve_model(values["model_id"], None) if named else None
    if values.get("adapter_dir", "auto") != "auto":
        models.base_of(Path(values["adapter_dir"]).expanduser())
    if "dataset_id" in values:
        data.look_at(values["dataset_id"], **_how_to_read(values), output=run.folder)
    if values.get("data_file", "auto") != "auto":
        run.csv_form, run.data_name = look_at_table(values["data_file"], values.get("encoding", "auto"))
    run.machine = machine.detect()
    shown = {"machine": str(run.machine)} | ({"GPUs": several} if (several := machine.choose_one_gpu()) else {})
    if "model_id" in values:
        any_model = not (large_model or chat_model)
        left = run.adapter if any_model and (run.adapter / "adapter_config.json").is_file() else None
        if values.get("adapter_dir", "auto") != "auto":
            left = Path(values["adapter_dir"]).expanduser()
        run.model = run.model or models.resolve_model("auto", run.machine, large_model, left, chat_model)
        if run.model.local:
            models.rehearse(run.model)
        shown |= _goes_along(values.get("hub_repo", "none"))
        saving.require_hub_base(values.get("hub_repo", "none"), run.model)
        shown["model"] = str(run.model)
    recipe = models.recipe_for(run.model) | {"max_new_tokens": _answer_tokens(run.model)}
    chosen = {name: recipe[name] for name, value in values.items() if name in recipe and value == "auto"}
    run.settings = SimpleNamespace(**values | chosen)
    if chosen:
        shown["chosen for it"] = ", ".join(f"{name} {value}" for name, value in chosen.items())
    if run.data_name:
        shown["data"] = run.data_name
    if with_data:
        shown |= _load_rows(run, values)
        shown |= _steps_of_epochs(run, values.get("epochs", "auto"))
    if "adapter_dir" in values:
        from helpers import quick  # late: it imports torch

        shown["adapter"] = quick.which_adapter(run)
    shown["writes to"] = whereabouts(run.folder, values.get("output_dir", "auto"))
    _current = run
    quiet_libraries()
    from IPython.display import display

    from helpers import training  # late: it imports torch

    training.right_dequantization()

    display(table(shown, columns=("", "this run")))
    return run


def _answer_tokens(model) -> int:
    """What "auto" means for max_new_tokens: the bundled model answers in a few words."""
    return 16 if model is None or model.bundled else 128


def _goes_along(hub_repo: str) -> dict:
    """What the table at the start says of a push: all that goes along with each checkpoint."""
    pushed = "adapter, tokenizer, the optimizer's state, losses and settings of each checkpoint, and none of your rows"
    return {} if hub_repo == "none" else {"goes to the hub": f"{hub_repo}, a private repository: {pushed}"}


def _how_to_read(values: dict) -> dict:
    """What the parameters say of rows of one's own."""
    return {name: values[name] for name in ("columns", "encoding", "split", "revision") if name in values}


def _load_rows(run: Run, values: dict) -> dict:
    """Give the run its rows; what the table at the start says of them: their number, and what was understood of one's own."""
    wanted, seed = values.get("dataset_id", "auto"), values.get("seed", 0)
    if wanted == "auto" and run.model is not None and run.model.bundled:
        wanted = "bundled"
    run.rows, run.data_name, understood = data.load_instructions(wanted, run.machine, seed, **_how_to_read(values))
    shown = {"data": run.data_name}
    if understood is None:
        return shown
    run.data_digest = understood.digest
    for what, words in understood.lines():
        shown[what] = f"{shown[what]}; {words}" if what in shown else words
    return shown


def _steps_of_epochs(run: Run, epochs) -> dict:
    """Set max_steps so that each row is seen `epochs` times; what the table at the start says of it."""
    if epochs == "auto":
        return {}
    settings: Any = run.settings
    settings.max_steps = math.ceil(
        epochs * len(run.rows["train"]) / (settings.batch_size * settings.gradient_accumulation)
    )
    return {"steps": f"{settings.max_steps}, for {epochs} epochs"}


def quiet_libraries() -> None:
    """No progress bars for work that takes a second, and no warning that is about a library's own code."""
    import warnings

    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    # transformers says this of what it calls itself, whenever a quantized model trains. Nobody else can do anything about it.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)


def record(**values) -> None:
    """Add what the lesson found to <run folder>/<lesson>.json: numbers, text, lists and dictionaries of them."""
    run = _begun()
    json.dumps(values)  # a TypeError here is the caller's line, before the file is touched
    run.found |= values
    run.save()


def verdict(claim: str, holds: bool, look_at: str = "") -> None:
    """State what the reader should now believe, and keep it for the report.

    An untrue claim is shown in red, with what to `look_at`, and the run goes on: a lesson must not take from a learner
    what she has made so far. With COURSE_STRICT=1 in the environment, as in tests, it raises AssertionError instead.
    """
    run = _begun()
    run.verdicts.append({"claim": claim, "holds": bool(holds)})
    run.save()
    if holds:
        print(f"OK: {claim}")
    elif os.environ.get("COURSE_STRICT") == "1":
        raise AssertionError(f"not so in this run: {claim}")
    else:
        _show_untrue(claim, look_at or _changed(run))


def _show_untrue(claim: str, look_at: str) -> None:
    from html import escape

    from IPython.display import display

    box = "border-left:4px solid #d93025;padding:4px 10px;margin:4px 0"
    red = f'<b style="color:#d93025">{NOT_SO}</b>{escape(claim)}<br>{escape(look_at)}'
    bundle = {"text/plain": f"{NOT_SO}{claim}\n{look_at}", "text/html": f'<div style="{box}">{red}</div>'}
    display(bundle, raw=True)


def _changed(run: Run) -> str:
    """What to look at when a verdict is untrue: the parameters of this run that are not the lesson's own."""
    usual = course.lesson_parameters(course.LESSONS / f"{run.lesson}.py")
    changed = [f"{name} = {value!r}" for name, value in run.parameters.items() if usual.get(name, value) != value]
    if changed:
        return f"Look at the numbers above, and at what this run changes: {', '.join(changed)}. The lesson goes on."
    return "Look at the numbers above: with the lesson's own parameters this should hold. The lesson goes on."


def _begun() -> Run:
    if _current is None:
        raise CourseError("no run was begun: run the notebook's third code cell first")
    return _current
