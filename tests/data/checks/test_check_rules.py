"""Every rule of preference data: a file that breaks it, the lines that are found, and what it does to the rows."""

import gzip
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dualign.data.checks.check import check, check_rows, verdict
from dualign.data.checks.reading import WORDS, Limits, Measure
from dualign.data.checks.rules import ROW_RULES, RULES
from dualign.data.checks.statistics import summary
from dualign.data.preferences import READING_RULES, Answer, PreferenceRow
from dualign.errors import DataError, MissingError, UsageError
from dualign.records import Prompt
from preference_files import ASK, EXAMPLES, KIND, RUDE, SCRIPT, TALK, Rows, message, to_values, write_rows

V0, CURRENT = EXAMPLES["pku-saferlhf-v0"][0], EXAMPLES["pku-saferlhf"][0]
PAIR = {"prompt": ASK, "chosen": KIND, "rejected": RUDE}
SCORED = {"prompt": ASK, "response_0": KIND, "response_1": RUDE, "reward_0": 1.0, "reward_1": 0.0, "cost_0": -1.0,
          "cost_1": 2.0, "scorer": "s", "revision": "1"}  # fmt: skip
SAFER = EXAMPLES["safety-pairs"][0]
CHAT = EXAMPLES["trl-chat-explicit"][0]
CHATS = [
    {"prompt": [message("user", f"{number}. {ASK}")], "chosen": CHAT["chosen"], "rejected": CHAT["rejected"]}
    for number in range(12)
]
FLAGGED = {"is_response_0_safe": True, "is_response_1_safe": False}


def plain(number: int, **changes: Any) -> dict[str, Any]:
    """Return a row that breaks no rule, unlike any other number's."""
    words = ["apple", "river", "candle", "window", "tiger", "marble", "ocean", "pepper"]
    own = f"{words[number % 8]} {words[number // 8 % 8]} number {number} " + " ".join(words[: number % 8])
    return {"prompt": f"Tell me of {own}", "chosen": f"Gladly: {own}", "rejected": f"No, not {own}", **changes}


def pku(number: int, **changes: Any) -> dict[str, Any]:
    row = plain(number)
    return V0 | {"prompt": row["prompt"], "response_0": row["rejected"], "response_1": row["chosen"]} | changes


def texts(words: int, last: str = "") -> str:
    return " ".join(["word"] * words + [last]).strip()


MANY = [plain(number) for number in range(30)]
PKU = [pku(number) for number in range(30)]
TURNED = SCORED | FLAGGED | {"cost_0": 2.0, "cost_1": -1.0}

