"""The journal of a run: each phase is done once, and a restart redoes only what was not finished.

A phase works in ``<target>.partial-<key>``, which survives a kill (a fit checkpoints in it). When it ends,
its files are hashed into a seal (``phase.json``) inside the folder, and one rename makes them the target.
The seal alone decides whether a phase is done, so a lost ``state.json`` costs nothing but a look at the
folders. ``state.json`` holds what no folder can tell: the config's hash and the choices made by timing.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from dualign.errors import DataError
from dualign.hashing import canonical_digest, file_digest, folder_digests, plain
from dualign.runs import store
from dualign.strict import dump_yaml, parse_yaml

T = TypeVar("T")

CONFIG = "config.yaml"
SEAL = "phase.json"
SCRATCH = "checkpoint"
"""Folders of this name inside a work folder serve its resumption; they are dropped when the phase ends."""
_KEY_DIGITS = 8


def open_run(
    run: Path, config: Mapping[str, object], *, notify: Callable[[Mapping[str, Any]], None] | None = None
) -> "Journal":
    """Return the journal of ``run``, made with its ``config.yaml`` if it is new, continued if it is not.

    Raises:
        DataError: ``run`` was made by another config (the first key that differs is named), or it is a
            folder of something else; nothing in it is changed.
    """
    config = plain(config)
    if (run / CONFIG).exists():
        _refuse_other_config(run, config)
    else:
        _refuse_strange_folder(run)
        store.write_text(run / CONFIG, dump_yaml(config))
    return Journal(run, canonical_digest(config), notify=notify)


def _refuse_other_config(run: Path, config: Mapping[str, Any]) -> None:
    made_by = parse_yaml(store.read_text(run / CONFIG), str(run / CONFIG))
    if not isinstance(made_by, dict):
        raise DataError(f"{run / CONFIG}: damaged: not a config; choose another --out")
    if canonical_digest(made_by) != canonical_digest(config):
        difference = first_difference(made_by, config)
        raise DataError(f"run {run} was made by another config: {difference}; choose another --out")


def _refuse_strange_folder(run: Path) -> None:
    if run.exists() and not run.is_dir():
        raise DataError(f"{run}: is a file, not a run directory; choose another --out")
    present = sorted(path.name for path in run.iterdir()) if run.exists() else []
    for name in present:
        if name != store.LOCK and not store.is_transient(name):
            raise DataError(f"{run}: holds {name} but no {CONFIG}: not a run directory; choose another --out")


def first_difference(old: object, new: object, key: str = "") -> str:
    """Return which key differs first between two configs, with both values: what a refusal names."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in [*old, *(name for name in new if name not in old)]:
            inner = f"{key}.{name}" if key else str(name)
            if name not in old or name not in new:
                where = "now" if name in new else "then"
                return f"key {inner} was given {where} only ({_short(new.get(name, old.get(name)))})"
            if canonical_digest(old[name]) != canonical_digest(new[name]):
                return first_difference(old[name], new[name], inner)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (before, after) in enumerate(zip(old, new, strict=True)):
            if canonical_digest(before) != canonical_digest(after):
                return first_difference(before, after, f"{key}[{index}]")
    return f"key {key} differs ({_short(old)} then, {_short(new)} now)"


