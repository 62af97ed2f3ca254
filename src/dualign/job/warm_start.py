"""Supervised stages before the job: a model that both refuses and complies, so that its own samples can teach."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dualign.config import Config, Mix, WarmStart
from dualign.data.prompts import Demonstration
from dualign.errors import ConfigError
from dualign.hashing import canonical_digest
from dualign.job.inputs import Inputs
from dualign.job.job import Tell
from dualign.job.measurement import matches
from dualign.job.reading import check_given, prompt_tokens
from dualign.models.language_model import LanguageModel
from dualign.models.loading import load_language_model
from dualign.models.sampler import TransformersSampler
from dualign.models.templates import response_tokens
from dualign.protocols import Policy, Sampling
from dualign.records import Prompt
from dualign.runs.journal import Journal
from dualign.runs.store import read_json, write_json
from dualign.scorers.refusal import starts_with_refusal
from dualign.train.sft import Example, SftSettings, fine_tune, save_fitted

SENTENCE = re.compile(r"(?<=[.!?])\s+")
CANDIDATES = 4
"""Own samples a prompt that a mix entry chooses from."""


Own = Mapping[str, Sequence[str]]
"""Prompt id -> texts of the base model's own samples."""


def warm_start(
    config: Config,
    model: LanguageModel,
    inputs: Inputs,
    prompts: Sequence[Prompt],
    journal: Journal,
    tell: Tell,
) -> tuple[LanguageModel, list[Example]]:
    """Return the reference model and the examples of the last stage; none without a stage.

    The reference is ``model`` after the config's supervised stages, each merged and kept on disk.
    ``prompts``: the train prompts that fit the model.
    """
    examples: list[Example] = []
    if not config.policy.warm_start:
        return model, examples
    own = _own_samples(config, model, prompts, journal, tell)
    answered = [(prompt, text) for prompt in prompts for text in own.get(prompt.id, ())]
    for number, given in enumerate(config.policy.warm_start):
        # an answer longer than the policy may give cannot be imitated
        longest = min(given.max_target_tokens, config.sampling.max_new_tokens)
        stage = given.model_copy(update={"max_target_tokens": longest})
        rng = np.random.default_rng([config.run.seed, number])
        examples = []
        for entry, mix in enumerate(stage.mix):
            rows = answered if mix.target == "own" else inputs.demonstrations[number, entry]
            examples += _examples(model, stage, mix, rows, rng, tell)
        model = _stage(config, model, stage, examples, f"policy/{number}", journal, tell)
    return model, examples


def _own_samples(config: Config, model: LanguageModel, prompts: Sequence[Prompt], journal: Journal, tell: Tell) -> Own:
    """Return finished samples of the base model to the train prompts, drawn once for all stages."""
    wanted = [mix for stage in config.policy.warm_start for mix in stage.mix if mix.target == "own"]
    prompts = [prompt for prompt in prompts if any(matches(prompt, mix.where) for mix in wanted)]
    sampling = Sampling(
        temperature=config.sampling.temperature,
        max_new_tokens=config.sampling.max_new_tokens,
        batch_size=config.sampling.batch_size,
    )

    def action(folder: Path) -> Own:
        tell(f"sampling {CANDIDATES} x {len(prompts)} responses of the model as it is, to imitate some")
        drawn = TransformersSampler(model).generate(
            Policy("base"), prompts, CANDIDATES, sampling=sampling, seed=config.run.seed, stage="warm start"
        )
        own = {prompt.id: [response.text for response in row] for prompt, row in zip(prompts, drawn, strict=True)}
        write_json(folder / "own.json", own)
        return own

    inputs = {
        "model": model.revision, "prompts": [p.id for p in prompts], "sampling": sampling, "seed": config.run.seed,
        "wording": asdict(model.wording),
    }  # fmt: skip
    return journal.phase(
        "warm start samples", inputs, action, lambda folder: read_json(folder / "own.json"), target="policy/own"
    )


