"""Where answers end, in transformers and in llama.cpp, and what else a model's files say of how an answer is written.

llama.cpp ends an answer at the three tokens that a file names for it, and at some by their names (its llama-vocab.cpp).
"""

from pathlib import Path

from helpers.export.carried import ExportError
from helpers.export.vocabulary import Vocabulary
from helpers.files import read_object

# Those that every llama.cpp of the last years, and Ollama, end at by their names.
ENDS_BY_NAME = ("<|eot_id|>", "<|im_end|>", "<|eom_id|>", "<|endoftext|>", "<end_of_turn>", "<EOT>")
# Those at which newer ones end too.
NEWER_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "_<EOT>", "[EOT]", "[EOS]",
              "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>")  # fmt: skip
# What pads and parts the files of a code model ends an answer too. A chat has none of these, unless its template writes them.
PARTS_OF_CODE = ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
                 "<REPO>", "<reponame>", "<|file_sep|>")  # fmt: skip
# Beside all of the first, the second ends no answer, not even where the file names it.
TAKES_AWAY = [(("<|return|>", "<|call|>"), "<|end|>"), (("<|return|>", "<|calls|>"), "<|end|>"),
              (("<|call|>", "<|flush|>"), "<|end|>"), (("<|calls|>", "<|flush|>"), "<|end|>"),
              (("<|tool_response>",), "</s>")]  # fmt: skip


def read_generation(folder: Path, config) -> dict:
    """What the model's files say of writing answers; as in transformers, config.json has a say where there is no
    generation_config.json. ExportError, one line, for a file that cannot be read, and for ends that are no tokens."""
    file = folder / "generation_config.json"
    try:
        given = read_object(file) if file.is_file() else {"eos_token_id": getattr(config, "eos_token_id", None)}
    except ValueError as error:
        raise ExportError(f"{folder}: {error}") from error
    eos = given.get("eos_token_id")
    for number in eos if isinstance(eos, list) else [] if eos is None else [eos]:
        if type(number) is not int or not 0 <= number < config.vocab_size:  # a bool is an int too
            where = file.name if file.is_file() else "config.json"
            raise ExportError(f"eos_token_id = {eos!r} in {where}: {number!r} is no token of the model")
    return given


def ends_in_llama_cpp(vocabulary: Vocabulary, tokenizer, ends: list[int]) -> tuple[list[int], list[str]]:
    """(the ends beside eos that the file names, notes on where llama.cpp ends an answer otherwise than transformers)."""
    there, template = set(vocabulary.tokens), tokenizer.get_chat_template() if tokenizer.chat_template else None
    others = sorted(ends[1:], key=lambda number: vocabulary.tokens[number] in ENDS_BY_NAME)
    here = [vocabulary.tokens[number] for number in ends]
    never = {lost for beside, lost in TAKES_AWAY if there >= {*beside, lost}}
    beyond = [vocabulary.tokens[number] for number in others[2:]]
    forbidden = [token for token in here if token in never]
    unnamed = [token for token in beyond if token not in (*ENDS_BY_NAME, *forbidden)]
    reasons = {"other tokens of its vocabulary forbid it": forbidden, "a GGUF file names three tokens alone": unnamed}
    notes = [
        f"llama.cpp does not end an answer at {' '.join(tokens)}, because {why}"
        for why, tokens in reasons.items()
        if tokens
    ]
    new = there - never - {*here, tokenizer.pad_token}  # a model does not learn to write what fills up a batch
    more = [token for token in (*ENDS_BY_NAME, *NEWER_ENDS) if token in new]
    more += [token for token in PARTS_OF_CODE if token in new and (template is None or token in template)]
    if more:
        notes.append(f"llama.cpp ends an answer at {' '.join(more)} too, which it knows by name")
    return others[:2], notes


# How transformers chooses a token of an answer, with the values that change nothing; the first are read if it draws lots.
DRAWN = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None, "typical_p": 1.0}
CHOSEN = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "suppress_tokens": [], "begin_suppress_tokens": [],
          "bad_words_ids": [], "forced_eos_token_id": None}  # fmt: skip


def settings_left_out(generation: dict) -> list[str]:
    """A note on what generation_config.json says of choosing tokens, which a GGUF file does not carry."""
    read = CHOSEN | (DRAWN if generation.get("do_sample") else {})
    found = [name for name, plain in read.items() if generation.get(name) not in (None, plain)]
    return [f"give llama.cpp and Ollama {', '.join(found)} of generation_config.json yourself"] if found else []
