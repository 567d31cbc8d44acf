"""What a token costs: seconds of reading a prompt, and of making one token after another."""

import time


def decode_times(model, sizes, turns: int = 5, new_tokens: int = 6) -> dict:
    """For each size (rows, tokens in a prompt): the shortest seconds to the first new token, and of each later one.

    Prompts are random tokens of equal lengths. Whatever else a computer does can only add to a time, so the shortest of
    many is the closest to what the work takes; the sizes take turns, so that a busy moment does not hit one of them alone.
    """
    import torch

    best = {size: (float("inf"), float("inf")) for size in sizes}
    random = torch.Generator().manual_seed(0)
    ids = {size: torch.randint(3, model.config.vocab_size, size, generator=random) for size in sizes}
    for size in list(sizes) * turns:
        first, later = _once(model, ids[size].to(model.device), new_tokens)
        best[size] = min(best[size][0], first), min(best[size][1], *later)
    return best


def _once(model, ids, new_tokens: int) -> tuple[float, list[float]]:
    """Seconds to the first new token, and of each later one."""
    import torch

    def now() -> float:
        if ids.is_cuda:  # a GPU works on after Python has gone on
            torch.cuda.synchronize()
        return time.perf_counter()

    with torch.no_grad():
        clock = [now()]
        out = model(ids, use_cache=True, logits_to_keep=1)
        clock.append(now())
        for _ in range(new_tokens - 1):
            out = model(out.logits[:, -1:].argmax(-1), cache=out.cache, use_cache=True)
            clock.append(now())
    seconds = [end - begin for begin, end in zip(clock, clock[1:], strict=False)]
    return seconds[0], seconds[1:]
