"""Export a model to GGUF, the file that llama.cpp and Ollama run: weights, tokenizer and chat template in one."""

from helpers.export.exporter import TYPES, ExportError, export_gguf
from helpers.export.running import Llama

__all__ = [
    "export_gguf",  # write a model as one GGUF file, with a Modelfile for Ollama beside it
    "TYPES",  # the formats that weights can be written in
    "ExportError",  # what cannot be exported, read, written or run
    "Llama",  # a GGUF file in llama.cpp: ask it
]
