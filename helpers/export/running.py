"""A GGUF file in llama.cpp itself, as the wheel xllamacpp brings it, asked over the loopback.

It runs in a Python of its own, which is killed at the end: a server that is let go in the process that made it can
wait for its own threads for ever (seen with xllamacpp 2026.10.11549).
"""

import importlib.util
import json
import subprocess
import sys
import urllib.request

from helpers.export.carried import ExportError

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
    """A GGUF file, loaded by llama.cpp, until this is let go. ExportError, one line, where that cannot be."""

    def __init__(self, file, context: int = 512):
        """`context`: tokens of question and answer together."""
        if importlib.util.find_spec("xllamacpp") is None:
            raise ExportError("the package xllamacpp, which runs GGUF files, is not installed: pip install xllamacpp")
        command = [sys.executable, "-c", SERVE, str(file), str(context)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        said = next((line for line in self.process.stdout or () if line.startswith("address ")), None)
        if said is None:
            raise ExportError(f"llama.cpp does not load {file}: its process ended with code {self.process.wait()}")
        self.address = said.split()[1]

    def __del__(self):
        process = getattr(self, "process", None)
        if process is not None:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def ask(self, what: str, **body):
        """What llama.cpp's server answers at the address `what` (its "tools/server/README.md" describes them)."""
        request = urllib.request.Request(
            f"{self.address}/{what}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)

    def completion(self, prompt: str | list[int], most: int) -> dict:
        """A greedy answer of at most `most` tokens: content, tokens, and stop_type, "eos" or "limit"."""
        asked = {"n_predict": most, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        return self.ask("completion", prompt=prompt, **asked)

    def answers(self, prompts: list[str], max_new_tokens: int = 16) -> tuple[str, ...]:
        """Greedy answers to texts, stripped, as helpers.evaluation.answer gives them."""
        return tuple(self.completion(prompt, max_new_tokens)["content"].strip() for prompt in prompts)
