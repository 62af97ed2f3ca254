import json
from pathlib import Path

import pytest

from dualign.data.cost_file import read_costs
from dualign.errors import DataError, MissingError

ROWS = [
    {"prompt": "How?", "policy": "b", "cost": 1.5, "cost_length": 3},
    {"prompt": " how? ", "policy": "b", "cost": -2, "cost_length": 4},
    {"prompt": "Why?", "policy": "a", "cost": 0, "cost_length": 5},
]


def jsonl(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_three_formats_hold_the_same(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    first = read_costs(jsonl(tmp_path / "c.jsonl", list(ROWS)))
    table = tmp_path / "c.csv"
    table.write_text("prompt,policy,cost,cost_length\nHow?,b,1.5,3\n how? ,b,-2,4\nWhy?,a,0,5\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "c.parquet")
    for other in (read_costs(table), read_costs(tmp_path / "c.parquet")):
        assert list(other.costs) == list(first.costs) == ["b", "a"]  # first appearance
        assert other.names == ("cost", "length")
        for policy in ("a", "b"):
            assert other.costs[policy]["length"].costs.tolist() == first.costs[policy]["length"].costs.tolist()
            assert other.costs[policy]["cost"].prompts == first.costs[policy]["cost"].prompts
    assert len(set(first.costs["b"]["cost"].prompts)) == 1  # case and space do not make another prompt
    assert first.costs["b"]["cost"].costs.tolist() == [1.5, -2.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "cost": None}, "line 2: column 'cost' holds nothing; expected a finite number"),
        ({"prompt": "x"}, "line 2: column 'cost' holds nothing"),
        ({"prompt": "x", "cost": float("nan")}, "line 2: column 'cost' holds nan; expected a finite number"),
        ({"prompt": "x", "cost": float("inf")}, "line 2: column 'cost' holds inf; expected a finite number"),
        ({"prompt": "x", "cost": "0.5"}, "line 2: column 'cost' holds '0.5'"),
        ({"prompt": "x", "cost": True}, "line 2: column 'cost' holds True"),
        ({"prompt": "x", "cost": 10**400}, "expected a finite number"),
        ({"prompt": "  ", "cost": 1}, "line 2: column 'prompt' holds '  '"),
        ({"cost": 1}, "line 2: no column 'prompt'"),
        ([1], "line 2: is a list; an object"),
    ],
)
def test_a_faulty_row_is_one_clear_line(tmp_path: Path, row: object, message: str) -> None:
    path = jsonl(tmp_path / "c.jsonl", [{"prompt": "p", "cost": 1}, row])
    with pytest.raises(DataError) as caught:
        read_costs(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.jsonl", "", "is empty"),
        ("c.jsonl", "\n\n", "is empty"),
        ("c.csv", "prompt,cost\n", "no rows"),
        ("c.jsonl", '{"prompt": "a"', "line 1: not JSON"),
        ("c.jsonl", '{"prompt": "a", "reward": 1}', "no cost column; expected 'cost' or 'cost_<name>', found prompt"),
        ("c.jsonl", '{"prompt": "a", "cost": 1, "cost_cost": 1}', "same name"),
        ("c.csv", "prompt,cost\na,\n", "line 2: column 'cost' holds nothing"),
        ("c.csv", "prompt,cost\na,nan\n", "holds 'nan'"),
        ("c.csv", "prompt,cost\na,1_0\n", "holds '1_0'"),
        ("c.csv", "prompt,cost\na,high\n", "holds 'high'"),
        ("c.csv", "prompt,cost\na,1,2\n", "3 cells; the header has 2"),
        ("c.csv", "prompt,cost,cost\na,1,2\n", "occurs twice"),
        ("c.txt", "prompt,cost\n", "no cost column"),
        ("c.parquet", "no parquet", "not a readable Parquet file"),
        (
            "c.csv",
            "prompt,cost,cluster\na,1,x\na,1,y\n",
            "line 3: its prompt lies in cluster 'y' here and in 'x' before",
        ),
        ("c.csv", "prompt,cost,policy\na,1,\n", "column 'policy' holds nothing"),
    ],
)
def test_faulty_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read_costs(tmp_path / name)
    assert message in str(caught.value)


def test_absent_and_unreadable(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        read_costs(tmp_path / "none.jsonl")
    with pytest.raises(MissingError, match="is a folder"):
        read_costs(tmp_path)
    (tmp_path / "c.csv").write_bytes(b"prompt,cost\n\xff,1\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_costs(tmp_path / "c.csv")


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_bytes("\ufeffprompt,cost\na,1\n".encode())
    assert read_costs(tmp_path / "c.csv").names == ("cost",)