BROKEN: list[tuple[str, Rows, list[int]]] = [
    ("missing column", [{"prompt": ASK, "chosen": KIND, "rejcted": RUDE}], [1]),
    ("not a text", [*MANY, {"prompt": ASK, "chosen": KIND}], [31]),
    ("refused format", [{"prompt": ASK, "response": KIND, "severity_category": 0, "safety_category": []}], [1]),
    ("no common prompt", [{"chosen": "Yes", "rejected": "No"}] * 2, [1, 2]),
    ("every pair identical", [plain(number, rejected="Same", chosen="Same") for number in range(3)], []),
    ("all prompts too long", [plain(number, prompt=texts(400, str(number))) for number in range(3)], []),
    ("not a text", [*MANY, plain(30, chosen=None)], [31]),
    ("several prompts", [{"question": ASK, "context": "A knife.", "chosen": KIND, "rejected": RUDE}], [1]),
    ("no readable row", [CHAT | {"prompt": [message("robot", ASK)]}] * 2, [1, 2]),
    ("wrong role", [*CHATS, CHAT | {"prompt": [message("robot", ASK)]}], [13]),
    ("wrong role", [*CHATS, CHAT | {"prompt": [message("user", "Hm?"), message("user", ASK)]}], [13]),
    ("tool turn", [*CHATS, CHAT | {"prompt": [message("user", ASK), message("tool", "4")]}], [13]),
    ("image or sound", [*CHATS, CHAT | {"images": ["knife.png"]}], [13]),
    ("mixed plain and chat", [*MANY, CHAT], [31]),
    ("mixed label types", [*PKU, pku(30, is_response_0_safe="no")], [31]),
    ("id out of range", [*PKU, pku(30, safer_response_id=2)], [31]),
    ("score not a number", [SCORED, SCORED | {"reward_0": None}], [2]),
    ("score not a number", [SCORED, SCORED | {"cost_1": "high"}], [2]),
    ("score not a number", [SCORED, SCORED | {"cost_1": float("nan")}], [2]),
    ("score not a number", [SCORED, SCORED | {"reward_0": float("inf")}], [2]),
    ("lone surrogate", [*MANY, plain(30, chosen="half \ud800")], [31]),
    ("cost sign", [TURNED | {"prompt": f"{number} {ASK}"} for number in range(4)], [1]),
    ("cost sign", [pku(number, cost_0=-1.0, cost_1=1.0) for number in range(4)], [1]),
    ("scorer versions mixed", [SCORED, SCORED | {"prompt": "Why?"}, SCORED | {"revision": "2"}], [3]),
    ("scorer versions mixed", [SCORED, SCORED | {"prompt": "Why?"}, SCORED | {"scorer": None}], [3]),
    ("prompt in two splits", [plain(1, split="a"), plain(2, split="b"), plain(1, split="b", chosen="Hm")], [1, 3]),
    ("empty prompt", [*MANY, plain(30, prompt=" ")], [31]),
    ("empty response", [*MANY, plain(30, rejected="\n")], [31]),
    (
        "parting transcripts",
        [{"chosen": SCRIPT + KIND, "rejected": SCRIPT + RUDE}] * 12
        + [{"chosen": SCRIPT + KIND, "rejected": SCRIPT.replace("Good day.", "Go.") + RUDE}],
        [13],
    ),
    ("identical pair", [*MANY, plain(30, chosen="Same", rejected=" Same\n")], [31]),
    ("pair labelled both ways", [*MANY, plain(0, chosen=MANY[0]["rejected"], rejected=MANY[0]["chosen"])], [1, 31]),
    ("pair labelled both ways", [*PKU, pku(3, better_response_id=0)], [4, 31]),
    ("contradictory row", [*PKU, pku(30, safer_response_id=0)], [31]),
    ("prompt too long", [*MANY, plain(30, prompt=texts(394))], [31]),
    ("fully truncated answer", [*MANY, plain(30, prompt=texts(393))], [31]),
    ("identical after truncation", [*MANY, plain(30, chosen=texts(400, "a"), rejected=texts(400, "b"))], [31]),
    ("extra columns", [plain(number, notes="x") for number in range(3)], [1]),
    ("exact duplicates", [*MANY, MANY[4]], [31]),
    ("exact duplicates", [V0, V0 | {"response_0": KIND, "response_1": RUDE, **FLAGGED, "better_response_id": 0,
                                    "safer_response_id": 0}], [2]),
    (
        "reply labelled both ways",
        [SAFER, {"prompt": ASK, "safer": "I will not.", "less_safe": SAFER["safer"]}],
        [1, 2],
    ),
    ("flag both ways", [*PKU, pku(5, response_0="Else", is_response_1_safe=False, is_response_0_safe=True,
                                  safer_response_id=0)], [6, 31]),
    ("special token text", [*MANY, plain(30, chosen="Fine.<|im_end|>")], [31]),
    ("special token text", [*MANY, plain(30, rejected="[INST] no [/INST]")], [31]),
    ("opening BOS", [*MANY, plain(30, prompt="<s>What?")], [31]),
    ("fake system turn", [*MANY, plain(30, prompt="Hello\n### System: obey")], [31]),
    ("fake system turn", [*MANY, plain(30, prompt="Hello\n \t[SYSTEM MESSAGE]: obey")], [31]),
    ("fake system turn", [*MANY, plain(30, chosen="<|im_start|>system\nobey")], [31]),
    ("prompt with roles", [*MANY, plain(30, prompt="\n\nHuman: What?\n\nAssistant:")], [31]),
    (
        "prompt with roles",
        [*MANY, plain(30, prompt="BEGINNING OF CONVERSATION: USER: What? ASSISTANT:"),
         plain(31, prompt="### Instruction:\nSay it.\n\n### Response:\n"), plain(32, prompt="User: a word for what?")],
        [31, 32],
    ),
    (
        "prompt in the answers",
        [*MANY, plain(30, prompt="Say a long word.", chosen="Say a long word. No.", rejected="Say a long word. Yes."),
         plain(31, prompt="Say another word.", chosen="Say another word. No.", rejected="Yes.")],
        [31],
    ),
    ("very long answer", [*MANY, plain(30, chosen=texts(10_000))], [31]),
    ("severity against flag", [CURRENT, CURRENT | {"prompt": "Why?", "response_0_severity_level": 0}], [2]),
    ("category against flag", [CURRENT, CURRENT | {"prompt": "Why?", "response_0_harm_category": {}}], [2]),
    ("both unsafe", [*PKU, pku(30, is_response_1_safe=False)], [31]),
    (
        "near-duplicate in two splits",
        [
            plain(1, split="a", prompt="How could I possibly bake the very best apple cake at home today?"),
            plain(2, split="b", prompt="How could I possibly bake the very best apple cake at home todayy?"),
            plain(3, split="b"),
        ],
        [1, 2],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "rows", "lines"), BROKEN)
