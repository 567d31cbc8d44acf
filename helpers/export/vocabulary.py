"""The tokenizer in GGUF's words, recognised by what it does: how it cuts a text, which merges it has, what it adds.

llama.cpp does not read how a tokenizer cuts; it knows ways by name ("tokenizer.ggml.pre"), and with a wrong name it
gives other tokens without a word (llama.cpp#7062). So the name comes from what the tokenizer says of itself, and one
that cuts in no way known here is refused.
"""

import json
from collections import Counter
from dataclasses import dataclass, field

from helpers.export.carried import ExportError
from helpers.export.overlaps import check_overlaps

SPACE = "▁"  # SentencePiece's sign for a space
LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
DIGITS = {"type": "Digits", "individual_digits": True}


def _cut(pattern: str) -> dict:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


LLAMA3, QWEN2 = _cut(LETTERS + r"\p{N}{1,3}" + SIGNS), _cut(LETTERS + r"\p{N}" + SIGNS)
# How a byte-level tokenizer cuts, whether it takes a whole word that is a token before it merges (ignore_merges), and
# llama.cpp's name for the two.
WAYS = [
    ([GPT2], False, "gpt-2"),
    ([DIGITS, GPT2], False, "smollm"),
    ([LLAMA3, BYTES], True, "llama-bpe"),
    ([LLAMA3, BYTES], False, "dbrx"),
    ([QWEN2, BYTES], False, "qwen2"),
]


@dataclass
class Vocabulary:
    """What GGUF holds of a tokenizer; ids as the model has them."""

    model: str  # "gpt2" for byte-level BPE, "llama" for SentencePiece's
    pre: str
    tokens: list[str]
    types: list[int]  # gguf.TokenType
    merges: list[str] = field(default_factory=list)  # of byte-level BPE
    scores: list[float] = field(default_factory=list)  # of SentencePiece's: the larger, the earlier it is merged
    # Where a space is put in front: "never", "first" (of a text), "prepend" (also behind each special token), or "always"
    # (likewise, but not where there is one already).
    prefix: str = "never"
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    unk: int | None = None
    adds_bos: bool = False
    adds_eos: bool = False
    notes: list[str] = field(default_factory=list)

    def text(self, number: int) -> str | None:
        """What a token stands for in a text; None for an unused one, and for bytes that are no whole letters."""
        from gguf import TokenType
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        token, kind = self.tokens[number], self.types[number]
        if kind == TokenType.UNUSED:
            return None
        if kind not in (TokenType.NORMAL, TokenType.BYTE):
            return token
        if kind == TokenType.BYTE:
            held = bytes([int(token[1:-1], 16)])
        elif self.model == "llama":
            held = token.replace(SPACE, " ").encode()
        else:
            by_sign = {sign: byte for byte, sign in bytes_to_unicode().items()}
            held = bytes(by_sign[sign] for sign in token) if by_sign.keys() >= set(token) else token.encode()
        try:
            return held.decode()
        except UnicodeDecodeError:
            return None

    def calls(self, spaced: bool, ends: list[int]) -> list[tuple]:
        """Calls of GGUFWriter. spaced: a space goes in front of a text; ends: tokens besides eos that end an answer."""
        found: list[tuple] = [
            ("add_tokenizer_model", self.model),
            ("add_tokenizer_pre", self.pre),
            ("add_token_list", self.tokens),
            ("add_token_types", self.types),
            ("add_eos_token_id", self.eos),
            ("add_add_bos_token", self.adds_bos),
            ("add_add_eos_token", self.adds_eos),
            ("add_add_space_prefix", spaced),
        ]
        found += [("add_token_merges", self.merges)] if self.merges else []
        found += [("add_token_scores", self.scores)] if self.scores else []
        given = {"bos": self.bos, "pad": self.pad, "unk": self.unk}
        found += [(f"add_{name}_token_id", number) for name, number in given.items() if number is not None]
        return found + list(zip(("add_eot_token_id", "add_eom_token_id"), ends, strict=False))


