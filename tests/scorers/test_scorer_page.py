"""The page on scorers: every kind, every key, every default, and its service really serves."""

import json
import re
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from dualign.records import Prompt
from dualign.scorers.remote import ChatJudgeSpec, RemoteSpec
from dualign.scorers.spec import ScorerSpec
from dualign.scorers.table import KINDS, make_scorer
from dualign.strict import parse_yaml

PAGE = (Path(__file__).parents[2] / "docs" / "scorers.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def defaults(kind):
    """Return key -> default as the page writes it."""
    found = {}
    for name, field in kind.model_fields.items():
        default = field.get_default(call_default_factory=True)
        plain = default.model_dump() if isinstance(default, ScorerSpec) else default
        found[name] = "required" if field.is_required() else f"`{json.dumps(plain)}`"
    return found


def table(section):
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_section_with_its_keys_and_defaults(kind):
    spec = KINDS[kind].spec
    shared = defaults(RemoteSpec) if issubclass(spec, RemoteSpec) else {}
    expected = {key: default for key, default in defaults(spec).items() if key not in shared}
    assert table(SECTIONS[f"`{kind}`"]) == expected
    assert f"| [`{kind}`](#{kind}) |" in PAGE.partition("\n## ")[0]


def test_the_keys_of_scorers_behind_an_address():
    assert table(SECTIONS["Scorers behind an address"]) == defaults(RemoteSpec)


def test_the_service_of_the_page_serves(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    (program,) = re.findall(r"```python\n(.*?)```", SECTIONS["`http`"], re.DOTALL)
    space = {"__name__": "service"}
    definition, starting, _ = program.partition("server = ")
    assert starting
    exec(compile(definition, "scorers.md", "exec"), space)
    monkeypatch.setattr(space["Service"], "log_message", lambda *arguments: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), space["Service"])
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        spec = {"kind": "http", "url": f"http://127.0.0.1:{server.server_port}/", "cache": str(tmp_path)}
        scorer = make_scorer(spec, direction="cost")
        assert scorer([Prompt("p")] * 3, ["a!!", "b", "!"]).tolist() == [2, 0, 1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_judge_of_the_page_is_a_judge():
    (text,) = re.findall(r"```yaml\n(.*?)```", SECTIONS["`chat-judge`"], re.DOTALL)
    spec = parse_yaml(text, "scorers.md")
    assert spec.pop("kind") == "chat-judge"
    assert ChatJudgeSpec.model_validate(spec).maximum == 10
