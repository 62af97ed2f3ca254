"""Log-probabilities of given responses: how rows of tokens are laid out, and the one pass through the model.

Also which attention kernel that pass uses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from dualign.errors import UsageError
from dualign.models.language_model import LanguageModel

SHORT = 256
"""Tokens a row up to which attention in bfloat16 is computed in float32 on a CPU."""


def attention_kernel(model: nn.Module, width: int, *, twice: bool = False) -> AbstractContextManager[Any]:
    """Return the context in which rows of ``width`` tokens are read; ``twice``: the pass is differentiated twice.

    Fused kernels have no second derivative. In bfloat16 the CPU's has a backward pass that takes two to five times as
    long as float32's on short rows; at 400 tokens both are alike (docs/log.md).
    """
    if twice:
        return sdpa_kernel(SDPBackend.MATH)
    parameter = next(model.parameters())
    slow = parameter.device.type == "cpu" and parameter.dtype == torch.bfloat16 and width <= SHORT
    return InFloat32() if slow else nullcontext()


class InFloat32(TorchFunctionMode):
    """Computes attention, and nothing else, in float32, and returns it in the dtype of its inputs."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (),  # noqa: ARG002
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """Return what ``func`` returns for these arguments."""
        if func is not functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        named = {name: _wide(value) for name, value in (kwargs or {}).items()}
        return func(*map(_wide, args), **named).to(args[0].dtype)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


Sequences = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]
"""The tokens of a prompt, and of each of its responses."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows of tokens, and which positions predict which response token."""

    input_ids: Tensor
    """Shape ``[row, token]``."""
    position_ids: Tensor | None
    """Shape ``[row, token]``; none: they count from 0 in each row."""
    allowed: Tensor | None
    """Boolean ``[row, 1, token, token]``: which token (last axis) each token sees; none: causal."""
    predictor: Tensor
    """Shape ``[target]``: flat position ``row * width + token`` whose output predicts the target."""
    target: Tensor
    """Shape ``[target]``: the response tokens, EOS included."""
    step: Tensor
    """Shape ``[target]``: the target's place in its response, from 0."""
    slot: Tensor
    """Shape ``[target]``: the flat number ``group * K + response`` of the target's response."""
    shape: tuple[int, int]
    """(groups, K), K the largest number of responses of a group."""
    by_embeddings: bool = False
    """Whether the log-probabilities are differentiated, twice too, by what the embedding layer gives for the rows."""

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on ``device``."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in held.items()}
        return TokenBatch(**moved)


Layout = Callable[[Sequence[Sequences], int], TokenBatch]
"""(prompts with their responses, pad token) -> batch."""


def rows(batch: Sequence[Sequences], pad: int) -> TokenBatch:
    """Return one row a response, each with its prompt: what every causal model can read."""
    return _laid_out(batch, [(prompt, (response,)) for prompt, group in batch for response in group], pad)


def shared(batch: Sequence[Sequences], pad: int) -> TokenBatch:
    """Return one row a group: the prompt once, then its responses, which see the prompt and themselves alone.

    The positions of every response go on from the prompt's end, as if it stood there by itself.
    """
    made = _laid_out(batch, batch, pad)
    width = made.input_ids.shape[1]
    owners = [[0] * len(prompt) + [k for k, r in enumerate(group, start=1) for _ in r[1:]] for prompt, group in batch]
    places = [[*range(len(p)), *(len(p) + t for r in group for t in range(len(r) - 1))] for p, group in batch]
    owner = _padded(owners, width, -1)
    same, prompt = owner[:, :, None] == owner[:, None, :], owner[:, None, :] == 0
    earlier = torch.ones(width, width, dtype=torch.bool).tril()
    return replace(made, position_ids=_padded(places, width, 0), allowed=((same | prompt) & earlier)[:, None])


def _laid_out(batch: Sequence[Sequences], lines: Sequence[Sequences], pad: int) -> TokenBatch:
    """Return the batch whose rows are ``lines``.

    A response stands without its last token, which nothing follows; the first is predicted by the prompt's last.
    """
    said = [[*prompt, *(token for response in group for token in response[:-1])] for prompt, group in lines]
    width = max(map(len, said))
    predictor: list[int] = []
    for number, (prompt, group) in enumerate(lines):
        last = end = number * width + len(prompt) - 1
        for response in group:
            predictor += [last, *range(end + 1, end + len(response))]
            end += len(response) - 1
    widest = max(len(group) for _, group in batch)
    slots = [number * widest + k for number, (_, group) in enumerate(batch) for k in range(len(group))]
    responses = [response for _, group in batch for response in group]
    return TokenBatch(
        _padded(said, width, pad),
        None,
        None,
        torch.tensor(predictor),
        torch.tensor([token for response in responses for token in response]),
        torch.tensor([step for response in responses for step in range(len(response))]),
        torch.tensor([slot for slot, response in zip(slots, responses, strict=True) for _ in response]),
        (len(batch), widest),
    )