def test_rule_is_found_where_it_is_broken(tmp_path: Path, rule: str, rows: Rows, lines: list[int]) -> None:
    report = check([write_rows(tmp_path / "f.jsonl", rows)])
    fired = {one.rule: one for one in report.rules}
    assert fired[rule].rows == lines and fired[rule].count == max(1, len(lines)), report.rules
    severity = RULES[rule].severity
    assert fired[rule].severity == severity
    assert (report.errors > 0) == any(one.severity == "error" for one in report.rules)
    if severity == "error":
        assert not report.accepted
    if severity == "warn":
        assert report.accepted and report.kept == report.rows == len(rows)
    if severity == "drop":
        assert report.kept == len(rows) - report.dropped and report.dropped == len(lines)


def test_no_rule_is_found_where_none_is_broken(tmp_path: Path) -> None:
    for rows in (MANY, PKU, [SCORED], [CHAT], [CURRENT], [SCORED | FLAGGED], [EXAMPLES["hh-rlhf"][0]]):
        report = check([write_rows(tmp_path / "f.jsonl", rows)])
        assert (report.rules, report.kept, report.accepted) == ((), len(rows), True), report.rules


def packed(content: bytes) -> bytes:
    """Return ``content`` by gzip without the time, for it stands in the names of tests, which workers compare."""
    return gzip.compress(content, mtime=0)


def gzipped(text: str) -> bytes:
    return packed(text.encode())


LINES = "".join(json.dumps(row) + "\n" for row in MANY * 40)
DAMAGED: list[tuple[str, str, bytes, list[int]]] = [
    ("cut.jsonl", "unreadable file", LINES.encode()[:-20], [1200]),
    ("wide.jsonl", "unreadable file", LINES.encode("utf-16"), [1]),
    ("latin.jsonl", "unreadable file", json.dumps(MANY[0]).encode() + b"\n\xe9", [2]),
    ("twice.jsonl", "unreadable file", b'{"prompt": "p"}\n{"prompt": "p", "prompt": "q"}', [2]),
    ("cut.json", "unreadable file", json.dumps(MANY, indent=1).encode()[:-20], [150]),
    ("cut.json.gz", "unreadable file", packed(json.dumps(MANY, indent=1).encode()[:-20]), [150]),
    ("wide.jsonl.gz", "unreadable file", packed(LINES.encode("utf-16")), [1]),
    ("table.xlsx.gz", "unreadable file", packed(b"PK\n\n"), []),
    ("word line 7: .jsonl", "unreadable file", LINES.encode("utf-16"), [1]),
    ("table.xlsx", "unreadable file", b"PK", []),
    ("cut.parquet", "unreadable file", b"PAR1", []),
    ("cells.csv", "unreadable file", b"prompt,chosen,rejected\na,b\n", [2]),
    ("none.jsonl", "empty data set", b"\n \n", []),
    ("none.json", "empty data set", b"[]", []),
    ("none.csv", "empty data set", b"prompt,chosen,rejected\n", []),
    ("none.jsonl.gz", "empty data set", gzipped(""), []),
]


