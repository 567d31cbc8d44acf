"""llama.cpp itself, as the wheel xllamacpp brings it: what it makes of a GGUF file, asked over the loopback.

It runs in a Python of its own, which is killed at the end: a server that is let go in the process that made it can
wait for its own threads for ever (seen with xllamacpp 2026.10.11549).
"""

import importlib.util
import json
import subprocess
import sys
import urllib.request

import pytest

if importlib.util.find_spec("xllamacpp") is None:
    pytest.skip("needs the wheel xllamacpp", allow_module_level=True)

# One thread, no GPU, everything but the weights in float32; the server's address goes to the standard output.
SERVE = """
import sys, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.n_parallel = sys.argv[1], int(sys.argv[2]), 1
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
settings.n_gpu_layers, settings.warmup, settings.fit_params, settings.ui = 0, False, False, False
settings.verbosity = 0
server = xllamacpp.Server(settings)
print("address", server.listening_address, flush=True)
sys.stdin.read()
"""


class Llama:
    """A GGUF file, loaded by llama.cpp, until this is let go."""

    def __init__(self, file, context: int = 512):
        command = [sys.executable, "-c", SERVE, str(file), str(context)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        said = next((line for line in self.process.stdout if line.startswith("address ")), None)
        assert said, f"llama.cpp does not load {file}"
        self.address = said.split()[1]

    def __del__(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def ask(self, what: str, **body):
        request = urllib.request.Request(
            f"{self.address}/{what}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def ids(self, text: str) -> list[int]:
        """What llama.cpp makes of a text, with what the file says that is added, special tokens recognised."""
        return self.ask("tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def answer(self, prompt: str | list[int], most: int) -> tuple[list[int], str]:
        """(tokens, why it ended) of a greedy answer: "eos" at a token that ends one, "limit" after `most`."""
        asked = {"n_predict": most, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        got = self.ask("completion", prompt=prompt, **asked)
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
