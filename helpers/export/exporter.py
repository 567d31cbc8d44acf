"""Write a model as one GGUF file, with a Modelfile for Ollama beside it, each whole or not at all."""

import contextlib
import glob
import os
import shutil
import tempfile
import time
from pathlib import Path

from helpers.data import ends_of_answers, with_template
from helpers.export.carried import Described, ExportError, describe
from helpers.export.conversation import begins_with, modelfile, take_apart
from helpers.export.vocabulary import Vocabulary, read_vocabulary
from helpers.export.weights import TYPES, plan_weights, write_weights
from helpers.files import config_fault, finish_replacing, read_object
from helpers.merging import MergeError, alone, check_sums, find_base, read_base


def export_gguf(
    model, out, type: str = "q8_0", *, template: str = "own", overwrite: bool = False, progress: bool = True
) -> dict:
    """Write `model` to the file `out`, and a Modelfile beside it; returns tensors, bytes, seconds, stops and notes.

    model: a folder with *.safetensors, a hub id, or "bundled". type: one of TYPES. template: "own" is the tokenizer's,
    "alpaca" the one that the lessons train with. Notes are lines on where llama.cpp will differ from transformers.
    `out` is complete or absent, whatever happens. Raises ExportError, one line, before anything is written where that
    can be known.
    """
    begun, out = time.perf_counter(), Path(out).expanduser()
    if type not in TYPES:
        raise ExportError(f"type = {type!r}: one of {', '.join(TYPES)}")
    if template not in ("own", "alpaca"):
        raise ExportError(f'template = {template!r}: "own" or "alpaca"')
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ExportError("the package gguf is not installed: pip install gguf") from error
    try:
        finish_replacing(out.parent, glob.escape(out.name))
        _check_out(out, overwrite)
        folder = _folder_of(model)
        tensors, stops, notes = _export(folder, out, type, template, progress)
    except ExportError:
        raise
    except MergeError as error:  # of a model's folder, in words that are true here too
        raise ExportError(str(error)) from error
    except OSError as error:
        raise ExportError(f"{out} was not written: {error.strerror or error}") from error
    seconds = time.perf_counter() - begun
    return {"tensors": tensors, "bytes": out.stat().st_size, "seconds": seconds, "stops": stops, "notes": notes}


def _export(folder: Path, out: Path, type: str, template: str, progress: bool) -> tuple[int, list[str], list[str]]:
    """Look at everything, then write; returns the number of tensors, the stop tokens and the notes."""
    import gguf

    _, stored = read_base(folder)
    config, wanted = _loadable(folder)
    described = describe(config, folder.name)
    if config.tie_word_embeddings:  # transformers does not read a stored head either, and llama.cpp does without
        stored, wanted = ({k: v for k, v in both.items() if k != "lm_head.weight"} for both in (stored, wanted))
    weights = plan_weights(wanted, stored, described, type)
    tokenizer = _tokenizer(folder)
    if template == "alpaca":
        with_template(tokenizer, "alpaca")
    vocabulary = read_vocabulary(tokenizer, config.vocab_size)
    words, stops = _describe_words(described, vocabulary, tokenizer, folder, out)
    check_sums(folder, {tensor.file for tensor in stored.values()})
    writer = gguf.GGUFWriter(None, described.architecture.name)
    for method, *arguments in described.calls:
        getattr(writer, method)(*arguments)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if type == "f32" else f"MOSTLY_{type.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    beside = out.with_suffix(".Modelfile")
    with alone(out):
        finish_replacing(out.parent, glob.escape(beside.name), at_once=True)
        needed, free = sum(weight.bytes for weight in weights), shutil.disk_usage(out.parent).free
        if free < needed * 1.01:
            raise ExportError(f"{out} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free")
        with _whole(out) as part, _whole(beside) as words_part:  # the Modelfile gets its name first
            write_weights(writer, weights, part, progress)
            words_part.write_text(words, encoding="utf-8")
    return len(weights), stops, described.notes + vocabulary.notes


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix != ".gguf":
        raise ExportError(f"{out}: the name of the file to write ends in .gguf")
    for file in (out, out.with_suffix(".Modelfile")):
        if file.exists() and not overwrite:
            raise ExportError(f"{file} is there already: name another file, or say overwrite")
    if out.exists() and not (out.is_file() and _begins(out) == b"GGUF"):
        raise ExportError(f"{out} is no GGUF file, and is not overwritten: name another")