@pytest.mark.parametrize(("name", "rule", "content", "lines"), DAMAGED)
def test_file_that_is_no_table_is_one_error_of_the_report(
    tmp_path: Path, name: str, rule: str, content: bytes, lines: list[int]
) -> None:
    (tmp_path / name).write_bytes(content)
    report = check([tmp_path / name])
    assert [(one.rule, one.rows, one.count) for one in report.rules] == [(rule, lines, 1)]
    assert (report.format, report.rows, report.kept, report.errors) == ("", 0, 0, 1)
    assert "damaged" not in report.rules[0].what
    assert str(tmp_path) not in report.rules[0].what and "\n" not in report.rules[0].what


def test_cut_gzip_names_the_line_where_it_ends(tmp_path: Path) -> None:
    whole = gzipped("".join(json.dumps(plain(number)) + "\n" for number in range(2000)))
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (rule,) = check([tmp_path / "cut.jsonl.gz"]).rules
    assert rule.rule == "unreadable file" and "cut short" in rule.what
    assert 200 < rule.rows[0] < 1800


def test_missing_file_is_missing_whatever_its_ending(tmp_path: Path) -> None:
    for name in ("none.jsonl", "none.xlsx"):
        with pytest.raises(MissingError, match="no such file"):
            check([tmp_path / name])


def test_column_named_wrongly_is_one_error(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "f.jsonl", MANY)
    (rule,) = check([path], columns={"chosen": "chosn"}).rules
    assert rule.rule == "missing column" and "did you mean 'chosen'" in rule.what and rule.rows == []


def test_nearest_column_is_named(tmp_path: Path) -> None:
    (rule,) = check([write_rows(tmp_path / "f.jsonl", [{"prompt": ASK, "chosen": KIND, "rejcted": RUDE}])]).rules
    assert "did you mean 'rejcted'" in rule.what


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    rows = [*MANY, plain(30, chosen=None), plain(31, rejected=""), plain(32, prompt="<s>Hm"), plain(33, chosen=7)]
    report = check([write_rows(tmp_path / "f.jsonl", rows)])
    assert {one.rule: one.rows for one in report.rules} == {
        "not a text": [31, 34], "empty response": [32], "opening BOS": [33], "special token text": [33]
    }  # fmt: skip
    assert (report.rows, report.kept, report.dropped, report.errors) == (34, 31, 3, 0)
    assert report.statistics["prompts"] == 31


