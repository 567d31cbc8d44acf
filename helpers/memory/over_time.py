"""Memory over one training step, block by block, as `predict` plays it."""

from helpers.memory.allocator import Allocator
from helpers.memory.loading import prepared
from helpers.memory.replay import train
from helpers.memory.runs import on_gpu, spec_of
from helpers.memory.shapes import shape_of
from helpers.memory.sizes import PAGE


class _Watched(Allocator):
    """An allocator that notes how much is allocated after each block that comes or goes."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[str, int]] = []

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
    heap = prepared(shape, spec)[0].copy(_Watched)
    train(heap, shape, spec, gpu)
    phases = ["step" if moment == "optimizer step" else moment.split()[0].rstrip(",") for moment, _ in heap.points]
    first = phases.index("step")
    second = next(i for i in range(first, len(phases)) if phases[i] != "step")
    return [(i, phases[second + i], PAGE * size) for i, (_, size) in enumerate(heap.points[second:])]
