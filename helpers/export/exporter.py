"""Write a model as one GGUF file, with a Modelfile for Ollama beside it, each whole or not at all."""

import contextlib
import glob
import os
import shutil
import tempfile
import time
from pathlib import Path

from helpers import CourseError
from helpers.data import ends_of_answers, with_template
from helpers.export.beyond import HANDED_ON, OTHER, fields_read, roles_read
from helpers.export.carried import Described, ExportError, describe
from helpers.export.conversation import begins_with, modelfile, otherwise, spaces_wanted, take_apart, writes_date
from helpers.export.ends import ends_in_llama_cpp, read_generation, settings_left_out
from helpers.export.handed import for_llama_cpp
from helpers.export.vocabulary import Vocabulary, read_vocabulary
from helpers.export.weights import TYPES, plan_weights, write_weights
from helpers.files import config_fault, finish_replacing
from helpers.merging import Stored, alone, check_sums, find_base, read_base, same_bits


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
        tensors, stops, notes = _export(folder, out, type, template, overwrite, progress)
    except ExportError:
        raise
    except CourseError as error:  # of a model's folder or its template, in words that are true here too
        raise ExportError(str(error)) from error
    except OSError as error:
        raise ExportError(f"{out} was not written: {error.strerror or error}") from error
    seconds = time.perf_counter() - begun
    return {"tensors": tensors, "bytes": out.stat().st_size, "seconds": seconds, "stops": stops, "notes": notes}


def _export(
    folder: Path, out: Path, type: str, template: str, overwrite: bool, progress: bool
) -> tuple[int, list[str], list[str]]:
    """Look at everything, then write; returns the number of tensors, the stop tokens and the notes."""
    import gguf

    _, stored = read_base(folder)
    config, wanted = _loadable(folder)
    described = describe(config, folder.name)
    if config.tie_word_embeddings:
        stored, wanted = _tied(stored, wanted)
    weights = plan_weights(wanted, stored, described, type)
    tokenizer = _tokenizer(folder)
    if template == "alpaca":
        with_template(tokenizer, "alpaca")
    vocabulary = read_vocabulary(tokenizer, config.vocab_size)
    generation = read_generation(folder, config)
    ends = ends_of_answers(tokenizer, generation)
    words = _describe_words(described, vocabulary, tokenizer, ends, out)
    vocabulary.notes += settings_left_out(generation)
    check_sums(folder, {tensor.file for tensor in stored.values()})
    writer = gguf.GGUFWriter(None, described.architecture.name)
    for method, *arguments in described.calls:
        getattr(writer, method)(*arguments)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if type == "f32" else f"MOSTLY_{type.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    beside = out.with_suffix(".Modelfile")
    with alone(out):
        _check_out(out, overwrite)  # another export may have ended since
        finish_replacing(out.parent, glob.escape(beside.name), at_once=True)
        needed, free = sum(weight.bytes for weight in weights), shutil.disk_usage(out.parent).free
        if free < needed * 1.01:
            raise ExportError(f"{out} needs {needed / 1e9:.2f} GB and its disk has {free / 1e9:.2f} GB free")
        with _part_of(out) as part, _part_of(beside) as words_part:
            write_weights(writer, weights, part, progress, vocabulary.notes)
            words_part.write_text(words, encoding="utf-8", newline="\n")
            for file in (part, words_part):
                _finish(file)
            _check_out(out, overwrite)  # writing took its time, and somebody may have put a file there
            try:
                os.replace(part, out)
            finally:  # an interrupt between the two leaves both files, and never a Modelfile alone
                if not part.exists():
                    os.replace(words_part, beside)
    return len(weights), [vocabulary.tokens[number] for number in ends], described.notes + vocabulary.notes


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix != ".gguf":
        raise ExportError(f"{out}: the name of the file to write ends in .gguf")
    if not out.name.isprintable():
        raise ExportError(f"{out.name!r} has a sign in it that a Modelfile cannot hold: choose another name")
    for file in (out, out.with_suffix(".Modelfile")):
        if file.is_symlink():
            raise ExportError(
                f"{file} is a link, and is not replaced by a file: name the file that it leads to, or another"
            )
        if file.exists() and not overwrite:
            raise ExportError(f"{file} is there already: name another file, or say overwrite")
        if file.exists() and not file.is_file():
            raise ExportError(f"{file} is no file, and is not overwritten: name another")
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
    folder = Path(os.path.abspath(find_base(model)))  # so that it has a name, which "." has not
    if (folder / "adapter_config.json").is_file():
        raise ExportError(
            f"{folder} holds a whole model and an adapter, which transformers would apply and llama.cpp would not: merge them "
            f"first, python -m helpers merge {folder} {folder} MERGED, or take adapter_config.json out of the folder"
        )
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


def _tied(stored: dict[str, Stored], wanted: dict[str, tuple]) -> tuple[dict[str, Stored], dict[str, tuple]]:
    """(stored, wanted) of a model whose config ties head and embedding, as transformers loads it.

    llama.cpp does without a head that is the embedding. One that differs is used in spite of the config.
    """
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if head in stored and embedding in stored and not same_bits(stored[head], stored[embedding]):
        return stored, wanted
    if head in stored:
        stored = {embedding: stored[head]} | stored
    return ({k: v for k, v in stored.items() if k != head}, {k: v for k, v in wanted.items() if k != head})


