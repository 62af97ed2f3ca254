"""The config of ``dualign scorer fit``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from dualign.errors import ConfigError, MissingError
from dualign.protocols import Direction
from dualign.scorers.spec import ScorerSpec, read_spec
from dualign.strict import parse_yaml


class FitData(ScorerSpec):
    """The rows to learn from."""

    files: list[str] = Field(min_length=1)
    """Preference files in any known format; relative paths start at the config's folder."""
    format: str | None = None
    """Name of the format; none: recognised by the columns."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Column of the file by the name that the format knows it by."""
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """Share of the prompts, by hash, that the model is measured on and never fitted to."""


class LightSettings(ScorerSpec):
    """``path: light``: a linear head on frozen features; seconds to minutes on a CPU."""

    features: list[Literal["tfidf", "states"]] | None = Field(default=None, min_length=1)
    """``tfidf``: words and characters of the response; ``states``: hidden states of ``model``. None: states where
    there is a model, else words; on safety pairs both together were no better than states alone."""
    layer: int | None = Field(default=None, ge=1)
    """States after so many layers from the bottom; none: half of them and one. More costs more time."""
    pooling: Literal["mean", "last", "both"] = "mean"
    """Over the response's tokens."""
    decays: list[float] = Field(default=[0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001], min_length=1)
    """Strengths of decay to choose from by cross-validation; larger keeps the weights smaller."""
    folds: int = Field(default=5, ge=2)
    """Parts of the training prompts, left out in turn."""


class TrainSettings(ScorerSpec):
    """``path: lora`` and ``path: full``: the language model is trained; names follow Hugging Face."""

    learning_rate: float = Field(default=2e-4, gt=0)
    """Peak rate; about ten times lower for ``full``."""
    num_train_epochs: float = Field(default=2.0, gt=0)
    """Passes over the pairs."""
    per_device_train_batch_size: int = Field(default=8, ge=1)
    """Pairs a micro-step: memory grows with it."""
    gradient_accumulation_steps: int = Field(default=2, ge=1)
    """Micro-steps a step."""
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    """Share of the steps in which the rate rises; then it falls as a cosine."""
    weight_decay: float = Field(default=0.1, ge=0)
    """AdamW's decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    lora_r: int = Field(default=16, ge=1)
    """Rank."""
    lora_alpha: float = Field(default=32.0, gt=0)
    """Scale."""


class FitConfig(ScorerSpec):
    """One reward or cost model to fit."""

    kind: Direction
    """``reward``: the more helpful answer scores higher; ``cost``: the less safe one."""
    data: FitData
    path: Literal["light", "lora", "full"] = "light"
    """``light``: a linear head on frozen features; ``lora``, ``full``: the whole language model."""
    model: str | None = None
    """A folder, a hub id, a GGUF file or ``package:NAME``; none: features of TF-IDF alone."""
    template: Literal["chat", "plain", "beaver"] = "plain"
    """How prompt and response become tokens; kept beside the head. On safety pairs ``chat`` was longer, not better."""
    max_length: int = Field(default=512, ge=1)
    """Pairs with a longer answer, in tokens with its prompt, are left out and counted."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """What frozen states are computed in, and weights trained in; ``auto``: the faster one, by a second of timing."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Of the held-out prompts, the folds, the order of the pairs and the adapter."""
    regularisation: float = Field(default=0.001, ge=0)
    """Weight of the squared scores in the loss; it is what keeps a reward near 0."""
    light: LightSettings = LightSettings()
    training: TrainSettings = TrainSettings()

    @model_validator(mode="after")
    def _model_given(self) -> Self:
        if self.model is None and self.path != "light":
            raise ValueError(f"path {self.path!r} needs a 'model'")
        if self.model is None and "states" in (self.light.features or []):
            raise ValueError("light.features: 'states' needs a 'model'")
        return self

    @property
    def features(self) -> list[str]:
        """Return the feature blocks in use, each once."""
        chosen = self.light.features or (["tfidf"] if self.model is None else ["states"])
        return list(dict.fromkeys(chosen))


def load_fit_config(path: Path) -> FitConfig:
    """Return the config of a YAML file.

    Raises:
        MissingError: the file cannot be read.
        ConfigError: a key is unknown (the nearest is named) or missing, or has a wrong value.
    """
    try:
        value: Any = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise MissingError(f"config {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"config {path}: not UTF-8 text") from None
    if not isinstance(value, Mapping):
        keys = ", ".join(FitConfig.model_fields)
        raise ConfigError(f"config {path}: expected keys ({keys}), found {type(value).__name__}")
    return read_spec(FitConfig, dict(value), str(path))
