"""Drawing tokens from logits, and the key-value cache of a decode loop.

A token is the inverse of the cumulative distribution at a uniform number. On a vocabulary of tens of thousands this
is many times faster than ``torch.multinomial``, and each row owns its numbers, whatever rows it is decoded with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from dualign.errors import DataError, NumericalError, UsageError
from dualign.hashing import digest
from dualign.models.adapters import activated
from dualign.models.language_model import LanguageModel, answer_text, decode
from dualign.models.tensors import embedding_rows, first_line, positions, prompt_room
from dualign.protocols import Policy, Sampling
from dualign.records import FloatArray, Prompt, Response, named

if TYPE_CHECKING:
    from torch import Tensor


_ROOM = 64
"""Positions by which a cache grows: copying it once in 64 tokens, not at every token."""


def uniforms(seed: int, stage: str, prompt: str, index: int, count: int) -> FloatArray:
    """Return ``count`` uniform numbers in [0, 1) for one draw; a longer stream begins with the shorter one.

    The counter-based generator (Salmon et al. 2011, Philox) is keyed by a hash of the first four arguments.
    """
    key = bytes.fromhex(digest(f"{seed}\0{stage}\0{prompt}\0{index}"))[:16]
    words = np.frombuffer(key, dtype=np.uint64)
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
    _room: tuple[Tensor, ...] = ()

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return all keys and values so far, the new ones included."""
        length = self.get_seq_length()
        if key_states.shape[-2] > 1 or length == 0:
            super().update(key_states, value_states)
            return self.keys, self.values
        # Whatever else changed the cache put tensors of their own in place of views into the room.
        if not self._room or self._room[0].shape[-2] == length or self._room[0].data_ptr() != self.keys.data_ptr():
            self._room = (self._grown(self.keys), self._grown(self.values))
        for store, new in zip(self._room, (key_states, value_states), strict=True):
            store[:, :, length : length + 1] = new
        self.keys, self.values = (store[:, :, : length + 1] for store in self._room)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows at ``beam_idx``, in its order."""
        super().reorder_cache(beam_idx)
        self._room = ()

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


_DECODES = "_dualign_decodes"
LENGTHS = ("max_prompt_tokens", "max_new_tokens")
PROBE_TOKENS = 8
DECODED = {"float32": 1e-3, "float64": 1e-3}
"""What log-probabilities may differ by, in nats, between decoding with a cache and reading a text as a whole; rounding
is a hundred times smaller, a cache or a mask that a model does not heed makes it a nat."""
_COARSE = 0.5
COMPACT_BELOW = 0.8
"""Finished rows are dropped once fewer than this share still run: dropping copies the cache, keeping wastes steps."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some responses to one prompt that are decoded in one batch."""

    prompt: int
    """Position of the prompt in the request."""
    tokens: tuple[int, ...]
    first: int
    """Index of the first sample; the others follow."""
    count: int


