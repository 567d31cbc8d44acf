"""NaN and infinity: found in a model's logits before training, and in the loss while it trains."""

from helpers import CourseError
from helpers.models import PRESETS

# For a T4: Mistral's shape, ungated, Apache-2.0; its page offers a notebook that trains it on Colab's T4, so in float16
# (https://huggingface.co/unsloth/mistral-7b-v0.3). The course has not run it.
IN_FLOAT16 = "unsloth/mistral-7b-v0.3"


class NotFinite(CourseError, ArithmeticError):
    """There is NaN or infinity where a finite number is needed."""


def require_finite_logits(model, tokenizer, texts: list[str], name: str, max_length: int = 512) -> None:
    """Raise NotFinite, one line, if the model's logits for any of `texts` are not all finite, in the type it computes in.

    Maintainers of Qwen2 answer such reports in float16 with "bfloat16 or float32" (QwenLM/Qwen3#670, #868), and a T4 has no
    bfloat16. A long text is cut at `max_length` tokens. The model is left in the mode it was found in.
    """
    import torch

    was_training = model.training
    model.eval()
    with torch.no_grad():
        for text in texts:
            ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=max_length)["input_ids"]
            logits = model(ids.to(model.device), use_cache=False).logits
            if not torch.isfinite(logits).all():
                raise NotFinite(
                    f"{name} computes in {_dtype_of(model)} here, and its logits are not finite: it would learn nothing. "
                    f"{_other_model(name)}"
                )
    model.train(was_training)


def stop_when_not_finite(trainer):
    """Have `train()` stop at the first loss that is NaN or infinite, with NotFinite, one line; returns the trainer.

    It stops before the optimizer's step, so the adapters are still those of the step before. transformers itself goes on,
    and by default its log shows the mean of the finite losses instead (logging_nan_inf_filter).
    """
    import torch

    step = trainer.training_step

    def watched(*words, **more):
        loss = step(*words, **more)
        if not torch.isfinite(loss):
            raise NotFinite(
                f"the loss of step {trainer.state.global_step + 1} is {loss.item()}: training has stopped, and the adapters "
                f"are those of the step before. In the first steps, the model overflows in {_dtype_of(trainer.model)}: "
                f'take another, such as model_id="{IN_FLOAT16}". Later, a smaller learning_rate helps'
            )
        return loss

    trainer.training_step = watched
    return trainer


def _dtype_of(model) -> str:
    """The type that a 4-bit model computes in; for another model the type of its weights."""
    quantization = getattr(model.config, "quantization_config", None)
    compute = getattr(quantization, "bnb_4bit_compute_dtype", None) or model.dtype
    return str(compute).removeprefix("torch.")


def _other_model(name: str) -> str:
    if name == IN_FLOAT16:
        return f'Take a smaller model that is known to work here, such as model_id="{PRESETS["qwen2.5-0.5b"].hub_id}"'
    return f'Use model_id="{IN_FLOAT16}", which needs no account, or a GPU with bfloat16'
