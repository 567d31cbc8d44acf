"""Merge an adapter into its base, in little memory: python -m helpers merge BASE ADAPTER OUT

BASE is a folder, a hub id, or "bundled". The result is an ordinary model: neither PEFT nor bitsandbytes is needed for it.
"""

from helpers.merging import MERGED_DTYPES, merge_adapter


def add_arguments(parser):
    parser.add_argument("base", help='a folder with *.safetensors, a hub id, or "bundled"')
    parser.add_argument("adapter", help="a folder that PEFT's save_pretrained wrote")
    parser.add_argument("out", help="the folder to write")
    parser.add_argument("--base-weights", choices=("original", "dequantized"), default="original", dest="base_weights",
                        help="merge into the base as it is stored (default), or as 4-bit training saw it")  # fmt: skip
    parser.add_argument("--dtype", choices=MERGED_DTYPES, help="what to write (default: the base's own)")
    parser.add_argument("--quant-type", choices=("nf4", "fp4"), default="nf4", help="with dequantized (default: nf4)")
    parser.add_argument("--no-double-quant", action="store_true", help="with dequantized: absmax stays in float32")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="with dequantized: where the base was loaded in 4 bits "
                        "(default: a GPU where there is one)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is a model's folder")


def main(arguments) -> int:
    done = merge_adapter(
        arguments.base,
        arguments.adapter,
        arguments.out,
        arguments.base_weights,
        arguments.dtype,
        quant_type=arguments.quant_type,
        double_quant=not arguments.no_double_quant,
        device=arguments.device,
        overwrite=arguments.overwrite,
    )
    print(
        f"{arguments.out}: {done['merged']} of {done['tensors']} tensors merged, {done['bytes'] / 1e9:.2f} GB "
        f"in {done['seconds']:.1f} s"
    )
    return 0
