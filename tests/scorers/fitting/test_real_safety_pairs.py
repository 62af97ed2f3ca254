"""Real safety pairs, where they are at hand: what is left out of them, and that words alone beat a coin."""

import os
from pathlib import Path

import pytest

from dualign.data.formats.table import read_preferences
from dualign.scorers.fitting.entry import fit_scorer
from dualign.scorers.fitting.inputs import FitConfig, pairs_of

SHARED = Path(os.environ.get("DUALIGN_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
ROWS = SHARED / "pku-saferlhf-5k" / "pairs.jsonl"

pytestmark = pytest.mark.skipif(not ROWS.is_file(), reason="no folder of shared data")


def test_repetitions_and_disputed_pairs_are_left_out():
    found = pairs_of(read_preferences(ROWS).rows, "cost")
    assert found.left_out == {"repeated": 1100, "labelled both ways": 194}
    assert (len(found.pairs), found.signed) == (2306, False)


@pytest.mark.slow
def test_words_alone_beat_a_coin(tmp_path):
    config = FitConfig.model_validate(
        {"kind": "cost", "data": {"files": [str(ROWS)]}, "light": {"features": ["tfidf"], "decays": [0.01]}}
    )
    report = fit_scorer(config, tmp_path, tmp_path / "out", lambda _: None)
    assert report["held_out"]["accuracy"]["low"] > 0.55
    assert "arbitrary" in report["zero"]
