"""llama.cpp itself, as the wheel xllamacpp brings it: what it makes of a GGUF file, asked over the loopback."""

import json
import urllib.request

import pytest

xllamacpp = pytest.importorskip("xllamacpp", reason="pip install --no-deps xllamacpp")


class Llama:
    """A GGUF file, loaded by llama.cpp: one thread, no GPU, everything but the weights in float32."""

    def __init__(self, file, context: int = 512):
        settings = xllamacpp.CommonParams()
        settings.model.path, settings.n_ctx, settings.n_parallel = str(file), context, 1
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.n_gpu_layers, settings.warmup, settings.fit_params, settings.ui = 0, False, False, False
        settings.verbosity = 0
        self.server = xllamacpp.Server(settings)

    def ask(self, what: str, **body):
        request = urllib.request.Request(
            f"{self.server.listening_address}/{what}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def ids(self, text: str) -> list[int]:
        """What llama.cpp makes of a text, with what the file says that is added, special tokens recognised."""
        return self.ask("tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def answer(self, prompt: str | list[int], most: int) -> tuple[list[int], str]:
        """(tokens, why it ended) of a greedy answer: "eos" at a token that ends one, "limit" after `most`."""
        got = self.ask(
            "completion", prompt=prompt, n_predict=most, temperature=0, return_tokens=True, cache_prompt=False
        )
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
