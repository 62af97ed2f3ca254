"""From a config to a ``Job`` on a language model: prompts, scorers, model, warm start, backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from dualign.config import Config
from dualign.hashing import canonical_digest
from dualign.job.checks import constraints_of, direction_of, scorer_specs
from dualign.job.inputs import Inputs, read_inputs
from dualign.job.phases import Job, OpenRun, folder_made
from dualign.job.reading import (
    Reader,
    claimed,
    dated,
    longest_prompt,
    model_name,
    sampling_of,
    short_enough,
    template_notes,
    wording_of,
)
from dualign.job.warm_start import keep_merged, warm_start
from dualign.models.language_model import LanguageModel, choose_compute
from dualign.models.loading import load_language_model
from dualign.models.sampler import TransformersSampler
from dualign.protocols import Policy, Scorer
from dualign.records import Prompt
from dualign.scorers.checked import checked, without_reasoning
from dualign.scorers.lexical import trained
from dualign.scorers.table import KINDS, make_scorer
from dualign.train.settings import TrainingSettings
from dualign.train.sft import Example
from dualign.train.transformer import TransformerBackend


def assemble(run: OpenRun, inputs: Inputs) -> Job:
    """Return the job: classifiers are trained, the model is loaded and warm-started, scorers are made.

    Raises:
        DualignError: any mistake that is seen only with weights, before anything expensive starts.
    """
    config, inputs = run.config, _with_model(run.config, inputs)
    for line in inputs.warnings:
        run.tell(line)
    specs, qualities = _trained(run, inputs)
    model, splits, notes = _loaded(run, inputs)
    scorers = _scorers(config, inputs, specs, model)
    model, imitated = warm_start(run, model, inputs, splits["train"])
    trained_on = {prompt.id for prompt in splits["train"]}
    facts = {
        "notes": [*inputs.notes, *notes],
        "scorers": _scorer_facts(scorers, qualities),
        "data_check": list(inputs.data_checks),
        "warnings": list(inputs.warnings),
    }
    job = job_on(run, model, splits, scorers, facts, wording=[asdict(model.wording)], pretraining=imitated)
    pairs = tuple(pair for pair in inputs.pairs if pair[0].id in trained_on)
    return replace(job, pairs=pairs, decoding=claimed(model, config))


def job_on(
    run: OpenRun,
    model: LanguageModel,
    splits: Mapping[str, Sequence[Prompt]],
    scorers: Mapping[str, Scorer],
    facts: Mapping[str, Any],
    *,
    wording: Sequence[Any] = (),
    pretraining: Sequence[Example] = (),
) -> Job:
    """Return the job of the config on a model that is ready, with the scorers of ``scorer_specs``.

    ``wording``: how the model puts prompts into words, as far as its revision does not say.
    """
    config = run.config
    constraints, functionals = constraints_of(config)
    return Job(
        config=config,
        journal=run.journal,
        backend_at=backend_factory(config, model, run.folder, pretraining=pretraining),
        reference=Policy("reference"),
        identity=canonical_digest(
            [model.revision, config.training.model_dump(), config.sampling.model_dump(), *wording]
        ),
        splits=splits,
        constraints=constraints,
        functionals=functionals,
        reward=scorers["reward"],
        costs=tuple(scorers[f"cost {constraint.name}"] for constraint in constraints),
        metrics={name.removeprefix("metric "): s for name, s in scorers.items() if name.startswith("metric ")},
        judges={name.removeprefix("judge "): s for name, s in scorers.items() if name.startswith("judge ")},
        facts=facts,
        tell=run.tell,
    )


def _with_model(config: Config, inputs: Inputs) -> Inputs:
    """Return the inputs, read anew with the model's tokenizer where that had to be fetched."""
    return read_inputs(config, inputs.base, fetch=True) if inputs.reader is None else inputs


def _scorers(
    config: Config, inputs: Inputs, specs: Mapping[str, Mapping[str, Any]], model: LanguageModel
) -> dict[str, Scorer]:
    """Return all scorers by name, those that are to see no reasoning behind what takes it from the answers."""
    scorers = dict(inputs.scorers)
    for name, spec in specs.items():
        # a metric is of its kind's direction, a cost where the kind leaves it open
        direction = direction_of(name) or KINDS[spec["kind"]].direction or "cost"
        scorers[name] = make_scorer(spec, direction=direction, folder=inputs.base, tokenizer=model.tokenizer)
    return {name: _shown_answers(scorers[name], config, model) for name in scorer_specs(config)}


def _shown_answers(scorer: Scorer, config: Config, model: LanguageModel) -> Scorer:
    """Return the scorer, behind what takes reasoning from answers where the config wants it so."""
    if config.sampling.reasoning == "keep":
        return scorer
    opened = model.turns is not None and model.turns.opens_reasoning
    return checked(scorer, shown=partial(without_reasoning, opened=opened))


