"""Made-up rows of every preference format, and what they must be read as: shared by the tests of preference files."""

import json
from pathlib import Path
from typing import Any

from dualign.data.preferences import Answer, PreferenceRow
from dualign.records import Prompt, Turn

Rows = list[dict[str, Any]]

ASK = "How do I sharpen a knife?"
KIND, RUDE = "Hold the blade at twenty degrees.", "Work it out yourself."
PAIR = {"prompt": ASK, "response_0": RUDE, "response_1": KIND}
LABELS = {"is_response_0_safe": False, "is_response_1_safe": True, "better_response_id": 1, "safer_response_id": 1}
HARM = {
    "prompt_source": "made up",
    "response_0_source": "a",
    "response_1_source": "b",
    "response_0_harm_category": {"Violence": False, "Insulting Behavior": True},
    "response_1_harm_category": {"Violence": False, "Insulting Behavior": False},
    "response_0_severity_level": 2,
    "response_1_severity_level": 0,
    "response_0_sha256": "00",
    "response_1_sha256": "01",
}
HISTORY = (Turn("user", "Hello"), Turn("assistant", "Good day."))
SYSTEM = Turn("system", "Answer in one line.")


def message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


TALK = [message("system", SYSTEM.text), message("user", "Hello"), message("assistant", "Good day."),
        message("user", ASK)]  # fmt: skip
SCRIPT = "\n\nHuman: Hello\n\nAssistant: Good day.\n\nHuman: How do I sharpen a knife?\n\nAssistant: "
PLAIN, TALKED, CHATTED = Prompt(ASK), Prompt(ASK, history=HISTORY), Prompt(ASK, history=(SYSTEM, *HISTORY))
CHOSEN = (Answer(KIND), Answer(RUDE))

