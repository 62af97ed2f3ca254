"""Which attention kernel a pass through the model uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
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
        self,
        func: Callable[..., Any],
        types: Sequence[type],  # noqa: ARG002
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what ``func`` returns for these arguments."""
        if func is not scaled_dot_product_attention:
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

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on ``device``."""
        return TokenBatch(
            self.input_ids.to(device),
            None if self.position_ids is None else self.position_ids.to(device),
            None if self.allowed is None else self.allowed.to(device),
            self.predictor.to(device),
            self.target.to(device),
            self.step.to(device),
            self.slot.to(device),
            self.shape,
        )


Layout = Callable[[Sequence[Sequences], int], TokenBatch]
"""(prompts with their responses, pad token) -> batch."""


def rows(batch: Sequence[Sequences], pad: int) -> TokenBatch:
    """Return one row a response, each with its prompt: what every causal model can read."""
    lines: list[tuple[int, ...]] = []
    predictor, slots = [], []
    widest = max(len(responses) for _, responses in batch)
    width = max(len(prompt) + len(response) - 1 for prompt, responses in batch for response in responses)
    for number, (prompt, responses) in enumerate(batch):
        for k, response in enumerate(responses):
            first = len(lines) * width + len(prompt) - 1
            predictor.append(torch.arange(first, first + len(response)))
            slots.append(number * widest + k)
            lines.append(prompt + response[:-1])
    return TokenBatch(
        _padded(lines, width, pad), None, None, torch.cat(predictor), *_targets(batch, slots), (len(batch), widest)
    )


def shared(batch: Sequence[Sequences], pad: int) -> TokenBatch:
    """Return one row a group: the prompt once, then its responses, which see the prompt and themselves alone.

    The positions of every response go on from the prompt's end, as if it stood there by itself.
    """
    lines: list[tuple[int, ...]] = []
    predictor, slots = [], []
    widest = max(len(responses) for _, responses in batch)
    width = max(len(p) + sum(len(r) - 1 for r in responses) for p, responses in batch)
    owner = torch.full((len(batch), width), -1)
    position = torch.zeros((len(batch), width), dtype=torch.long)
    for number, (prompt, responses) in enumerate(batch):
        end = len(prompt)
        owner[number, :end] = 0
        position[number, :end] = torch.arange(end)
        for k, response in enumerate(responses):
            stop = end + len(response) - 1
            owner[number, end:stop] = k + 1
            position[number, end:stop] = len(prompt) + torch.arange(stop - end)
            row = number * width
            predictor.append(torch.cat([torch.tensor([row + len(prompt) - 1]), torch.arange(row + end, row + stop)]))
            slots.append(number * widest + k)
            end = stop
        lines.append(prompt + tuple(token for response in responses for token in response[:-1]))
    return TokenBatch(
        _padded(lines, width, pad),
        position,
        _visible(owner),
        torch.cat(predictor),
        *_targets(batch, slots),
        (len(batch), widest),
    )


def _visible(owner: Tensor) -> Tensor:
    width = owner.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool).tril()
    same = owner[:, :, None] == owner[:, None, :]
    prompt = owner[:, None, :] == 0
    return ((same | prompt) & earlier)[:, None]


def _padded(lines: Sequence[tuple[int, ...]], width: int, pad: int) -> Tensor:
    return torch.tensor([line + (pad,) * (width - len(line)) for line in lines], dtype=torch.long)


def _targets(batch: Sequence[Sequences], slots: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    responses = [response for _, group in batch for response in group]
    lengths = torch.tensor([len(response) for response in responses])
    target = torch.tensor([token for response in responses for token in response], dtype=torch.long)
    step = torch.cat([torch.arange(len(response)) for response in responses])
    return target, step, torch.tensor(slots).repeat_interleave(lengths)


LAYOUTS: dict[str, Layout] = {"rows": rows, "shared": shared}


CHUNK_LOGITS = 1 << 24
"""Logits in memory at a time: 64 MB in float32."""
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
_COARSE_TOLERANCE = 2e-2
"""bfloat16 keeps eight bits; a layout error is of the size of the log-probability itself."""
_LOUDER = 1000.0
"""By this factor logits are raised where it is looked at what the model does with them behind the head."""


class PairScorer(nn.Module):
    """Owns the causal language model; ``forward`` gives the log-probability of every response."""

    def __init__(self, language_model: LanguageModel) -> None:
        super().__init__()
        self.model = language_model.model
        self.temperature = language_model.temperature
        self.grammar = language_model.grammar

    def forward(self, batch: TokenBatch, *, embeddings: Tensor | None = None) -> Tensor:
        """Return shape ``[group, K]``: log pi(response | prompt), summed over its tokens with EOS, in nats.

        Where a group has fewer than K responses, 0 stands. With ``embeddings`` (the embedding layer's output for
        the batch) they are read in place of the tokens, and the result can be differentiated twice.
        """
        scores = self.by_token(batch, embeddings=embeddings)[0]
        groups, responses = batch.shape
        sums = torch.zeros(groups * responses, dtype=scores.dtype, device=scores.device)
        return sums.index_add(0, batch.slot, scores).view(groups, responses)

    def by_token(self, batch: TokenBatch, *, embeddings: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return log-probabilities ``[target]`` of the response tokens, and the states ``[target, width]`` before."""
        hidden = self._hidden(batch, embeddings)
        allowed = self._allowed(batch)
        head = self.model.get_output_embeddings()
        if embeddings is None and type(head) is nn.Linear:
            chunk = max(1, CHUNK_LOGITS // head.weight.shape[0])
            scores: Tensor = _ChunkedLogProbs.apply(  # type: ignore[no-untyped-call]
                hidden, head.weight, head.bias, _Targets(batch.target, allowed, self.temperature, chunk)
            )
        else:
            logits = _tempered(head(hidden), self.temperature, allowed, slice(None))
            scores = functional.log_softmax(logits, -1).gather(1, batch.target[:, None])[:, 0]
        return scores, hidden

    def embed(self, batch: TokenBatch) -> Tensor:
        """Return the embedding layer's output, shape ``[row, token, width]``, as a tensor to differentiate by."""
        output: Tensor = self.model.get_input_embeddings()(batch.input_ids)
        return output if output.requires_grad else output.requires_grad_()

    def _hidden(self, batch: TokenBatch, embeddings: Tensor | None) -> Tensor:
        body = self.model.base_model
        inputs: dict[str, Any] = {"use_cache": False}
        if batch.position_ids is not None:
            inputs["position_ids"] = batch.position_ids
        if batch.allowed is not None:
            inputs["attention_mask"] = _additive(batch.allowed, self.model.dtype)
        given = {"input_ids": batch.input_ids} if embeddings is None else {"inputs_embeds": embeddings}
        with attention_kernel(self.model, batch.input_ids.shape[1], twice=embeddings is not None):
            output: Tensor = body(**given, **inputs).last_hidden_state
        return output.reshape(-1, output.shape[-1]).index_select(0, batch.predictor)

    def _allowed(self, batch: TokenBatch) -> tuple[Tensor, Tensor] | None:
        if self.grammar is None:
            return None
        grammar = self.grammar.to(batch.target.device)
        return grammar, batch.step.clamp(max=grammar.shape[0] - 1)


def _additive(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


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
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: _Targets,
    ) -> Tensor:
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
            expected = scorer(plain)
            found = scorer(LAYOUTS["shared"](probe, pad).to(device))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return "rows", f"layout: this model does not take a 4-D mask ({reason}); using rows"
    tolerance = _TOLERANCE.get(scorer.model.dtype, _COARSE_TOLERANCE)
    error_size = float(((found - expected).abs() / (1 + expected.abs())).max())
    if error_size <= tolerance:
        return "shared", None
    return "rows", f"layout: shared differs from rows by {error_size:.1e} (allowed {tolerance:.0e}); using rows"
