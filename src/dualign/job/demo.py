"""The assistant world as a job: every stage real, then held against the optimum that only this world can know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dualign.config import Config
from dualign.hashing import plain
from dualign.job.assembly import job_on
from dualign.job.phases import Job, OpenRun, folder_made, read_choice
from dualign.job.results import run_search
from dualign.job.search import Search, extra_round, prepare
from dualign.maths.exact import FiniteProblem, Optimum, expectations, optimum
from dualign.maths.policy_gradient import log_best_of
from dualign.models.language_model import LanguageModel
from dualign.protocols import Policy
from dualign.records import FloatArray, Prompt
from dualign.report.build import build_report
from dualign.runs.journal import open_run
from dualign.runs.lock import run_lock
from dualign.runs.store import read_json, write_json
from dualign.train.sft import SftSettings, fine_tune
from dualign.worlds.assistant import (
    AssistantWorld,
    Gap,
    build_assistant_world,
    enumerate_log_probs,
    gap,
    language_model,
)
from dualign.worlds.assistant_scores import HeadReport, Heads, fit_heads, learned_heads
from dualign.worlds.assistant_text import WORLDS

OTHER_ARMS = (("hard labels", 1.0, "hard"), ("half the multiplier", 0.5, None), ("twice the multiplier", 2.0, None))
"""Name, share of the selected multiplier, label mode in the place of the config's."""


def demo_config(seed: int, world: str) -> Config:
    """Return the config of the demo: the vetted setting of its size."""
    settings = WORLDS[world]
    measured = {"responses_per_prompt": settings.evaluation_size}
    limit = {"name": "harm", "where": dict(settings.where), "limit": settings.limit, "cap": settings.cap}
    return Config.model_validate(
        {
            "policy": {"world": world},
            "reward": {"scorer": {"kind": "assistant-reward"}},
            "constraints": [{"scorer": {"kind": "assistant-cost"}, **limit}],
            "method": {"dual": "bracket", "max_rounds": 5},
            "training": {**settings.training, "beta": settings.beta, "dtype": "float32"},
            "sampling": {"responses_per_prompt": settings.group_size, "max_new_tokens": 7, "batch_size": 1024},
            "evaluation": measured,
            "certificate": measured,
            "run": {"name": "demo", "seed": seed},
        }
    )


@dataclass(frozen=True)
class Parts:
    """The world with everything learned in it."""

    world: AssistantWorld
    model: LanguageModel
    heads: Heads


def run_demo(run: OpenRun, *, arms: bool = False) -> tuple[dict[str, Any], int]:
    """Return the ``demo`` object and the exit code; its ``selected`` figures are the true ones."""
    parts = learn(run)
    search = prepare(make_job(run, parts))
    result, code = run_search(search)
    more = {}
    if arms:  # what one might train instead, at the selected multiplier and the same cost of training
        found = np.array(list(result["selected"]["multipliers_normalised"].values()))
        for name, factor, labels in OTHER_ARMS:
            more[name] = extra_round(search, factor * found, name.replace(" ", "-"), labels=labels).policy
    exact = compare_with_optimum(Truth.of(search, parts), search.job, result, more)
    if arms:
        exact["exact_scores"] = with_exact_scores(run, parts)
    write_json(run.folder / "exact.json", exact, run=run.folder)
    run.tell(f"exact: gap {exact['gap']:.4f} (scores {exact['gap_scores']:.4f}, training {exact['gap_training']:.4f})")
    true = {"selected": {**result["selected"], **exact["selected"]}, "optimum": exact["optimum"], "gap": exact["gap"]}
    return {**result, **true}, code


def with_exact_scores(run: OpenRun, parts: Parts) -> dict[str, Any]:
    """Return the true figures of the same job with the hidden scores in the place of the learned ones."""
    run.tell("the same job with the exact scores")
    scorers = parts.world.exact_scorers
    heads = Heads(scorers["reward"], scorers["cost"], parts.heads.report)
    beside = run.folder.with_name(f"{run.folder.name}-exact-scores")
    with run_lock(beside):
        opened = OpenRun(run.config, open_run(beside, run.config.model_dump(mode="json")), run.tell)
        search = prepare(make_job(opened, parts, heads=heads))
        result, _ = run_search(search)
        exact = compare_with_optimum(Truth.of(search, parts), search.job, result, {})
        write_json(beside / "exact.json", exact, run=beside)
        build_report(beside)
    return {**exact["selected"], "gap": exact["gap"], "rounds": len(result["iterates"])}


