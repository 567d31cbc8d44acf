"""The model card of a merged model: every number in it is one that a lesson recorded (lesson 05)."""

from pathlib import Path

from helpers import CourseError
from helpers.models.resolving import Model, bundled, recipe_for
from helpers.records import read_record

# Of lesson 03's parameters, what says how the adapter was trained. None of the others: some of them are paths.
RECIPE = ("quant_type", "double_quant", "max_steps", "batch_size", "gradient_accumulation", "max_length",
          "learning_rate", "optimizer", "lora_dropout", "seed")  # fmt: skip
HUB_LICENCES = {  # as the hub writes them; others are given in words
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
    "Llama 3.1 Community License": "llama3.1",
}
FREE = ("apache-2.0", "mit")  # what the other licence forbids is all that is forbidden


def hub_licence(of_base: str, of_data: str | None) -> dict[str, str]:
    """The licence in the head of a card, as arguments of ModelCardData. Both licences hold, so the narrower one stands there.

    {} where the base's is not known. Where each forbids something of its own, one word cannot say it: "other", with a name
    that has both ([the hub's rules](https://huggingface.co/docs/hub/model-cards), read 2026-11-26). Rows whose licence
    nobody knows are the owner's own to judge; `model_card` says that it is not known.
    """
    base, data = HUB_LICENCES.get(of_base), HUB_LICENCES.get(of_data or "")
    if base is None:
        return {}
    if data is None or data in FREE or data == base:
        return {"license": base}
    if base in FREE:
        return {"license": data}
    return {"license": "other", "license_name": f"{base}-and-{data}"}


def model_card(folder: Path):
    """A huggingface_hub.ModelCard from the records of lessons 05 and, where it trained the adapter, 03 in `folder`.

    Raises CourseError, one line, where lesson 05 has recorded nothing there yet.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    found, training = read_record(folder, "05_merging"), {}
    if not found.get("measured"):
        raise CourseError(f"no measurements in {folder.name}/05_merging.json: run lesson 05 up to its model card first")
    if found["trained_in_lesson_03"]:
        training = read_record(folder, "03_t4_training")
    base, data, scores = found["run"]["model"], found["run"]["data"], found["measured"]
    on_hub = "tatsu-lab/alpaca" if "tatsu-lab/alpaca" in data else None
    name = f"{base.removeprefix('the ').replace(' ', '-').split('/')[-1]}-qlora-merged"
    results = [
        EvalResult(
            "text-generation", on_hub or "held-out-instructions", data, metric, round(value, 4), dataset_split="heldout"
        )
        for metric, value in scores.get("merged", {}).items()
        if metric in ("exact_match", "loss")
    ]
    about = ModelCardData(
        base_model=base if "/" in base else None,
        **hub_licence(found["licence"] if found["licence_known"] else "", found.get("data_licence")),
        datasets=on_hub,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["qlora", "merged"],
        model_name=name,
        eval_results=results or None,
    )
    return ModelCard(f"---\n{about.to_yaml()}\n---\n\n# {name}\n\n{_text(found, training)}")


def _text(found: dict, training: dict) -> str:
    run, adapter, rows = found["run"], found["adapter"], found["measured"]["base"]["rows"]
    recipe = {"rank": adapter["r"], "lora_alpha": adapter["lora_alpha"]}
    recipe |= {"target_modules": ", ".join(sorted(adapter["target_modules"]))}
    recipe |= _recipe(training)
    kept = {"original": "the base as it was before quantization", "dequantized": "the dequantized 4-bit base"}
    read = "in 4 bits" if found["merged_read_in_4_bits"] else "from its files"
    labels = {"base": "the base in 4 bits, before training", "trained": "with the adapter beside it"}
    labels["merged"] = f"**this model**, read back {read}"
    scores = []
    for which, score in found["measured"].items():
        low, high = score["interval"]
        match = f"{score['exact_match']:.1%} | {low:.1%} to {high:.1%}"
        scores.append(f"| {labels[which]} | {score['loss']:.4f} | {match} |")
    # A model from a local folder, or one from the hub that is no preset: nobody told the lesson its licence.
    licence = found["licence"] if found["licence_known"] else "not known here, look it up before you publish"
    of_data = found.get("data_licence") or "not known here, look it up before you publish"
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    trained = f" Trained on {training['run']['machine']}." if training else " How it was trained was not recorded."
    limits, size = found.get("scored_with", {}), f"{found['merged_bytes'] / 1e6:,.1f} MB"
    cut = "".join(f"{name}: {value}. " for name, value in limits.items())
    return f"""A LoRA adapter, trained on {run["model"]} in 4 bits (QLoRA), merged into {kept[found["base_weights"]]}.

- **Base:** {run["model"]}, licence: {licence}. The base's licence holds for this model too.
- **Data:** {run["data"]}. Licence: {of_data}. What the data's licence says of models that are trained on them holds as well.
{_both(found)}- **Files:** {size} of weights in {found["dtype"]}. No PEFT and no bitsandbytes needed.

## Training

{chr(10).join(f"- {name}: {value}" for name, value in recipe.items())}

{trained.strip()}

## Measured

On {rows} held-out rows; loss in nats per completion token, exact match with its 95% interval (Wilson). {cut.strip()}

| | loss | exact match | interval |
|---|---|---|---|
{chr(10).join(scores)}

## Limits

Nothing but the above was measured. In 4 bits again it is another model: measure that one too.

Made with {versions}.
"""


def _both(found: dict) -> str:
    """A line of the card for two licences that differ, with its end; "" where they do not differ."""
    base, data = found["licence"] if found["licence_known"] else "", found.get("data_licence")
    named = hub_licence(base, data).get("license")
    if not named or not data or data == base:
        return ""
    which = "names the narrower one" if named != "other" else "says `other`, since no single word says both"
    return f"- **Two licences:** base and data have different ones, and both hold. The head of this card {which}.\n"


def _recipe(training: dict) -> dict:
    """Lesson 03's parameters, with what "auto" meant for its model; {} without a record."""
    if not training:
        return {}
    name, given = training["run"]["model"], training["run"]["parameters"]
    usual = recipe_for(bundled() if name == bundled().name else Model(name, name, "", 0))
    values = {key: given.get(key) for key in RECIPE}
    return {key: usual.get(key) if value == "auto" else value for key, value in values.items() if value is not None}
