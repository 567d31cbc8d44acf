"""The scripts of measurements/ as modules: they are no package, so tests load them by their file."""

import importlib.util
import sys

from helpers import COURSE_ROOT


def measuring_script(name: str):
    """A script of measurements/, executed anew; by its name the scripts beside it can import it."""
    spec = importlib.util.spec_from_file_location(name, COURSE_ROOT / "measurements" / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
