"""The layers that get adapters, by the names that target_modules gives."""

from helpers import CourseError


def require_targets(model, target_modules: str) -> None:
    """Raise CourseError, one line, if a name in "q_proj,v_proj" is that of no module of the model.

    PEFT complains only where no name at all is found: of q_proj, k_proj, v_proj and o_proj Phi-3 has the last alone, and that
    alone would be trained.
    """
    import torch

    if target_modules == "all-linear":
        return
    modules = {name.rpartition(".")[2]: module for name, module in model.named_modules()}
    missing = [name for name in target_modules.split(",") if name not in modules]
    if missing:
        linear = sorted(
            name for name, module in modules.items() if isinstance(module, torch.nn.Linear) and name != "lm_head"
        )
        raise CourseError(
            f"target_modules names {', '.join(missing)}, and this model has no such layer, only {', '.join(linear)}: name those, "
            'or say "all-linear"'
        )
