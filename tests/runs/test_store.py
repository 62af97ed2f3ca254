"""Files of a run: whole or absent, hashed, and checked when read."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dualign import hashing
from dualign.errors import DataError, MissingError, StorageError
from dualign.runs import store


def test_what_is_written_is_read_back_and_verifies(tmp_path: Path) -> None:
    store.write_json(tmp_path / "a/b.json", {"λ": np.float64(0.5), "none": float("nan")}, run=tmp_path)
    store.write_text(tmp_path / "note.txt", "two\nlines", run=tmp_path)
    store.write_table(tmp_path / "t.parquet", {"prompt": ["x", "y"], "cost": [1.0, -2.5]}, run=tmp_path)
    assert store.read_json(tmp_path / "a/b.json", run=tmp_path) == {"λ": 0.5, "none": None}
    assert store.read_text(tmp_path / "note.txt", run=tmp_path) == "two\nlines"
    assert store.read_table(tmp_path / "t.parquet", run=tmp_path) == {"prompt": ["x", "y"], "cost": [1.0, -2.5]}
    assert set(store.read_manifest(tmp_path)) == {"a/b.json", "note.txt", "t.parquet"}
    assert store.verify(tmp_path) == []


def test_equal_tables_have_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        store.write_table(tmp_path / name, {"cost": list(range(100))})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_verify_names_damaged_missing_and_unlisted(tmp_path: Path) -> None:
    for name in ("kept", "flipped", "gone"):
        store.write_text(tmp_path / name, "content " * 9, run=tmp_path)
    content = bytearray((tmp_path / "flipped").read_bytes())
    content[17] ^= 1
    (tmp_path / "flipped").write_bytes(content)
    (tmp_path / "gone").unlink()
    (tmp_path / "strange").write_text("mine")
    assert [str(fault) for fault in store.verify(tmp_path)] == [
        "flipped is damaged",
        "gone is missing",
        "strange is unlisted",
    ]
    with pytest.raises(DataError, match="flipped is damaged"):
        store.read_bytes(tmp_path / "flipped", run=tmp_path)
    with pytest.raises(DataError, match="strange is not listed"):
        store.read_bytes(tmp_path / "strange", run=tmp_path)
    with pytest.raises(MissingError, match="gone"):
        store.read_bytes(tmp_path / "gone", run=tmp_path)


def test_verify_refuses_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="not a run directory"):
        store.verify(tmp_path)


def test_unreadable_formats_are_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff{")
    for read in (store.read_text, store.read_json, store.read_table):
        with pytest.raises(DataError, match="x"):
            read(tmp_path / "x")


def refuse(*arguments: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_is_one_line_and_leaves_earlier_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    store.write_text(tmp_path / "result", "earlier", run=tmp_path)
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StorageError, match="result: cannot write: No space left on device") as caught:
        store.write_text(tmp_path / "result", "later", run=tmp_path)
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert store.read_text(tmp_path / "result", run=tmp_path) == "earlier"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["MANIFEST.json", "result"]


def test_a_short_write_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole: Callable[[int, bytes], int] = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: whole(descriptor, bytes(content[:3])))
    store.write_bytes(tmp_path / "x", b"0123456789")
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_equal_content_has_equal_digest() -> None:
    left = {"b": (1, 2.5), "a": np.array([1.0, 2.0])}
    assert hashing.canonical_digest(left) == hashing.canonical_digest({"a": [1.0, 2.0], "b": [1, 2.5]})
    assert hashing.canonical_digest(left) != hashing.canonical_digest({"a": [1.0, 2.0], "b": [1, 2.5000000001]})
    with pytest.raises(TypeError, match="no JSON form"):
        hashing.canonical_digest({"x": object()})
