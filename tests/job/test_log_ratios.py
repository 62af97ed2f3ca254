"""The KL of a policy comes from one engine: both log-probabilities are read alike, and rounding cancels."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dualign.job.measurement import Scored
from dualign.job.phases import RECORD, with_log_ratios, write_choice
from dualign.models.sampler import TransformersSampler
from dualign.protocols import Policy, Sampling
from dualign.records import Prompt, Response
from dualign.runs.store import write_json
from dualign.train.settings import TrainingSettings
from dualign.train.transformer import TransformerBackend
from dualign.train.weights import save_policy, trained_weights
from gibbs_jobs import gibbs_config, gibbs_job
from sampling_parts import tiny_language_model, tiny_model

PROMPTS = [Prompt(text) for text in ("a b c d e f", "b", "c d", "a a a", "e f g h i a b c", "i", "d e", "g g")]
TRAINING = TrainingSettings(lora_r=4)


def machine(folder: Path, dtype: str) -> TransformerBackend:
    model = tiny_language_model(model=tiny_model(dtype=dtype), revision="tiny", max_response_tokens=24)
    return TransformerBackend(
        model, training=TRAINING, sampler=TransformersSampler(model), sampling=Sampling(max_new_tokens=24),
        folder=folder,
    )  # fmt: skip


def fresh_policy(backend: TransformerBackend, folder: Path, *, b: float = 0.0) -> Policy:
    """Return an adapter as a fit begins with: A drawn, B = ``b`` everywhere."""
    with trained_weights(backend.language_model, Policy("reference"), TRAINING) as parameters:
        masters = {name: (p.float() if "lora_A" in name else torch.full_like(p, b)) for name, p in parameters.items()}
        save_policy(backend.language_model, parameters, masters, TRAINING, folder / "policy")
    write_json(folder / RECORD, {"key": f"fresh {b}"})
    return Policy("00", folder / "policy")


def answered(backend: TransformerBackend, policy: Policy, n: int = 4) -> Scored:
    rows = backend.sample(policy, PROMPTS, n, seed=5)
    unknown = np.full((len(PROMPTS), n), np.nan)
    return Scored(tuple(PROMPTS), tuple(map(tuple, rows)), unknown * 0, np.zeros((*unknown.shape, 1)), unknown)


def job_on(backend: TransformerBackend, run: Path):
    config = gibbs_config([{"name": "harm", "limit": 0.5, "cap": 1.0}])
    return replace(gibbs_job(run, config), backend_at=lambda _: backend)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_fresh_adapter_is_no_nat_from_the_reference(dtype: str, tmp_path: Path) -> None:
    backend = machine(tmp_path / "policies", dtype)
    policy = fresh_policy(backend, tmp_path / "fit")
    made = answered(backend, policy)
    # some of the reference's figures are known from other batches, where bfloat16 rounded otherwise
    for group in made.groups()[:5]:
        backend.log_probs(Policy("reference"), [group])
    found = with_log_ratios(job_on(backend, tmp_path / "run"), policy, made, "tune").log_ratio
    assert np.abs(found).max() == 0.0
    noted = np.array([[answer.log_prob for answer in row] for row in made.responses])
    read = np.array(backend.log_probs(policy, made.groups()))
    if dtype == "bfloat16":  # what the sampler noted could not have given 0
        assert np.abs(noted - read).max() > 1e-2


def test_ratios_are_the_difference_of_the_log_probabilities(tmp_path: Path) -> None:
    backend = machine(tmp_path / "policies", "float64")
    policy = fresh_policy(backend, tmp_path / "fit", b=0.05)
    made = answered(backend, policy)
    found = with_log_ratios(job_on(backend, tmp_path / "run"), policy, made, "tune").log_ratio
    own, reference = (np.array(backend.log_probs(who, made.groups())) for who in (policy, Policy("reference")))
    assert np.abs(found).max() > 0.05
    assert np.abs(found - (own - reference)).max() < 1e-9
    # a noted log-probability enters nothing
    blind = replace(made, responses=tuple(tuple(replace(r, log_prob=-1e3) for r in row) for row in made.responses))
    again = with_log_ratios(job_on(backend, tmp_path / "again"), policy, blind, "tune")
    assert again.log_ratio.tolist() == found.tolist()


def test_the_best_of_n_is_its_gain_from_the_reference_whatever_was_noted(tmp_path: Path) -> None:
    job = gibbs_job(tmp_path / "run", gibbs_config([{"name": "harm", "limit": 0.5, "cap": 1.0}]))
    folder = write_choice(tmp_path / "run" / "rounds" / "00" / "fit" / "policy", 4, np.array([0.5]))
    write_json(folder.parent / RECORD, {"key": "best of four"})
    rows = tuple(tuple(Response(f"reply {k}", (k, 9), -123.0) for k in range(2)) for _ in PROMPTS)
    unknown = np.full((len(PROMPTS), 2), np.nan)
    made = Scored(tuple(PROMPTS), rows, unknown * 0, np.zeros((*unknown.shape, 1)), unknown)
    found = with_log_ratios(job, Policy("00", folder), made, "tune").log_ratio
    assert found.ravel() == pytest.approx([math.log(4) - 3 / 4] * unknown.size, abs=1e-12)