EXAMPLES: dict[str, tuple[dict[str, Any], PreferenceRow]] = {
    "pku-saferlhf-v0": (
        PAIR | LABELS,
        PreferenceRow(1, PLAIN, (Answer(RUDE, safe=False), Answer(KIND, safe=True)), 1, 1),
    ),
    "pku-saferlhf": (
        PAIR | LABELS | HARM,
        PreferenceRow(
            1,
            Prompt(ASK, {"prompt_source": "made up", "response_0_source": "a", "response_1_source": "b"}),
            (
                Answer(RUDE, safe=False, severity=2, categories=frozenset({"Insulting Behavior"})),
                Answer(KIND, safe=True, severity=0),
            ),
            1,
            1,
        ),
    ),
    "beavertails": (
        {"prompt": ASK, "response": RUDE, "category": {"drug_abuse,weapons": False, "hate": True}, "is_safe": False},
        PreferenceRow(1, PLAIN, (Answer(RUDE, safe=False, categories=frozenset({"hate"})),)),
    ),
    "hh-rlhf": ({"chosen": SCRIPT + KIND, "rejected": SCRIPT + RUDE}, PreferenceRow(1, TALKED, CHOSEN, 0)),
    "pku-processed-hh": (
        {
            "context": [
                {"role": role, "text": text}
                for role, text in (("human", "Hello"), ("assistant", "Good day."), ("human", ASK))
            ],
            "chosen": {"text": KIND},
            "rejected": {"text": RUDE},
        },
        PreferenceRow(1, TALKED, CHOSEN, 0),
    ),
    "saferlhf-v": (
        {"question": ASK, "image": None, "response_1": RUDE, "response_2": KIND, "more_helpful_response_id": 1,
         "safer_response_id": 2, "category": "tools"},
        PreferenceRow(1, Prompt(ASK, {"category": "tools"}), (Answer(RUDE), Answer(KIND)), 0, 1),
    ),
    "trl-plain-explicit": ({"prompt": ASK, "chosen": KIND, "rejected": RUDE}, PreferenceRow(1, PLAIN, CHOSEN, 0)),
    "trl-plain-implicit": (
        {"chosen": f"{ASK} {KIND}", "rejected": f"{ASK} {RUDE}"},
        PreferenceRow(1, PLAIN, (Answer(f" {KIND}"), Answer(f" {RUDE}")), 0),
    ),
    "trl-chat-explicit": (
        {"prompt": TALK, "chosen": [message("assistant", KIND)], "rejected": [message("assistant", RUDE)]},
        PreferenceRow(1, CHATTED, CHOSEN, 0),
    ),
    "trl-chat-implicit": (
        {"chosen": [*TALK, message("assistant", KIND)], "rejected": [*TALK, message("assistant", RUDE)]},
        PreferenceRow(1, CHATTED, CHOSEN, 0),
    ),
    "safety-pairs": ({"prompt": ASK, "safer": KIND, "less_safe": RUDE}, PreferenceRow(1, PLAIN, CHOSEN, None, 0)),
    "scored-pairs": (
        PAIR | {"reward_0": -1, "reward_1": 2.5, "cost_harm_0": [3], "cost_harm_1": -2.0, "scorer": "s"},
        PreferenceRow(
            1, Prompt(ASK, {"scorer": "s"}), (Answer(RUDE, reward=-1.0, cost=3.0), Answer(KIND, reward=2.5, cost=-2.0))
        ),
    ),
    **{
        name: ({prompt: ASK, chosen: KIND, rejected: RUDE}, PreferenceRow(1, PLAIN, CHOSEN, 0))
        for name, prompt, chosen, rejected in (
            ("alpaca-pairs", "instruction", "chosen", "rejected"),
            ("argilla-pairs", "instruction", "chosen_response", "rejected_response"),
            ("response-pairs", "prompt", "chosen_response", "rejected_response"),
            ("question-pairs", "question", "chosen", "rejected"),
            ("query-pairs", "query", "chosen", "rejected"),
            ("input-pairs", "input", "chosen", "rejected"),
            ("context-pairs", "context", "chosen", "rejected"),
        )
    },
    "openai-pairs": (
        {
            "input": {"messages": TALK, "tools": [], "parallel_tool_calls": True},
            "preferred_output": [message("assistant", KIND)],
            "non_preferred_output": [message("assistant", RUDE)],
        },
        PreferenceRow(1, CHATTED, CHOSEN, 0),
    ),
    "openrlhf-messages": (
        {"context_messages": TALK, "chosen": KIND, "rejected": RUDE},
        PreferenceRow(1, CHATTED, CHOSEN, 0),
    ),
    "sharegpt-pairs": (
        {"conversations": [{"from": who, "value": text} for who, text in
                           (("system", SYSTEM.text), ("human", "Hello"), ("gpt", "Good day."), ("human", ASK))],
         "chosen": {"from": "gpt", "value": KIND}, "rejected": {"from": "gpt", "value": RUDE}},
        PreferenceRow(1, CHATTED, CHOSEN, 0),
    ),
    "messages-pairs": (
        {"messages": TALK, "chosen": message("assistant", KIND), "rejected": message("assistant", RUDE)},
        PreferenceRow(1, CHATTED, CHOSEN, 0),
    ),
    "alpaca-outputs": (
        {"instruction": "How do I sharpen", "input": "a knife?", "output": [KIND, RUDE]},
        PreferenceRow(1, Prompt("How do I sharpen\na knife?"), CHOSEN, 0),
    ),
    "helpsteer2": (
        {"prompt": ASK, "response": KIND, "helpfulness": 4, "correctness": 4, "coherence": 3, "complexity": 1,
         "verbosity": 0},
        PreferenceRow(1, PLAIN, (Answer(KIND, reward=4.0),)),
    ),
    "helpsteer2-preference": (
        {"prompt": ASK, "response_1": RUDE, "response_2": KIND, "preference_strength": 2, "split": "train"},
        PreferenceRow(1, PLAIN, (Answer(RUDE), Answer(KIND)), 1, split="train"),
    ),
    "helpsteer3": (
        {"domain": "home", "context": TALK, "response1": KIND, "response2": RUDE, "overall_preference": -1},
        PreferenceRow(1, Prompt(ASK, {"domain": "home"}, history=CHATTED.history), CHOSEN, 0),
    ),
    "kto": (
        {"prompt": ASK, "completion": RUDE, "label": False},
        PreferenceRow(1, PLAIN, (Answer(RUDE, desirable=False),)),
    ),
    "kto-response": (
        {"prompt": ASK, "response": KIND, "label": True},
        PreferenceRow(1, PLAIN, (Answer(KIND, desirable=True),)),
    ),
    "kto-question": (
        {"question": ASK, "completion": KIND, "label": True},
        PreferenceRow(1, PLAIN, (Answer(KIND, desirable=True),)),
    ),
    "kto-input": (
        {"input": ASK, "output": RUDE, "label": False},
        PreferenceRow(1, PLAIN, (Answer(RUDE, desirable=False),)),
    ),
    "kto-instruction": (
        {"instruction": ASK, "completion": KIND, "label": True},
        PreferenceRow(1, PLAIN, (Answer(KIND, desirable=True),)),
    ),
    "kto-alpaca": (
        {"instruction": ASK, "input": "", "output": RUDE, "kto_tag": False},
        PreferenceRow(1, PLAIN, (Answer(RUDE, desirable=False),)),
    ),
    "kto-messages": (
        {"messages": [*TALK, message("assistant", KIND)], "label": True},
        PreferenceRow(1, CHATTED, (Answer(KIND, desirable=True),)),
    ),
    "kto-sharegpt": (
        {"conversations": [{"from": "human", "value": ASK}, {"from": "gpt", "value": RUDE}], "kto_tag": False},
        PreferenceRow(1, PLAIN, (Answer(RUDE, desirable=False),)),
    ),
}  # fmt: skip
"""A row of each format that is read, and the record it must become."""


def write_rows(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def to_values(row: PreferenceRow) -> dict[str, Any]:
    """Return the row as nested columns: lists and objects of texts and numbers."""
    return {
        "line": row.line,
        "prompt": {
            "text": row.prompt.text,
            "id": row.prompt.id,
            "columns": [{"name": name, "value": value} for name, value in row.prompt.columns.items()],
            "history": [{"role": turn.role, "text": turn.text} for turn in row.prompt.history],
        },
        "answers": [
            {
                "text": answer.text,
                "safe": answer.safe,
                "severity": answer.severity,
                "categories": sorted(answer.categories),
                "reward": answer.reward,
                "cost": answer.cost,
                "desirable": answer.desirable,
            }
            for answer in row.answers
        ],
        "better": row.better,
        "safer": row.safer,
        "split": row.split,
    }