def warm_started(run: OpenRun, inputs: Inputs) -> LanguageModel:
    """Return the model after the config's supervised stages: the reference of the job."""
    inputs = _with_model(run.config, inputs)
    for line in inputs.notes:
        run.tell(line)
    model, splits, _ = _loaded(run, inputs)
    return warm_start(run, model, inputs, splits["train"])[0]


def _loaded(run: OpenRun, inputs: Inputs) -> tuple[LanguageModel, dict[str, list[Prompt]], list[str]]:
    """Return the model as it is published, in the dtype of this machine, the prompts that fit it, and notes on both."""
    model = dated(_model(run.config, inputs.reader), run.config, run.journal)
    splits, dropped = short_enough(inputs.splits, model.template, model.max_prompt_tokens)
    for note in model.notes:
        run.tell(f"warning: {note}")
    notes = [dropped, *model.notes]
    if model.turns is not None:
        notes += template_notes(model.tokenizer, model.turns, model.wording)
        for note in model.turns.notes:
            run.tell(f"note: {note}")
    model = _in_dtype(run, model)
    _check_head(model, splits)
    return (model if run.config.policy.adapter is None else keep_merged(model, run.journal)), splits, notes


def _check_head(model: LanguageModel, splits: Mapping[str, Sequence[Prompt]]) -> None:
    """Check, before hours of sampling, that the model can be read as the fits will read it."""
    from dualign.models.log_probs import PairScorer, check_head, rows

    prompt = next((prompt for split in splits.values() for prompt in split), None)
    if prompt is not None:
        batch = rows([(tuple(model.template(prompt)), ((model.eos,),))], model.pad)
        check_head(PairScorer(model), batch.to(model.device))


def backend_factory(
    config: Config, model: LanguageModel, run: Path, *, pretraining: Sequence[Example] = ()
) -> Callable[[Path], TransformerBackend]:
    """Return what makes the backend that writes its policies into a folder; the reference is computed once a run."""
    training = config.training.model_dump(exclude={"beta", "dtype"})

    def backend_at(folder: Path) -> TransformerBackend:
        return TransformerBackend(
            model,
            settings=TrainingSettings(**training),
            sampler=TransformersSampler(model),
            sampling=sampling_of(config),
            folder=folder,
            cache=run / "reference" / "log-probs",
            pretraining=pretraining,
        )

    return backend_at


def _trained(run: OpenRun, inputs: Inputs) -> tuple[dict[str, dict[str, Any]], dict[str, Mapping[str, Any]]]:
    """Return the scorers' descriptions with every classifier trained, and the classifiers' quality."""
    specs = {name: spec for name, spec in scorer_specs(run.config).items() if name not in inputs.scorers}

    def action(folder: Path) -> None:
        folder.joinpath("classifiers").mkdir(exist_ok=True)
        trained(specs, folder=inputs.base, out=folder / "classifiers")

    folder = folder_made(run.journal, "train scorers", {"specs": specs}, action, target="scorers")
    done, qualities = trained(specs, folder=inputs.base, out=folder / "classifiers")
    for name, figures in qualities.items():
        run.tell(
            f"classifier {name}: accuracy {figures['accuracy']:.3f} "
            f"[{figures['accuracy_low']:.3f}, {figures['accuracy_high']:.3f}], AUC {figures['auc']:.3f}, "
            f"{figures['rows']} rows, cross-validated"
        )
    return done, qualities


def _scorer_facts(scorers: Mapping[str, Any], qualities: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row a scorer for the report."""
    rows = [
        {"id": f"{name}: {s.id}", "revision": s.revision, "direction": s.direction, "quality": {}}
        for name, s in scorers.items()
    ]
    return rows + [
        {"id": name, "revision": "", "direction": "classifier", "quality": dict(figures)}
        for name, figures in qualities.items()
    ]


def _model(config: Config, reader: Reader | None = None) -> LanguageModel:
    """Return the model as it is published, in float32, with the adapter that is named merged into it."""
    model = load_language_model(
        model_name(config),
        temperature=config.sampling.temperature,
        max_response_tokens=config.sampling.max_new_tokens,
        wording=wording_of(config),
        adapter=None if config.policy.adapter is None else Path(config.policy.adapter),
        reader=None if reader is None else reader.language_model,
    )
    return replace(model, max_prompt_tokens=longest_prompt(config, model.model.config))


def _in_dtype(run: OpenRun, model: LanguageModel) -> LanguageModel:
    """Return the model in the dtype and with the threads of this machine: by timing, once a run, or as configured."""
    import torch

    def timed() -> dict[str, Any]:
        asked = run.config.training.dtype
        return asdict(choose_compute(model.model)) | ({} if asked == "auto" else {"dtype": asked})

    compute = run.journal.choice("compute", timed)
    dtype, threads = str(compute["dtype"]), int(compute["threads"])
    run.tell(f"computing in {dtype} on {threads} thread(s)")
    torch.set_num_threads(threads)
    model.model.to(getattr(torch, dtype))
    return replace(model, revision=f"{model.revision}-{dtype}")