@dataclass(frozen=True)
class TransformersSampler:
    """Draws responses with the model that is in memory."""

    language_model: LanguageModel

    def generate(
        self, policy: Policy, prompts: Sequence[Prompt], n: int, *, sampling: Sampling, seed: int, stage: str
    ) -> list[list[Response]]:
        """Return ``n`` responses a prompt: unbiased draws of the policy, with tokens and log-probabilities.

        ``log_prob`` is that of the policy at its temperature and grammar, also where ``top_k`` or ``top_p`` cut
        what may be drawn. A response ends at the first of the model's stop tokens, which is counted and not part of
        the text; one that is cut at ``max_new_tokens`` is not ``finished``.

        Raises:
            UsageError: the sampling temperature is not the policy's, or a setting makes no sense.
            DataError: a prompt is longer than the model's ``max_prompt_tokens``.
            NumericalError: a log-probability is not finite.
        """
        self._check(n, sampling)
        parts = self._parts(prompts, n, sampling)
        if not parts:
            return [[] for _ in prompts]
        found: dict[tuple[int, int], Response] = {}
        with activated(self.language_model, policy, merged=True) as model, torch.inference_mode():
            decoder = _Decoder(self.language_model, model, sampling)
            _check_decoding(decoder, parts[0].tokens)
            for batch in batches(parts, sampling.batch_size):
                places = [(part.prompt, part.first + i) for part in batch for i in range(part.count)]
                drawn = [uniforms(seed, stage, prompts[p].id, k, sampling.max_new_tokens) for p, k in places]
                for place, (tokens, log_prob) in zip(places, decoder.run(batch, np.stack(drawn)), strict=True):
                    text, finished = answer_text(self.language_model, tokens)
                    found[place] = Response(text=text, tokens=tuple(tokens), log_prob=log_prob, finished=finished)
        return [[found[prompt, sample] for sample in range(n)] for prompt in range(len(prompts))]

    def _check(self, n: int, sampling: Sampling) -> None:
        policy_temperature = self.language_model.temperature
        if sampling.temperature != policy_temperature:
            raise UsageError(
                f"sampling.temperature: given {sampling.temperature}, but this policy is defined at "
                f"{policy_temperature}; the two must be equal"
            )
        for name, value, low in (
            ("n", n, 0),
            ("max_new_tokens", sampling.max_new_tokens, 1),
            ("batch_size", sampling.batch_size, 1),
            ("top_k", sampling.top_k, 0),
        ):
            if value < low:
                raise UsageError(f"sampling.{name}: given {value}, expected at least {low}")
        if not 0 < sampling.top_p <= 1:
            raise UsageError(f"sampling.top_p: given {sampling.top_p}, expected above 0 and at most 1")

    def _parts(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> list[Part]:
        """Return what is to be decoded, the longest prompts first."""
        model, size = self.language_model, sampling.batch_size
        rows = embedding_rows(model.model)
        room = prompt_room(None, sampling.max_new_tokens, positions(model.model.config), names=LENGTHS)
        limit = min(model.max_prompt_tokens, room)
        parts: list[Part] = []
        for position, prompt in enumerate(prompts):
            tokens = tuple(model.template(prompt))
            if len(tokens) > limit:
                raise DataError(
                    f"{named(prompt)}: {len(tokens)} tokens, at most {limit} are allowed (max_prompt_tokens)"
                )
            if max(tokens) >= rows:
                raise DataError(f"prompt {prompt.id}: token {max(tokens)} has no row among the {rows} of the embedding")
            parts += [Part(position, tokens, first, min(size, n - first)) for first in range(0, n, size)]
        return sorted(parts, key=lambda part: len(part.tokens), reverse=True)


def _check_decoding(decoder: _Decoder, tokens: Sequence[int]) -> None:
    """Return when the model decodes as it reads, padding and cache included; looked at once a model.

    Raises:
        UsageError: it does not, so that what is sampled would be of another policy.
    """
    model = decoder.model
    if model.__dict__.get(_DECODES):
        return
    text = (tuple(tokens) * PROBE_TOKENS)[:PROBE_TOKENS]
    told = f"model: {type(model).__name__} cannot be sampled from here"
    try:
        decoded, alone = (
            torch.log_softmax(one.float(), dim=-1) for one in decoder.probed([text, text[: len(text) // 2]])
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{told}: it does not take a cache as other models do ({first_line(error)})") from error
    # Weighed by how probable a token is: in bfloat16 the improbable ones are all rounding.
    difference = float((alone.exp() * (decoded - alone).abs()).nan_to_num().sum(-1).max())
    allowed = DECODED.get(str(model.dtype).removeprefix("torch."), _COARSE)
    if difference > allowed:
        raise UsageError(
            f"{told}: decoded with padding and a cache, log-probabilities differ by {difference:.2g} nats from those "
            f"of the text as a whole (allowed {allowed:g}); such models are not supported"
        )
    setattr(model, _DECODES, True)


def batches(parts: Sequence[Part], batch_size: int) -> Iterator[list[Part]]:
    """Yield ``parts`` in their order, together up to ``batch_size`` sequences."""
    batch: list[Part] = []
    for part in parts:
        if batch and sum(held.count for held in batch) + part.count > batch_size:
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch


class _Decoder:
    """Decodes one batch; rows keep the order of the batch until they leave it."""

    def __init__(self, language_model: LanguageModel, model: Any, sampling: Sampling) -> None:
        self.language_model = language_model
        self.model = model
        self.sampling = sampling
        self.device = language_model.device
        grammar = language_model.grammar
        self.grammar = None if grammar is None else grammar.to(self.device)
        self.terminator = language_model.written.terminator

    def run(self, batch: Sequence[Part], uniform: FloatArray) -> list[tuple[list[int], float]]:
        """Return for each sequence of the batch its tokens and their summed log-probability.

        ``uniform``: shape ``[sequence, position]``.
        """
        logits, mask, cache = self._prefill(batch)
        streams = torch.from_numpy(uniform).to(self.device)
        length = self.sampling.max_new_tokens
        tokens = torch.full((len(streams), length), self.language_model.pad, device=self.device)
        log_probs = torch.zeros(len(streams), length, dtype=torch.float64, device=self.device)
        rows = torch.arange(len(streams), device=self.device)
        stops = torch.tensor(sorted(self.language_model.written.stops), device=self.device)
        running = torch.ones_like(rows, dtype=torch.bool)
        ends = torch.full_like(rows, length)
        for position in range(length):
            drawn, gained = self._step(logits, streams[rows, position], position)
            tokens[rows[running], position] = drawn[running]
            log_probs[rows[running], position] = gained[running].double()
            over = running & torch.isin(drawn, stops)
            if self.terminator:
                over |= running & self._spelt_out(tokens[rows], position + 1)
            ends[rows[over]] = position + 1
            running = running & ~over
            alive = int(running.sum())
            if alive == 0 or position + 1 == length:
                break
            if alive < COMPACT_BELOW * len(rows):
                keep = running.nonzero().squeeze(1)
                cache.reorder_cache(keep)
                rows, mask, drawn, running = rows[keep], mask[keep], drawn[keep], running[keep]
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            logits = self._forward(drawn.unsqueeze(1), mask, mask.sum(dim=1, keepdim=True) - 1, cache)
        sums = log_probs.sum(dim=1).tolist()
        return [(row[:end], total) for row, end, total in zip(tokens.tolist(), ends.tolist(), sums, strict=True)]

    def probed(self, texts: Sequence[tuple[int, ...]]) -> tuple[Tensor, Tensor]:
        """Return ``[text, vocabulary]`` logits after each text: as they are decoded, and of the text read alone.

        Decoded: all but the last token together, padded, then that token by the cache.
        """
        _, mask, cache = self._prefill([Part(i, text[:-1], 0, 1) for i, text in enumerate(texts)])
        order = torch.arange(len(texts), device=self.device).flip(0)
        cache.reorder_cache(order)
        last = torch.tensor([[text[-1]] for text in reversed(texts)], device=self.device)
        mask = torch.cat([mask[order], mask.new_ones(len(texts), 1)], dim=1)
        decoded = self._forward(last, mask, mask.sum(dim=1, keepdim=True) - 1, cache)
        alone = [self.model(input_ids=torch.tensor([text], device=self.device), use_cache=False) for text in texts]
        return decoded.flip(0), torch.stack([out.logits[0, -1] for out in alone])

    def _spelt_out(self, tokens: Tensor, length: int) -> Tensor:
        """Return ``[row]`` whether the last tokens hold the text that ends a turn; each token is a byte at least."""
        first = max(0, length - len(self.terminator.encode()) - 1)
        texts = [decode(self.language_model.tokenizer, row) for row in tokens[:, first:length].tolist()]
        return torch.tensor([self.terminator in text for text in texts], device=self.device)

    def _prefill(self, batch: Sequence[Part]) -> tuple[Tensor, Tensor, Any]:
        """Return the logits after each prompt, its mask and its cache, all repeated once a sample."""
        width = max(len(part.tokens) for part in batch)
        ids = torch.full((len(batch), width), self.language_model.pad)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for row, part in enumerate(batch):
            ids[row, width - len(part.tokens) :] = torch.tensor(part.tokens)
            mask[row, width - len(part.tokens) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        cache = new_cache(self.model)
        logits = self._forward(ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0), cache)
        repeat = torch.tensor([i for i, part in enumerate(batch) for _ in range(part.count)], device=self.device)
        if len(repeat) > len(batch):
            cache.reorder_cache(repeat)
        return logits[repeat], mask[repeat], cache

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any) -> Tensor:
        # An index, not the number 1: a slice of the hidden states has strides that make the head's product copy its
        # weights once a row, which took half of the sampling time.
        last = torch.tensor([ids.shape[1] - 1], device=self.device)
        out = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=last,
        )
        logits: Tensor = out.logits[:, -1]
        return logits

    def _step(self, logits: Tensor, uniform: Tensor, position: int) -> tuple[Tensor, Tensor]:
        """Return ``[row]`` drawn tokens and their log-probabilities."""
        allowed = None if self.grammar is None else self.grammar[min(position, len(self.grammar) - 1)]
        log_probs = next_log_probs(logits, temperature=self.language_model.temperature, allowed=allowed)
        cut = truncated(log_probs, top_k=self.sampling.top_k, top_p=self.sampling.top_p)
        drawn = draw(cut, uniform)
        gained = log_probs.gather(1, drawn.clamp(max=log_probs.shape[1] - 1).unsqueeze(1)).squeeze(1)
        if not bool(gained.isfinite().all()):
            raise NumericalError("sampling: a log-probability is not finite; the policy's weights have diverged")
        return drawn, gained
