"""Labels: what memory is held for. Every allocation of a replay carries one; `Prediction.parts` adds up by them."""

CODES, SCALES = "quantized weights", "quantization scales"
TABLES, PLAIN = "embeddings and head", "norms, biases, 16-bit weights"
UPCAST = "float32 copies of what is not quantized"
ADAPTERS, STATES, WORKSPACES = "adapters", "optimizer states", "cuBLAS workspaces"
INPUT_IDS = "token ids, masks, rotary tables"
KEPT, INPUTS = "activations kept for backward", "layer inputs kept by checkpointing"
ACTIVATIONS, DEQUANTIZED, CASTS = "one layer's activations", "a dequantized weight", "16-bit copies of the adapters"
GRADIENTS, WEIGHT_GRADIENTS = "gradients of activations", "gradients of weights"
FINAL, LOGITS = "final norm and hidden states", "tile of logits"
STEPPING = "optimizer scratch"
GATHERED = "weights gathered from all GPUs"
ROUNDING = "blocks larger than what they hold"  # see helpers/memory/allocator.py
LABELS = (
    CODES, SCALES, TABLES, PLAIN, UPCAST, ADAPTERS, STATES, WORKSPACES, INPUT_IDS, KEPT, INPUTS, ACTIVATIONS, DEQUANTIZED,
    CASTS, GRADIENTS, WEIGHT_GRADIENTS, FINAL, LOGITS, STEPPING, GATHERED,
    ROUNDING,
)  # fmt: skip
# What does not grow with the rows.
STAYING = (CODES, SCALES, TABLES, PLAIN, UPCAST, ADAPTERS, STATES, WEIGHT_GRADIENTS)