def _padded(lines: Sequence[Sequence[int]], width: int, filling: int) -> Tensor:
    return torch.tensor([[*line, *[filling] * (width - len(line))] for line in lines])


LAYOUTS: dict[str, Layout] = {"rows": rows, "shared": shared}


CHUNK_LOGITS = 1 << 24
"""Logits in memory at a time: 64 MB in float32."""
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_COARSE_TOLERANCE = 2e-2
"""bfloat16 keeps eight bits; a layout error is of the size of the log-probability itself."""
_LOUDER = 1000.0
"""By this factor logits are raised where it is looked at what the model does with them behind the head."""


class Reading(NamedTuple):
    """What a policy says of a batch, in nats."""

    responses: Tensor
    """Shape ``[group, K]``: log pi(response | prompt), summed over its tokens with EOS; 0 where there is none."""
    tokens: Tensor
    """Shape ``[target]``: log-probabilities of the response tokens."""
    states: Tensor
    """Shape ``[target, width]``: what the output head read."""
    embeddings: Tensor | None
    """Shape ``[row, token, width]``, where the batch is differentiated by them."""


class PairScorer(nn.Module):
    """Owns the causal language model; ``forward`` gives the log-probability of every response and of its tokens."""

    def __init__(self, language_model: LanguageModel) -> None:
        super().__init__()
        self.model = language_model.model
        self.temperature = language_model.temperature
        self.grammar = language_model.grammar

    def forward(self, batch: TokenBatch) -> Reading:
        """Return the log-probabilities of a batch, under softmax(logits / temperature) over the allowed tokens."""
        embeddings: Tensor | None = None
        if batch.by_embeddings:
            embeddings = self.model.get_input_embeddings()(batch.input_ids)
            embeddings = embeddings if embeddings.requires_grad else embeddings.requires_grad_()
        states = self._states(batch, embeddings)
        head, grammar = self.model.get_output_embeddings(), self.grammar
        allowed = None
        if grammar is not None:
            allowed = grammar.to(batch.target.device), batch.step.clamp(max=grammar.shape[0] - 1)
        if embeddings is None and type(head) is nn.Linear:
            chunk = max(1, CHUNK_LOGITS // head.weight.shape[0])
            tokens: Tensor = _ChunkedLogProbs.apply(  # type: ignore[no-untyped-call]
                states, head.weight, head.bias, _Targets(batch.target, allowed, self.temperature, chunk)
            )
        else:
            logits = _tempered(head(states), self.temperature, allowed, slice(None))
            tokens = functional.log_softmax(logits, -1).gather(1, batch.target[:, None])[:, 0]
        sums = torch.zeros(batch.shape[0] * batch.shape[1], dtype=tokens.dtype, device=tokens.device)
        return Reading(sums.index_add(0, batch.slot, tokens).view(batch.shape), tokens, states, embeddings)

    def _states(self, batch: TokenBatch, embeddings: Tensor | None) -> Tensor:
        inputs: dict[str, Any] = {"use_cache": False}
        if batch.position_ids is not None:
            inputs["position_ids"] = batch.position_ids
        if batch.allowed is not None:
            mask = torch.zeros(batch.allowed.shape, dtype=self.model.dtype, device=batch.allowed.device)
            inputs["attention_mask"] = mask.masked_fill_(~batch.allowed, torch.finfo(mask.dtype).min)
        inputs |= {"input_ids": batch.input_ids} if embeddings is None else {"inputs_embeds": embeddings}
        with attention_kernel(self.model, batch.input_ids.shape[1], twice=embeddings is not None):
            output: Tensor = self.model.base_model(**inputs).last_hidden_state
        return output.reshape(-1, output.shape[-1]).index_select(0, batch.predictor)


def _tempered(logits: Tensor, temperature: float, allowed: tuple[Tensor, Tensor] | None, part: slice) -> Tensor:
    """Return logits / temperature in at least float32, -inf outside the grammar."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1:
        logits = logits / temperature
    if allowed is not None:
        grammar, step = allowed
        logits = logits.masked_fill(~grammar[step[part]], float("-inf"))
    return logits


@dataclass(frozen=True, slots=True)
class _Targets:
    target: Tensor
    allowed: tuple[Tensor, Tensor] | None
    temperature: float
    chunk: int


class _ChunkedLogProbs(torch.autograd.Function):
    """log softmax(W h / T) at the target, for each row of h, without a ``[position, vocabulary]`` matrix kept.

    d log p / d h = (W[target] - sum_v p_v W_v) / T needs the logits that the forward pass has at hand, so it is
    formed there; the backward pass scales it. Only a head that is trained itself has its logits made again.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: _Targets) -> Tensor:
        target, allowed = targets.target, targets.allowed
        temperature, chunk = targets.temperature, targets.chunk
        wide = torch.promote_types(hidden.dtype, torch.float32)
        scores = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        normaliser = torch.empty_like(scores)
        slope = torch.empty_like(hidden) if any(ctx.needs_input_grad[:2]) else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = _tempered(functional.linear(hidden[part], weight, bias), temperature, allowed, part)
            normaliser[part] = logits.logsumexp(-1)
            scores[part] = logits.gather(1, target[part, None])[:, 0] - normaliser[part]
            if slope is not None:
                probability = logits.sub_(normaliser[part, None]).exp_().to(hidden.dtype)
                torch.sub(weight[target[part]], probability @ weight, out=slope[part])
        ctx.save_for_backward(hidden, weight, bias, normaliser, slope)
        ctx.targets = targets
        return scores

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, normaliser, slope = ctx.saved_tensors
        targets: _Targets = ctx.targets
        target, chunk = targets.target, targets.chunk
        scale = gradient / targets.temperature
        by_hidden = slope * scale[:, None].to(slope.dtype)
        if not ctx.needs_input_grad[1]:
            return by_hidden, None, None, None
        by_weight = torch.zeros_like(weight)
        by_bias = None if bias is None else torch.zeros_like(bias)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = functional.linear(hidden[part], weight, bias)
            logits = _tempered(logits, targets.temperature, targets.allowed, part)
            residual = logits.sub_(normaliser[part, None]).exp_().mul_(-scale[part, None])
            residual.scatter_add_(1, target[part, None], scale[part, None])
            residual = residual.to(weight.dtype)
            by_weight.addmm_(residual.T, hidden[part])
            if by_bias is not None:
                by_bias += residual.sum(0)
        return by_hidden, by_weight, by_bias, None


