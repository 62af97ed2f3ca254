"""The backend of language models: fits adapters or full weights, samples them, reads their log-probabilities."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dualign.errors import NumericalError, UsageError
from dualign.hashing import canonical_digest
from dualign.models.adapters import activated, fingerprint
from dualign.models.language_model import LanguageModel
from dualign.models.pair_store import PairStore, StoredGroup, build_store, cached_log_probs
from dualign.protocols import FitReport, Objective, Policy, Practice, Sampler, Sampling, Score
from dualign.records import FloatArray, Group, Prompt, Response
from dualign.train.settings import FitInputs, TrainingSettings
from dualign.train.sft import Example
from dualign.train.trainer import fit

TOKENS_A_BATCH = 4096
"""Tokens of one forward pass where no gradient is wanted."""


class TransformerBackend:
    """Holds one base model; a policy is a folder of weights for it, and the reference is the base itself."""

    def __init__(
        self,
        language_model: LanguageModel,
        *,
        training: TrainingSettings,
        sampler: Sampler,
        sampling: Sampling,
        folder: Path,
        cache: Path | None = None,
        pretraining: Sequence[Example] = (),
    ) -> None:
        """Take the parts; ``folder`` gets a sub-folder for every policy, ``cache`` the log-probabilities.

        Without ``cache`` they go to ``folder / "reference"``. ``pretraining`` is what on-policy methods may imitate.

        Raises:
            UsageError: the sampler's temperature is not the model's: they would be two different policies.
        """
        if sampling.temperature != language_model.temperature:
            raise UsageError(
                f"sampling.temperature: {sampling.temperature} was given, but the policy is defined at "
                f"{language_model.temperature}; they must be equal"
            )
        self.language_model = language_model
        self.training = training
        self.sampler = sampler
        self.sampling = sampling
        self.folder = folder
        self.cache = folder / "reference" if cache is None else cache
        self.pretraining = pretraining
        self.notes: list[str] = []
        """Sentences for the user: a layout that fell back, a checkpoint that was ignored."""
        self._layout: str | None = None
        self._tried = 0

    def fit(
        self,
        groups: Sequence[Group],
        *,
        objective: Objective,
        reference: Policy,
        start: Policy | None,
        seed: int,
        name: str,
    ) -> Policy:
        """Return the policy that minimises ``objective`` on ``groups``; its weights lie in ``folder / name``.

        Without ``start`` it begins at the reference: by a fresh adapter where that is the base model.

        Raises:
            NumericalError: a loss or gradient is not finite; nothing of the step is applied.
            DataError: no group has two different responses.
        """
        store = build_store(self.language_model, groups)
        known = self._log_probs(reference, store)
        kept = [i for i, group in enumerate(store.groups) if len(group.pairs)]
        inputs = FitInputs(
            [store.groups[i] for i in kept],
            [known[i] for i in kept],
            objective,
            reference if start is None else start,
            seed,
            self.layout(store),
        )
        target = self.folder / name
        report = fit(self.language_model, inputs, settings=self.training, folder=target, notes=self.notes)
        return Policy(name, target, report)

    def sample(self, policy: Policy, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        """Return ``n`` responses for each prompt, draws of the policy at its temperature.

        Every policy gets the same random numbers for the same seed, so that differences are paired.
        """
        return self.sampler.generate(policy, prompts, n, sampling=self.sampling, seed=seed, stage="sample")

    def log_probs(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return for each group the ``[response]`` sums of log-probabilities, EOS included, in nats.

        Raises:
            NumericalError: one is not finite.
        """
        return self._log_probs(policy, build_store(self.language_model, groups))

    def log_ratios(self, policy: Policy, reference: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return for each group ``[response]``: log pi(y|x) - log pi_ref(y|x), EOS included, in nats.

        Both are read in the very same batches and none is taken from the cache: in bfloat16 a log-probability
        depends on what else is in its batch, by up to some tenths of a nat.

        Raises:
            NumericalError: a log-probability is not finite.
        """
        store = build_store(self.language_model, groups)
        layout = self.layout(store)
        own, known = (
            unique_log_probs(self.language_model, who, store.groups, layout=layout) for who in (policy, reference)
        )
        return [(one - other)[group.index] for one, other, group in zip(own, known, store.groups, strict=True)]

    def mutual_information(self, policy: Policy, groups: Sequence[Group]) -> list[FloatArray]:
        """Return for each group ``[response]``: (log pi(y|x) - log pi(y)) / |y|, in nats a token, EOS included.

        pi(y) is the probability of the response after an empty prompt in the template.

        Raises:
            DataError: the template of an empty prompt has no token.
            NumericalError: a log-probability is not finite.
        """
        bare = [replace(group, prompt=Prompt("", id=group.prompt.id)) for group in groups]
        stores = [build_store(self.language_model, made) for made in (groups, bare)]
        given, alone = (self._log_probs(policy, store) for store in stores)
        lengths = [np.array([len(row.responses[i]) for i in row.index]) for row in stores[0].groups]
        return [(one - other) / length for one, other, length in zip(given, alone, lengths, strict=True)]

    def practise(
        self, policy: Policy, groups: Sequence[Group], *, practice: Practice, score: Score, reference: Policy,
        seed: int, name: str,
    ) -> Policy:  # fmt: skip
        """Return ``policy`` after on-policy training on the prompts of ``groups``; it lies in ``folder / name``.

        A prompt that several groups share (one a pair) counts once.

        Raises:
            NumericalError: a loss or gradient is not finite; nothing of the step is applied.
        """
        from dualign.train.on_policy import Stage, practise

        if practice.settings.get("ptx", 0) > 0 and not self.pretraining:
            raise UsageError("option ptx: imitates the answers of policy.warm_start, and there is none; leave it out")

        stage = Stage(
            self.language_model, self.sampler, self.sampling, self.training, score, reference, self.pretraining
        )
        target = self.folder / name
        prompts: dict[str, Prompt] = {}
        for group in groups:
            prompts.setdefault(group.prompt.id, group.prompt)
        report = practise(stage, policy, list(prompts.values()), practice, seed=seed, folder=target)
        return Policy(name, target, report)

    def merge(self, first: Policy, second: Policy, *, share: float, name: str) -> Policy:
        """Return ``(1 - share) first + share second`` in weights, which is not the merge of log-probabilities.

        Raises:
            UsageError: one is an adapter and the other is not.
        """
        from dualign.models.adapters import merged

        target = self.folder / name
        merged(first, second, share=share, folder=target)
        return Policy(name, target, FitReport(0, float("nan"), float("nan"), 0.0))

    def states(self, groups: Sequence[Group]) -> list[FloatArray]:
        """Return for each group ``[response, width]``: the reference's last states before the response's tokens."""
        from dualign.models.pair_store import response_states

        return response_states(self.language_model, groups, tokens_a_batch=TOKENS_A_BATCH)

    def layout(self, store: PairStore) -> str:
        """Return the layout in use; ``shared`` is tried again where a row is longer than those it was tried on.

        Below the width of its window, a model with sliding attention is like any other.
        """
        from dualign.models.log_probs import PairScorer, choose_layout

        longest = max(store.groups, key=longest_row)
        if self._layout is None or (self._layout == "shared" and longest_row(longest) > self._tried):
            self._tried = longest_row(longest)
            probe = [(longest.prompt, longest.responses)]
            with activated(self.language_model, Policy("reference")):
                scorer = PairScorer(self.language_model)
                self._layout, note = choose_layout(scorer, probe, self.language_model.pad, self.training.layout)
            self.notes.extend([note] if note else [])
        return self._layout

    def _log_probs(self, policy: Policy, store: PairStore) -> list[FloatArray]:
        model = self.language_model
        layout = self.layout(store)
        grammar = model.grammar
        masked = None if grammar is None else hashlib.sha256(grammar.cpu().numpy().tobytes()).hexdigest()
        key = canonical_digest(
            [
                model.revision,
                fingerprint(policy),
                str(model.model.dtype),
                repr(model.temperature),
                [model.max_prompt_tokens, model.max_response_tokens],
                masked,
                layout,
            ]
        )
        # Without a revision two models could share a key.
        path = self.cache / f"{key[:32]}.safetensors" if model.revision else None

        def compute(groups: Sequence[StoredGroup]) -> list[FloatArray]:
            return unique_log_probs(model, policy, groups, layout=layout)

        return cached_log_probs(path, store, compute)


def longest_row(group: StoredGroup) -> int:
    """Return the tokens of the prompt and its longest response."""
    return len(group.prompt) + max(map(len, group.responses))


def unique_log_probs(
    language_model: LanguageModel, policy: Policy, groups: Sequence[StoredGroup], *, layout: str
) -> list[FloatArray]:
    """Return for each group the log-probabilities of its different responses, in nats.

    Raises:
        NumericalError: one is not finite.
    """
    import torch

    from dualign.models.log_probs import LAYOUTS, PairScorer

    found: list[Any] = [None] * len(groups)
    with activated(language_model, policy), torch.no_grad():
        scorer = PairScorer(language_model)
        for part in _by_length(groups):
            batch = LAYOUTS[layout]([(groups[i].prompt, groups[i].responses) for i in part], language_model.pad)
            values = scorer(batch.to(language_model.device)).double().cpu().numpy()
            if not np.isfinite(values).all():
                raise NumericalError(f"policy '{policy.name}': a log-probability is not finite")
            for i, row in zip(part, values, strict=True):
                found[i] = row[: len(groups[i].responses)]
    return found


def _by_length(groups: Sequence[StoredGroup]) -> list[list[int]]:
    """Return batches of group numbers, like lengths together, each of at most ``TOKENS_A_BATCH`` tokens if it can."""
    batches: list[list[int]] = []
    for i in sorted(range(len(groups)), key=lambda i: -groups[i].length):
        widest = groups[batches[-1][0]].length if batches else 0
        if batches and widest * (len(batches[-1]) + 1) <= TOKENS_A_BATCH:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
