"""Files on disk: read headers and settings, find what is wrong with a folder, write whole or not at all."""

from helpers.files.folders import on_drive, output_folder, whereabouts
from helpers.files.reading import (
    WIDTHS,
    adapter_fault,
    changed_asset,
    config_fault,
    model_fault,
    read_object,
    safetensors_header,
    safetensors_shapes,
)
from helpers.files.writing import finish_replacing, replace_folder, write_whole

__all__ = [
    "read_object",  # a JSON file that holds an object
    "safetensors_header",  # where the tensors of a file begin, and its header
    "safetensors_shapes",  # the shape of each tensor in a file that is whole
    "WIDTHS",  # bytes a value, by safetensors' names
    "changed_asset",  # what is wrong with one of the course's own files
    "model_fault",  # what makes a model's folder unusable
    "adapter_fault",  # what makes an adapter's folder unusable
    "config_fault",  # whether a model brings code of its own, or weights in few bits
    "write_whole",  # write a file so that it is there whole or not at all
    "replace_folder",  # fill a folder that then takes another's place
    "finish_replacing",  # tidy up after a replacing that was killed
    "output_folder",  # the folder of a run, for output_dir
    "on_drive",  # whether a folder lies on the learner's Google Drive
    "whereabouts",  # where a run writes, in words
]