def check_head(scorer: PairScorer, batch: TokenBatch) -> None:
    """Return when the head's plain product is what the model itself gives as logits.

    The head speaks louder meanwhile: a cap at 30 hardly shows on logits of 5, which training may leave behind.

    Raises:
        UsageError: the model changes its logits after the head (soft caps, logit scales), or names no part of itself
            that makes the states which the head reads: not supported.
    """
    kind = type(scorer.model).__name__
    if scorer.model.base_model is scorer.model:
        raise UsageError(f"model: {kind} does not tell its body from its output head; such models are not supported")
    head = scorer.model.get_output_embeddings()
    louder = head.register_forward_hook(lambda module, given, logits: logits * _LOUDER)  # noqa: ARG005
    try:
        with torch.no_grad():
            ids = batch.input_ids[:1]
            own = scorer.model(input_ids=ids, use_cache=False).logits
            ours = head(scorer.model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    finally:
        louder.remove()
    # Weights that are not numbers are found by the first loss, and told as what they are.
    if not torch.allclose(own.float(), ours.float(), rtol=1e-2, atol=1e-3, equal_nan=True):
        raise UsageError(f"model: {kind} changes its logits after the output head; such models are not supported")


def choose_layout(scorer: PairScorer, probe: Sequence[Sequences], pad: int, wanted: str) -> tuple[str, str | None]:
    """Return the layout to use and, when it is not the wanted one, a sentence that says why.

    ``auto`` and ``shared`` are tried on ``probe`` against ``rows``: a model that cannot share a prompt falls back.

    Raises:
        UsageError: there is no layout of that name.
    """
    names = ("auto", *LAYOUTS)
    if wanted not in names:
        raise UsageError(f"layout: unknown '{wanted}'; expected one of {', '.join(names)}")
    device = scorer.model.device
    plain = rows(probe, pad).to(device)
    check_head(scorer, plain)
    if wanted == "rows":
        return "rows", None
    try:
        with torch.no_grad():
            expected = scorer(plain).responses
            found = scorer(LAYOUTS["shared"](probe, pad).to(device)).responses
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return "rows", f"layout: this model does not take a 4-D mask ({reason}); using rows"
    tolerance = _TOLERANCE.get(scorer.model.dtype, _COARSE_TOLERANCE)
    error_size = float(((found - expected).abs() / (1 + expected.abs())).max())
    if error_size <= tolerance:
        return "shared", None
    return "rows", f"layout: shared differs from rows by {error_size:.1e} (allowed {tolerance:.0e}); using rows"
