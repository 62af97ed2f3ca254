"""A job on a preference file: pairs that are given are labelled by the scorers, and no sample is drawn to train on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from command_line import dualign
from dualign.config import Config, load_config
from dualign.errors import ConfigError, DataError
from dualign.job.pairs import GivenPairs, load_pairs
from dualign.job.phases import training_answers
from dualign.job.reading import job_reader
from dualign.records import Group, Prompt, Response
from dualign.runs.store import read_table
from gibbs_jobs import gibbs_config, gibbs_job
from tiny_jobs import job, pair_file, write_config


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    made = job(tmp_path)
    pair_file(tmp_path / "pairs.jsonl", tmp_path / "benign.jsonl")
    made["data"]["pairs"] = [{"path": "pairs.jsonl", "columns": {"label": "risky"}}]
    risky = made["data"]["sources"][0]
    made["data"]["sources"] = [{**risky, "splits": {"tune": 30, "calibration": 50, "report": 6}}]
    return made


def pairs_of(folder: Path, config: dict[str, Any]) -> GivenPairs:
    """Return the pairs of ``config``; words count for tokens where its model is not here."""
    loaded = load_config(write_config(folder, config))
    return load_pairs(loaded, folder, job_reader(loaded, fetch=False))


def test_pairs_are_read_once_whichever_way_round(tmp_path: Path, config: dict[str, Any]) -> None:
    given = pairs_of(tmp_path, config)
    pairs, notes = given.pairs, given.notes
    assert len(pairs) == 40  # without the identical pair, and the one that came the other way round
    assert {prompt.columns["label"] for prompt, _, _ in pairs} == {"risky"}
    assert "40 pairs taken" in notes[0] and len(notes) == 1 and not given.warnings
    config["data"]["pairs"][0]["count"] = 7
    fewer = pairs_of(tmp_path, config).pairs
    assert len(fewer) == 7 and all(pair in pairs for pair in fewer)


def test_single_answers_of_any_format_are_put_together_by_prompt(tmp_path: Path, config: dict[str, Any]) -> None:
    said = (("hid", "ab", True), ("hid", "cd", False), ("gab", "abe", True))
    for name, rows in {
        "kto.jsonl": [{"prompt": ask, "completion": text, "label": good} for ask, text, good in said],
        "rated.jsonl": [{"prompt": ask, "response": text, "helpfulness": int(good)} for ask, text, good in said],
    }.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        config["data"]["pairs"] = [{"path": name}]
        ((prompt, *answers),) = pairs_of(tmp_path, config).pairs
        assert (prompt.text, [answer.text for answer in answers]) == ("hid", ["ab", "cd"])


def test_a_job_on_pairs_lowers_the_cost_and_samples_nothing_to_train_on(tmp_path: Path, config: dict[str, Any]) -> None:
    run = tmp_path / "run"
    done = dualign("train", write_config(tmp_path, config), "--out", run, "--json", "--quiet")
    assert done.code in (0, 10, 11), done
    told = json.loads(done.out)
    costs = [row["costs"]["letter"] for row in told["iterates"]]
    assert costs[1] < costs[0]
    assert not (run / "reference" / "samples-train").exists()
    summary = json.loads((run / "data" / "summary.json").read_text())
    assert summary["splits"]["train"] == 20
    assert any("40 pairs taken" in note for note in summary["notes"])
    (checked,) = summary["data_check"]
    found = {one["rule"]: one["count"] for one in checked["rules"]}
    assert found == {"identical pair": 1, "pair labelled both ways": 2}
    assert "39 of 42 rows kept" in checked["verdict"]
    page = (run / "report.html").read_text()
    assert "labelled both ways" in page and checked["verdict"] in page


def test_prompts_weigh_equally_however_many_pairs_they_have(tmp_path: Path, config: dict[str, Any]) -> None:
    from dualign.job.measurement import Scored
    from dualign.records import Prompt, Response

    twice, once = Prompt("x"), Prompt("y")
    rows = tuple((Response("a"), Response("b")) for _ in range(3))
    made = Scored((twice, twice, once), rows, np.zeros((3, 2)), np.zeros((3, 2, 1)), np.zeros((3, 2)))
    assert [group.weight for group in made.groups()] == [0.5, 0.5, 1.0]


def test_a_file_without_a_pair_is_refused_before_anything_is_trained(tmp_path: Path, config: dict[str, Any]) -> None:
    same = {"prompt": "abc def", "chosen": "bcd", "rejected": "bcd"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(same) + "\n")
    with pytest.raises((ConfigError, DataError), match="pairs"):
        pairs_of(tmp_path, config)
    done = dualign("train", write_config(tmp_path, config), "--out", tmp_path / "run", "--json", "--quiet")
    assert done.code == 65 and done.out == "" and done.err.count("\n") == 1


LONGEST = 8
"""Tokens of an answer of the tiny job, the one that ends it counted; one letter is one token."""


def lengthened(folder: Path, count: int) -> None:
    """Make the first ``count`` chosen answers too long, with the only letter that costs far behind the limit."""
    path = folder / "pairs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()][:40]
    for row in rows:
        for side in ("chosen", "rejected"):
            row[side] = row[side].replace("a", "b")
    for number in range(count):
        rows[number]["chosen"] = f"{'bcdefgh'[number % 7] * (number // 7 + 1)} ccccccc".ljust(12, "d") + "aaaa"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def loaded(folder: Path, config: dict[str, Any], **data: Any) -> GivenPairs:
    """Return the pairs of ``config`` with these keys of its data section."""
    changed = {**config, "data": {**config["data"], **data}}
    return pairs_of(folder, changed)


def test_a_pair_with_an_answer_that_does_not_fit_is_left_out_and_counted(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    lengthened(tmp_path, 12)
    given = loaded(tmp_path, config, long_answers="drop")
    assert len(given.pairs) == 28 and all(one.finished for _, *both in given.pairs for one in both)
    (said,) = given.warnings
    assert said == (
        "pairs.jsonl: 12 pairs left out of 40: an answer has more than 8 tokens; data.long_answers: cut would keep them"
    )
    assert said in given.notes and "28 pairs taken" in given.notes[0]
    (checked,) = given.checks
    assert "12 of them for an answer that is too long" in checked["verdict"]
    config["data"]["pairs"][0]["count"] = 3
    assert loaded(tmp_path, config, long_answers="drop").warnings == given.warnings
    cut = dict(checked["summary"])["cut off"]
    assert cut.startswith("0.0% of rows at 8 tokens an answer, counted as ") and "12 rows have a longer" in cut


def test_an_answer_of_just_the_limit_fits_only_with_what_closes_it(tmp_path: Path, config: dict[str, Any]) -> None:
    reader = job_reader(Config.model_validate(config), fetch=True)
    assert reader is not None and reader.limits(drops_long=True).answer == LONGEST
    fits, over, half = (reader.answer(text, 10) for text in ("bcdefgh", "bcdefghi", "bcdefghibcdefghi"))
    eos = reader.language_model.eos
    assert (fits.text, fits.finished, len(fits.tokens), fits.tokens[-1]) == ("bcdefgh", True, 8, eos)
    for cut in (over, half):
        assert (cut.text, cut.finished, len(cut.tokens)) == ("bcdefghi", False, 8) and eos not in cut.tokens
    assert reader.positions == 96  # those of the tiny model, more than the job needs
    short = replace(reader, positions=40).answer("bcdefgh", 37)
    assert (short.text, short.finished) == ("bcd", False)


def test_what_is_scored_is_the_text_of_the_tokens_that_are_trained_on(tmp_path: Path, config: dict[str, Any]) -> None:
    lengthened(tmp_path, 12)
    rows = (tmp_path / "pairs.jsonl").read_text().splitlines()
    twin = {**json.loads(rows[30]), "chosen": "bbbbbbbbaa", "rejected": "bbbbbbbbcc"}
    (tmp_path / "pairs.jsonl").write_text("\n".join([*rows, json.dumps(twin)]))
    config["data"]["long_answers"] = "cut"
    config["method"] |= {"max_rounds": 1}
    config["constraints"][0] |= {"scorer": {"kind": "regex", "pattern": "[ac]"}}
    run = tmp_path / "run"
    done = dualign("train", write_config(tmp_path, config), "--out", run)
    assert done.code in (0, 10, 11), done
    table = read_table(run / "reference" / "scores-train" / "scores.parquet")
    reader = job_reader(Config.model_validate(config), fetch=True)
    assert reader is not None
    assert len(table["response"]) == 80
    for text, tokens, finished, cost in zip(
        table["response"], table["tokens"], table["finished"], table["cost_letter"], strict=True
    ):
        said = tokens[:-1] if finished else tokens
        assert reader.language_model.tokenizer.decode(said) == text and len(tokens) <= LONGEST
        assert cost == float("c" in text) and "a" not in text  # the whole answers had an a, which nobody may see
    assert sum(not finished for finished in table["finished"]) == 12
    summary = json.loads((run / "data" / "summary.json").read_text())
    cut = "pairs.jsonl: 12 answers of 80 are cut at 8 tokens: each is scored as it is cut, and nothing closes it"
    same = "pairs.jsonl: 1 pairs left out of 41: the answers are the same in what is left of them at 8 tokens"
    assert {cut, same} <= set(summary["notes"])
    assert dict(summary["data_check"][0]["summary"])["cut off"].startswith("31.7% of rows at 8 tokens an answer")
    page = (run / "report.html").read_text()
    assert page.count(cut) >= 2 and "31.7% of rows at 8 tokens" in page
    assert cut in done.err and f"Warning: {cut[:40]}" in done.out


def test_two_answers_that_read_alike_and_end_differently_have_keys_of_their_own() -> None:
    from dualign.job.policies import digest_of_groups

    def group(*, finished: bool) -> Group:
        both = (Response("ab", (3, 4, 2) if finished else (3, 4), finished=finished), Response("c", (5, 2)))
        return Group(Prompt("p"), both, np.zeros(2), np.zeros((2, 1)))

    assert digest_of_groups([group(finished=True)]) != digest_of_groups([group(finished=False)])
    assert digest_of_groups([group(finished=True)]) == digest_of_groups([group(finished=True)])


def test_scores_are_kept_with_how_an_answer_ends(tmp_path: Path) -> None:
    """The texts of a resumed run are the same, and its answers end otherwise: nothing old may be given back."""
    limit = {"name": "harm", "scorer": {"kind": "regex", "pattern": "x"}, "limit": 0.5, "cap": 1.0}
    made = gibbs_job(tmp_path / "run", gibbs_config([limit]))
    prompt = made.splits["train"][0]
    whole, other = Response("0", (3, 2)), Response("1", (5, 2))
    for given in (whole, Response("0", (3,), finished=False)):
        found = training_answers(replace(made, pairs=[(prompt, given, other)])).responses[0]
        assert (found[0].finished, found[0].tokens, found[1]) == (given.finished, given.tokens, other)


def test_words_count_where_the_model_is_not_here_yet(
    tmp_path: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    config["policy"]["model"] = "nobody/no-such-model"
    given = pairs_of(tmp_path, config)
    assert len(given.pairs) == 40 and "words count for tokens" in given.notes[1]
    refused_share(tmp_path, 5)
    with pytest.raises(DataError, match="5 of 40 rows are dropped"):
        pairs_of(tmp_path, config)


def test_letters_that_the_tokenizer_lacks_are_not_scored_either(tmp_path: Path, config: dict[str, Any]) -> None:
    path = tmp_path / "pairs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["chosen"], rows[1]["chosen"] = "bXcZ", "XYZ"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = loaded(tmp_path, config)
    texts = {one.text for _, *both in given.pairs for one in both}
    assert "bc" in texts and not any(letter in text for text in texts for letter in "XYZ")
    answers = len({(prompt.id, one.text) for prompt, *both in given.pairs for one in both})
    assert [line.split(": ", 1)[1] for line in given.warnings] == [
        f"1 pairs left out of {len(given.pairs) + 1}: an answer has no token that the tokenizer knows",
        f"1 answers of {answers} are scored as their tokens say them, which is not what the file says",
    ]


def refused_share(folder: Path, count: int) -> None:
    """Make the answers of the first ``count`` rows the same, for which ``dualign data check`` drops them."""
    path = folder / "pairs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [{**row, "rejected": row["chosen"] if k < count else "abcabc"} for k, row in enumerate(rows[:40])]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_file_that_data_check_refuses_stops_the_job_in_one_line(tmp_path: Path, config: dict[str, Any]) -> None:
    refused_share(tmp_path, 5)
    path = write_config(tmp_path, config)
    assert dualign("data", "check", tmp_path / "pairs.jsonl").code == 65
    for dry in (["--dry-run"], []):
        done = dualign("train", path, "--out", tmp_path / "run", "--quiet", *dry)
        done.refused(65, "data.pairs: pairs.jsonl: 5 of 40 rows are dropped, 10.0% are allowed (data.max_drop)")
        assert "rule 'identical pair' in 5 rows (line 1: " in done.err and "`dualign data check " in done.err
        assert not (tmp_path / "run").exists()
    command = done.err.split("`")[1].split()[1:]
    more = dualign(*command)
    assert more.code == 65 and "5 dropped (12.5%)" in more.out
    allowed = dualign("train", path, "--dry-run", "--set", "data.max_drop=0.2")
    assert allowed.code == 0 and "35 pairs taken" in allowed.out
    refused_share(tmp_path, 4)
    assert dualign("train", path, "--dry-run").code == 0


def test_an_error_of_a_file_stops_the_job(tmp_path: Path, config: dict[str, Any]) -> None:
    refused_share(tmp_path, 0)
    with (tmp_path / "pairs.jsonl").open("a") as stream:
        for split in ("one", "two"):
            row = {"prompt": "abc", "chosen": f"bc{split}", "rejected": "b", "split": split}
            stream.write(json.dumps(row) + "\n")
    done = dualign("train", write_config(tmp_path, config), "--dry-run")
    done.refused(65, "data.pairs: pairs.jsonl: it is refused: rule 'prompt in two splits' in 2 rows (line 41: ")
    assert dualign("train", write_config(tmp_path, config), "--dry-run", "--set", "data.max_drop=1").code == 65


def test_prompts_count_in_the_jobs_own_tokens(tmp_path: Path, config: dict[str, Any]) -> None:
    """Prompts of three words are 4 tokens of words x 1.3; the model reads their 20 letters and spaces."""
    config["policy"]["max_prompt_tokens"] = 19
    with pytest.raises(DataError, match="all prompts too long.*raise policy.max_prompt_tokens"):
        loaded(tmp_path, config)
    config["policy"]["max_prompt_tokens"] = 20
    assert len(loaded(tmp_path, config).pairs) == 40


def test_rows_that_the_config_filters_out_refuse_nothing(tmp_path: Path, config: dict[str, Any]) -> None:
    with (tmp_path / "pairs.jsonl").open("a") as stream:
        for number in range(30):
            row = {"prompt": f"{'ab cd ' * 20}{'abcdefgh'[number % 8]}", "chosen": "bc", "rejected": "de"}
            stream.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="30 of 72 rows|33 of 72 rows"):
        loaded(tmp_path, config)
    config["data"]["pairs"][0]["max_words"] = 5
    assert len(loaded(tmp_path, config).pairs) == 40


def conversations(folder: Path, systems: int) -> None:
    """Write forty pairs of messages, the first ``systems`` of them with a system turn."""
    rng = np.random.default_rng(1)
    rows = []
    for number in range(40):
        ask, good, bad = ("".join(rng.choice(list("abcdefgh"), 6)) for _ in range(3))
        turns = [{"role": "system", "content": "bad"}] if number < systems else []
        prompt = [*turns, {"role": "user", "content": f"{ask} {good}"}]
        answers = [[{"role": "assistant", "content": text}] for text in (good, bad)]
        rows.append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_turns_that_the_template_refuses_are_dropped_when_few(tmp_path: Path, config: dict[str, Any]) -> None:
    config["policy"] |= {"template": "beaver", "max_prompt_tokens": 80}
    conversations(tmp_path, 3)
    given = loaded(tmp_path, config)
    assert len(given.pairs) == 37
    assert given.warnings[0].startswith("pairs.jsonl: 3 pairs left out of 40: the prompt has more than 80 tokens, or")
    conversations(tmp_path, 5)
    with pytest.raises(DataError, match="5 of 40 rows are dropped.*refused by the template.*no place for the system"):
        loaded(tmp_path, config)
    assert len(loaded(tmp_path, config, max_drop=0.2).pairs) == 35


@pytest.mark.parametrize(
    ("source", "said"),
    [({"rename": {"promt": "q"}}, "rename: no format reads 'promt'"), ({"format": "trl"}, "unknown format 'trl'")],
)
def test_an_unknown_name_in_a_config_is_a_mistake_of_the_file(
    tmp_path: Path, config: dict[str, Any], source: dict[str, Any], said: str
) -> None:
    config["data"]["pairs"][0].update(source)
    done = dualign("train", write_config(tmp_path, config), "--dry-run")
    done.refused(65, f"data.pairs: {config['data']['pairs'][0]['path']}: {said}", "did you mean")
