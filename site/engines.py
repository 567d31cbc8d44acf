"""The pages of the API: an example, and what each engine's room lists, with the line that its list has for it."""

import importlib
import inspect
import re

from helpers import COURSE_ROOT

EXAMPLES = COURSE_ROOT / "site" / "examples"  # one for each engine, with what it prints at its end
ENGINES = ("memory", "merging", "data", "failures")


def engine(room: str) -> dict:
    """What the page of a room needs: its first sentence, its example, and (name, words, directive or "") of each public name."""
    module = importlib.import_module(f"helpers.{room}")
    text = (COURSE_ROOT / "helpers" / room / "__init__.py").read_text(encoding="utf-8")
    lines = re.findall(r'^ +"(\w+)",  # (.+)$', text, re.MULTILINE)
    about = (module.__doc__ or "").strip().partition("\n")[0]
    return {
        "room": room,
        "about": about,
        "example": (EXAMPLES / f"{room}.py").read_text(encoding="utf-8").strip(),
        "names": [(name, words, _kind(getattr(module, name))) for name, words in lines],
    }


def _kind(thing) -> str:
    """autodoc's word for a thing; "" for a constant, of which the list says enough."""
    if inspect.isclass(thing):
        return "exception" if issubclass(thing, Exception) else "class"
    return "function" if inspect.isroutine(thing) or callable(thing) else ""
