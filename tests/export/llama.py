"""llama.cpp as helpers.export runs it, and what tests alone ask it: its tokens, its probabilities, its chats."""

import importlib.util

import pytest

from helpers import export

if importlib.util.find_spec("xllamacpp") is None:
    pytest.skip("needs the wheel xllamacpp", allow_module_level=True)


class Llama(export.Llama):
    """A GGUF file in llama.cpp."""

    def ids(self, text: str) -> list[int]:
        """What llama.cpp makes of a text, with what the file says that is added, special tokens recognised."""
        return self.ask("tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def answer(self, prompt: str | list[int], most: int) -> tuple[list[int], str]:
        """(tokens, why it ended) of a greedy answer: "eos" at a token that ends one, "limit" after `most`."""
        got = self.completion(prompt, most)
        return got["tokens"], got["stop_type"]

    def log_probabilities(self, ids: list[int], vocabulary: int) -> list[float]:
        """Of each token, behind these. Token 5 is made to be chosen, which is one byte: half a letter would not be sent."""
        asked = {"n_predict": 1, "n_probs": vocabulary, "logit_bias": [[5, 1000.0]], "cache_prompt": False}
        got = self.ask("completion", prompt=ids, temperature=0, ignore_eos=True, **asked)
        by_id = {one["id"]: one["logprob"] for one in got["completion_probabilities"][0]["top_logprobs"]}
        return [by_id[number] for number in range(vocabulary)]

    def chat(self, messages: list[dict]) -> str:
        """The text that llama.cpp makes of messages by the file's template."""
        return self.ask("apply-template", messages=messages)["prompt"]