def learn(run: OpenRun) -> Parts:
    """Return the world after supervised fine-tuning, comparisons and the two heads."""
    world = build_assistant_world(WORLDS[str(run.config.policy.world)], run.config.run.seed)
    train = world.splits()["train"]
    model = _fine_tuned(run, world, train)
    heads = _heads(run, world, model, train)
    report = heads.report
    run.tell(
        f"learned reward: {report.reward_accuracy:.3f} of held-out pairs (hidden reward: "
        f"{report.reward_accuracy_ceiling:.3f}); learned cost: {report.sign_accuracy:.3f} of held-out flags "
        f"(hidden cost: {report.sign_accuracy_ceiling:.3f})"
    )
    return Parts(world, model, heads)


def _heads(run: OpenRun, world: AssistantWorld, model: LanguageModel, train: Sequence[Prompt]) -> Heads:
    """Return reward and cost as learned from comparisons of the model's own replies."""
    from safetensors.numpy import load_file, save_file

    def action(folder: Path) -> None:
        run.tell(f"asking people to compare {world.settings.comparisons:,} pairs of replies, and learning from them")
        drawn = world.comparisons(train, enumerate_log_probs(model, Policy("reference"), train))
        found = fit_heads(drawn, world.settings, world.seed)
        save_file({"reward": found.reward.table, "cost": found.cost.table}, folder / "tables.safetensors")
        write_json(folder / "report.json", plain(found.report))

    inputs = {"world": world.settings, "seed": run.config.run.seed, "model": model.revision}
    folder = folder_made(run.journal, "learn scores", plain(inputs), action, target="scorers/heads")
    tables = load_file(folder / "tables.safetensors")
    return learned_heads(tables["reward"], tables["cost"], HeadReport(**read_json(folder / "report.json")))


def _fine_tuned(run: OpenRun, world: AssistantWorld, train: Sequence[Prompt]) -> LanguageModel:
    """Return the language model after supervised fine-tuning on demonstrations, from scratch."""
    import torch
    from safetensors.torch import load_model, save_model

    torch.set_num_threads(int(run.journal.choice("threads", lambda: torch.get_num_threads())))
    seed = run.config.run.seed
    model = language_model(seed)
    examples = world.demonstrations(train)
    settings = SftSettings(**world.settings.sft)  # type: ignore[arg-type]

    def action(folder: Path) -> None:
        run.tell(f"supervised fine-tuning on {len(examples):,} demonstrations")
        report = fine_tune(model, examples, settings=settings, seed=seed, folder=None)
        run.tell(f"supervised fine-tuning: {report.first_loss:.3f} -> {report.last_loss:.3f} nats a token")
        save_model(model.model, str(folder / "model.safetensors"))
        write_json(folder / "report.json", {"revision": report.revision})

    inputs = {"world": world.settings, "seed": seed, "settings": settings}
    folder = folder_made(run.journal, "sft", plain(inputs), action, target="policy/sft")
    load_model(model.model, folder / "model.safetensors")
    return replace(model, revision=str(read_json(folder / "report.json")["revision"]))


def make_job(run: OpenRun, parts: Parts, *, heads: Heads | None = None) -> Job:
    """Return the job of the world under ``heads`` (none: the learned ones)."""
    chosen = parts.heads if heads is None else heads
    quality = {key: value for key, value in plain(parts.heads.report).items() if key != "comparisons"}
    facts = {
        "notes": [
            "The prompts, replies and hidden scores of this world are made up; its language model is small and real.",
            f"Reward and cost were learned from {parts.heads.report.comparisons:,} noisy comparisons.",
        ],
        "scorers": [
            {"id": s.id, "revision": s.revision, "direction": s.direction, "quality": quality if heads is None else {}}
            for s in (chosen.reward, chosen.cost)
        ],
    }
    scorers = {"reward": chosen.reward, f"cost {run.config.constraints[0].name}": chosen.cost}
    return job_on(run, parts.model, parts.world.splits(), scorers, facts)


