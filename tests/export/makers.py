"""Small models with random weights, and small tokenizers of the known kinds, trained on the course's own texts."""

import functools
import inspect
import json

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, LlamaTokenizer, TokenizersBackend
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2

from helpers import COURSE_ROOT
from tests.export.texts import TEXTS

LLAMA3 = inspect.signature(TikTokenConverter.__init__).parameters["pattern"].default  # as transformers has it
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)


def corpus() -> list[str]:
    files = [
        *COURSE_ROOT.glob("*.md"),
        *(COURSE_ROOT / "lessons").glob("*.py"),
        *(COURSE_ROOT / "assets").rglob("*.csv"),
    ]
    return [file.read_text(encoding="utf-8") for file in files] + TEXTS * 3


@functools.cache
def byte_pieces(size: int = 1500) -> str:
    """A byte-level BPE as JSON, trained on texts cut as Llama 3 does: it has numbers as tokens, so that how a tokenizer
    cuts shows. One merge in seven is missing, so that it shows too whether a whole word that is a token is taken at once."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer, trained.decoder = split_with(LLAMA3), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(corpus(), trainer)
    state = json.loads(trained.to_str())
    state["model"]["merges"] = [pair for place, pair in enumerate(state["model"]["merges"]) if place % 7 != 6]
    return json.dumps(state)


def byte_level(cut, special: list[str], normalizer=None, ignore_merges=False):
    """A byte-level BPE that cuts with `cut`."""
    state = json.loads(byte_pieces())
    state["model"]["ignore_merges"] = ignore_merges
    made = Tokenizer.from_str(json.dumps(state))
    made.pre_tokenizer = cut
    if normalizer is not None:
        made.normalizer = normalizer
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return made


def in_front(trained: Tokenizer, bos: str) -> None:
    add_around(trained, f"{bos} $A")


def add_around(trained: Tokenizer, single: str) -> None:
    """Have tokens added to each text, which is $A."""
    special = [(name, trained.token_to_id(name)) for name in single.split() if name != "$A"]
    trained.post_processor = processors.TemplateProcessing(single=single, pair=f"{single} $B", special_tokens=special)


def split_with(pattern: str):
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytes_alone])


@functools.cache
def sentence_pieces(size: int = 900) -> tuple[dict, tuple]:
    """(vocabulary, merges) as SentencePiece's BPE has them: a merge for each way to make a piece, in the pieces' order."""
    trained = Tokenizer(models.BPE())
    trained.normalizer, trained.pre_tokenizer = normalizers.Replace(" ", "▁"), pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=size, limit_alphabet=200, show_progress=False)
    trained.train_from_iterator(corpus(), trainer)
    state = json.loads(trained.to_str())["model"]
    pieces = [
        left + right for left, right in state["merges"] if "\0" not in left + right
    ]  # export refuses such a piece
    letters = [token for token in state["vocab"] if len(token) == 1 and token != "\0"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    vocab = {
        token: number
        for number, token in enumerate(["<unk>", "<s>", "</s>", *bytes_, *dict.fromkeys(pieces), *letters])
    }
    merges = []
    for piece in dict.fromkeys(pieces):
        ways = [(piece[:i], piece[i:]) for i in range(1, len(piece)) if piece[:i] in vocab and piece[i:] in vocab]
        merges += sorted(ways, key=lambda way: (vocab[way[0]], vocab[way[1]]))
    return vocab, tuple(merges)


def legacy_pieces(**words):
    """SentencePiece's BPE as tokenizer.json of Llama 2 and of the first Mistral has it: a normalizer puts the space."""
    vocab, merges = sentence_pieces()
    made = Tokenizer(models.BPE(vocab, list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    in_front(made, "<s>")
    return TokenizersBackend(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", **words)


def llama_class(**words):
    """SentencePiece's BPE as transformers 5 makes it for LlamaTokenizer, which Mistral has too."""
    vocab, merges = sentence_pieces()
    made = LlamaTokenizer(vocab=dict(vocab), merges=list(merges), **words)
    in_front(made.backend_tokenizer, "<s>")
    return made


def of_llama3(**words):
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    made = byte_level(split_with(LLAMA3), names, ignore_merges=words.pop("ignore_merges", True))
    in_front(made, names[0])
    words = {"eos_token": "<|end_of_text|>"} | words
    return TokenizersBackend(tokenizer_object=made, bos_token=names[0], **words)


def of_qwen2(**words):
    made = byte_level(split_with(QWEN2), ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], normalizers.NFC())
    words = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"} | words
    return TokenizersBackend(tokenizer_object=made, **words)


def of_smollm(**words):
    cut = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made = byte_level(cut, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return TokenizersBackend(tokenizer_object=made, bos_token="<|im_start|>", eos_token="<|im_end|>", **words)


TOKENIZERS = {
    "llama 3": of_llama3,
    "llama 3's cut, merging": functools.partial(of_llama3, ignore_merges=False),
    "qwen 2": of_qwen2,
    "smollm": of_smollm,
    "sentencepiece": legacy_pieces,
    "sentencepiece of transformers 5": llama_class,
}
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def make_model(folder, kind: str, tokenizer=None, vocab_size=None, dtype=torch.float32, **settings):
    """A random model of transformers' model_type `kind`, with its tokenizer, in a folder; weights large enough to matter."""
    torch.manual_seed(0)
    size = vocab_size or (len(tokenizer) if tokenizer is not None else 64)
    given = {"max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "head_dim": 32} | SHAPE | settings
    config = AutoConfig.for_model(kind, vocab_size=size, **given)
    if kind == "qwen2":  # it has no head_dim of its own
        del config.head_dim
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.3)
    model.to(dtype).save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder
