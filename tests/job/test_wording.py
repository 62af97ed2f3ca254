"""The chat template of a job: looked at in the dry run, its clock pinned for the run, its settings in the claim."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from command_line import dualign
from dualign.config import load_config
from dualign.errors import ConfigError, DataError
from dualign.job import reading
from dualign.job.assembly import _shown_answers
from dualign.job.entry import check_only, run_config
from dualign.job.results import unfinished_warnings
from dualign.records import Prompt
from dualign.runs.store import read_table
from dualign.scorers.table import make_scorer
from tiny_jobs import job, write_config
from turn_families import CHATML, FAMILIES, GEMMA, Family, tiny_model

QWEN = FAMILIES["qwen"]
DATED = "{% if enable_thinking %}<|im_start|>{% endif %}{{ strftime_now('%Y-%m-%d') }}\n" + CHATML.replace(
    "assistant\n{% endif", "assistant\n{% if enable_thinking %}<think>{% endif %}{% endif"
)
OPENS = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")


def save(folder: Path, family: Family, template: str) -> Path:
    import torch

    tokenizer = family.tokenizer(template)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = tiny_model(family, tokenizer)
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(token) for token in family.generation_eos]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    return job(tmp_path)


def given(config: dict[str, Any], model: Path, **policy: Any) -> dict[str, Any]:
    """Return ``config`` with the chat template of ``model`` instead of the plain one."""
    return {**config, "policy": {"model": str(model), "max_prompt_tokens": 100, **policy}}


def with_pairs(config: dict[str, Any], folder: Path, *, system_from: int) -> dict[str, Any]:
    """Return ``config`` on given pairs, of which those from a line on bring a system turn."""
    texts = [json.loads(line)["prompt"] for line in (folder / "benign.jsonl").read_text().splitlines()]
    rows = []
    for number, text in enumerate(texts, start=1):
        system = [{"role": "system", "content": "Be brief."}] if number >= system_from else []
        rows.append(
            {
                "prompt": [*system, {"role": "user", "content": text}],
                "chosen": [{"role": "assistant", "content": "red two"}],
                "rejected": [{"role": "assistant", "content": "blue"}],
            }
        )
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"path": "pairs.jsonl", "columns": {"label": "risky"}}]
    risky = {**config["data"]["sources"][0], "splits": {"tune": 30, "calibration": 50, "report": 6}}
    return {**config, "data": {"pairs": pairs, "sources": [risky]}}


def loaded(folder: Path, config: dict[str, Any]) -> Any:
    return load_config(write_config(folder, config))


def test_the_dry_run_names_the_first_row_whose_system_turn_has_no_place(tmp_path: Path, config: dict[str, Any]) -> None:
    gemma = save(tmp_path / "gemma", FAMILIES["gemma"], GEMMA)
    told = check_only(loaded(tmp_path, given(config, gemma, template_date="2026-01-05")), tmp_path)["notes"]
    assert "policy.template_date: the template reads no clock; the day changes nothing" in told
    assert "answers end at '<eos>', '<end_of_turn>'" in told
    assert "the chat template trims white space at the edges of turns" in told
    asked = with_pairs(given(config, gemma), tmp_path, system_from=7)
    seventh = json.loads((tmp_path / "benign.jsonl").read_text().splitlines()[6])["prompt"]
    with pytest.raises(DataError, match=rf"pairs.jsonl: 18 of .*line 7: prompt '{seventh}': .* refuses a system turn"):
        check_only(loaded(tmp_path, asked), tmp_path)
    dry = dualign("train", write_config(tmp_path, asked), "--out", tmp_path / "run", "--dry-run")
    assert dry.code == 65 and dry.err.count("\n") == 1 and "line 7" in dry.err and not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="system_prompt: the chat template refuses a system turn"):
        check_only(loaded(tmp_path, given(config, gemma, system_prompt="Be brief.")), tmp_path)


def test_given_answers_cannot_follow_a_prompt_that_opens_reasoning(tmp_path: Path, config: dict[str, Any]) -> None:
    model = save(tmp_path / "opens", QWEN, OPENS)
    asked = with_pairs(given(config, model), tmp_path, system_from=99)
    asked["sampling"] = {**asked["sampling"], "max_new_tokens": 24}
    with pytest.raises(ConfigError, match="data.pairs: no answer holds </think>, and the generation prompt opens"):
        check_only(loaded(tmp_path, asked), tmp_path)
    lines = (tmp_path / "pairs.jsonl").read_text().replace("red two", "so</think> red two")
    (tmp_path / "pairs.jsonl").write_text(lines)
    assert any("opens a <think> block" in note for note in check_only(loaded(tmp_path, asked), tmp_path)["notes"])


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        ({"template_arguments": {"tokenize": False}}, "'tokenize' is no argument of a chat template"),
        ({"template_arguments": {"a-b": False}}, "'a-b' is no argument"),
        ({"template_date": "5 January"}, "should be a day such as 2026-01-31, given '5 January'"),
        ({"template_date": "2026-02-30"}, "given '2026-02-30'"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    tmp_path: Path, config: dict[str, Any], policy: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        loaded(tmp_path, given(config, tmp_path / "model", **policy))


class Clock:
    """Stands in for ``datetime`` on a day."""

    def __init__(self, day: str) -> None:
        self.day = day

    def now(self) -> Any:
        import datetime

        return datetime.datetime.fromisoformat(self.day)


def test_the_day_is_that_of_the_run_on_every_resume_and_in_the_claim(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(tmp_path / "dated", QWEN, DATED)
    sources = config["data"]["sources"]
    small = {"train": 6, "tune": 6, "calibration": 8, "report": 2}
    asked = given(config, model, template_arguments={"enable_thinking": False}) | {
        "data": {"sources": [{**sources[0], "splits": small}]},
        "sampling": {"responses_per_prompt": 2, "max_new_tokens": 4, "reasoning": "strip"},
        "method": {"max_rounds": 1},
        "constraints": [{**config["constraints"][0], "limit": 0.99}],
    }
    run, lines = tmp_path / "run", []
    monkeypatch.setattr(reading, "datetime", Clock("2026-01-05"))
    first, _ = run_config(loaded(tmp_path, asked), tmp_path, run, lines.append)
    assert json.loads((run / "state.json").read_text())["choices"]["template_date"] == "2026-01-05"
    assert any("it is always 2026-01-05" in note for note in first["notes"])
    claim = json.loads((run / "certificate.json").read_text())["claim"]
    said = 'template arguments {"enable_thinking": false}, template date 2026-01-05, scorers see answers without'
    assert said in json.dumps(claim).replace("\\", "")
    # an untrained model ends hardly any of its answers within four tokens
    assert "answers of reference ended by themselves" in first["warnings"][0]
    assert any(line.startswith("warning: ") and "reference ended by themselves" in line for line in lines)
    assert "ended by themselves" in (run / "report.html").read_text()

    monkeypatch.setattr(reading, "datetime", Clock("2026-01-06"))
    events = (run / "events.jsonl").read_text().count('"started"')
    again, _ = run_config(loaded(tmp_path, asked), tmp_path, run, lines.append)
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    assert (run / "events.jsonl").read_text().count('"started"') == events
    fresh, _ = run_config(loaded(tmp_path, asked), tmp_path, tmp_path / "other", lines.append)
    assert any("it is always 2026-01-06" in note for note in fresh["notes"])
    tables = [read_table(place / "reference/samples-train/samples.parquet") for place in (run, tmp_path / "other")]
    assert tables[0]["log_prob"] != tables[1]["log_prob"]


def test_scorers_see_what_the_setting_says(tmp_path: Path, config: dict[str, Any]) -> None:
    said = ["<think>red</think>two", "red"]
    scorer = make_scorer({"kind": "length", "unit": "characters"}, direction="cost")
    shown = {}
    for setting in ("keep", "strip"):
        asked = loaded(tmp_path, {**config, "sampling": {**config["sampling"], "reasoning": setting}})
        for opens in (False, True):
            stub: Any = SimpleNamespace(turns=SimpleNamespace(opens_reasoning=opens))
            shown[setting, opens] = _shown_answers(scorer, asked, stub)([Prompt("a")] * 2, said).tolist()
    assert shown["keep", False] == shown["keep", True] == [21, 3]
    assert (shown["strip", False], shown["strip", True]) == ([3, 3], [3, 0])


def test_fewer_than_half_finished_is_a_warning() -> None:
    stub: Any = SimpleNamespace(config=SimpleNamespace(sampling=SimpleNamespace(max_new_tokens=12)))
    measures: Any = {name: SimpleNamespace(extra={"finished": share}) for name, share in (("a", 0.5), ("b", 0.49))}
    (line,) = unfinished_warnings(stub, measures)
    assert line.startswith("49% of the answers of b ended by themselves") and "max_new_tokens (12)" in line
