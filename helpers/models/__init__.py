"""Which model a lesson uses: the bundled one, a preset, a local folder or a hub id."""

from helpers.models.card import model_card
from helpers.models.hub import ModelError, offline, why_unfetched
from helpers.models.presets import AUTO_LARGE, PRESETS, RECIPES
from helpers.models.resolving import BUNDLED_MODEL, Model, base_of, bundled, recipe_for, rehearse, resolve_model

__all__ = [
    "PRESETS",  # models on the hub that have a short name, with their shapes
    "RECIPES",  # what "auto" means for the parameters of training
    "AUTO_LARGE",  # the preset that lesson 03 takes on a GPU
    "BUNDLED_MODEL",  # the folder of the bundled model
    "Model",  # a model that can be loaded
    "ModelError",  # a model that is not there
    "bundled",  # the bundled model
    "recipe_for",  # what "auto" means for a model
    "resolve_model",  # the model that model_id means
    "base_of",  # the base that an adapter was trained on
    "rehearse",  # build a model without its weights, to see whether it can be
    "offline",  # whether HF_HUB_OFFLINE is set
    "why_unfetched",  # what the hub answered, in words
    "model_card",  # the card of a merged model, from records
]
