"""The scripts of measurements/ as modules: they are no package, so tests load them by their file."""

import importlib.util
import sys

from helpers import COURSE_ROOT


def measuring_script(name: str):
    """A script of measurements/, executed anew; it finds the scripts beside it, as when it is run, and they find it."""
    folder = COURSE_ROOT / "measurements"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
