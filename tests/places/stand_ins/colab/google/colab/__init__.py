"""A stand-in for Colab's own package: like it, it loads ipywidgets when the kernel starts."""

import ipywidgets  # noqa: F401
from google.colab import drive  # noqa: F401