def _describe_words(described: Described, vocabulary: Vocabulary, tokenizer, ends: list[int], out: Path) -> str:
    """Add tokenizer and chat template to what is described; returns the Modelfile's text.

    With a chat template, what is added to a text is what is added to a chat. Where it has no equal in Ollama's language, the
    Modelfile has none: then Ollama makes of the file's own template what it can.
    """
    go: str | None = "{{ .Prompt }}"
    if tokenizer.chat_template:
        go = _fit_to_chats(vocabulary, tokenizer)
        written, notes = for_llama_cpp(tokenizer)
        described.calls.append(("add_chat_template", written))
        vocabulary.notes += notes
    else:
        vocabulary.notes.append("there is no chat template: llama.cpp writes chats as ChatML, and transformers none")
    named, notes = ends_in_llama_cpp(vocabulary, tokenizer, ends)
    described.calls += vocabulary.calls(_spaced(vocabulary, tokenizer), named)
    vocabulary.notes += notes
    words, left_out = modelfile(out.name, go, {vocabulary.tokens[end]: vocabulary.text(end) for end in ends})
    if left_out:
        vocabulary.notes.append(f"a Modelfile cannot hold the text of {' '.join(left_out)}: it has no stop for that")
    return words


def _fit_to_chats(vocabulary: Vocabulary, tokenizer) -> str | None:
    """Have nothing added to a text that chats do not have; returns the template in Ollama's language, where there is one."""
    bos, first = "" if vocabulary.bos is None else vocabulary.tokens[vocabulary.bos], begins_with(tokenizer)
    if vocabulary.adds_bos and first != vocabulary.bos:
        vocabulary.adds_bos = False
        vocabulary.notes.append(f"chats do not begin with {bos}, so the file puts none in front of other texts either")
        vocabulary.bos = tokenizer.bos_token_id  # what the template calls bos_token
    if vocabulary.adds_eos:
        vocabulary.adds_eos = False
        vocabulary.notes.append(
            f"the tokenizer puts {tokenizer.eos_token} behind each text, and llama.cpp would put it between a "
            f"question and its answer too: the file puts none behind any text"
        )
    if writes_date(tokenizer):
        vocabulary.notes.append("the chat template has a date of its own, and llama.cpp writes today's in its place")
    bos = bos if vocabulary.adds_bos else ""
    fields = fields_read(tokenizer)
    dropped = [name for name in fields if name not in HANDED_ON]
    if dropped:
        vocabulary.notes.append(
            f"the chat template also reads {_named(dropped, 'fields')} of a message, and llama.cpp's server hands it none: send "
            "such a chat as a whole prompt"
        )
    pieces = take_apart(tokenizer, bos)
    if pieces is None:
        vocabulary.notes.append(
            "the chat template has no equal in Ollama's language, so the Modelfile has no TEMPLATE: look at what Ollama takes "
            "with `ollama show --template`"
        )
        return None
    differing = otherwise(pieces, tokenizer, bos)
    if fields:
        differing.append(f"a message with {_named(fields, 'fields')}, which Ollama takes in a whole prompt alone (raw)")
    roles = roles_read(pieces, tokenizer, bos)
    if roles:
        differing.append(f"a message of {_named(roles, 'roles')}, which Ollama's leaves out")
    if differing:
        vocabulary.notes.append(
            f"the Modelfile's template gives another text than the model's for {'; '.join(differing)}"
        )
    return pieces.as_go()


def _named(found: list[str], kind: str) -> str:
    """Names of fields or roles in words."""
    known = {"fields": "role and content", "roles": "system, user and assistant"}[kind]
    return f"other {kind} than {known}" if found == [OTHER] else f"the {kind} {', '.join(found)}"


def _spaced(vocabulary: Vocabulary, tokenizer) -> bool:
    """Whether llama.cpp is to put a space in front of a text and behind each special token: it knows no more than yes or no."""
    if vocabulary.prefix not in ("first", "always"):
        return vocabulary.prefix == "prepend"
    wanted = spaces_wanted(tokenizer, vocabulary.prefix) if tokenizer.chat_template else {True}
    if len(wanted) == 2:
        raise ExportError(
            "the tokenizer puts a space in front of some parts of a chat and not of others, and llama.cpp of all or none"
        )
    if True not in wanted:
        note = "chats get their own tokens; a text that is no chat lacks the space that the tokenizer puts in front"
    elif vocabulary.prefix == "first":
        note = "llama.cpp puts a space behind each special token too, and before one that begins a text"
    else:
        note = "llama.cpp puts a space in front of a text, or behind a special token, also where one is already"
    vocabulary.notes.append(note)
    return True in wanted


@contextlib.contextmanager
def _part_of(file: Path):
    """Yield an empty file beside `file`, which is deleted at the end, unless it has got another name."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", suffix=".part", dir=file.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _finish(file: Path) -> None:
    """Have a file on the disk, not only in the system's memory, and let others read it."""
    with open(file, "rb+") as written:
        os.fsync(written.fileno())
    os.chmod(file, 0o644)
