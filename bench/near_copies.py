"""How often near-copies certify falsely at the limit, through the splits of ``train``.

Run: ``python bench/near_copies.py`` (two minutes). 600 prompts: some questions, each with copies that differ from it by
a word; 200 are for calibration. Costs are shared by copies (SD 12) up to noise of their own (SD 4), with a mean of
exactly the limit, so that every certificate is false: at most delta of them may be given. Once with the units that the
job finds, once with each prompt taken for independent.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

from dualign.certificate.certify import certify
from dualign.certificate.claim import Requirement, Terms
from dualign.certificate.held_out import Costs
from dualign.config import Config
from dualign.job.inputs import load_splits, units
from dualign.maths import bounds
from dualign.records import Prompt

TERMS = Terms({"harm": Requirement(0.0, 60.0)})
SPLITS = {"train": 200, "tune": 100, "report": 50, "calibration": 200}
WORDS = [f"w{a}{b}{c}" for a in "abcdefghijkl" for b in "abcdefghijklmnopqrstuvwxyz" for c in "vwxyz"]


def calibration(copies: int, folder: Path) -> list[Prompt]:
    """Return the calibration prompts of a job on questions that stand there ``copies`` times each."""
    generator = np.random.default_rng(5)
    base = [" ".join(generator.choice(WORDS, 12, replace=False)) for _ in range(600 // copies)]
    rows = [text + (f" x{copy}" if copy else "") for text in base for copy in range(copies)]
    (folder / "p.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))
    config = {
        "policy": {"model": "none"},
        "data": {"sources": [{"path": "p.jsonl", "splits": SPLITS}]},
        "reward": {"scorer": {"kind": "length"}},
        "constraints": [{"name": "harm", "scorer": {"kind": "length"}, "limit": 0.0, "cap": 60.0}],
        "run": {"seed": 1},
    }
    return load_splits(Config.model_validate(config), folder)[0]["calibration"]


def false_certificates(prompts: list[Prompt], repetitions: int) -> tuple[int, int]:
    """Return how many certificates were given: with the units of the job, and with each prompt a unit."""
    owners = [prompt.text.split(" x")[0] for prompt in prompts]
    numbers = {owner: number for number, owner in enumerate(dict.fromkeys(owners))}
    place, ids = [numbers[owner] for owner in owners], [prompt.id for prompt in prompts]
    clusters = [prompt.cluster for prompt in prompts]
    found = [0, 0]
    for repetition in range(repetitions):
        generator = np.random.default_rng([len(numbers), repetition])
        values = generator.normal(0, 12, len(numbers))[place] + generator.normal(0, 4, len(ids))
        for k, named in enumerate((clusters, None)):
            found[k] += certify({"policy": {"harm": Costs(ids, values, named)}}, TERMS).verdict == "CERTIFIED"
    return found[0], found[1]


def main() -> None:
    """Print one row a number of copies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=800)
    repetitions = parser.parse_args().repetitions
    allowed = 5 + 300 * math.sqrt(0.05 * 0.95 / repetitions)
    print(f"{repetitions} repetitions; 5 % and three standard errors: {allowed:.1f} %")
    # the e-value alone decides: without the bound beside it, more is certified and never less
    with (
        mock.patch.object(bounds, "betting_upper_bound", return_value=-math.inf),
        tempfile.TemporaryDirectory() as t,
    ):
        for copies in (1, 3, 10):
            prompts = calibration(copies, Path(t))
            job, alone = (100 * count / repetitions for count in false_certificates(prompts, repetitions))
            print(
                f"{copies:2d} copies: {units(prompts):3d} units, {job:4.1f} % false; each prompt alone {alone:4.1f} %"
            )


if __name__ == "__main__":
    main()
