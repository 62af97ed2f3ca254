"""From a config to a ``Job`` on a language model: prompts, scorers, model, warm start, backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dualign.config import Config
from dualign.hashing import canonical_digest
from dualign.job.checks import check_scorers, constraints_of, direction_of, scorer_specs
from dualign.job.job import Job, Tell
from dualign.job.pairs import load_pairs
from dualign.job.prompts import check_slices, demonstration_notes, load_splits
from dualign.job.reader import longest_prompt, short_enough, wording_of
from dualign.job.warm_start import keep_merged, warm_start
from dualign.job.wording import answers_of, check_given, claimed, dated, template_notes
from dualign.models.language_model import LanguageModel
from dualign.models.loading import load_language_model, resolve
from dualign.models.sampler import TransformersSampler
from dualign.models.timing import choose_compute
from dualign.protocols import Direction, Policy, Sampling, Scorer
from dualign.records import Prompt
from dualign.runs.journal import Journal
from dualign.scorers.composite import Unreasoned
from dualign.scorers.lexical import trained
from dualign.scorers.table import KINDS, make_scorer
from dualign.train.settings import TrainingSettings
from dualign.train.sft import Example
from dualign.train.transformer import TransformerBackend


def assemble(config: Config, folder: Path, run: Path, journal: Journal, tell: Tell) -> Job:
    """Return the job: cheap checks first, then classifiers, the model and its warm start.

    Raises:
        DualignError: any mistake in the config or a file it names, before anything expensive starts.
    """
    constraints, functionals = constraints_of(config)
    base = Path(config.data.prompts) if config.data.prompts is not None else folder
    check_scorers(scorer_specs(config))
    resolve(_model_name(config))
    given = load_pairs(config, folder)
    splits, notes = load_splits(config, folder, given=[prompt for prompt, _, _ in given.pairs])
    notes = [*given.notes, *notes, *demonstration_notes(config, folder)]
    for line in given.warnings:
        tell(line)
    check_slices(constraints, splits)
    specs, qualities = _trained(config, base, journal, tell)
    model, splits = _loaded(config, splits, notes, journal, tell)
    check_given(model.turns, answers_of(given.pairs), "data.pairs")
    scorers = {
        name: _shown_answers(
            make_scorer(spec, direction=_direction(name, spec), folder=base, tokenizer=model.tokenizer), config, model
        )
        for name, spec in specs.items()
    }
    model, imitated = warm_start(config, model, splits, base, journal, tell)
    trained_on = {prompt.id for prompt in splits["train"]}
    return Job(
        config=config,
        run=run,
        journal=journal,
        backend_at=backend_factory(config, model, run, pretraining=imitated),
        reference=Policy("reference"),
        identity=canonical_digest(
            [model.revision, config.training.model_dump(), config.sampling.model_dump(), asdict(model.wording)]
        ),
        decoding=claimed(model, config),
        splits=splits,
        constraints=constraints,
        functionals=functionals,
        reward=scorers["reward"],
        costs=tuple(scorers[f"cost {constraint.name}"] for constraint in constraints),
        metrics={name.removeprefix("metric "): s for name, s in scorers.items() if name.startswith("metric ")},
        judges={name.removeprefix("judge "): s for name, s in scorers.items() if name.startswith("judge ")},
        facts={
            "notes": notes,
            "scorers": _scorer_facts(scorers, qualities),
            "data_check": list(given.checks),
            "warnings": list(given.warnings),
        },
        pairs=tuple(pair for pair in given.pairs if pair[0].id in trained_on),
        tell=tell,
    )


def _shown_answers(scorer: Scorer, config: Config, model: LanguageModel) -> Scorer:
    """Return the scorer, behind what takes reasoning from answers where the config wants it so."""
    if config.sampling.reasoning == "keep":
        return scorer
    return Unreasoned(scorer, opened=model.turns is not None and model.turns.opens_reasoning)


def warm_started(config: Config, folder: Path, journal: Journal, tell: Tell) -> LanguageModel:
    """Return the model after the config's supervised stages: the reference of the job."""
    base = Path(config.data.prompts) if config.data.prompts is not None else folder
    resolve(_model_name(config))
    given = load_pairs(config, folder)
    splits, notes = load_splits(config, folder, given=[prompt for prompt, _, _ in given.pairs])
    for line in demonstration_notes(config, folder):
        tell(line)
    model, splits = _loaded(config, splits, notes, journal, tell)
    return warm_start(config, model, splits, base, journal, tell)[0]


