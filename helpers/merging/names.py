"""A base model as transformers builds it, without its weights: what its modules are, and where each lies in the files.

The names in a file and those of the modules may differ, and one parameter may be made of several tensors of the file.
transformers has the rules for its own loading; they are asked here, so that there is no second list of them.
"""

from collections.abc import Iterable
from typing import Any

from helpers.merging.stored import MergeError, Stored


class Built:
    """The model of a base's config.json on the meta device, and the names of the file's tensors in it."""

    def __init__(self, name: str, config: dict, keys: Iterable[str]):
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        self.model = _on_meta(name, config)
        self.modules: dict[str, Any] = dict(self.model.named_modules())
        self._state = self.model.state_dict()
        rules = get_model_conversion_mapping(self.model)
        self._converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        self._renamings = [rule for rule in rules if not isinstance(rule, WeightConverter)]
        self._found: dict[str, tuple[str, str | None]] = {}
        self.name_of = {key: self.rename(key) for key in keys}  # None: no part of this model
        self.key_of: dict[str, str] = {
            name: key for key, name in self.name_of.items() if name and not self._joined(key)
        }
        self.model._weight_conversions = [rule for rule in rules if rule.was_used()]  # as loading leaves it

    def rename(self, key: str) -> str | None:
        """The model's name of a tensor that a file or an adapter calls `key`; None where it has no such tensor."""
        renamed, _ = self._renamed(key)
        return renamed if renamed in self._state else None

    def _renamed(self, key: str) -> tuple[str, str | None]:
        """(the model's name of a tensor, by what rule several tensors become one), as loading finds them."""
        from transformers.core_model_loading import rename_source_key

        if key not in self._found:
            prefix, state = self.model.base_model_prefix, self._state
            found = rename_source_key(key, self._renamings, self._converters, prefix, state)
            if found[0] not in state:  # it may have the model's names already, perhaps but for the prefix
                plain, _ = rename_source_key(key, [], [], prefix, state)
                found = (plain, None) if plain in state else found
            self._found[key] = found
        return self._found[key]

    def _joined(self, key: str) -> bool:
        """Whether loading makes a parameter of this tensor together with others, or in another layout."""
        return self._renamed(key)[1] is not None

    def module(self, key: str):
        """The module that a tensor of the file belongs to, or None."""
        return self.modules.get((self.name_of.get(key) or self.rename(key) or "").rpartition(".")[0])

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._state[name].shape)

    def misfit(self, stored: dict[str, Stored]) -> str | None:
        """A tensor of the file that has another shape than the model's, or None."""
        return next((key for name, key in self.key_of.items() if stored[key].shape != self.shape(name)), None)

    def ties(self) -> list[tuple[str, str]]:
        """(tensor, the one that it is tied to), by the names in the file; one that is not in it has the model's name."""
        tied: dict[str, str] = dict(self.model.all_tied_weights_keys)
        head, embedding = self.embeddings()
        if head and embedding and self._same(head, embedding):
            tied.setdefault(f"{head}.weight", f"{embedding}.weight")
        return [(self.key_of.get(one) or one, self.key_of.get(two) or two) for one, two in tied.items()]

    def embeddings(self) -> tuple[str | None, str | None]:
        """The names of the modules that give logits and that take tokens, as the model itself says."""
        names = {id(module): name for name, module in self.modules.items()}
        head, embedding = self.model.get_output_embeddings(), self.model.get_input_embeddings()
        return names.get(id(head)), names.get(id(embedding))

    def of_vocabulary(self) -> set[str]:
        """The file's names of what has a row for each token: embedding, head, and the head's bias."""
        named = {f"{module}.{part}" for module in self.embeddings() if module for part in ("weight", "bias")}
        return {self.key_of.get(name, name) for name in named}

    def _same(self, one: str, two: str) -> bool:
        return getattr(self.modules[one], "weight", None) is getattr(self.modules[two], "weight", 0)

    def linear(self) -> dict[str, bool]:
        """Names of the weights that loading in 4 bits quantizes, and whether it transposes them first (Conv1D)."""
        import torch
        from transformers.pytorch_utils import Conv1D
        from transformers.quantizers.base import get_keys_to_not_convert
        from transformers.quantizers.quantizers_utils import should_convert_module

        skipped = get_keys_to_not_convert(self.model) + list(self.model._keep_in_fp32_modules or ())
        return {
            f"{name}.weight": isinstance(module, Conv1D)
            for name, module in self.modules.items()
            if (type(module) is torch.nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, skipped)
        }

    def targeted(self, module: str, patterns: Iterable[str]) -> list[str]:
        """The parameters of a module that target_parameters names, in the order in which PEFT wraps them."""
        candidates = {self.rename(f"{module}.{pattern.rpartition('.')[2]}") for pattern in patterns}
        home = next((name.rpartition(".")[0] for name in candidates if name), None)
        own = [f"{home}.{name}" for name, _ in self.modules[home].named_parameters(recurse=False)] if home else []
        return [name for name in own if any(f".{name}".endswith(f".{pattern}") for pattern in patterns)]

    def parted(self, name: str, tensor) -> dict[str, Any]:
        """A tensor with the layout of parameter `name`, as the file has it: {name in the file: tensor}."""
        from transformers.core_model_loading import revert_weight_conversion

        try:
            return revert_weight_conversion(self.model, {name: tensor})
        except Exception as error:  # a rule that has no reverse, or needs other tensors too
            raise MergeError(
                f"the base's files hold {name} in another layout, and what undoes it here fails ({type(error).__name__}): "
                "use PEFT's merge_and_unload()"
            ) from error


def _on_meta(name: str, config: dict):
    """The model of a config.json without memory for its weights; MergeError where transformers has none."""
    import torch
    import transformers

    kind, named = str(config.get("model_type")), config.get("architectures") or [""]
    architecture = str(named[0] if isinstance(named, list) else named)
    version = f"transformers {transformers.__version__}"
    one = getattr(transformers, architecture or "AutoModelForCausalLM", None)
    if kind not in transformers.CONFIG_MAPPING or one is None:  # its get() knows nothing: it loads on []
        raise MergeError(
            f"{version} does not know {architecture or 'a model'} (model_type {kind!r}) of {name}, and this merge has to ask "
            "it: install a release that does"
        )
    try:
        with torch.device("meta"):  # shapes without memory
            return getattr(one, "from_config", one)(transformers.CONFIG_MAPPING[kind].from_dict(config))
    except Exception as error:  # whatever a config that does not fit makes it raise
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MergeError(f"{version} cannot build the model of {name} from its config.json: {why[:200]}") from error
