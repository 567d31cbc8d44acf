"""What of a model lies on each of several GPUs, where its layers are divided among them."""

from dataclasses import dataclass

from helpers.memory.shapes import CannotPredict, Shape, is_count


@dataclass(frozen=True)
class Share:
    """Layers `begin` to `end`, the last not counted, of a model of `of` layers.

    The embedding lies with the first layers; the final norm and the head with the last, but for a tied head, which is the
    embedding's table.
    """

    begin: int
    end: int
    of: int

    @property
    def layers(self) -> int:
        return self.end - self.begin

    @property
    def embedding(self) -> bool:
        return self.begin == 0

    @property
    def norm(self) -> bool:
        return self.end == self.of


def whole(shape: Shape) -> Share:
    """The share of one GPU that has all of the model."""
    return Share(0, shape.layers, shape.layers)


def shares_of(shape: Shape, layers: tuple[int, ...]) -> tuple[Share, ...]:
    """The shares of GPUs that have so many layers each. Raises CannotPredict where they are not the model's."""
    if not layers or not all(is_count(number) for number in layers) or sum(layers) != shape.layers:
        raise CannotPredict(f"layers is {layers!r}; the model has {shape.layers}, and each GPU needs at least one")
    ends = [sum(layers[: i + 1]) for i in range(len(layers))]
    return tuple(Share(end - number, end, shape.layers) for number, end in zip(layers, ends, strict=True))