@dataclass(frozen=True)
class Truth:
    """What only this world can know: all probabilities, the hidden scores, the optimum."""

    prompts: Sequence[Prompt]
    model: LanguageModel
    problem: FiniteProblem
    """Under the hidden scores."""
    best: Optimum
    learned: FiniteProblem
    """Under the learned scores."""
    believed: Optimum
    """The optimum under the learned scores."""
    price: float
    """Raw multiplier of a normalised multiplier of 1."""
    share: float
    """Of the prompts, those in the limit's slice: what turns this problem's multiplier into the job's."""
    limited: str
    """Name of the limit."""

    @classmethod
    def of(cls, search: Search, parts: Parts) -> Truth:
        """Return the truth on the report prompts, for the job's raw beta."""
        job, beta, scale = search.job, search.beta, search.scale
        prompts = job.splits["report"]
        reference = enumerate_log_probs(parts.model, job.reference, prompts)
        world, (constraint,) = parts.world, job.constraints
        hidden = world.problem(prompts, reference, beta=beta, limit=constraint.limit)
        learned = world.problem(prompts, reference, heads=parts.heads, beta=beta, limit=constraint.limit)
        inside = [all(p.columns[key] == value for key, value in world.settings.where) for p in prompts]
        return cls(
            prompts=prompts,
            model=parts.model,
            problem=hidden,
            best=optimum(hidden),
            learned=learned,
            believed=optimum(learned),
            price=float(scale.reward_sd / scale.cost_sds[0]),
            share=float(np.mean(inside)),
            limited=constraint.name,
        )

    def log_probs(self, policy: Policy) -> FloatArray:
        """Return a policy's ``[prompt, reply]`` log-probabilities; best-of-n has them in closed form."""
        choice = read_choice(policy)
        if choice is None:
            return enumerate_log_probs(self.model, policy, self.prompts)
        # the learned problem's costs are those of the slice, divided by its share
        price = float(choice.multipliers[0]) * self.price * self.share
        return log_best_of(
            self.learned.log_reference, self.learned.reward - price * self.learned.costs[:, :, 0], choice.n
        )

    def figures(self, policy: Policy) -> dict[str, Any]:
        """Return a policy's true figures: enumerated, under the hidden scores."""
        log_probs = self.log_probs(policy)
        found = expectations(self.problem, log_probs)
        parts = self.gap(log_probs)
        return {
            "reward": found.reward,
            "costs": {self.limited: _clean(found.costs[0])},
            "kl": _clean(found.kl),
            "objective": found.objective,
            "gap": parts.total,
            "limits_met": bool(found.costs[0] <= self.problem.limits[0]),
        }

    def gap(self, log_probs: FloatArray) -> Gap:
        """Return how far a policy is from the optimum, and why."""
        return gap(
            self.problem,
            multipliers=self.best.multipliers,
            best=self.best.log_probs,
            believed=self.believed.log_probs,
            policy=log_probs,
        )


def compare_with_optimum(truth: Truth, job: Job, result: dict[str, Any], more: Mapping[str, Policy]) -> dict[str, Any]:
    """Return exact.json: the optimum, the selected policy's true figures, the gap and its parts, every round."""
    best = expectations(truth.problem, truth.best.log_probs)
    chosen = _policy(job, result["selected"]["name"])
    parts = truth.gap(truth.log_probs(chosen))
    method = job.config.method.name.upper()
    arms = [{"name": "reference", **truth.figures(job.reference)}]
    for row in result["iterates"]:
        label = "plain DPO" if row["role"] == "dpo" else f"{method} at {row['multipliers'][truth.limited]:.2f}"
        arms.append({"name": label, **truth.figures(_policy(job, row["name"]))})
    arms += [{"name": name, **truth.figures(policy)} for name, policy in more.items()]
    selected = truth.figures(chosen)
    return {
        "optimum": {
            "multipliers": {truth.limited: float(truth.best.multipliers[0]) / truth.share},
            "reward": best.reward,
            "costs": {truth.limited: _clean(best.costs[0])},
            "kl": best.kl,
            "objective": best.objective,
        },
        "selected": {key: selected[key] for key in ("reward", "costs", "kl", "objective")},
        "gap": parts.total,
        "gap_scores": parts.scores,
        "gap_training": parts.training,
        "arms": arms,
        "sentence": _sentence(selected, arms),
    }


def _clean(value: float) -> float:
    """Return ``value`` without what float64 leaves of a zero."""
    return round(float(value), 12) + 0.0


def _policy(job: Job, name: str) -> Policy:
    return Policy(name, job.run / "rounds" / name / "fit" / "policy")


def _sentence(selected: dict[str, Any], arms: Sequence[dict[str, Any]]) -> str:
    """Return what the true figures say, also where they do not favour the method."""
    better = [
        arm["name"]
        for arm in arms
        if arm["limits_met"] and arm["objective"] > selected["objective"] + 1e-9 and arm["name"] != "selected"
    ]
    held = "meets" if selected["limits_met"] else "breaks"
    if better:
        return f"The selected policy {held} the limit by truth; {', '.join(better)} met it too, with more objective."
    return f"The selected policy {held} the limit by truth; no other policy shown met it with more objective."
