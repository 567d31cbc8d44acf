"""What a training leaves: an adapter that is whole, and checkpoints to go on from."""

from helpers.saving.adapters import (
    CheckpointError,
    about_adapter,
    adapter_folder,
    checkpoint_fault,
    checkpoint_folder,
    last_complete_checkpoint,
    require_hub_base,
    require_login,
)

__all__ = [
    "adapter_folder",  # save an adapter; another run's is kept
    "about_adapter",  # which run made an adapter
    "CheckpointError",  # checkpoints that cannot go where they were meant to
    "checkpoint_fault",  # what makes a checkpoint unusable
    "last_complete_checkpoint",  # the newest checkpoint that is whole
    "checkpoint_folder",  # where the checkpoints of just this run belong
    "require_hub_base",  # checkpoints on the hub need a base from the hub
    "require_login",  # checkpoints on the hub need a login
]
