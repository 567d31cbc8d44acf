"""Measured runs, and predictions beside them."""

from helpers.memory.across import predict
from helpers.memory.runs import GPUS


def gpu_of(device: str) -> str:
    """The key in GPUS of a device's name, as torch reports it."""
    words = device.lower().replace("tesla", "").replace("nvidia", "").replace("-", " ").split()
    for word in words:
        if word in GPUS:
            return word
    return "h200" if "hopper" in words else "a100"


def score(rows) -> list[dict]:
    """Predictions beside measurements, for rows without an error: bytes and relative errors, a dictionary a row.

    Keys: model, role, spec, moment, notes, and for each of after_load, before_training, peak_allocated and peak_reserved a
    triple (predicted, measured, predicted / measured - 1).
    """
    table = []
    for row in rows:
        if row["error"] is not None:
            continue
        predicted = predict(row["config"], row["spec"], gpu_of(row["device"]))
        scored = {"model": row["model"], "role": row.get("role"), "spec": row["spec"]}
        scored |= {"moment": predicted.moment, "notes": predicted.notes}
        for key in ("after_load", "before_training", "peak_allocated", "peak_reserved"):
            guess, truth = getattr(predicted, key), row["measured"][key]
            scored[key] = (guess, truth, guess / truth - 1)
        table.append(scored)
    return table