def _loaded(
    config: Config, splits: Mapping[str, list[Prompt]], notes: list[str], journal: Journal, tell: Tell
) -> tuple[LanguageModel, dict[str, list[Prompt]]]:
    """Return the model as it is published, in the dtype of this machine, and the prompts that fit it."""
    model = dated(_model(config), config, journal)
    kept, dropped = short_enough(splits, model.template, model.max_prompt_tokens)
    notes += [dropped, *model.notes]
    for note in model.notes:
        tell(f"warning: {note}")
    _say_of_template(model, notes, tell)
    compute = journal.choice("compute", lambda: _compute(config, model))
    tell(f"computing in {compute['dtype']} on {compute['threads']} thread(s)")
    model = _in_dtype(model, compute)
    _check_head(model, kept)
    return (model if config.policy.adapter is None else keep_merged(model, journal)), kept


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
    sampling = config.sampling

    def backend_at(folder: Path) -> TransformerBackend:
        return TransformerBackend(
            model,
            settings=TrainingSettings(**training),
            sampler=TransformersSampler(model),
            sampling=Sampling(
                temperature=sampling.temperature,
                max_new_tokens=sampling.max_new_tokens,
                batch_size=sampling.batch_size,
            ),
            folder=folder,
            cache=run / "reference" / "log-probs",
            pretraining=pretraining,
        )

    return backend_at


def _trained(
    config: Config, base: Path, journal: Journal, tell: Tell
) -> tuple[dict[str, dict[str, Any]], dict[str, Mapping[str, Any]]]:
    """Return the scorers' descriptions with every classifier trained, and the classifiers' quality."""
    specs = scorer_specs(config)

    def action(folder: Path) -> None:
        folder.joinpath("classifiers").mkdir(exist_ok=True)
        trained(specs, folder=base, out=folder / "classifiers")

    journal.phase("train scorers", {"specs": specs}, action, lambda _: None, target="scorers")
    done, qualities = trained(specs, folder=base, out=journal.run / "scorers" / "classifiers")
    for name, figures in qualities.items():
        tell(
            f"classifier {name}: accuracy {figures['accuracy']:.3f} "
            f"[{figures['accuracy_low']:.3f}, {figures['accuracy_high']:.3f}], AUC {figures['auc']:.3f}, "
            f"{figures['rows']} rows, cross-validated"
        )
    return done, qualities


def _direction(name: str, spec: Mapping[str, Any]) -> Direction:
    """Return what a scorer is used as; a metric is of its kind's direction, a cost where the kind leaves it open."""
    return direction_of(name) or KINDS[spec["kind"]].direction or "cost"


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


def _model(config: Config) -> LanguageModel:
    """Return the model as it is published, in float32, with the adapter that is named merged into it."""
    model = load_language_model(
        _model_name(config),
        temperature=config.sampling.temperature,
        max_response_tokens=config.sampling.max_new_tokens,
        wording=wording_of(config),
        adapter=None if config.policy.adapter is None else Path(config.policy.adapter),
    )
    return replace(model, max_prompt_tokens=longest_prompt(config, model.model.config))


def _say_of_template(model: LanguageModel, notes: list[str], tell: Tell) -> None:
    """Tell what a template does that a user should know, and add it to ``notes``."""
    if model.turns is not None:
        notes += template_notes(model.tokenizer, model.turns, model.wording)
        for note in model.turns.notes:
            tell(f"note: {note}")


def _model_name(config: Config) -> str:
    """Return the model's name, with the revision where one is pinned."""
    revision = config.policy.revision
    return str(config.policy.model) if revision is None else f"{config.policy.model}@{revision}"


def _compute(config: Config, model: LanguageModel) -> dict[str, Any]:
    """Return dtype and threads: by timing, unless the config says."""
    found = asdict(choose_compute(model))
    if config.training.dtype != "auto":
        found["dtype"] = config.training.dtype
    return found


def _in_dtype(model: LanguageModel, compute: Mapping[str, Any]) -> LanguageModel:
    """Return the model in the chosen dtype, with the threads set."""
    import torch

    torch.set_num_threads(int(compute["threads"]))
    dtype = str(compute["dtype"])
    model.model.to(getattr(torch, dtype))
    return replace(model, revision=f"{model.revision}-{dtype}")
