"""Memory over one training step, block by block, as `predict` plays it."""

from helpers.memory.allocator import PAGE, Allocator
from helpers.memory.loading import prepared, until_training
from helpers.memory.replay import train
from helpers.memory.runs import GPUS, on_gpu, spec_of
from helpers.memory.shapes import shape_of


class _Watched(Allocator):
    """An allocator that notes how much is allocated after each block that comes or goes."""

    def __init__(self):
        super().__init__()
        self.points = []

    def _take(self, need: int, label: str, asked: int) -> tuple:
        block = super()._take(need, label, asked)
        self.points.append((self.moment, self.allocated))
        return block

    def _give(self, block: tuple) -> None:
        super()._give(block)
        self.points.append((self.moment, self.allocated))


def step_over_time(config, spec, gpu: str = "h200") -> list[tuple[int, str, int]]:
    """(how many blocks came or went before, phase, bytes allocated) through the second step that `predict` plays.

    The phases are "forward", "loss", "backward" and "step", the optimizer's. `config`, `spec`, `gpu` and errors are `predict`'s.
    There is no time in a prediction of memory: the first number only gives the order.
    """
    shape, spec = shape_of(config), on_gpu(gpu, spec_of(spec))
    loaded, _ = prepared(shape, until_training(spec))
    heap = _Watched()
    vars(heap).update(vars(loaded.copy()))
    train(heap, shape, spec, GPUS[gpu].workspace_bytes)
    phases = [(_phase(moment), size) for moment, size in heap.points]
    first = next(i for i, (phase, _) in enumerate(phases) if phase == "step")
    second = next(i for i in range(first, len(phases)) if phases[i][0] != "step")
    return [(i, phase, PAGE * size) for i, (phase, size) in enumerate(phases[second:])]


def _phase(moment: str) -> str:
    return "step" if moment == "optimizer step" else moment.split()[0].rstrip(",")
