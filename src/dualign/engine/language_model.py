"""A causal language model with its tokenizer, template and temperature: what the engine and the samplers share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dualign.records import Prompt

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class LanguageModel:
    """One base model in memory; adapters come and go on it by name.

    The policy is softmax(logits / temperature), everywhere. ``grammar`` restricts what may be generated.
    """

    model: Any
    """A ``PreTrainedModel`` without adapters, in evaluation mode."""
    tokenizer: Any
    template: Callable[[Prompt], list[int]]
    """Prompt -> token ids, generation prompt included, exactly one BOS where the model wants one."""
    eos: int
    pad: int
    temperature: float = 1.0
    max_prompt_tokens: int = 512
    max_response_tokens: int = 128
    revision: str = ""
    """Hash of the weights' identity: part of every cache key."""
    grammar: Tensor | None = None
    """Boolean ``[position, vocabulary]``: which tokens may stand at the response's position; none: all may.
    Log-probabilities are normalised over the allowed tokens. Positions past the last row use the last row."""
    notes: tuple[str, ...] = ()
    """What is to be said about how it was loaded."""

    @property
    def device(self) -> torch.device:
        """Return where the weights are."""
        device: torch.device = next(self.model.parameters()).device
        return device
