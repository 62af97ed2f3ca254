"""The journal: a phase is done once, damage is noticed, another config is refused."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dualign import hashing
from dualign.errors import DataError
from dualign.runs import store
from dualign.runs.journal import Journal, first_difference, open_run, read_events

CONFIG = {"policy": {"name": "tiny"}, "constraints": [{"name": "harm", "limit": 0.1}], "seed": 1, "note": "1e-5"}


class Counter:
    """A phase that counts how often it is computed."""

    def __init__(self) -> None:
        self.calls = 0

    def act(self, folder: Path) -> str:
        self.calls += 1
        (folder / "inner").mkdir(exist_ok=True)
        store.write_text(folder / "inner" / "value.txt", "forty-two")
        return "forty-two"

    @staticmethod
    def load(folder: Path) -> str:
        return store.read_text(folder / "inner" / "value.txt")


def once(run: Path, counter: Counter, **inputs: object) -> str:
    return open_run(run, CONFIG).phase("sample", inputs, counter.act, counter.load, target="data/tune")


def snapshot(run: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(run.rglob("*")) if p.is_file()}


def warnings(run: Path) -> list[str]:
    return [event["text"] for event in read_events(run) if event["event"] == "warning"]


def test_a_finished_phase_is_loaded(tmp_path: Path) -> None:
    counter = Counter()
    assert [once(tmp_path, counter, seed=1) for _ in range(3)] == ["forty-two"] * 3
    assert counter.calls == 1
    assert [event["event"] for event in read_events(tmp_path)] == ["started", "finished", "reused", "reused"]
    assert store.verify(tmp_path) == []
    once(tmp_path, counter, seed=2)
    assert counter.calls == 2, "other inputs are another phase"
    assert store.verify(tmp_path) == []


def test_another_name_is_another_phase_of_the_same_inputs(tmp_path: Path) -> None:
    counter = Counter()
    journal = open_run(tmp_path, CONFIG)
    for name in ("sample", "score", "score"):
        journal.phase(name, {"seed": 1}, counter.act, counter.load, target="data/tune")
    assert counter.calls == 2


def test_an_unfinished_phase_finds_its_checkpoint(tmp_path: Path) -> None:
    def fail(folder: Path) -> str:
        (folder / "checkpoint").mkdir()
        (folder / "checkpoint" / "step").write_text("7")
        raise KeyboardInterrupt

    def go_on(folder: Path) -> str:
        text = "after " + (folder / "checkpoint" / "step").read_text()
        store.write_text(folder / "out", text)
        return text

    with pytest.raises(KeyboardInterrupt):
        open_run(tmp_path, CONFIG).phase("fit", {}, fail, fail, target="fit")
    assert not (tmp_path / "fit").exists()
    assert open_run(tmp_path, CONFIG).phase("fit", {}, go_on, go_on, target="fit") == "after 7"
    assert sorted(p.name for p in (tmp_path / "fit").iterdir()) == ["out", "phase.json"]
    assert list(tmp_path.glob("*.partial-*")) == []


def test_a_kill_before_the_seal_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []

    def act(folder: Path) -> str:
        found.append((folder / "checkpoint").exists())
        store.write_text(folder / "checkpoint" / "step", "7")
        return store.write_text(folder / "out", "x").name

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("dualign.runs.journal._seal", killed)
        open_run(tmp_path, CONFIG).phase("fit", {}, act, act, target="fit")
    open_run(tmp_path, CONFIG).phase("fit", {}, act, act, target="fit")
    assert found == [False, True]
    assert not (tmp_path / "fit" / "checkpoint").exists()


@pytest.fixture
def unflushed(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[int]]:
    """Hold the folders in which a name was moved and is not on the disk yet, by inode.

    Power may fail between any two steps, so that whatever is moved must be on the disk before: files and folders.
    """
    flushed: set[int] = set()
    waiting: set[int] = set()
    flush, rename, replace = os.fsync, Path.rename, Path.replace

    def flushing(descriptor: int) -> None:
        flush(descriptor)
        flushed.add(os.fstat(descriptor).st_ino)
        waiting.discard(os.fstat(descriptor).st_ino)

    def moving(move: object) -> object:
        def moved(self: Path, target: Path) -> Path:
            lost = [path for path in (self, *self.rglob("*")) if path.stat().st_ino not in flushed]
            assert not lost, f"{lost} may be lost behind {target}"
            waiting.add(target.parent.stat().st_ino)
            return Path(move(self, target))  # type: ignore[operator]

        return moved

    monkeypatch.setattr(os, "fsync", flushing)
    monkeypatch.setattr(Path, "rename", moving(rename))
    monkeypatch.setattr(Path, "replace", moving(replace))
    yield waiting
    assert flushed


def test_content_is_on_the_disk_before_its_name_and_both_before_the_next_step(
    tmp_path: Path, unflushed: set[int]
) -> None:
    def act(folder: Path) -> str:
        (folder / "inner").mkdir()
        (folder / "inner" / "weights").write_bytes(b"written by a library, which flushes nothing")
        return "made"

    store.write_json(tmp_path / "alone" / "x.json", {})
    assert not unflushed
    journal = open_run(tmp_path / "run", CONFIG)
    for seed in (1, 2):  # the second takes the place of the first
        assert journal.phase("fit", {"seed": seed}, act, act, target="rounds/00") == "made"
        assert not unflushed


def test_an_event_is_on_the_disk_when_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, flush = open_run(tmp_path, CONFIG), os.fsync
    sizes: list[int] = []

    def flushing(descriptor: int) -> None:
        flush(descriptor)
        sizes.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", flushing)
    journal.warn("low on space")
    assert sizes == [(tmp_path / "events.jsonl").stat().st_size]


@pytest.mark.parametrize("name", ["inner/value.txt", "phase.json"])
def test_a_flipped_bit_is_noticed_and_the_phase_done_again(tmp_path: Path, name: str) -> None:
    counter = Counter()
    once(tmp_path, counter)
    victim = tmp_path / "data/tune" / name
    content = bytearray(victim.read_bytes())
    content[4] ^= 1
    victim.write_bytes(content)
    assert [fault.path for fault in store.verify(tmp_path)] == [f"data/tune/{name}"]
    assert once(tmp_path, counter) == "forty-two"
    assert counter.calls == 2
    assert warnings(tmp_path) == [f"phase sample: data/tune/{name} is damaged; the phase is done again"]
    assert store.verify(tmp_path) == []


def resealed(run: Path, text: str) -> None:
    """Replace a file of the finished phase and the seal with it: each fits the other, the manifest knows neither."""
    folder = run / "data/tune"
    store.write_text(folder / "inner" / "value.txt", text)
    seal = json.loads((folder / "phase.json").read_bytes())
    seal.pop("sha256")
    seal["files"]["inner/value.txt"] = hashing.file_digest(folder / "inner" / "value.txt")
    store.write_json(folder / "phase.json", {**seal, "sha256": hashing.canonical_digest(seal)})


def test_a_folder_that_was_sealed_again_is_noticed_and_the_phase_done_again(tmp_path: Path) -> None:
    counter = Counter()
    once(tmp_path, counter)
    resealed(tmp_path, "forty-three")
    assert once(tmp_path, counter) == "forty-two"
    assert counter.calls == 2
    assert warnings(tmp_path) == ["phase sample: data/tune/phase.json is damaged; the phase is done again"]
    assert store.verify(tmp_path) == []


def test_a_seal_that_was_edited_is_noticed_where_no_manifest_is_left(tmp_path: Path) -> None:
    counter = Counter()
    once(tmp_path, counter)
    seal = tmp_path / "data/tune/phase.json"
    seal.write_bytes(seal.read_bytes().replace(b'"sample"', b'"simple"'))
    (tmp_path / "MANIFEST.json").unlink()
    once(tmp_path, counter)
    assert counter.calls == 2
    assert warnings(tmp_path) == ["phase sample: data/tune/phase.json is damaged; the phase is done again"]


def test_a_file_that_the_phase_did_not_make_is_noticed(tmp_path: Path) -> None:
    counter = Counter()
    once(tmp_path, counter)
    store.write_text(tmp_path / "data/tune" / "inner" / "zzz.txt", "of nobody")
    once(tmp_path, counter)
    assert counter.calls == 2
    assert warnings(tmp_path) == ["phase sample: data/tune/inner/zzz.txt is damaged; the phase is done again"]
    assert not (tmp_path / "data/tune/inner/zzz.txt").exists()


def test_a_folder_that_was_sealed_but_not_renamed_is_taken_as_it_is(tmp_path: Path) -> None:
    counter = Counter()
    once(tmp_path, counter)
    folder, manifest = tmp_path / "data/tune", tmp_path / "MANIFEST.json"
    key = json.loads((folder / "phase.json").read_bytes())["key"]
    folder.rename(folder.with_name(f"tune{store.PARTIAL}{key[:8]}"))  # as a kill before the rename leaves it
    for name in (manifest, tmp_path / "state.json", tmp_path / "state.json.previous"):
        name.unlink()
    assert once(tmp_path, counter) == "forty-two"
    assert counter.calls == 1
    assert store.verify(tmp_path) == []


@pytest.mark.parametrize("change", [{"choices": {"threads": 64}}, {"schema": 99}])
def test_a_state_that_was_edited_or_is_of_another_schema_is_not_believed(tmp_path: Path, change: dict) -> None:
    open_run(tmp_path, CONFIG).choice("threads", lambda: 2)
    path = tmp_path / "state.json"
    state = json.loads(path.read_bytes())
    if "schema" in change:  # whole and unaltered, but written by a version with another layout
        body = {name: value for name, value in state.items() if name != "sha256"} | change
        change = {**change, "sha256": hashing.canonical_digest({k: v for k, v in body.items()})}
    path.write_text(json.dumps({**state, **change}))
    (tmp_path / "state.json.previous").unlink(missing_ok=True)
    journal = open_run(tmp_path, CONFIG)
    assert journal.choice("threads", lambda: 99) == 2  # as the events tell it
    assert any("state.json was damaged" in text for text in warnings(tmp_path))


def test_the_manifest_keeps_no_file_of_a_phase_that_was_replaced(tmp_path: Path) -> None:
    def other(folder: Path) -> str:
        store.write_text(folder / "new.txt", "x")
        return "x"

    once(tmp_path, Counter(), seed=1)
    open_run(tmp_path, CONFIG).phase("sample", {"seed": 2}, other, other, target="data/tune")
    listed = sorted(name for name in store.read_manifest(tmp_path) if name.startswith("data/"))
    assert listed == ["data/tune/new.txt", "data/tune/phase.json"]
    assert store.verify(tmp_path) == []


def test_a_kill_after_the_rename_and_before_the_manifest_costs_no_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter()
    once(tmp_path, counter, seed=1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Journal, "_enter", killed)
        once(tmp_path, counter, seed=2)
    assert once(tmp_path, counter, seed=2) == "forty-two"
    assert counter.calls == 2 and warnings(tmp_path) == []
    assert store.verify(tmp_path) == []


def test_a_kill_before_the_rename_is_no_loss_to_be_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = Counter()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "rename", killed)
        once(tmp_path, counter)
    assert once(tmp_path, counter) == "forty-two"
    assert counter.calls == 1 and warnings(tmp_path) == []


def test_a_lost_folder_is_made_again(tmp_path: Path) -> None:
    counter = Counter()
    once(tmp_path, counter)
    store.remove_folder(tmp_path / "data/tune")
    once(tmp_path, counter)
    assert counter.calls == 2
    assert warnings(tmp_path) == ["phase sample: data/tune is missing; the phase is done again"]


@pytest.mark.parametrize("lost", [["state.json"], ["state.json", "state.json.previous"], ["MANIFEST.json"]])
def test_torn_state_costs_no_phase_and_no_choice(tmp_path: Path, lost: list[str]) -> None:
    counter = Counter()
    journal = open_run(tmp_path, CONFIG)
    journal.choice("threads", lambda: 2)
    once(tmp_path, counter)
    for name in lost:
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    once(tmp_path, counter)
    assert counter.calls == 1
    assert open_run(tmp_path, CONFIG).choice("threads", lambda: 99) == 2
    assert len(warnings(tmp_path)) == 1
    assert "damaged" in warnings(tmp_path)[0]
    assert store.verify(tmp_path) == []


def test_another_config_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    once(tmp_path, Counter())
    before = snapshot(tmp_path)
    with pytest.raises(DataError, match=r"another config: key policy.name differs \(\"tiny\" then, \"big\" now\)"):
        open_run(tmp_path, {**CONFIG, "policy": {"name": "big"}})
    with pytest.raises(DataError, match=r"key constraints\[0\].limit differs \(0.1 then, 0.2 now\)"):
        open_run(tmp_path, {**CONFIG, "constraints": [{"name": "harm", "limit": 0.2}]})
    with pytest.raises(DataError, match="another config"):
        Journal(tmp_path, "0" * 64)
    assert snapshot(tmp_path) == before


def test_the_first_difference_is_named() -> None:
    assert first_difference({"a": 1}, {"a": 1, "b": 2}) == "key b was given now only (2)"
    assert first_difference({"a": {"c": [1]}}, {"a": {"c": [1, 2]}}) == "key a.c differs ([1] then, [1, 2] now)"


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(DataError, match=r"holds thesis.tex but no config.yaml"):
        open_run(tmp_path, CONFIG)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_choices_are_made_once(tmp_path: Path) -> None:
    assert open_run(tmp_path, CONFIG).choice("dtype", lambda: "float32") == "float32"
    assert open_run(tmp_path, CONFIG).choice("dtype", lambda: "bfloat16") == "float32"


def test_a_choice_that_was_told_is_kept_though_a_kill_came_before_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    journal = open_run(tmp_path, CONFIG)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Journal, "_save", killed)
        journal.choice("dtype", lambda: "float32")
    assert open_run(tmp_path, CONFIG).choice("dtype", lambda: "bfloat16") == "float32"


def test_an_event_that_was_edited_changes_no_choice_that_the_state_holds(tmp_path: Path) -> None:
    open_run(tmp_path, CONFIG).choice("threads", lambda: 2)
    events = tmp_path / "events.jsonl"
    events.write_text(events.read_text().replace('"value": 2', '"value": 64'))
    assert [event["value"] for event in read_events(tmp_path)] == [64]
    assert open_run(tmp_path, CONFIG).choice("threads", lambda: 99) == 2


def test_what_a_kill_left_behind_is_cleared(tmp_path: Path) -> None:
    once(tmp_path, Counter())
    store.write_text(tmp_path / "data" / f"tune{store.REPLACED}0a1b2c3d" / "x", "of the phase before")
    (tmp_path / "data" / f"{store.TEMPORARY}0a1b-x").write_text("half")
    open_run(tmp_path, CONFIG)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["tune"]


def test_targets_stay_inside_and_apart(tmp_path: Path) -> None:
    journal, counter = open_run(tmp_path, CONFIG), Counter()
    for target in ("../x", "/x", "", "a/../b", "a/"):
        with pytest.raises(ValueError, match="not a folder inside"):
            journal.phase("p", {}, counter.act, counter.load, target=target)
    journal.phase("p", {}, counter.act, counter.load, target="rounds/00")
    with pytest.raises(ValueError, match="overlaps"):
        journal.phase("q", {}, counter.act, counter.load, target="rounds/00/adapter")


def test_events_survive_a_torn_line(tmp_path: Path) -> None:
    once(tmp_path, Counter())
    with (tmp_path / "events.jsonl").open("a") as stream:
        stream.write('{"event": "fini')
    once(tmp_path, Counter())
    assert [event["event"] for event in read_events(tmp_path)] == ["started", "finished", "reused"]
    assert set(open_run(tmp_path, CONFIG).seconds()) == {"sample"}
