"""The parts of a prediction (helpers.memory) in groups that a reader tells apart."""

from helpers.plots.figures import FROZEN, PASSING, TRAINED

BESIDES, HOST = "reserved, and the CUDA context", "in the computer's memory"
# Each group with its colour and its parts, in the order in which they are drawn. One group names no parts: it takes all others.
GROUPS = {
    "weights in 4 bits": (FROZEN, ("quantized weights", "quantization scales")),
    "weights in 16 or 32 bits": (
        "#7DB8DF", ("embeddings and head", "norms, biases, 16-bit weights", "float32 copies of what is not quantized")
    ),
    "adapters, gradients, optimizer": (
        TRAINED,
        ("adapters", "16-bit copies of the adapters", "gradients of weights", "optimizer states", "optimizer scratch"),
    ),
    "kept for backward": (PASSING, ("layer inputs kept by checkpointing", "activations kept for backward")),
    "one layer at work": (
        "#BFC5C9",
        ("one layer's activations", "a dequantized weight", "gradients of activations", "weights gathered from all GPUs"),
    ),
    "the loss": ("#5A6268", ("final norm and hidden states", "tile of logits")),
    "the rest": ("#DDE1E4", ()),
    BESIDES: ("#F6F7F7", ("reserved and context",)),
    HOST: ("white", ("averages on the host",)),
}  # fmt: skip


def grouped(parts: dict, groups: dict = GROUPS) -> dict:
    """The parts of a prediction by the names of `groups`, in their order; the sum stays what it is, and no group is empty."""
    of = {part: group for group, (_, named) in groups.items() for part in named}
    rest = next(group for group, (_, named) in groups.items() if not named)
    found = dict.fromkeys(groups, 0)
    for part, size in parts.items():
        found[of.get(part, rest)] += size
    return {group: size for group, size in found.items() if size}