def _stage(
    config: Config,
    model: LanguageModel,
    stage: WarmStart,
    examples: Sequence[Example],
    target: str,
    journal: Journal,
    tell: Tell,
) -> LanguageModel:
    """Return the model after one stage."""
    settings = SftSettings(
        learning_rate=stage.learning_rate,
        num_train_epochs=stage.num_train_epochs,
        per_device_train_batch_size=stage.per_device_train_batch_size,
        warmup_steps=stage.warmup_steps,
    )
    inputs = {
        "model": model.revision,
        "examples": canonical_digest([[prompt.text, tokens] for prompt, tokens in examples]),
        "settings": settings,
        "seed": config.run.seed,
    }

    def action(folder: Path) -> LanguageModel:
        tell(f"warm start, {target}: {len(examples)} examples")
        report = fine_tune(model, examples, settings=settings, seed=config.run.seed, folder=folder / "model")
        tell(f"warm start, {target}: loss {report.first_loss:.2f} -> {report.last_loss:.2f}")
        return model

    def load(folder: Path) -> LanguageModel:
        return _reload(model, folder / "model")

    journal.phase("warm start", inputs, action, load, target=target)
    return load(journal.run / target)


def keep_merged(model: LanguageModel, journal: Journal) -> LanguageModel:
    """Return ``model``, into which the config's adapter is merged, as it is read from the run directory.

    There it is the base that the adapters of the run's policies are for; no other folder holds these weights.
    """

    def action(folder: Path) -> None:
        save_fitted(model, {}, folder / "model")

    def load(folder: Path) -> LanguageModel:
        return _reload(model, folder / "model")

    journal.phase("merge adapter", {"model": model.revision}, action, lambda _: None, target="policy/adapter")
    return load(journal.run / "policy" / "adapter")


def _reload(model: LanguageModel, folder: Path) -> LanguageModel:
    """Return the model of ``folder`` under the settings of ``model``."""
    dtype = str(model.model.dtype).removeprefix("torch.")
    return load_language_model(
        folder,
        temperature=model.temperature,
        max_prompt_tokens=model.max_prompt_tokens,
        max_response_tokens=model.max_response_tokens,
        wording=model.wording,
        dtype=dtype,
    )


def _examples(
    model: LanguageModel,
    stage: WarmStart,
    mix: Mix,
    rows: Sequence[Demonstration],
    rng: np.random.Generator,
    tell: Tell,
) -> list[Example]:
    """Return the examples of one entry of the mix, from ``rows`` of a file or of the model's own samples.

    Raises:
        ConfigError: there are fewer than the entry wants.
    """
    if mix.target == "demonstration":
        pairs = [(prompt, text) for prompt, text in rows if prompt_tokens(model, prompt) is not None]
        if len(pairs) < len(rows):
            tell(
                f"warm start: {len(rows) - len(pairs)} of {len(rows)} demonstrations left out: the prompt has more "
                f"than {model.max_prompt_tokens} tokens, or the template refuses it"
            )
        check_given(model.turns, [text for _, text in pairs], "policy.warm_start.demonstrations")
    else:
        pairs = [(prompt, text) for prompt, text in rows if matches(prompt, mix.where) and _kept(text, mix)]
    cut = [(prompt, first_sentences(model, text, stage.max_target_tokens)) for prompt, text in pairs]
    # one answer a prompt: the first that can be cut at the end of a sentence
    first = {prompt.id: (prompt, tokens) for prompt, tokens in reversed(cut) if tokens is not None}
    usable = list(first.values())
    if lost := sum(tokens is None for _, tokens in cut):
        tell(
            f"warm start: {lost} of {len(cut)} answers ({mix.target}) left out: no whole first sentence of theirs fits "
            f"into {stage.max_target_tokens} tokens"
        )
    if len(usable) < mix.count:
        raise ConfigError(
            f"policy.warm_start: {mix.count} examples wanted ({mix.target}, keep {mix.keep}, where {mix.where}), "
            f"{len(usable)} are there; lower the count"
        )
    order = rng.permutation(len(usable))[: mix.count]
    return [usable[k] for k in order]


def _kept(text: str, mix: Mix) -> bool:
    """Return whether an own sample may be imitated."""
    refuses = starts_with_refusal(text)
    return bool(text.strip()) and (mix.keep == "any" or refuses == (mix.keep == "refusing"))


def first_sentences(model: LanguageModel, text: str, limit: int) -> tuple[int, ...] | None:
    """Return the tokens of the first whole sentences within ``limit`` tokens, EOS included; none: not even one fits."""
    best: tuple[int, ...] | None = None
    sentences = SENTENCE.split(text.strip())
    for count in range(1, len(sentences) + 1):
        part = " ".join(sentences[:count])
        if not part.endswith((".", "!", "?")):
            break
        tokens = response_tokens(model, part)
        if len(tokens) > limit:
            break
        best = tokens
    return best
