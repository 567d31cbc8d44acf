"""The largest tensor that some lines of code make: for exercises that ask to do without a large one."""

import contextlib
from types import SimpleNamespace


@contextlib.contextmanager
def largest_made():
    """Yield an object whose `numel` is the number of elements of the largest tensor that torch makes meanwhile."""
    from torch.utils._python_dispatch import TorchDispatchMode

    made = SimpleNamespace(numel=0)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for one in out if isinstance(out, tuple | list) else (out,):
                made.numel = max(made.numel, getattr(one, "numel", int)())
            return out

    with Watch():
        yield made
