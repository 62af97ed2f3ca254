"""A real file of safety pairs, known for its noise, and a made-up one with the same faults in known numbers."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from dualign.data.checks.check import CheckReport, check

SHARED = Path(os.environ.get("DUALIGN_SHARED_DATA", Path(__file__).parents[4] / "shared" / "data"))
PAIRS = SHARED / "pku-saferlhf-5k" / "pairs.jsonl"
TRANSCRIPTS = SHARED / "hh-rlhf-sample" / "harmless_base_test_300.jsonl"


def fired(report: CheckReport) -> dict[str, int]:
    return {one.rule: one.count for one in report.rules}


@pytest.mark.skipif(not PAIRS.is_file(), reason="no folder of shared data")
def test_real_pairs_repeat_and_contradict_each_other() -> None:
    report = check([PAIRS])
    assert (report.format, report.rows, report.kept, report.dropped) == ("safety-pairs", 3600, 3396, 204)
    figures = report.statistics["duplicates"]
    assert (figures["distinct_rows"], figures["repeated_rows"]) == (2500, 1100)
    assert (figures["rows_labelled_both_ways"], figures["replies_labelled_both_ways"]) == (204, 326)
    assert report.statistics["prompts"] == 658 and report.accepted
    assert fired(report) == {
        "pair labelled both ways": 204, "exact duplicates": 1100, "reply labelled both ways": 705
    }  # fmt: skip


@pytest.mark.skipif(not TRANSCRIPTS.is_file(), reason="no folder of shared data")
def test_real_transcripts_have_long_prompts() -> None:
    report = check([TRANSCRIPTS])
    assert (report.format, report.rows, fired(report)) == ("hh-rlhf", 300, {"prompt too long": 4})


def test_made_up_pairs_with_the_same_faults(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    words = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnprst"]

    def said(length: int) -> str:
        return " ".join(generator.choice(words, length))

    rows = [{"prompt": said(12), "safer": said(20), "less_safe": said(20)} for _ in range(1000)]
    repeated = [rows[number] for number in generator.choice(1000, 300, replace=False)]
    swapped = [
        rows[-number] | {"safer": rows[-number]["less_safe"], "less_safe": rows[-number]["safer"]}
        for number in range(1, 21)
    ]
    others = [{"prompt": rows[n]["prompt"], "safer": said(20), "less_safe": rows[n]["safer"]} for n in range(30)]
    path = tmp_path / "pairs.jsonl"
    everything = [*rows, *repeated, *swapped, *others]
    path.write_text("".join(json.dumps(row) + "\n" for row in everything))
    report = check([path], max_drop=0.2)
    copies = sum(row in rows[-20:] for row in repeated)
    assert report.rows == 1350 and report.dropped == 40 + copies
    figures = report.statistics["duplicates"]
    assert (figures["distinct_rows"], figures["repeated_rows"]) == (1050, 300)
    assert figures["rows_labelled_both_ways"] == 40 + copies
    assert figures["replies_labelled_both_ways"] == 2 * 20 + 30
    assert report.statistics["near_duplicates"]["clusters"] == 0