def read_vocabulary(tokenizer, size: int) -> Vocabulary:
    """A tokenizer of transformers, in GGUF's words; size: the rows of the embedding. ExportError for an unknown one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(f"{type(tokenizer).__name__} has no tokenizer.json: save it with transformers 5 once more")
    described = json.loads(backend.to_str())
    model, added = described["model"], described["added_tokens"]
    if model["type"] != "BPE" or any(
        model[key] for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    ):
        raise ExportError(f"the tokenizer is {model['type']} or a BPE with extras: only plain BPE is exported here")
    if any("\0" in token for token in model["vocab"]):
        raise ExportError("the tokenizer has a token with a zero byte in it, which llama.cpp does not find in a text")
    for token in added:
        odd = next((key for key in ("lstrip", "rstrip", "single_word") if token[key]), None)
        if odd:
            raise ExportError(f"the token {token['content']!r} has {odd} set, and llama.cpp would not follow that")
    check_overlaps(added)
    done = _sentencepiece(described) if model["byte_fallback"] else _byte_level(described)
    done.tokens, done.types = _tokens(described, size)
    done.scores += [0.0] * (size - len(done.scores) if done.scores else 0)
    _see_what_is_added(done, tokenizer)
    return done


def _steps(part: dict | None) -> list[dict]:
    """The steps of a normalizer or a pre-tokenizer, in order, without what changes offsets alone."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        inner = part.get("normalizers") or part.get("pretokenizers") or []
        return [step for one in inner for step in _steps(one)]
    return [{key: value for key, value in part.items() if key != "trim_offsets"}]


def _unknown(described: dict) -> ExportError:
    steps = _steps(described["normalizer"]) + _steps(described["pre_tokenizer"])
    shown = json.dumps(steps, ensure_ascii=False)[:200]
    known = ", ".join([pre for _, _, pre in WAYS] + ["SentencePiece's"])
    return ExportError(
        f"the tokenizer cuts a text in a way that is not known here ({known}), and with a wrong name for it llama.cpp "
        f"would give other tokens without a word: {shown}"
    )


def _byte_level(described: dict) -> Vocabulary:
    """Byte-level BPE, as GPT-2, Llama 3 and Qwen have it."""
    model, normalizer = described["model"], _steps(described["normalizer"])
    way = (_steps(described["pre_tokenizer"]), model["ignore_merges"])
    pre = next((pre for *known, pre in WAYS if tuple(known) == way), None)
    if pre is None or normalizer not in ([], [{"type": "NFC"}]):
        raise _unknown(described)
    _check_bytes(model)
    done = Vocabulary("gpt2", pre, [], [], merges=[" ".join(pair) for pair in model["merges"]])
    if normalizer:
        done.notes.append(
            "the tokenizer composes accents first (NFC), and llama.cpp does not: a text with decomposed ones, "
            "a letter and its accent as two characters, gets other tokens there"
        )
    return done


NOT_IN_TEXTS = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that stand in no text of UTF-8


def _check_bytes(model: dict) -> None:
    """ExportError if the tokenizer writes unk_token for a byte that it has no token for: llama.cpp leaves it out."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    signs = {byte: sign for byte, sign in bytes_to_unicode().items() if byte not in NOT_IN_TEXTS}
    missing = next((byte for byte, sign in sorted(signs.items()) if sign not in model["vocab"]), None)
    if model["unk_token"] is not None and missing is not None:
        raise ExportError(
            f"unk_token = {model['unk_token']!r} stands for the byte 0x{missing:02X}, which has no token, and llama.cpp leaves "
            f"it out: train a tokenizer with all bytes as its initial alphabet"
        )


def _sentencepiece(described: dict) -> Vocabulary:
    """SentencePiece's BPE, as Llama 2 and Mistral have it: a score for each token in place of merges."""
    model, normalizer = described["model"], _steps(described["normalizer"])
    cutter = _steps(described["pre_tokenizer"])
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend = {"type": "Prepend", "prepend": SPACE}
    # With a Metaspace that leaves a space in front alone, this puts one there always: so transformers reads tokenizer.model.
    doubled = {"type": "Replace", "pattern": {"Regex": rf"\A{SPACE}"}, "content": 2 * SPACE}
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": False}
    if not cutter and normalizer in ([prepend, spaces], [spaces]):
        prefix = "prepend" if prepend in normalizer else "never"
    elif cutter == [metaspace] and normalizer == [spaces, doubled]:
        prefix = "prepend"
    elif not normalizer and len(cutter) == 1 and cutter[0]["type"] == "Metaspace" and cutter[0]["replacement"] == SPACE:
        prefix = cutter[0]["prepend_scheme"] if not cutter[0]["split"] else ""
    else:
        prefix = ""
    if not prefix or model["ignore_merges"] or not model["fuse_unk"]:
        raise _unknown(described)
    odd = next((t["content"] for t in described["added_tokens"] if t["normalized"] and prefix == "prepend"), None)
    if odd:
        raise ExportError(f"the token {odd!r} is looked for in normalized text, and llama.cpp looks in the text itself")
    done = Vocabulary("llama", "default", [], [], prefix=prefix, scores=_scores(model, described["added_tokens"]))
    spaced = [token["content"] for token in described["added_tokens"] if SPACE in token["content"]]
    if spaced:
        done.notes.append(f"llama.cpp finds {' '.join(spaced)} also where a text has a space in place of {SPACE}")
    return done