def _begins(file: Path) -> bytes:
    with open(file, "rb") as opened:
        return opened.read(4)


def _folder_of(model) -> Path:
    """The folder of the model; ExportError for an adapter's, and for a model that brings code."""
    folder = Path(model).expanduser()
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ExportError(f"{folder} is an adapter: merge it first, python -m helpers merge BASE {folder} MERGED")
    folder = find_base(model)
    try:
        fault = config_fault(folder)
    except ValueError as error:
        raise ExportError(f"{folder}: {error}") from error
    if fault:
        raise ExportError(f"{folder}: {fault}")
    return folder


def _loadable(folder: Path) -> tuple:
    """(config, shape of each tensor) as transformers builds the model; ExportError where it does not."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):  # shapes without memory
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever transformers raises for a setting that it cannot use
        raise ExportError(f"{folder.name} cannot be loaded: {type(error).__name__}: {str(error)[:200]}") from error
    return config, {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}


def _tokenizer(folder: Path):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # whatever transformers or tokenizers raise for files that they cannot read
        raise ExportError(
            f"{folder.name} has no usable tokenizer: {type(error).__name__}: {str(error)[:200]}"
        ) from error


def _describe_words(
    described: Described, vocabulary: Vocabulary, tokenizer, folder: Path, out: Path
) -> tuple[str, list[str]]:
    """Add tokenizer and chat template to what is described; returns the Modelfile's text and the tokens that end an answer.

    With a chat template, what is added in front of a text is what stands in front of a chat.
    """
    bos = "" if vocabulary.bos is None else vocabulary.tokens[vocabulary.bos]
    spaced, go = vocabulary.prefix != "never", "{{ .Prompt }}"
    first, special = begins_with(tokenizer) if tokenizer.chat_template else (None, False)
    if tokenizer.chat_template:
        described.calls.append(("add_chat_template", tokenizer.get_chat_template()))
        if vocabulary.adds_bos and first != vocabulary.bos:
            vocabulary.adds_bos = False
            vocabulary.notes.append(
                f"chats do not begin with {bos}, so the file puts none in front of other texts either"
            )
        pieces = take_apart(tokenizer, bos if vocabulary.adds_bos else "")
        if pieces is None:
            vocabulary.notes.append(
                "the chat template has no equal in Ollama's language: its Modelfile passes texts as they are"
            )
        go = pieces.as_go() if pieces else go
    if vocabulary.prefix == "first":  # llama.cpp puts a space behind each special token too, or nowhere
        spaced = not special
        vocabulary.notes.append(
            "llama.cpp puts a space behind each special token too, and before one that begins a text"
            if spaced
            else "chats get their own tokens; a text that is no chat lacks the space that the tokenizer puts in front"
        )
    generation = folder / "generation_config.json"
    ends = ends_of_answers(tokenizer, read_object(generation) if generation.is_file() else {})
    described.calls += vocabulary.calls(spaced, ends[1:3])
    stops = [vocabulary.tokens[number] for number in ends]
    return modelfile(out.name, go, stops), stops


@contextlib.contextmanager
def _whole(file: Path):
    """Yield an empty file beside `file`. On success it gets that name, once it is on the disk; on error it is deleted."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".part", dir=file.parent)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb+") as written:
            os.fsync(written.fileno())
        os.chmod(name, 0o644)
        os.replace(name, file)
    finally:
        Path(name).unlink(missing_ok=True)