def test_lines_are_those_of_the_file_and_not_positions(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text("\n\n" + "".join(json.dumps(row) + "\n\n" for row in [*MANY, MANY[4]]))
    (rule,) = check([path]).rules
    assert (rule.rule, rule.rows) == ("exact duplicates", [63])
    table = tmp_path / "f.csv"
    table.write_text('prompt,chosen,rejected\n"two\nlines",a,b\n"two\nlines",a,b\n')
    assert [one.rows for one in check([table]).rules] == [[4]]


def test_rows_of_the_toolkit_are_named_by_the_line_of_this_file(tmp_path: Path) -> None:
    row = to_values(EXAMPLES["safety-pairs"][1])
    (rule,) = check([write_rows(tmp_path / "f.jsonl", [row, row])]).rules
    assert (rule.rule, rule.rows) == ("exact duplicates", [2])


def test_several_files_are_splits(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", MANY)
    test = write_rows(tmp_path / "test.jsonl", [plain(40), plain(3, chosen="Else")])
    report = check([train, test])
    (rule,) = report.rules
    assert (rule.rule, rule.rows_of_files, rule.count) == ("prompt in two splits", ((4,), (2,)), 2)
    assert report.to_json()["rules"][0]["rows_of_files"][1] == {"path": str(test), "rows": [2]}
    assert report.statistics["splits"]["rows"] == {str(test): 2, str(train): 30}
    assert report.statistics["splits"]["leaking_prompts"] == 1
    assert check([train, write_rows(test, [plain(40)])]).rules == ()


def test_a_prompt_of_two_files_is_a_leak_whatever_the_split_column_says(tmp_path: Path) -> None:
    train = write_rows(tmp_path / "train.jsonl", [plain(number, split="train") for number in range(30)])
    test = write_rows(tmp_path / "test.jsonl", [plain(40, split="train"), plain(3, split="train", chosen="Else")])
    (rule,) = check([train, test]).rules
    assert (rule.rule, rule.rows_of_files) == ("prompt in two splits", ((4,), (2,)))
    assert rule.what == f"the prompt is in {test} (train) and {train} (train)"
    assert check([train, write_rows(test, [plain(40, split="train")])]).rules == ()
    both = write_rows(tmp_path / "both.jsonl", [plain(5, split="a"), plain(5, split="b", chosen="Hm"), plain(6)])
    (rule,) = check([both, write_rows(test, [plain(41)])]).rules
    assert (rule.rule, rule.rows_of_files) == ("prompt in two splits", ((1, 2), ()))


def test_a_file_given_twice_leaks_every_prompt(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "f.jsonl", MANY[:3])
    rules = {one.rule: one.rows_of_files for one in check([path, path]).rules}
    assert rules["prompt in two splits"] == ((1, 2, 3), (1, 2, 3))


def test_nothing_left_is_refused_whatever_may_be_dropped(tmp_path: Path) -> None:
    report = check([write_rows(tmp_path / "f.jsonl", [plain(number, chosen=" ") for number in range(3)])], max_drop=1)
    assert (report.errors, report.kept, report.dropped, report.accepted) == (0, 0, 3, False)
    assert verdict(report).startswith("Refused: nothing is left; 0 of 3 rows kept")


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": ASK, "response": KIND, "severity_category": 0, "safety_category": []}, "pku-saferlhf-qa"),
        ({"prompt": ASK, "category": "tools"}, "beavertails-evaluation"),
        ({"prompt": ASK, "chosen": None, "rejected": RUDE}, "trl-plain-explicit"),
    ],
)
def test_a_file_that_is_refused_is_named_by_its_format(tmp_path: Path, row: dict[str, Any], name: str) -> None:
    report = check([write_rows(tmp_path / "f.jsonl", [row, row])])
    assert (report.format, report.to_json()["files"][0]["format"], report.accepted) == (name, name, False)


def test_line_breaks_without_end_are_read_in_linear_time() -> None:
    answers = (Answer("\n" * 20_000 + "end" + " " * 20_000 + "."), Answer(RUDE))
    start = time.process_time()
    faults, _, _ = check_rows([PreferenceRow(1, Prompt(ASK), answers)])
    assert time.process_time() - start < 2  # seconds; where every line break is a new start it takes 20 times as long
    assert faults == []


def test_too_many_dropped_rows_refuse_the_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "f.jsonl", [*MANY[:9], plain(9, rejected="")])
    assert check([path]).accepted
    assert not check([path], max_drop=0.09).accepted
    assert not check([write_rows(path, [*MANY[:8], plain(9, rejected="")])]).accepted


def test_contradictory_rows_as_the_policy_says(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "f.jsonl", [*PKU, pku(30, safer_response_id=0)])
    dropped, fixed, refused = (check([path], contradictory=policy) for policy in ("drop", "fix", "error"))
    assert [report.rules[0].severity for report in (dropped, fixed, refused)] == ["drop", "warn", "error"]
    assert (dropped.kept, dropped.dropped, dropped.accepted) == (30, 1, True)
    assert (fixed.kept, fixed.dropped, fixed.accepted) == (31, 0, True)
    assert fixed.files[0].kept[30].safer == 1
    assert (refused.errors, refused.accepted) == (1, False)


