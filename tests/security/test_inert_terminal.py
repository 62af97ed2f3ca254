"""Texts of others in a terminal: no markup, no emoji codes, no escape sequences, no halves of characters; one line."""

import json
from pathlib import Path

import pytest

from command_line import Done, dualign
from dualign.cli.shared import Progress
from dualign.errors import inert, inert_lines

HOSTILE = {
    "markup that closes nothing": "[/]a",
    "markup": "[bold red]CERTIFIED[/bold red]",
    "an escape sequence": "\x1b[2J\x1b[HCERTIFIED",
    "an 8-bit control": "\x9b2Ja",
    "a carriage return": "a\rCERTIFIED",
    "a line of its own": "a\nerror: b",
    "another direction of writing": "a\u202eb",
    "a bell and a backspace": "a\a\bb",
    "an emoji code": ":bomb:",
    "a backslash before markup": "a\\[/]",
}


def acting(text: str) -> list[str]:
    """Return the characters of an output that a terminal acts upon."""
    return [c for c in text if not c.isprintable() and c != "\n"]


def costs(path: Path, policy: str, column: str = "cost") -> Path:
    rows = [{"prompt": f"q {k}", "policy": name, column: -5.0} for k in range(12) for name in (policy, "other")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_names_from_a_costs_file_are_shown_and_not_acted_upon(tmp_path: Path, name: str) -> None:
    said = HOSTILE[name]
    path = costs(tmp_path / "c.jsonl", said)
    done = dualign("certify", path, "--limit", "0", "--cap", "50")
    assert done.code in (0, 10, 11), done
    assert not acting(done.out + done.err)
    assert inert(said).split()[0] in done.out
    refused = dualign("certify", path, "--limit", "0", "--cap", "50", "--order", "x")
    refused.refused(2, f"unknown policy 'x'; known: {inert(said)}, other")
    assert not acting(refused.err)
    named = dualign(
        "certify", costs(tmp_path / "n.jsonl", "p", f"cost_{said}"), "--limit", f"{said}=0", "--cap", f"{said}=9"
    )
    assert named.code in (0, 10, 11) and not acting(named.out + named.err), named


@pytest.mark.parametrize("name", HOSTILE)
def test_names_from_scores_and_preferences(tmp_path: Path, name: str) -> None:
    said = HOSTILE[name]
    rows = [{"prompt": f"q {k % 9}", "reward": float(k % 5), f"cost_{said}": float(k % 7)} for k in range(36)]
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = dualign("plan", path, "--limit", f"{said}=3", "--beta", "1")
    short = dualign("plan", path, "--limit", f"{said}=3", "--beta", "1", "--quiet")
    assert (whole.code, short.code) == (0, 0), whole
    pairs = [{"prompt": f"what {k} is", "chosen": f"it is {k}", "rejected": "no", said: 1} for k in range(12)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    checked = dualign("data", "check", tmp_path / "p.jsonl")
    assert checked.code == 0, checked
    for done in (whole, short, checked):
        assert not acting(done.out + done.err)


def refusal(*arguments: object) -> Done:
    done = dualign(*arguments)
    assert done.code in (2, 65, 66) and done.out == "", done
    assert done.err.startswith("error: ") and done.err.count("\n") == 1 and not acting(done.err), done
    return done


def test_errors_are_one_line_whatever_they_name(tmp_path: Path) -> None:
    for said in HOSTILE.values():
        refusal("certify", tmp_path / f"{said.replace('/', '')}.csv", "--limit", "0")
        refusal("sample", "nowhere", tmp_path / "none.jsonl", "--out", f"{said.replace('/', '')}.csv")
        refusal("methods", "--equivalent-to", f"{said}:x=1")
    assert len(refusal("methods", "--equivalent-to", "x" * 100_000).err) < 5000


@pytest.mark.parametrize("text", ["policy: !!bool foo", "policy: !!timestamp foo", "a: !!set foo", "a: !!map [b]"])
def test_tags_of_yaml_are_no_tracebacks(tmp_path: Path, text: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    refusal("train", tmp_path / "job.yaml", "--dry-run")


def test_progress_and_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Progress().tell("read \x1b[2Ja\nb")
    assert capsys.readouterr().err == "[  0:00] read \ufffd[2Ja b\n"
    assert inert_lines("a\x1b\n  b\u202f1") == "a\ufffd\n  b 1"
    assert inert("\ud800") == "\ufffd" and inert("naïve 中文 λ ≤") == "naïve 中文 λ ≤"
    assert inert("x" * 5000) == "x" * 4000 + "..."


def test_what_is_typed_in_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = costs(tmp_path / "c.jsonl", "p")
    for option in ("--scorer", "--decoding", "--order", "--columns"):
        done = refusal("certify", path, "--limit", "0", "--cap", "50", option, "a\udcff", "--seal", tmp_path / "s.seal")
        assert done.code == 2 and "is not UTF-8" in done.err
    assert not (tmp_path / "s.seal").exists()
