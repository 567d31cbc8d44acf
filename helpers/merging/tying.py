"""Embedding and head: whether they are one tensor, whether an adapter parts them, and how many tokens they have."""

import dataclasses

from helpers.merging.arithmetic import same_bits
from helpers.merging.names import Built
from helpers.merging.stored import MergeError, Stored


def untie(
    of: Built, settings: dict, plan: dict[str, dict], stored: dict[str, Stored]
) -> tuple[dict[str, Stored], bool]:
    """(tensors to write that the base has under another name, whether all ties hold); changes `plan` where both are one.

    PEFT keeps a tie where it trained rows, was told ensure_weight_tying, or only saved both beside the adapter.
    """
    pairs, tied = of.ties(), True
    for pair in pairs:
        here, touched = [key for key in pair if key in stored], [key for key in pair if key in plan]
        if not here:
            raise MergeError(f"the base has neither {pair[0]} nor {pair[1]}: it is not whole")
        if len(here) == 2 and not same_bits(*(stored[key] for key in here)):
            tied = False  # as transformers loads them
        elif touched and _one(settings, plan, touched, pair):
            updates = [plan.pop(key) for key in touched]  # two say the same: the embedding's is the last
            plan |= dict.fromkeys(pair, updates[-1])
        elif touched:
            tied = False
    lone = {key: other for one, two in pairs for key, other in ((one, two), (two, one)) if key not in stored}
    if tied:
        for key in lone:
            plan.pop(key, None)
        return {}, True
    return {key: stored[other] for key, other in lone.items() if other in stored}, False  # the config unties them all


def _one(settings: dict, plan: dict[str, dict], touched: list[str], pair: tuple[str, str]) -> bool:
    """Whether embedding and head stay one tensor; MergeError for LoRA on one of them, which would change both."""
    updates = [plan[key] for key in touched]
    if settings.get("ensure_weight_tying"):
        return True
    if len(updates) == 2 and not any("A" in update for update in updates):
        return all(_equal(updates[0].get(part), updates[1].get(part)) for part in ("instead", "rows", "indices"))
    if "A" in updates[0] or "A" in updates[-1]:
        other = "embedding" if touched[0] == pair[0] else "head"
        raise MergeError(
            f"{touched[0]} is adapted, which this base ties to its {other}: a merge would change both; untie it first"
        )
    return "rows" in updates[0]


def _equal(one, two) -> bool:
    return same_bits(one, two) if isinstance(one, Stored) and isinstance(two, Stored) else one == two


def vocabulary(of: Built, plan: dict[str, dict], stored: dict[str, Stored], wrong: str) -> int | None:
    """How many tokens the merged model has, if not as many as the base; MergeError where its parts do not agree.

    What changes its length has its new shape in `stored` afterwards.
    """
    sizes = {}
    for key in sorted(of.of_vocabulary() & stored.keys()):
        new = plan.get(key, {}).get("instead", stored[key])
        sizes[key] = (stored[key].shape[0], new.shape[0])
        stored[key] = dataclasses.replace(stored[key], shape=new.shape)
    if all(old == new for old, new in sizes.values()):
        return None
    new = {size for _, size in sizes.values()}
    if len(new) > 1:
        grown = next(key for key, (old, now) in sizes.items() if old != now)
        kept = next(key for key, (old, now) in sizes.items() if now != sizes[grown][1])
        old, now = sizes[grown]
        raise MergeError(
            f"{grown} is {(old, *stored[grown].shape[1:])} in the base and {stored[grown].shape} in the adapter, and {kept} "
            f"stays at {sizes[kept][1]} rows: if the vocabulary was resized before training, resize the base too "
            f"(resize_token_embeddings({now})), save it, and merge into that; otherwise {wrong}"
        )
    return new.pop()
