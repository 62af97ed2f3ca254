import json
from pathlib import Path

import pytest

from dualign.data.score_file import read_costs
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


PLAIN_TABLE = "prompt,cost,policy\na,0.5,p\nb,-2e-1,p\n"


@pytest.mark.parametrize(
    "name", ["c.csv", "c.csv.gz", "c.tsv.gz", "c.jsonl.gz", "c.json.gz", "c.parquet", "c.parquet.gz"]
)
def test_every_table_also_gzipped_holds_the_same(tmp_path: Path, name: str) -> None:
    import gzip
    import io

    import pyarrow
    import pyarrow.parquet

    rows = [{"prompt": "a", "cost": 0.5, "policy": "p"}, {"prompt": "b", "cost": -0.2, "policy": "p"}]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), buffer)
    content = {
        "csv": PLAIN_TABLE.encode(),
        "tsv": PLAIN_TABLE.replace(",", "\t").encode(),
        "jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "json": json.dumps(rows).encode(),
        "parquet": buffer.getvalue(),
    }[name.split(".")[1]]
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read_costs(tmp_path / name).costs["p"]["cost"].costs.tolist() == [0.5, -0.2]


def test_two_columns_of_one_name_in_parquet_are_refused(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    columns = [pyarrow.array(["a", "b"]), pyarrow.array([9.0, 9.0]), pyarrow.array([-9.0, -9.0])]
    pyarrow.parquet.write_table(pyarrow.table(columns, names=["prompt", "cost", "cost"]), tmp_path / "c.parquet")
    with pytest.raises(DataError, match="column 'cost' occurs twice"):
        read_costs(tmp_path / "c.parquet")


@pytest.mark.parametrize(
    "text", ["１２", "1_000", "inf", "-Infinity", "nan", "0x10", "−1", "٣", "1e999", "1.5%", "1 2"]
)
def test_a_number_in_a_text_is_plain_ascii(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.csv").write_text(f"prompt,cost\na,{text}\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2: column 'cost' holds .*; expected a finite number"):
        read_costs(tmp_path / "c.csv")


def test_plain_numbers_of_every_form(tmp_path: Path) -> None:
    texts = ["1", "-1", "+1.5", ".5", "5.", "1e3", "-2E-2", " 7 "]
    (tmp_path / "c.csv").write_text("prompt,cost\n" + "".join(f"a,{text}\n" for text in texts))
    assert read_costs(tmp_path / "c.csv").costs["policy"]["cost"].costs.tolist() == [float(text) for text in texts]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("c.csv", b"prompt;cost\na;0,5\n", "separated by ';'; commas (.csv) are needed; decimal commas become points"),
        ("c.csv", b"prompt\tcost\na\t1\n", r"separated by '\t'; commas (.csv) are needed"),
        ("c.tsv", b"prompt,cost\na,1\n", "separated by ','; tabs (.tsv) are needed"),
        ("c.csv", b'prompt,cost\na,"0,5"\n', "with a decimal point (0.5)"),
        ("c.csv", "prompt,cost\na,1\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        ("c.csv", "prompt,cost\na,1\n".encode("utf-16-le"), "is UTF-16; save it as UTF-8"),
        ("c.xlsx", b"PK", "unknown ending '.xlsx'"),
        ("c.jsonl", b'{"prompt": "a", "cost": "0.5"}', "a finite number, without quotes"),
        ("c.jsonl", b'{"prompt": "a", "cost": true}', "(1 for true, 0 for false)"),
        ("c.jsonl", b'{"prompt": "a", "cost": -1e200}', "a number of at most 1e+100 in size"),
        ("c.csv", b"prompt,cost\na,-1e200\n", "a number of at most 1e+100 in size"),
        ("c.json", b'{"prompt": {"0": "a"}, "cost": {"0": 1}}', "is an object of columns; rows are needed"),
        ("c.json", b'{"schema": {}, "data": [{"prompt": "a", "cost": 1}]}', "is an object with the rows under 'data'"),
        ("c.json", b'{"prompt": ["a"], "cost": [1]}', "is an object of columns; rows are needed"),
        ("c.jsonl", b'{"prompt": "\\ud800", "cost": 1}', "half of a character"),
        ("c.jsonl", b'{"prompt": "a", "cost": 1, "policy": "\\ud800"}', "column 'policy' holds"),
        ("c.jsonl", b'{"prompt": "a", "cost": 1, "cost_\\ud800": 1}', "the name 'cost_\\ud800' of a column holds"),
        ("c.jsonl", b'{"prompt": "a", "acc": 1, "f1": 0.5, "id": 7}', "cost=COLUMN; numbers are in acc, f1 (of a cost"),
    ],
)
def test_files_that_people_bring_are_one_line_with_the_mend(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_costs(tmp_path / name)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_what_spreadsheets_and_data_frames_write(tmp_path: Path) -> None:
    from decimal import Decimal

    import pyarrow
    import pyarrow.parquet

    (tmp_path / "c.csv").write_bytes(b"\xef\xbb\xbfprompt,cost\r\na,1\r\nb,2\r\n,\r\n\r\n")
    assert read_costs(tmp_path / "c.csv").costs["policy"]["cost"].costs.tolist() == [1.0, 2.0]
    rows = [
        {"prompt": "a", "cost": Decimal("0.25"), "cluster": 3.0},
        {"prompt": "b", "cost": Decimal(1), "cluster": 4.0},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    costs = read_costs(tmp_path / "c.parquet").costs["policy"]["cost"]
    assert (costs.costs.tolist(), costs.clusters) == ([0.25, 1.0], ["3", "4"])