def _short(value: object) -> str:
    text = json.dumps(plain(value), ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


class Journal:
    """The phases and choices of one run directory. Hold ``run_lock`` while using it."""

    def __init__(
        self,
        run: Path,
        config_hash: str,
        *,
        notify: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        """Open the journal of ``run`` and clear what a kill left behind.

        Args:
            run: the run directory; made if absent.
            config_hash: what the run belongs to; a directory of another one is refused unchanged.
            notify: called with each event as it is recorded, to show progress and warnings.

        Raises:
            DataError: the directory was made by another config.
        """
        self.run = run
        self.config_hash = config_hash
        self._notify = notify
        self._warnings: list[str] = []
        self._state = self._recover()
        if self._state["config_hash"] != config_hash:
            raise DataError(f"run {run} was made by another config (its hash differs); choose another --out")
        _clear_left_overs(run)
        self._mend_manifest()
        self._save()
        for text in self._warnings:
            self.warn(text)

    def phase(
        self,
        name: str,
        inputs: Mapping[str, object],
        action: Callable[[Path], T],
        load: Callable[[Path], T],
        *,
        target: str,
    ) -> T:
        """Return what ``action`` made in the folder ``target``, or ``load`` of it if that was done before.

        Args:
            name: the phase's name in the events.
            inputs: all that the outcome depends on; another value makes another key, and a new phase.
            action: fills the work folder it is given; it may find there what an earlier, killed attempt left.
            load: reads the finished folder.
            target: the folder, relative to the run directory; no other phase may use it, above or below it.
        """
        key = canonical_digest({"name": name, "inputs": inputs, "schema": store.SCHEMA})
        folder = self._folder(name, target)
        work = folder.with_name(f"{folder.name}{store.PARTIAL}{key[:_KEY_DIGITS]}")
        finished = self._finished(name, target, folder, key)
        if not finished and _seal_fault(work, key) is None:
            # killed between the seal and the rename: nothing is left to compute
            self._publish(work, folder, target, name, key)
            finished = True
        if finished:
            self._event("reused", phase=name, target=target, seconds=0.0)
            return load(folder)
        self._event("started", phase=name, target=target, resumed=work.exists())
        start = time.perf_counter()
        with store.disk(work, "make the folder"):
            work.mkdir(parents=True, exist_ok=True)
        result = action(work)
        _seal(work, name, key)
        self._publish(work, folder, target, name, key)
        self._event("finished", phase=name, target=target, seconds=round(time.perf_counter() - start, 3))
        return result

    def choice(self, name: str, make: Callable[[], object]) -> Any:
        """Return the choice ``name``: made once (it may depend on timing), the same ever after in this run."""
        if name not in self._state["choices"]:
            value = plain(make())
            self._state["choices"][name] = value
            self._event("chosen", choice=name, value=value)
            self._save()
        return self._state["choices"][name]

    @property
    def choices(self) -> Mapping[str, Any]:
        """Return the choices made so far, by name."""
        return dict(self._state["choices"])

    def warn(self, text: str) -> None:
        """Record a warning among the events."""
        self._event("warning", text=text)

    def seconds(self) -> dict[str, float]:
        """Return the seconds each phase took, by name, summed over its finished attempts."""
        total: dict[str, float] = {}
        for event in read_events(self.run):
            if event.get("event") == "finished" and isinstance(event.get("seconds"), int | float):
                total[event["phase"]] = round(total.get(event["phase"], 0.0) + event["seconds"], 3)
        return total

    def _folder(self, name: str, target: str) -> Path:
        parts = PurePosixPath(target).parts
        if not parts or target != "/".join(parts) or parts[0] == "/" or {".", ".."} & set(parts):
            raise ValueError(f"phase {name}: target {target!r} is not a folder inside the run directory")
        for other in self._state["phases"]:
            if other.startswith(f"{target}/") or target.startswith(f"{other}/"):
                raise ValueError(f"phase {name}: target {target!r} overlaps {other!r} of another phase")
        return self.run / target

    def _finished(self, name: str, target: str, folder: Path, key: str) -> bool:
        """Return whether ``folder`` is this phase, whole; a damaged one is named in a warning."""
        known = self._state["phases"].get(target)
        if not folder.exists():
            if known == key:
                self.warn(f"phase {name}: {target} is missing; the phase is done again")
            return False
        fault = _seal_fault(folder, key)
        listed = store.read_manifest(self.run).get(f"{target}/{SEAL}")
        if fault is None and listed is not None and listed != file_digest(folder / SEAL):
            fault = SEAL
        if fault is not None:
            # an empty fault is a seal of other inputs: no damage, the phase is another one now
            if fault or known == key:
                self.warn(f"phase {name}: {target}/{fault or SEAL} is damaged; the phase is done again")
            return False
        if known != key or listed is None:
            self._enter(folder, target, key)
        return True

    def _publish(self, work: Path, folder: Path, target: str, name: str, key: str) -> None:
        """Rename the sealed work folder to its target, then record it."""
        replaced = folder.with_name(f"{folder.name}{store.REPLACED}{key[:_KEY_DIGITS]}")
        for scratch in sorted(work.rglob(SCRATCH)):
            store.remove_folder(scratch)
        with store.disk(folder, f"finish phase {name}"):
            if folder.exists():
                store.remove_folder(replaced)
                store.record(self.run, {}, forget=target)
                folder.rename(replaced)
            work.rename(folder)
            store.sync_folder(folder.parent)
        store.remove_folder(replaced)
        for stale in folder.parent.glob(f"{folder.name}{store.PARTIAL}*"):
            store.remove_folder(stale)
        self._enter(folder, target, key)

    def _enter(self, folder: Path, target: str, key: str) -> None:
        store.record(self.run, _entries(folder, target), forget=target)
        self._state["phases"][target] = key
        self._save()

    def _recover(self) -> dict[str, Any]:
        """Return the newest valid state: the file, the one before, or what folders and events still tell."""
        # An event is written before the state that holds it: a kill in between, or an older state, loses no choice.
        choices = {e["choice"]: e["value"] for e in read_events(self.run) if e.get("event") == "chosen"}
        for name in (store.STATE, store.PREVIOUS_STATE):
            state = _read_state(self.run / name)
            if state is not None:
                if name != store.STATE and (self.run / store.STATE).exists():
                    self._warnings.append(f"{store.STATE} was damaged; the state before it was taken")
                return {**state, "choices": {**choices, **state["choices"]}}
        if any((self.run / name).exists() for name in (store.STATE, store.PREVIOUS_STATE)):
            self._warnings.append(f"{store.STATE} was damaged; rebuilt from the folders")
        return {"config_hash": self.config_hash, "choices": choices, "phases": {}}

    def _mend_manifest(self) -> None:
        """List the config, and write a damaged manifest anew from the seals."""
        try:
            entries = store.read_manifest(self.run)
        except DataError:
            self._warnings.append(f"{store.MANIFEST} was damaged; written anew from the finished phases")
            entries = {}
            for seal in sorted(self.run.rglob(SEAL)):
                target = seal.parent.relative_to(self.run).as_posix()
                if not store.is_transient(target):
                    entries |= _entries(seal.parent, target)
        config = self.run / CONFIG
        if config.exists():
            entries[CONFIG] = file_digest(config)
        self.run.mkdir(parents=True, exist_ok=True)
        store.write_manifest(self.run, entries)

    def _save(self) -> None:
        """Replace ``state.json``, keeping the one before it if it is valid and another."""
        path = self.run / store.STATE
        old = _read_state(path)
        if old == self._state:
            return
        if old is not None:
            store.write_bytes(self.run / store.PREVIOUS_STATE, path.read_bytes())
        store.write_signed(path, {"schema": store.SCHEMA, **self._state})

    def _event(self, kind: str, **fields: Any) -> None:
        event = {"event": kind, "time": datetime.now(UTC).isoformat(timespec="seconds"), **fields}
        path = self.run / store.EVENTS
        with store.disk(path, "write"):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                os.write(descriptor, b"\n" * torn + json.dumps(event, ensure_ascii=False).encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        if self._notify is not None:
            self._notify(event)


def read_events(run: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of ``run`` in order; a line that a kill tore is passed over."""
    path = run / store.EVENTS
    if not path.exists():
        return
    for line in store.read_bytes(path).splitlines():
        if (event := store.parse_object(line)) is not None:
            yield event


def _clear_left_overs(run: Path) -> None:
    """Remove temporary files, and replaced folders whose successor stands."""
    for path in sorted(run.rglob("*"), reverse=True):
        if path.name.startswith(store.TEMPORARY) and path.is_file():
            path.unlink(missing_ok=True)
        elif store.REPLACED in path.name and path.is_dir():
            store.remove_folder(path)


def _read_state(path: Path) -> dict[str, Any] | None:
    """Return the state in ``path``, or None where it is absent, torn or altered."""
    state = store.read_signed(path)
    return state if state is not None and state.pop("schema", None) == store.SCHEMA else None


def _seal(work: Path, name: str, key: str) -> None:
    """Flush every file of the finished ``work`` folder and write their hashes into its seal.

    Checkpoints stay until the seal stands: a kill in between must not cost the training they hold.
    """
    with store.disk(work, "seal"):
        (work / SEAL).unlink(missing_ok=True)
        for path in sorted(work.rglob("*"), reverse=True):
            if path.name.startswith(store.TEMPORARY):
                path.unlink()
            elif path.is_dir():
                store.sync_folder(path)
            else:
                with path.open("rb") as stream:
                    os.fsync(stream.fileno())
    store.write_signed(work / SEAL, {"name": name, "key": key, "files": _content_digests(work)})


def _seal_fault(folder: Path, key: str) -> str | None:
    """Return None if ``folder`` is sealed for ``key`` and whole, "" if for another key, else the damaged file."""
    seal = _read_seal(folder)
    if seal is None:
        return SEAL
    if seal.get("key") != key:
        return ""
    files: dict[str, str] = seal["files"]
    present = _content_digests(folder)
    for name in sorted({*files, *present}):
        if files.get(name) != present.get(name):
            return name
    return None


def _content_digests(folder: Path) -> dict[str, str]:
    """Return the hashes of what a phase made: all below ``folder`` but its seal and its checkpoints."""
    digests = folder_digests(folder)
    return {n: d for n, d in digests.items() if n != SEAL and SCRATCH not in PurePosixPath(n).parts[:-1]}


def _read_seal(folder: Path) -> dict[str, Any] | None:
    """Return the seal of ``folder``; None where it is absent or altered."""
    seal = store.read_signed(folder / SEAL)
    return seal if seal is not None and isinstance(seal.get("files"), dict) else None


def _entries(folder: Path, target: str) -> dict[str, str]:
    """Return what the manifest lists of a finished folder: the hash of its seal, and those in it."""
    files = (_read_seal(folder) or {"files": {}})["files"]
    return {f"{target}/{name}": digest for name, digest in {**files, SEAL: file_digest(folder / SEAL)}.items()}
