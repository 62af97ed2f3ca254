"""Drawing tokens from logits, and the key-value cache of a decode loop.

A token is the inverse of the cumulative distribution at a uniform number. On a vocabulary of tens of thousands this
is many times faster than ``torch.multinomial``, and each row owns its numbers, whatever rows it is decoded with.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from dualign.records import FloatArray

_ROOM = 64
"""Positions by which a cache grows: copying it once in 64 tokens, not at every token."""


def uniforms(seed: int, stage: str, prompt: str, index: int, count: int) -> FloatArray:
    """Return ``count`` uniform numbers in [0, 1) for one draw; a longer stream begins with the shorter one.

    The counter-based generator (Salmon et al. 2011, Philox) is keyed by a hash of the first four arguments.
    """
    key = hashlib.sha256(f"{seed}\0{stage}\0{prompt}\0{index}".encode()).digest()
    words = np.frombuffer(key[:16], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=words)).random(count)


def next_log_probs(logits: Tensor, *, temperature: float, allowed: Tensor | None) -> Tensor:
    """Return ``[row, vocabulary]`` log-probabilities of the policy: at its temperature, over the allowed tokens.

    In float32, or in float64 where the logits are.
    """
    scaled = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    if allowed is not None:
        scaled = scaled.masked_fill(~allowed, -torch.inf)
    return torch.log_softmax(scaled, dim=-1)


def truncated(log_probs: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Return ``log_probs`` with -inf at what top-k and nucleus decoding leave out (0 and 1: nothing)."""
    if top_k > 0:
        least = log_probs.topk(min(top_k, log_probs.shape[-1]), dim=-1).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < least, -torch.inf)
    if top_p < 1:
        ranked, order = log_probs.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        beyond = ranked.cumsum(dim=-1) - ranked >= top_p
        log_probs = log_probs.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
    return log_probs


def draw(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """Return ``[row]`` token ids: the first whose cumulative probability exceeds ``uniform`` times the total.

    Tokens of probability zero are never drawn. Sums are in float64: float32 loses the tail of a large vocabulary.
    """
    cumulative = log_probs.exp().cumsum(dim=-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    # A product rounded up to the total itself would fall off the end.
    target = torch.minimum(uniform.unsqueeze(1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """A cache layer that keeps room for the tokens to come and writes them in place."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return all keys and values so far, the new ones included."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._room: list[Tensor] = []
        if key_states.shape[-2] > 1 or self.get_seq_length() == 0:
            super().update(key_states, value_states)
            self._room = []
            return self.keys, self.values
        length = self.get_seq_length()
        if not self._room or self._room[0].shape[-2] == length or self._room[0].shape[0] != self.keys.shape[0]:
            self._room = [self._grown(self.keys), self._grown(self.values)]
        for store, new in zip(self._room, (key_states, value_states), strict=True):
            store[:, :, length : length + 1] = new
        self.keys, self.values = (store[:, :, : length + 1] for store in self._room)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row ``repeats`` times."""
        super().batch_repeat_interleave(repeats)
        self._room = []

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows at ``beam_idx``, in its order."""
        super().reorder_cache(beam_idx)
        self._room = []

    @staticmethod
    def _grown(states: Tensor) -> Tensor:
        batch, heads, length, width = states.shape
        store = states.new_empty(batch, heads, length + _ROOM, width)
        store[:, :, :length] = states
        return store


def new_cache(model: Any) -> Any:
    """Return an empty cache for ``model``; special layers (sliding windows, states) are left as they are."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
