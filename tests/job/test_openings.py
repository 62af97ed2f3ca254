"""Openings of the calibration prompts: counted by what was sampled and scored, paid for, and never lost."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from dualign.job.measurement import Scored
from dualign.job.phases import Job, reference_answers, write_choice
from dualign.job.search import Search, prepare
from dualign.job.verdict import evidence_of, fingerprint, open_calibration, records
from dualign.maths.functionals import parse
from dualign.protocols import FitReport, Policy
from dualign.records import Certificate, Evaluation, FloatArray, Iterate, Prompt, Response
from dualign.runs.store import write_json
from gibbs_jobs import gibbs_config, gibbs_job, prompts, with_splits

FLIPS = {"name": "heads", "limit": 0.5, "cap": 1.0}


@dataclass(frozen=True)
class Coins:
    """A backend whose every policy flips fair coins of its own: the true cost is .5, exactly the limit."""

    def sample(self, policy: Policy, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
        weights = 0 if policy.state is None else int((Path(policy.state) / "weights.txt").read_text())
        rng = np.random.default_rng([seed % 2**32, weights])
        return [[Response(f"face {k}", (int(k),)) for k in row] for row in rng.integers(0, 2, (len(prompts), n))]

    def log_probs(self, policy: Policy, groups: Sequence[object]) -> list[FloatArray]:
        return [np.zeros(len(group.responses)) for group in groups]  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Heads:
    revision: str = "1"
    id: str = "heads"
    direction: str = "cost"

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        return np.array([float(text[-1]) for text in responses])


def coin_search(run: Path, *, count: int = 60, **certificate: object) -> Search:
    """Return a search whose calibration prompts nobody has opened."""
    config = gibbs_config([FLIPS], certificate={"responses_per_prompt": 1, **certificate})
    job = gibbs_job(run, config)
    job = replace(job, backend_at=lambda folder: Coins(), costs=(Heads(),))  # type: ignore[arg-type, return-value]
    return prepare(with_splits(job, train=prompts("train", 8), tune=prompts("tune", 8),
                               calibration=prompts("calibration", count)))  # fmt: skip


def trained(job: Job, weights: int, name: str = "00") -> Iterate:
    """Return a policy of the round ``name`` with such weights, in the place of the one that was there."""
    folder = job.run / "rounds" / name / "fit"
    shutil.rmtree(folder, ignore_errors=True)
    write_json(folder / "policy.json", {"key": f"key {weights}"})
    (folder / "policy").mkdir()
    (folder / "policy" / "weights.txt").write_text(str(weights))
    evaluation = Evaluation(1.0, 0.1, np.array([0.5]), np.array([0.05]), np.array([0.5]), 0.5, 0.1, 8)
    return Iterate(0, np.zeros(1), evaluation, Policy(name, folder / "policy", FitReport(1, 0.0, 1.0, 0.0)))


def reopened(search: Search) -> Search:
    """Return the search as another process finds it."""
    job = gibbs_job(search.job.run, search.job.config)
    return replace(search, job=replace(search.job, journal=job.journal))


def look(certificate: Certificate) -> tuple[int, float]:
    return certificate.figures["opening"], certificate.figures["delta_spent"]


def test_each_try_with_other_weights_pays_whatever_it_is_called(tmp_path: Path) -> None:
    search = coin_search(tmp_path / "run")
    found = [open_calibration(search, [trained(search.job, weights)]) for weights in (1, 2, 3)]
    assert [look(certificate) for certificate in found] == [(1, 0.045), (2, 0.0045), (3, 0.00045)]
    for number, certificate in enumerate(found, 1):
        said = " ".join(certificate.figures["assumptions"])
        assert f"opened {number} time(s), counted in this run directory only" in said
        assert "depends on earlier verdicts alone" in said
    assert "error probability of 0.0045" in found[1].figures["statement"]
    # the same weights as the first time, under another name: the first opening, not a fourth one
    again = open_calibration(search, [trained(search.job, 1, name="07")])
    assert look(again) == (1, 0.045)
    assert again.figures["upper_bound"] == found[0].figures["upper_bound"]


def test_an_identical_job_stays_the_first_opening_even_when_its_phases_are_done_again(tmp_path: Path) -> None:
    search = coin_search(tmp_path / "run")
    first = open_calibration(search, [trained(search.job, 1)])
    search = reopened(search)
    assert open_calibration(search, [trained(search.job, 1)]).figures == first.figures
    for kind in ("samples", "scores"):
        shutil.rmtree(tmp_path / "run" / "rounds" / "00" / f"{kind}-calibration")
    search = reopened(search)
    assert open_calibration(search, [trained(search.job, 1)]).figures == first.figures
    # a state that is lost is read off the events, the evidence with it
    for name in ("state.json", "state.json.previous"):
        (tmp_path / "run" / name).unlink(missing_ok=True)
    search = reopened(search)
    assert look(open_calibration(search, [trained(search.job, 2)])) == (2, 0.0045)


def test_the_same_promise_with_other_answers_is_a_further_opening(tmp_path: Path) -> None:
    search = coin_search(tmp_path / "run")
    open_calibration(search, [trained(search.job, 1)])

    @dataclass(frozen=True)
    class Drifted(Heads):
        """A scorer that gives other numbers under the same name and revision."""

        def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
            return 1.0 - super().__call__(prompts, responses)

    shutil.rmtree(tmp_path / "run" / "rounds" / "00" / "scores-calibration")
    drifted = replace(search, job=replace(search.job, costs=(Drifted(),)))  # type: ignore[arg-type]
    found = open_calibration(drifted, [trained(search.job, 1)])
    assert look(found) == (2, 0.0045)
    first, second = records(search.job.journal)
    assert first.sealed == second.sealed and first.evidence != second.evidence


def test_a_kill_between_promise_and_answers_is_the_same_opening(tmp_path: Path) -> None:
    search = coin_search(tmp_path / "run")

    class Killed(Exception):
        pass

    class Dying(Coins):
        def sample(self, policy: Policy, prompts: Sequence[Prompt], n: int, seed: int) -> list[list[Response]]:
            raise Killed

    dying = replace(search, job=replace(search.job, backend_at=lambda folder: Dying()))
    rung = trained(search.job, 1)
    search.samples(rung.policy)  # the tune prompts' answers are on disk by then
    with pytest.raises(Killed):
        open_calibration(dying, [rung])
    search = reopened(search)
    assert [record.evidence for record in records(search.job.journal)] == [None]
    assert look(open_calibration(search, [rung])) == (1, 0.045)


@pytest.mark.parametrize("loss", ["events and state", "record", "earlier version"])
def test_where_the_evidence_is_gone_the_certificate_is_invalid(tmp_path: Path, loss: str) -> None:
    search = coin_search(tmp_path / "run")
    rung = trained(search.job, 1)
    open_calibration(search, [rung])
    run = tmp_path / "run"
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    kept = [event for event in events if not str(event.get("choice", "")).startswith(("opening-", "evidence-"))]
    if loss == "events and state":
        kept = []
    if loss == "earlier version":
        kept.append({"event": "chosen", "choice": "seal", "value": {"claim": "harm", "prompts": "0"}})
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in kept))
    for name in ("state.json", "state.json.previous"):
        (run / name).unlink(missing_ok=True)
    search = reopened(search)
    found = open_calibration(search, [rung])
    assert found.verdict == "INVALID"
    assert "evidence" in found.figures["reasons"][0]
    assert found.figures["statement"].startswith("Nothing is shown")
    assert not records(search.job.journal)


@pytest.mark.parametrize("kept", ["opening-2", "evidence-1", "evidence-2"])
def test_a_record_with_a_gap_is_invalid(tmp_path: Path, kept: str) -> None:
    search = coin_search(tmp_path / "run")
    search.job.journal.choice(kept, lambda: {"claim": "harm", "prompts": "0"})
    found = open_calibration(search, [trained(search.job, 1)])
    assert found.figures["reasons"] == ["the record of an earlier opening of the calibration prompts is gone"]


@pytest.mark.parametrize("left", ["certificate.json", "MANIFEST.json", "nothing"])
def test_what_else_tells_of_an_opening_makes_it_invalid_too(tmp_path: Path, left: str) -> None:
    search, run = coin_search(tmp_path / "run"), tmp_path / "run"
    write_json(run / "certificate.json", open_calibration(search, [trained(search.job, 1)]).figures)
    shutil.rmtree(run / "rounds")
    for path in [*run.glob("*.json*"), *run.glob("*.previous")]:
        if path.name != left:
            path.unlink(missing_ok=True)
    search = coin_search(run)
    found = open_calibration(search, [trained(search.job, 2)])
    assert (found.verdict == "INVALID") == (left != "nothing")
    assert left == "nothing" or "is gone" in found.figures["reasons"][0]


def test_an_opening_that_was_certified_and_lost_its_evidence_is_not_taken_for_a_kill(tmp_path: Path) -> None:
    search, run = coin_search(tmp_path / "run"), tmp_path / "run"
    write_json(run / "certificate.json", open_calibration(search, [trained(search.job, 1)]).figures)
    lines = [line for line in (run / "events.jsonl").read_text().splitlines() if '"evidence-1"' not in line]
    (run / "events.jsonl").write_text("\n".join(lines) + "\n")
    for name in ("state.json", "state.json.previous"):
        (run / name).unlink(missing_ok=True)
    search = reopened(search)
    assert [record.evidence for record in records(search.job.journal)] == [None]
    found = open_calibration(search, [trained(search.job, 1)])
    assert found.verdict == "INVALID" and "its evidence is gone" in found.figures["reasons"][0]


def test_a_cell_that_lost_its_family_is_invalid(tmp_path: Path) -> None:
    search, run = coin_search(tmp_path / "run"), tmp_path / "run"
    write_json(run / "family.json", {"cells": 1, "opening": 2}, run=run)
    (run / "family.json").unlink()
    found = open_calibration(search, [trained(search.job, 1)])
    assert found.verdict == "INVALID" and "family.json" in found.figures["reasons"][0]


def test_other_names_of_the_same_clusters_are_the_same_opening(tmp_path: Path) -> None:
    search = coin_search(tmp_path / "run")
    calibration = search.job.splits["calibration"]

    def clustered(name: str, size: int) -> Search:
        named = [replace(prompt, cluster=f"{name}{k // size}") for k, prompt in enumerate(calibration)]
        return replace(search, job=with_splits(search.job, calibration=named))

    rung = trained(search.job, 1)
    first = open_calibration(clustered("a", 2), [rung])
    assert open_calibration(clustered("b", 2), [rung]).figures == first.figures
    assert look(open_calibration(clustered("a", 3), [rung])) == (2, 0.0045)


def relabelled(job: Job, labels: Sequence[str]) -> Job:
    """Return the job whose calibration prompts have other labels."""
    marked = zip(job.splits["calibration"], labels, strict=True)
    return with_splits(job, calibration=[replace(prompt, columns={"label": label}) for prompt, label in marked])


def test_the_evidence_knows_which_prompts_are_together_and_not_what_they_are_called() -> None:
    def evidence(*clusters: str) -> str:
        prompts = tuple(Prompt(f"question {k}", cluster=name) for k, name in enumerate(clusters))
        size = len(prompts), 1
        made = Scored(
            prompts, ((Response("yes"),),) * len(prompts), np.zeros(size), np.zeros((*size, 1)), np.zeros(size)
        )
        return evidence_of([made], None)

    assert evidence("x", "x", "y") == evidence("u", "u", "v") != evidence("x", "y", "y")


def test_a_prompt_moved_from_slice_to_slice_is_another_set_of_prompts(tmp_path: Path) -> None:
    config = gibbs_config([{**FLIPS, "name": n, "where": {"label": n}} for n in ("risky", "benign")])
    job = replace(gibbs_job(tmp_path / "run", config), backend_at=lambda folder: Coins(), costs=(Heads(), Heads()))  # type: ignore[arg-type, return-value]
    job = with_splits(job, train=prompts("train", 8), tune=prompts("tune", 8), calibration=prompts("calibration", 40))
    search = prepare(job)
    rung = trained(job, 1)
    rung = replace(rung, evaluation=replace(rung.evaluation, costs=np.zeros(2), cost_errors=np.ones(2)))
    figures = open_calibration(search, [rung]).figures
    assert figures["opening"] == 1
    assert [row["n_prompts"] for row in figures["constraints"].values()] == [20, 20]
    moved = replace(search, job=relabelled(job, ["risky"] * 30 + ["benign"] * 10))
    found = open_calibration(moved, [rung])
    assert found.verdict == "INVALID" and "not those that were sealed" in found.figures["reasons"][0]


def test_a_prompt_with_another_label_is_scored_anew(tmp_path: Path) -> None:
    search = coin_search(tmp_path / "run")
    job = replace(search.job, constraints=(replace(search.job.constraints[0], where={"label": "risky"}),))
    calibration = job.splits["calibration"]
    before = reference_answers(job, calibration, 4, "calibration")
    every = relabelled(job, ["risky"] * len(calibration))
    after = reference_answers(every, every.splits["calibration"], 4, "calibration")
    assert len(after.responses) == len(before.responses) and not before.costs.any(axis=(1, 2))[::2].any()
    assert [float(r.text[-1]) for row in after.responses for r in row] == after.costs.ravel().tolist()


def test_the_claim_says_how_a_policy_selects_and_what_a_limit_is_relative_to(tmp_path: Path) -> None:
    search = coin_search(tmp_path / "run")
    search = replace(search, job=replace(search.job, functionals=(parse("relative"),)))
    rung = trained(search.job, 1)
    for n in (2, 4):
        write_choice(Path(rung.policy.state), n, np.ones(1))
        selecting = replace(rung, policy=replace(rung.policy, name=f"best of {n}"))
        found = open_calibration(search, [selecting])
        assert f"each the best of {n} of the reference by reward (column 0@shift 0.0" in found.figures["claim"]
        assert (
            f"against the reference (weights {fingerprint(search.job, search.job.reference)}, mean of 1"
            in (found.figures["statement"])
        )
    changed = replace(search.job, reward=replace(search.job.reward, shift=1.0))
    assert fingerprint(changed, rung.policy) != fingerprint(search.job, rung.policy)


def test_weights_that_are_fitted_again_are_the_same_weights(tmp_path: Path) -> None:
    search = coin_search(tmp_path / "run")
    policy = trained(search.job, 1).policy
    found = []
    for seconds, base, rank in ((1.0, "here", 4), (2.0, "there", 4), (1.0, "here", 8)):
        write_json(Path(policy.state) / "fit.json", {"report": {"seconds": seconds}})
        write_json(Path(policy.state) / "adapter_config.json", {"base_model_name_or_path": base, "r": rank})
        found.append(fingerprint(search.job, policy))
    assert found[0] == found[1] != found[2]
    assert fingerprint(search.job, trained(search.job, 2).policy) not in found


def test_planned_openings_share_delta_and_then_nothing_is_left(tmp_path: Path) -> None:
    search = coin_search(tmp_path / "run", planned_openings=2)
    found = [open_calibration(search, [trained(search.job, weights)]) for weights in (1, 2, 3)]
    assert [look(certificate)[1] for certificate in found[:2]] == [0.025, 0.025]
    assert found[2].verdict == "INVALID" and "2 openings were planned" in found[2].figures["reasons"][0]
    # nothing was sampled for the third
    assert len(records(search.job.journal)) == 2
    assert found[2].figures["delta_spent"] == 0.0


def test_a_cell_of_a_comparison_spends_delta_for_itself_and_prints_what_the_best_needs(tmp_path: Path) -> None:
    search = coin_search(tmp_path / "run", count=300)
    write_json(tmp_path / "run" / "family.json", {"cells": 4, "opening": 1}, run=tmp_path / "run")
    low = replace(search, job=replace(search.job, costs=(Low(),)))  # type: ignore[arg-type]
    found = open_calibration(low, [trained(search.job, 1)])
    assert found.verdict == "CERTIFIED" and look(found) == (1, 0.05)
    assert found.figures["family"] == {"cells": 4, "delta": 0.0125, "certified_as_best": ["00"]}
    assert "for this cell alone: one of 4" in " ".join(found.figures["assumptions"])
    assert "For this cell alone, of 4 in its comparison" in found.figures["statement"]
    # a try more in the same cell, and a cell that is added later, are further openings
    assert look(open_calibration(low, [trained(search.job, 2)])) == (2, 0.0045)
    later = coin_search(tmp_path / "later")
    write_json(tmp_path / "later" / "family.json", {"cells": 1, "opening": 2}, run=tmp_path / "later")
    assert look(open_calibration(later, [trained(later.job, 1)])) == (2, 0.0045)


class Low(Heads):
    """Coins that cost a fifth: far below the limit."""

    def __call__(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> FloatArray:
        return 0.2 * super().__call__(prompts, responses)


def false_certificates(folder: Path, tries: int, repetitions: int) -> int:
    """Return in how many of the repetitions some of the tries was certified, every policy exactly at the limit."""
    wrong = 0
    for repetition in range(repetitions):
        search = coin_search(folder / f"{repetition}", count=40)
        certified = False
        for k in range(tries):
            found = open_calibration(search, [trained(search.job, 1 + tries * repetition + k)])
            certified |= found.verdict == "CERTIFIED"
        wrong += certified
        shutil.rmtree(folder / f"{repetition}")
    return wrong


@pytest.mark.slow
def test_editing_and_trying_five_times_certifies_falsely_at_most_at_delta(tmp_path: Path) -> None:
    wrong = false_certificates(tmp_path, tries=5, repetitions=400)
    assert wrong / 400 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)