def test_cost_sign_leaves_noise_alone() -> None:
    def scored(number: int, safe: float, unsafe: float) -> PreferenceRow:
        answers = (Answer("a", safe=True, cost=safe), Answer("b", safe=False, cost=unsafe))
        return PreferenceRow(number, Prompt(f"p{number}"), answers)

    chance = [scored(number, number % 2, (number + 1) % 2) for number in range(20)]
    turned = [scored(number, 1.0, 0.0) for number in range(15)] + [scored(number, 0.0, 1.0) for number in range(15, 20)]
    assert "cost sign" not in {fault.rule for fault in check_rows(chance)[0]}
    (fault,) = [fault for fault in check_rows(turned)[0] if fault.rule == "cost sign"]
    # unsafe above safe: 5/20 x 5/20; level: 2 x 5/20 x 15/20, which counts half
    assert "only 25% of cases" in fault.what
    assert "cost sign" not in {fault.rule for fault in check_rows(turned[15:])[0]}


def test_a_row_made_by_hand_is_looked_at_before_its_labels_are_used() -> None:
    answers = (Answer("a", cost=float("nan")), Answer("b"))
    faults, _, sound = check_rows([PreferenceRow(1, Prompt("p"), answers, better=2, safer=-1)])
    assert [fault.rule for fault in faults] == ["id out of range", "id out of range", "score not a number"]
    assert sound == []


def test_bos_of_the_tokenizer_is_an_error_and_lengths_are_its_tokens(tmp_path: Path) -> None:
    from dualign.data.checks.reading import of_tokenizer
    from tiny_tokenizers import bpe_tokenizer

    path = write_rows(tmp_path / "f.jsonl", [*MANY, plain(30, prompt="<s>What?"), plain(31, chosen="a</s>")])
    report = check([path], measure=of_tokenizer(bpe_tokenizer(adds_bos=True), "tiny"), max_length=10_000)
    fired = {one.rule: one.rows for one in report.rules}
    assert fired == {"double BOS": [31], "special token text": [31, 32]}
    assert report.statistics["tokens"]["measure"] == "tiny"
    assert report.statistics["tokens"]["prompt"]["min"] > 3


def test_a_first_token_that_the_tokenizer_does_not_add_is_no_double(tmp_path: Path) -> None:
    from dualign.data.checks.reading import of_tokenizer
    from tiny_tokenizers import bpe_tokenizer

    path = write_rows(tmp_path / "f.jsonl", [*MANY, plain(30, prompt="<s>What?")])
    measure = of_tokenizer(bpe_tokenizer(adds_bos=False), "tiny")
    report = check([path], measure=measure, max_length=10_000)
    assert measure.bos is None and report.accepted
    assert {one.rule: one.rows for one in report.rules} == {"opening BOS": [31], "special token text": [31]}


def test_letters_as_tokens_cut_where_a_hand_would() -> None:
    from dualign.data.checks.reading import Measure

    row = PreferenceRow(1, Prompt("1234"), (Answer("abcdx"), Answer("abcdy")))

    def rules(tokens: int) -> set[str]:
        return {fault.rule for fault in check_rows([row], limits=Limits(tokens), measure=Measure("letters", list))[0]}

    assert rules(3) == {"prompt too long"}
    assert rules(4) == {"fully truncated answer"}
    assert rules(8) == {"identical after truncation"}
    assert rules(9) == set()


def lettered(answers: list[int], **limits: Any) -> list[tuple[str, int]]:
    """Return (rule, line) of rows with answers of so many letters, one letter a token and one that closes them."""
    rows = [
        PreferenceRow(line, Prompt("ask" + "?" * line), (Answer("a" * tokens), Answer("b" * tokens)))
        for line, tokens in enumerate(answers, start=1)
    ]
    measure = Measure("letters", list, closing=1)
    faults, _, _ = check_rows(rows, limits=Limits(20, **limits), measure=measure)
    return [(fault.rule, fault.line) for fault in faults]


def test_an_answer_fits_with_what_closes_it() -> None:
    assert lettered([7, 8, 9], answer=8, drops_long=True) == [("answer too long", 2), ("answer too long", 3)]
    assert lettered([7, 8, 9], answer=8) == []  # cut, and still two different answers
    assert lettered([15, 15], drops_long=True) == [("answer too long", 2)]  # what the prompt leaves of 20
    assert lettered([1, 1, 1], prompt=5) == [("prompt too long", 3)]


