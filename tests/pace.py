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
    """How many units `work` takes: in each round the unit is repeated for as long as the work took, and the least round counts.

    So both are in the same weather: the shortest of several short looks finds a quiet moment, which a long work has no
    chance of. `clock` is the processor's time; pass `time.perf_counter` for work that waits or that runs in threads.
    """

    def round_of_both():
        spent = _seconds(work, clock)
        units, done = 0.0, 0
        while not done or units < spent:
            units, done = units + _seconds(_unit, clock), done + 1
        return spent * done / units

    return min(round_of_both() for _ in range(rounds))


def unit_seconds(rounds: int = 5) -> float:
    """What the unit takes here and now, in seconds on the clock: for work that is done once, in another process."""
    return min(_seconds(_unit, time.perf_counter) for _ in range(rounds))
