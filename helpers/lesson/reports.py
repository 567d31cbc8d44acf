"""Where the curves of a training go besides the notebook: TensorBoard, Trackio or Weights & Biases, in the run's folder."""

import importlib.util
import os
from pathlib import Path

from helpers.lesson.parameters import ParameterError

# Where each of them writes, by the environment variable that it reads. W&B needs an account besides, or WANDB_MODE=offline.
FOLDERS = {"tensorboard": "TENSORBOARD_LOGGING_DIR", "trackio": "TRACKIO_DIR", "wandb": "WANDB_DIR"}


def prepare_reports(report_to: str, folder: Path) -> None:
    """Have `report_to` write into `folder`/logs. Raises ParameterError, one line, if its package is not installed.

    A folder that somebody chose by the package's own variable is left as it is.
    """
    if report_to == "none":
        return
    if importlib.util.find_spec(report_to) is None:
        raise ParameterError(
            f'report_to = "{report_to}" needs the package {report_to}, which is not installed: pip install {report_to}, '
            'or leave it at "none"'
        )
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault(FOLDERS[report_to], str(logs.resolve()))