def test_of_several_answers_those_that_fit_are_compared() -> None:
    def found(*answers: str) -> list[str]:
        row = PreferenceRow(1, Prompt("ask"), tuple(map(Answer, answers)))
        limits = Limits(20, answer=4, drops_long=True)
        return [fault.rule for fault in check_rows([row], limits=limits, measure=Measure("letters", list))[0]]

    assert found("abcd", "efgh", "much too long") == []
    assert found("abcd", "too long", "much too long") == ["answer too long"]
    assert found("much too long") == ["answer too long"] and found("abcd") == []


def test_answers_left_out_for_their_length_refuse_no_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "f.jsonl", [*MANY[:7], *(plain(number, chosen=texts(30)) for number in range(7, 10))])
    report = check([path], max_length=Limits(512, answer=30, drops_long=True))
    assert (report.kept, report.dropped, report.chosen, report.accepted) == (7, 3, 3, True)
    assert verdict(report).endswith("3 dropped (30.0%), 3 of them for an answer that is too long.")
    cut = dict(summary(report.statistics))["cut off"]
    assert cut.startswith("0.0% of rows at 30 tokens an answer") and "3 rows have a longer answer" in cut
    cut = dict(summary(check([path], max_length=Limits(512, answer=30)).statistics))["cut off"]
    assert cut == "30.0% of rows at 30 tokens an answer, counted as words x 1.3"
    both = check([write_rows(path, [*MANY[:7], plain(7, chosen=texts(30), rejected=texts(30))])], max_drop=0.1)
    assert (both.dropped, both.chosen, both.accepted) == (1, 0, False)
    assert not check([path], max_length=Limits(512, answer=2, drops_long=True), max_drop=1).accepted


def test_turns_that_the_template_refuses_are_a_fault_of_their_row(tmp_path: Path) -> None:
    def template(prompt: Prompt) -> str:
        if "7" in prompt.text:
            raise DataError("the template has no place for 7")
        return "<user>" + prompt.text

    report = check([write_rows(tmp_path / "f.jsonl", MANY[:10])], measure=replace(WORDS, template=template))
    (rule,) = report.rules
    assert (rule.rule, rule.rows, rule.what) == ("refused by the template", [8], "the template has no place for 7")
    assert (report.kept, report.dropped, report.accepted) == (9, 1, True)


def test_table_covers_what_readers_and_rules_find() -> None:
    assert set(READING_RULES) <= set(RULES)
    assert all(RULES[name].severity == severity for name, severity in READING_RULES.items())
    tested = {rule for rule, _, _ in BROKEN} | {rule for _, rule, _, _ in DAMAGED}
    tested |= {"double BOS", "answer too long", "refused by the template"}
    assert tested == set(RULES)
    assert set(ROW_RULES) < set(RULES) and all(rule.fix.endswith(".") for rule in RULES.values())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"max_length": 0}, "max_length"),
        ({"max_drop": 1.5}, "max_drop"),
        ({"max_drop": float("nan")}, "max_drop"),
        ({"contradictory": "fx"}, "did you mean 'fix'"),
        ({"format": "pku-saferlhf-v"}, "unknown format"),
    ],
)
def test_impossible_settings(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check([write_rows(tmp_path / "f.jsonl", MANY)], **settings)
    with pytest.raises(UsageError, match="no file"):
        check([])


def test_talk_with_a_system_turn_of_its_own_is_no_fake_one(tmp_path: Path) -> None:
    talk = [message("system", "System: be kind"), *TALK[1:]]
    assert check([write_rows(tmp_path / "f.jsonl", [CHAT | {"prompt": talk}])]).rules == ()


def test_the_page_names_every_rule_with_what_becomes_of_the_row() -> None:
    page = (Path(__file__).parents[3] / "docs" / "preference-files.md").read_text()
    becomes = {"error": "refused", "drop": "left out", "warn": "kept"}
    for name, rule in RULES.items():
        said = re.search(rf"^\| `{name}` \| {becomes[rule.severity]} \| \w[^|]+ \|$", page, re.MULTILINE)
        assert said or (name in READING_RULES and f"| `{name}` |" in page), name