def _scores(model: dict, added: list[dict]) -> list[float]:
    """A score for each id, from the order of merges; ExportError if llama.cpp would merge what this tokenizer does not.

    llama.cpp joins two neighbours whenever the whole is a token, the best score first. So each token must have a merge
    for every way in which it is made of two others, and the merges of one token must stand together.
    """
    vocab, wholes = model["vocab"], [left + right for left, right in model["merges"]]
    ways, special = Counter(wholes), {token["content"] for token in added}
    for whole in vocab:
        if (
            ways[whole] != sum(whole[:i] in vocab and whole[i:] in vocab for i in range(1, len(whole)))
            and whole not in special
        ):
            raise ExportError(
                f"the tokenizer has no merge for every two tokens that make {whole!r}: llama.cpp joins all"
            )
    order = [whole for whole, following in zip(wholes, [*wholes[1:], None], strict=True) if whole != following]
    if len(order) != len(set(order)):
        raise ExportError("the merges that make one token do not stand together, and GGUF has one score a token")
    missing = next((byte for byte in range(256) if f"<0x{byte:02X}>" not in vocab), None)
    if missing is not None:
        raise ExportError(f"the tokenizer has no token for the byte <0x{missing:02X}>, which llama.cpp falls back to")
    score = {whole: -float(place) for place, whole in enumerate(order)}
    by_id = {number: score.get(token, -float(len(order))) for token, number in vocab.items()}
    return [by_id.get(number, 0.0) for number in range(max(by_id) + 1)]


def _tokens(described: dict, size: int) -> tuple[list[str], list[int]]:
    """(text, gguf.TokenType) of each of the `size` rows of the embedding; rows without a token are unused."""
    from gguf import TokenType

    model, unknown = described["model"], described["model"]["unk_token"]
    kinds = {number: (token, TokenType.NORMAL) for token, number in model["vocab"].items()}
    if model["byte_fallback"]:
        kinds |= {model["vocab"][f"<0x{byte:02X}>"]: (f"<0x{byte:02X}>", TokenType.BYTE) for byte in range(256)}
    for token in described["added_tokens"]:
        kinds[token["id"]] = token["content"], TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    if unknown is not None and model["byte_fallback"]:
        kinds[model["vocab"][unknown]] = unknown, TokenType.UNKNOWN
    if max(kinds) >= size:
        raise ExportError(f"the tokenizer has a token {max(kinds)}, and the model's vocabulary ends at {size - 1}")
    taken, rows = {text for text, _ in kinds.values()}, []
    for number in range(size):
        unused = f"[unused {number}]"
        while unused in taken:  # llama.cpp does not load a file in which two tokens have one text
            unused = f"[{unused}]"
        rows.append(kinds.get(number, (unused, TokenType.UNUSED)))
    return [text for text, _ in rows], [int(kind) for _, kind in rows]


def _see_what_is_added(done: Vocabulary, tokenizer) -> None:
    """Which tokens stand for the beginning and the end, and whether the tokenizer adds them itself."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    at = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    front, behind = full[:at], full[at + len(bare) :]
    if len(front) > 1 or len(behind) > 1 or (behind and behind != [tokenizer.eos_token_id]):
        shown = tokenizer.convert_ids_to_tokens(full)
        raise ExportError(f"the tokenizer makes {shown} of 'a': llama.cpp adds bos in front and eos behind, no more")
    if tokenizer.eos_token_id is None:
        raise ExportError("the tokenizer names no eos_token: answers would never end")
    done.bos, done.adds_bos = front[0] if front else tokenizer.bos_token_id, bool(front)
    done.pad, done.unk = tokenizer.pad_token_id, tokenizer.unk_token_id
    done.eos, done.adds_eos = tokenizer.eos_token_id, bool(behind)
