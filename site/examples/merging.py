from helpers.merging import merge_adapter

done = merge_adapter("bundled", "adapter", "merged", dtype="float16")
print(f"{done['merged']} of {done['tensors']} tensors merged, {done['bytes'] / 1e6:.0f} MB in the folder merged")
