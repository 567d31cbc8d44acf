"""A widget and a still picture of it, as two forms of one output."""

import base64
from typing import Any


def show_panel(panel, picture: bytes | None, text: str, alt: str, handle=None):
    """Display a widget with a still picture (PNG) of it, or put them in the place of `handle`'s; returns the handle.

    One output, two forms: a live front end shows the panel, and whatever cannot (a page on GitHub) the picture.
    `panel` or `picture` None leaves the other.
    """
    from IPython.display import DisplayHandle

    output: dict[str, Any] = {"text/plain": text}
    if picture is not None:
        output["image/png"] = base64.b64encode(picture).decode()
    if panel is not None:
        # What ipywidgets itself says of a panel; its method for it has another name before version 8, which Colab has.
        view = {"version_major": 2, "version_minor": 0, "model_id": panel.model_id}
        output["application/vnd.jupyter.widget-view+json"] = view
    shown: dict[str, Any] = {"raw": True, "metadata": {"image/png": {"alt": alt}}}
    if handle is None:
        handle = DisplayHandle()
        handle.display(output, **shown)
    else:
        handle.update(output, **shown)
    return handle
