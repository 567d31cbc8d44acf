"""The scripts of measurements/ and site/ as modules: they are no packages, so tests load them by their files."""

import importlib.util
import sys

from helpers import COURSE_ROOT


def measuring_script(name: str):
    """A script of measurements/, executed anew; it finds the scripts beside it, as when it is run, and they find it."""
    folder = COURSE_ROOT / "measurements"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    return script(f"measurements/{name}.py", name)


def script(path: str, name: str):
    """A script of the course by its path, executed anew under a name by which others can import it."""
    spec = importlib.util.spec_from_file_location(name, COURSE_ROOT / path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
