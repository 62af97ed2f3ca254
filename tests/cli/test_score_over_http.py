"""``dualign score`` with a scorer behind an address: exit codes, what reaches a terminal, and a kill in the middle."""

import json
import signal
import subprocess
import sys

import pytest

from command_line import dualign
from loopback_scorer import answers_status, serving, true_score

ROWS = [{"prompt": f"question {n}", "response": "x" * n} for n in range(8)]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Return a maker of the command that scores eight rows, two a request, one request after the other."""
    monkeypatch.setenv("no_proxy", "*")
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def make(service, **keys):
        keys = {"kind": "http", "url": service.url, "cache": "kept", "batch_size": 2, "concurrency": 1, **keys}
        (tmp_path / "judge.json").write_text(json.dumps(keys))
        out = ["--out", str(tmp_path / "out.jsonl"), "--direction", "cost"]
        return ["score", str(path), "--scorer", str(tmp_path / "judge.json"), *out]

    return make


def written(tmp_path):
    return [json.loads(line)["cost"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]


def test_a_service_that_stays_broken_ends_with_69_and_no_file(command, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    with serving(*[answers_status(500, b"s3cret stack\ntrace")] * 2) as service:
        done = dualign(*command(service, attempts=2, backoff=0.001, key_from="JUDGE_KEY"))
        done.refused(69, "HTTP 500", "*** stack trace", "2 attempts", "0 of 8 rows")
        assert "s3cret" not in done.err and not (tmp_path / "out.jsonl").exists()
        assert dualign(*command(service)).code == 0
    assert written(tmp_path) == [true_score(row["response"]) for row in ROWS]


@pytest.mark.parametrize(
    ("keys", "code", "says"),
    [
        ({"key_from": "NO_SUCH_KEY"}, 66, "NO_SUCH_KEY is not set"),
        ({"url": "ftp://x/"}, 65, "scheme 'ftp'"),
        ({"url": "http://127.0.0.1:1/", "attempts": 1}, 69, "no answer"),
    ],
)
def test_exit_codes(command, keys, code, says):
    with serving() as service:
        dualign(*command(service, **keys)).refused(code, says)
        assert not service.requests


def test_after_a_kill_only_what_is_missing_is_sent(command, tmp_path):
    with serving() as service:
        hangs = lambda handler, body: service.gate.wait(30) and None  # noqa: E731
        arguments = command(service)
        service.script += [None, None, hangs]
        program = "from dualign.cli.main import main; main()"
        process = subprocess.Popen([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE)
        try:
            while len(service.requests) < 3 and process.poll() is None:
                pass_time(service)
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert service.asked == [["", "x"], ["xx", "xxx"], ["xxxx", "xxxxx"]]
        assert dualign(*arguments).code == 0
        assert service.asked[3:] == [["xxxx", "xxxxx"], ["xxxxxx", "xxxxxxx"]]
        assert len(service.honest) == len(set(service.honest)) == len(ROWS)
    assert written(tmp_path) == [true_score(row["response"]) for row in ROWS]


def pass_time(service):
    service.gate.wait(0.02)
