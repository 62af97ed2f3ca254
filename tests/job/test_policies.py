"""Policies as phases: the key of each is of all that it is made from, so that nothing is given back that is another."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dualign.errors import UsageError
from dualign.hashing import canonical_digest
from dualign.job.phases import key_of
from dualign.job.policies import JournalledBackend, describe, digest_of_groups
from dualign.job.search import prepare, settings_of
from dualign.methods.c_dpo import relabelled
from dualign.runs.journal import read_events
from gibbs_jobs import gibbs_config, gibbs_job, prompts, with_splits

LIMIT = {"name": "harm", "limit": 0.45, "cap": 1.0}


def test_a_fit_is_made_once_and_keyed_by_all_of_its_arguments(tmp_path: Path) -> None:
    job = gibbs_job(tmp_path / "run", gibbs_config([LIMIT]))
    job = with_splits(job, train=prompts("train", 8), tune=prompts("tune", 8))
    groups, backend = prepare(job).groups(), JournalledBackend(job)
    objective = relabelled(np.array([1.0]), 0.3, settings_of(job, np.array([1.0])))
    given = {"objective": objective, "reference": job.reference, "start": None, "seed": 3}
    first = backend.fit(groups, name="00", **given)
    assert key_of(job, first) == canonical_digest(
        {
            "identity": job.identity, "groups": digest_of_groups(groups), "objective": describe(objective),
            "reference": job.identity, "start": None, "seed": 3,
        }
    )  # fmt: skip
    other = replace(objective, multipliers=np.array([2.0]))
    changes = [{"objective": other}, {"reference": first}, {"start": first}, {"seed": 4}]
    made = [backend.fit(groups, name=f"0{k}", **{**given, **change}) for k, change in enumerate(changes, start=1)]
    made += [backend.fit(groups[1:], name="05", **given)]
    made += [
        backend.best_of(groups, multipliers=np.array([1.0]), n=n, reference=job.reference, name=f"b{n}") for n in (2, 3)
    ]
    assert len({key_of(job, policy) for policy in (first, *made)}) == 8

    started = sum(event["event"] == "started" for event in read_events(job.run))
    again = backend.fit(groups, name="00", **given)
    assert (again.state, again.report) == (first.state, first.report)
    assert sum(event["event"] == "started" for event in read_events(job.run)) == started


def test_what_the_backend_cannot_do_is_a_mistake_of_the_method(tmp_path: Path) -> None:
    job = gibbs_job(tmp_path / "run", gibbs_config([LIMIT]))
    backend = JournalledBackend(job)
    with pytest.raises(UsageError, match="needs to merge policies"):
        backend.merge(job.reference, job.reference, share=0.5, name="00")
    with pytest.raises(UsageError, match="needs log-probabilities of bare responses"):
        backend.mutual_information(job.reference, [])
    assert not (job.run / "rounds" / "00" / "fit").exists()
