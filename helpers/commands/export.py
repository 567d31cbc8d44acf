"""Write a model as a GGUF file, for llama.cpp and Ollama: python -m helpers export MODEL OUT.gguf --type q8_0

MODEL is the folder of a whole model, such as `merge` writes, a hub id, or "bundled". Beside OUT.gguf lies OUT.Modelfile,
with the template and the tokens that end an answer: ollama create NAME -f OUT.Modelfile. It needs the package gguf.
"""

from helpers.export import TYPES, export_gguf


def add_arguments(parser):
    parser.add_argument("model", help='a folder with *.safetensors, a hub id, or "bundled"')
    parser.add_argument("out", help="the file to write, ending in .gguf")
    parser.add_argument("--type", choices=TYPES, default="q8_0", help="what the weights are written as (default: q8_0)")
    parser.add_argument("--template", choices=("own", "alpaca"), default="own",
                        help="the tokenizer's chat template (default; a merged adapter's own), or Alpaca's")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace OUT and its Modelfile if they are there")


def main(arguments) -> int:
    print(f"{arguments.out} will hold weights, tokenizer and chat template, and none of your rows")
    done = export_gguf(
        arguments.model, arguments.out, arguments.type, template=arguments.template, overwrite=arguments.overwrite
    )
    for note in done["notes"]:
        print(f"note: {note}")
    print(
        f"{arguments.out}: {done['tensors']} tensors, {done['bytes'] / 1e9:.2f} GB in {done['seconds']:.1f} s; "
        f"answers end at {' '.join(done['stops'])}"
    )
    return 0
