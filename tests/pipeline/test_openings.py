"""Openings of the calibration prompts: counted by what was sampled and scored, paid for, and never lost."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from dualign.backends.protocol import FitReport, Policy
from dualign.pipeline.job import Job
from dualign.pipeline.openings import records
from dualign.pipeline.search import Search, prepare
from dualign.pipeline.verdict import open_calibration
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
