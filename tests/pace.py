"""How long a piece of work takes, in units of this machine's own pace: bounds on seconds fail on a slow or busy one."""

import time


def _unit() -> None:
    """Plain Python of every day: calls, dictionaries, tuples and floats. 10 to 25 ms on cores of today."""
    held = {}
    for one in range(30_000):
        key = (one % 97, str(one % 13))
        held[key] = held.get(key, 0.0) + float(one) ** 0.5
    sorted(held.items(), key=lambda item: item[1])


def _seconds(work, clock) -> float:
    begun = clock()
    work()
    return clock() - begun


def paces(work, rounds: int = 5, clock=time.process_time) -> float:
    """The least time of `work` over the least time of the unit.

    Both are timed in turns, so that whatever slows this machine slows both; the least of several is what neither a
    neighbour on the same core nor a collection of garbage has added to. `clock` is the processor's time; pass
    `time.perf_counter` for work that waits or that runs in threads.
    """
    spent, units = [], []
    for _ in range(rounds):
        units.append(_seconds(_unit, clock))
        spent.append(_seconds(work, clock))
    return min(spent) / min(units)


def unit_seconds(rounds: int = 5) -> float:
    """What the unit takes here and now, in seconds on the clock: for work that is done once, in another process."""
    return min(_seconds(_unit, time.perf_counter) for _ in range(rounds))
