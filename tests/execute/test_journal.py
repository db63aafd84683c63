"""Transfers that are resumed: the same bytes, only what is missing is moved, and nothing that is found is believed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.execute.test_files import ARRAYS, RULES, SPAWN, save
from tests.plan.stub import Stub
from tests.support import says
from weightport.api import Result
from weightport.execute import files, journal, mover
from weightport.execute.journal import Journal, Resumed
from weightport.execute.ledger import pieces
from weightport.execute.tasks import Done, Task
from weightport.formats import tf_bundle
from weightport.plan import plan

ROOT = Path(__file__).resolve().parents[2]
OUTS = ["m.safetensors", "m.npz", "m.pt", "m.ckpt", "m.safetensors.index.json"]
MAPPING: dict[str, Any] = {"weightport": 1, "rules": RULES}


def _total() -> int:
    """Bytes of the result's values."""
    made = plan(Stub(ARRAYS), None, wp.load_mapping(MAPPING)).check()
    return sum(spec.nbytes for spec in made.specs.values())


TOTAL = _total()


class Full(OSError):
    """What happens in the middle."""


class Failing:
    """A progress that lets so many tasks be done."""

    def __init__(self, tasks: int, error: BaseException | None = None) -> None:
        self.left, self.error = tasks, error or Full(28, "No space left on device")

    def __call__(self, _: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many tasks, of few bytes."""
    monkeypatch.setattr(files, "SIZES", replace(files.SIZES, task=3000, tile=1000, chunk=512, hold=8000))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "model", ARRAYS)
    (tmp_path / "out").mkdir()
    return tmp_path


def transfer(folder: Path, out: str = "m.safetensors", mapping: Any = MAPPING, **more: Any) -> Result:
    if out.endswith(".index.json"):
        more = {"shard_size": 9000, **more}
    more = {"resume": True, "threads": 1, **more}
    return wp.transfer(folder / "model.ckpt", None, mapping, out=folder / "out" / out, **more)


def resumed(folder: Path, out: str = "m.safetensors", **more: Any) -> Resumed:
    found = transfer(folder, out, **more).resumed
    assert found is not None
    return found


def fail(folder: Path, out: str = "m.safetensors", tasks: int = 5, **more: Any) -> None:
    with pytest.raises(wp.Error, match="No space left on device"):
        transfer(folder, out, progress=Failing(tasks), **more)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "out").iterdir())}


def left(folder: Path) -> list[Path]:
    return sorted((folder / "out").glob(".*"))


def the_journal(folder: Path) -> Path:
    (found,) = (path for path in left(folder) if ".journal." in path.name)
    return found


def the_temporary(folder: Path) -> Path:
    (found,) = (path for path in left(folder) if ".journal." not in path.name)
    return found


def whole(folder: Path, out: str = "m.safetensors") -> dict[str, bytes]:
    """What a run that nobody interrupts and nobody resumes writes; it is removed again."""
    assert transfer(folder, out, resume=False).resumed is None
    found = content(folder)
    for name in found:
        (folder / "out" / name).unlink()
    return found


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """The tasks that are carried out in this process."""
    tasks: list[Task] = []

    def run(task: Task) -> Done:
        tasks.append(task)
        return mover.run(task)

    monkeypatch.setattr(journal, "run", run)
    return tasks


# Going on ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", OUTS)
def test_only_what_is_missing_is_moved(folder: Path, out: str, ran: list[Task]) -> None:
    expected = whole(folder, out)
    assert not ran
    assert resumed(folder, out) == Resumed(0, TOTAL)
    tasks = len(ran)
    assert tasks > 12
    for name in content(folder):
        (folder / "out" / name).unlink()
    fail(folder, out, 7)
    ran.clear()
    found = resumed(folder, out)
    assert len(ran) == tasks - 7
    assert found.moved + found.found == TOTAL
    assert 0 < found.moved < TOTAL
    assert content(folder) == expected


@pytest.mark.parametrize("out", OUTS)
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("then", [1, 3, ThreadPoolExecutor])
def test_threads_and_executors_may_change(
    folder: Path, out: str, first: int, then: int | type[Executor], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = whole(folder, out)
    fail(folder, out, 6, threads=first)
    monkeypatch.setattr(files, "SIZES", replace(files.SIZES, hold=files.SIZES.hold * 3))
    with ExitStack() as stack:
        more = {"threads": then} if isinstance(then, int) else {"executor": stack.enter_context(then(2))}
        found = resumed(folder, out, **more)
    assert found.moved + found.found == TOTAL
    assert found.found > 0
    assert content(folder) == expected


def test_other_processes_can_look_at_what_is_there(folder: Path) -> None:
    from concurrent.futures import ProcessPoolExecutor

    expected = whole(folder, "m.npz")
    with ProcessPoolExecutor(1, SPAWN) as executor:
        fail(folder, "m.npz", 6, executor=executor)
        assert resumed(folder, "m.npz", executor=executor).found > 0
    assert content(folder) == expected


@pytest.mark.parametrize("out", OUTS)
def test_it_can_be_interrupted_again_and_again(folder: Path, out: str, ran: list[Task]) -> None:
    expected = whole(folder, out)
    resumed(folder, out)
    tasks, times = len(ran), 0
    for name in content(folder):
        (folder / "out" / name).unlink()
    ran.clear()
    while times < 100:
        times += 1
        try:  # two more than there are
            found = resumed(folder, out, progress=Failing(2 * times))
            break
        except wp.Error:
            continue
    assert len(ran) == tasks, "what was done was done again"
    assert times == tasks // 2 + 1
    assert found.moved + found.found == TOTAL
    assert content(folder) == expected


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), MemoryError()])
def test_whatever_interrupts(folder: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        transfer(folder, progress=Failing(4, error))
    assert resumed(folder).found > 0
    assert not left(folder)


def test_an_old_file_stays_until_the_end(folder: Path) -> None:
    out = folder / "out" / "m.safetensors"
    out.write_bytes(b"old")
    out.chmod(0o640)
    fail(folder)
    assert out.read_bytes() == b"old"
    assert resumed(folder).found
    assert out.stat().st_mode & 0o777 == 0o640
    with wp.open(out) as source:
        np.testing.assert_array_equal(source.read("same/a"), ARRAYS["a"])


def test_a_link_is_written_through(folder: Path) -> None:
    (folder / "elsewhere").mkdir()
    (folder / "out" / "m.safetensors").symlink_to("../elsewhere/real.safetensors")
    fail(folder)
    assert not left(folder)
    assert len(list((folder / "elsewhere").iterdir())) == 2
    assert resumed(folder).found
    assert [path.name for path in (folder / "elsewhere").iterdir()] == ["real.safetensors"]


def test_strings_are_written_again(folder: Path) -> None:
    words = np.array([f"word {n}" for n in range(400)])
    np.savez(folder / "words.npz", a=ARRAYS["a"], b=ARRAYS["b"], w=words)
    rules = {"weightport": 1, "rules": [{"from": "{n}", "to": "{n}"}]}
    more: dict[str, Any] = {"out": folder / "out" / "m.npz", "threads": 1}
    wp.transfer(folder / "words.npz", None, rules, **more)
    expected = content(folder)
    with pytest.raises(wp.Error):
        wp.transfer(folder / "words.npz", None, rules, progress=Failing(3), resume=True, **more)
    found = wp.transfer(folder / "words.npz", None, rules, resume=True, **more).resumed
    assert found is not None
    assert found.found
    assert content(folder) == expected


def test_what_is_told(folder: Path) -> None:
    told: list[str] = []
    fail(folder, resume=told.append)
    assert told == ["what was written is kept: run it again with --resume, and it goes on there"]
    transfer(folder, resume=told.append)
    transfer(folder, resume=told.append)
    assert told[1:] == ["goes on where an earlier run ended; what that wrote is read back first"]


def test_progress_counts_what_is_there(folder: Path) -> None:
    fail(folder)
    counted: list[int] = []
    transfer(folder, progress=counted.append)
    assert sum(counted) == TOTAL


def test_the_document_says_it(folder: Path) -> None:
    fail(folder)
    result = transfer(folder)
    assert result.resumed is not None
    assert result.as_json()["resumed"] == {"found": result.resumed.found, "moved": result.resumed.moved, "anew": ""}
    assert "resumed" not in transfer(folder, resume=False).as_json()


_KEYS = """
import sys
from dataclasses import replace
from tests.execute.test_journal import MAPPING, keys
from weightport.execute import files
files.SIZES = replace(files.SIZES, task=3000, tile=1000, chunk=512, hold=8000)
print(keys(sys.argv[1]))
"""


def keys(path: str) -> list[str]:
    """What tells the tasks of the transfer apart, in their order."""
    with tf_bundle.open_source(path) as source:
        planned = plan(source, None, wp.load_mapping(MAPPING))
        job = files.Job([source], files._items(planned, None), None, None)
        at, places = 0, {}
        for name, spec in planned.specs.items():
            places[name] = "file", at
            at += spec.nbytes

        class Out:
            checksum = "crc32c"

        Out.places = places  # type: ignore[attr-defined]
        return [journal._key(task).hex() for task in job.tasks(Out(), 1)]  # type: ignore[arg-type]


def test_the_tasks_of_a_plan_are_the_same_in_each_process(folder: Path) -> None:
    path = str(folder / "model.ckpt")
    mine = keys(path)
    assert len(set(mine)) == len(mine) > 12
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        argv = [sys.executable, "-c", _KEYS, path]
        ran = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=True)
        assert ran.stdout.strip() == str(mine)


# What is not believed ------------------------------------------------------------------------------------------------


def test_bytes_that_were_lost_are_moved_again(folder: Path, ran: list[Task]) -> None:
    """A page that did not get to the disk before the power was cut."""
    expected = whole(folder)
    fail(folder, tasks=9)
    made = the_temporary(folder)
    before = made.read_bytes()
    begin = len(before) - TOTAL
    made.write_bytes(before[: begin + 2000] + bytes(1) + before[begin + 2001 :])
    assert made.read_bytes() != before
    ran.clear()
    found = resumed(folder)
    assert content(folder) == expected
    fail(folder, tasks=9)
    undamaged = resumed(folder)
    assert found.moved - undamaged.moved == found.found * -1 + undamaged.found > 0


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_file_that_became_shorter(folder: Path, size: int) -> None:
    expected = whole(folder)
    fail(folder)
    os.truncate(the_temporary(folder), size)
    assert resumed(folder).moved >= TOTAL - size
    assert content(folder) == expected


def test_what_is_beyond_the_end_of_a_file_is_not_there(folder: Path, ran: list[Task]) -> None:
    fail(folder)
    done = journal._read_back(ran[0])
    assert done is not None
    assert done.kept == sum(size for piece in ran[0].pieces for _, size in journal._places(piece))
    os.truncate(ran[0].pieces[-1].out, ran[0].pieces[-1].offset + 1)
    assert journal._read_back(ran[0]) is None


@pytest.mark.parametrize("out", ["m.safetensors", "m.ckpt", "m.safetensors.index.json"])
def test_temporaries_that_are_gone(folder: Path, out: str) -> None:
    expected = whole(folder, out)
    fail(folder, out)
    for path in left(folder):
        if path != the_journal(folder):
            path.unlink()
    assert resumed(folder, out) == Resumed(0, TOTAL)
    assert content(folder) == expected


def test_a_journal_that_was_cut(folder: Path) -> None:
    expected = whole(folder)
    fail(folder, tasks=4)
    path, made = the_journal(folder), the_temporary(folder)
    said, written = path.read_bytes(), made.read_bytes()
    seen = set()
    for size in range(0, len(said), 29):
        made.write_bytes(written)
        path.write_bytes(said[:size])
        seen.add(resumed(folder).found)
        assert content(folder) == expected
    assert len(seen) == 4, "of four tasks none, one, two or three are left"


def test_a_journal_of_which_a_byte_is_wrong(folder: Path) -> None:
    expected = whole(folder)
    fail(folder, tasks=4)
    path, made = the_journal(folder), the_temporary(folder)
    said, written = path.read_bytes(), made.read_bytes()
    for at in range(0, len(said), 31):
        made.write_bytes(written)
        path.write_bytes(said[:at] + bytes([said[at] ^ 0x10]) + said[at + 1 :])
        found = resumed(folder)
        assert found.moved + found.found == TOTAL
        assert content(folder) == expected


def test_damage_to_any_byte_of_a_journal_costs_tasks_only(tmp_path: Path, alone: Callable[..., Journal]) -> None:
    interrupted(alone({"a": "b"}), 4)
    (path,) = tmp_path.iterdir()
    said = path.read_bytes()
    size = len(journal._framed(bytes(20)))
    first = len(said) - 4 * size
    for at in range(len(said)):
        whole_ = (at - first) // size if at >= first else 0
        for damaged in (said[:at], said[:at] + bytes([said[at] ^ 1]) + said[at + 1 :]):
            path.write_bytes(damaged)
            begun = alone({"a": "b"})
            assert sorted(begun._tasks) == [bytes([n]) * 16 for n in range(whole_)]
            assert begun.resumed.anew == ("the journal of the earlier run is damaged" if 0 < len(damaged) < first
                                          or (at < first and damaged) else "")  # fmt: skip
            interrupted(begun)


def test_what_is_torn_off_is_written_over(folder: Path) -> None:
    fail(folder, tasks=4)
    path = the_journal(folder)
    path.write_bytes(path.read_bytes()[:-5])
    fail(folder, tasks=6)
    *_, (end, _) = journal._records(os.open(path, os.O_RDONLY))
    assert end == path.stat().st_size


def reframed(path: Path, changed: Callable[[list[bytes]], list[bytes]]) -> None:
    """A journal with other records, each of them whole."""
    handle = os.open(path, os.O_RDONLY)
    records = [record for _, record in journal._records(handle)]
    os.close(handle)
    path.write_bytes(journal._MAGIC + b"".join(map(journal._framed, changed(records))))


@pytest.mark.parametrize(
    "changed",
    [
        lambda r: [r[0], *(note[:16] + bytes(4) + note[20:] for note in r[1:])],
        lambda r: [r[0], *(note[:20] + b"\xff" * (len(note) - 20) for note in r[1:])],
        lambda r: [r[0], *(note[:20] + note[20:] * 50 for note in r[1:])],
        lambda r: [r[0], *(note[:23] for note in r[1:])],
        lambda r: [r[0], *(note[:7] for note in r[1:])],
        lambda r: [r[0], *(bytes(16) + note[16:] for note in r[1:])],
        lambda r: [r[0], *r[:0:-1], *r[1:]],
        lambda r: [r[0], r[0], *r[1:]],
        lambda r: [b"{}", *r[1:]],
        lambda r: [b"[" * 60_000, *r[1:]],
        lambda r: [b'{"token": "../../../tmp/x00", "parts": {}}', *r[1:]],
        lambda r: [b'{"token": ["0123456789abcdef"], "parts": {}}', *r[1:]],
        lambda r: [b"\xff\xfe", *r[1:]],
        lambda _: [],
    ],
    ids=[
        "wrong checksums",
        "wrong pieces",
        "more pieces",
        "pieces cut",
        "notes cut",
        "other tasks",
        "in another order",
        "two heads",
        "an empty head",
        "a deep head",
        "a token that leads elsewhere",
        "a token that is none",
        "no JSON",
        "no records",
    ],
)
def test_a_journal_that_says_what_is_not_so(folder: Path, changed: Callable[[list[bytes]], list[bytes]]) -> None:
    expected = whole(folder)
    fail(folder, tasks=8)
    reframed(the_journal(folder), changed)
    found = resumed(folder)
    assert found.moved + found.found == TOTAL
    assert content(folder) == expected


@pytest.mark.parametrize("size", [0xFFFFFFFF, 1 << 30, 70_000])
def test_sizes_that_are_too_large_are_not_read(folder: Path, size: int) -> None:
    expected = whole(folder)
    fail(folder)
    path = the_journal(folder)
    said = path.read_bytes()
    with open(path, "r+b") as file:
        file.write(said[: len(journal._MAGIC)] + size.to_bytes(4, "little"))
        file.truncate(1 << 31)  # a hole
    found = resumed(folder)
    assert found == Resumed(0, TOTAL, "the journal of the earlier run is damaged")
    assert content(folder) == expected


@pytest.mark.parametrize("what", ["journal", "temporary"])
@pytest.mark.parametrize("how", ["link", "hard link", "fifo", "folder"])
def test_what_lies_in_the_way_is_not_written_to(folder: Path, what: str, how: str) -> None:
    fail(folder)
    victim = folder / "victim"
    victim.write_bytes(b"mine")
    path = the_journal(folder) if what == "journal" else the_temporary(folder)
    path.unlink()
    if how == "link":
        path.symlink_to(victim)
    elif how == "hard link":
        path.hardlink_to(victim)
    elif how == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(wp.Error) as caught:
        transfer(folder)
    if how == "folder":
        assert "cannot be written: Is a directory" in str(caught.value)
    else:
        assert str(caught.value) == f"{path}: is in the way: it is no file of this user alone; remove it"
    assert victim.read_bytes() == b"mine"
    assert not (folder / "out" / "m.safetensors").exists()


# The source's checksums ----------------------------------------------------------------------------------------------


def damage(folder: Path, tensor: str) -> None:
    """Another byte in the middle of a tensor, in the source, with its old time."""
    with tf_bundle.open_source(str(folder / "model.ckpt")) as source:
        place = source.extent(tensor)
    assert place is not None
    before = os.stat(place.path)
    with open(place.path, "r+b") as file:
        file.seek(place.offset + place.nbytes // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    os.utime(place.path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("tasks", [1, 2, 3])
def test_what_was_read_before_is_proven_too(folder: Path, tasks: int) -> None:
    """A tensor of which the first run reads a part, and the second the rest."""
    damage(folder, "a")
    rules = {"weightport": 1, "rules": [{"from": "a", "to": "a"}], "ignore": ["**"]}
    fail(folder, tasks=tasks, mapping=rules)
    with pytest.raises(wp.FormatError, match="checksum"):
        transfer(folder, mapping=rules)
    assert content(folder) == {}, "what was made of it is of no use to anybody"


def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what is read once more, for its checksum."""
    found: list[int] = []
    inner = files._rest

    def rest(path: str, kind: str, tensor: str) -> Callable[[int, int], int]:
        read = inner(path, kind, tensor)

        def counted(offset: int, size: int) -> int:
            found.append(size)
            return read(offset, size)

        return counted

    monkeypatch.setattr(files, "_rest", rest)
    return found


WHOLE: dict[str, Any] = {
    "weightport": 1,
    "rules": [{"from": "a", "to": "x", "rearrange": "i j -> j i"}, {"from": "b", "to": "b"}],
    "ignore": ["**"],
}


def test_checksums_of_what_was_read_are_not_lost(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail(folder, mapping=WHOLE, tasks=4)
    again = reads(monkeypatch)
    assert resumed(folder, mapping=WHOLE).found
    assert again == []


def test_what_was_read_in_too_many_pieces_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_MOST_READ", 0)
    fail(folder, mapping=WHOLE, tasks=4)
    again = reads(monkeypatch)
    found = resumed(folder, mapping=WHOLE)
    assert found.found
    assert 0 < sum(again) <= 2 * ARRAYS["a"].nbytes
    damage(folder, "a")
    with pytest.raises(wp.FormatError, match="checksum"):
        resumed(folder, mapping=WHOLE)


def test_pieces_that_meet_are_one(folder: Path, monkeypatch: pytest.MonkeyPatch, ran: list[Task]) -> None:
    fail(folder, mapping=WHOLE, tasks=4)
    task, leaf = next((task, leaf) for task in ran for leaf in task.extents)
    apart, meeting = ([(0, 8, 1), (at, 8, 2)] for at in (16, 8))
    done = [Done(read=[(*leaf, pieces(found))]) for found in (apart, meeting)]
    assert [len(journal._packed(task, one)) for one in done] == [2 * journal._READ.itemsize, journal._READ.itemsize]
    monkeypatch.setattr(journal, "_MOST_READ", 1)
    assert [len(journal._packed(task, one)) for one in done] == [0, journal._READ.itemsize]


# Another transfer ----------------------------------------------------------------------------------------------------


def another_source(folder: Path) -> dict[str, Any]:
    save(folder / "model", {**ARRAYS, "a": ARRAYS["a"] + 1})
    return {}


def another_time(folder: Path) -> dict[str, Any]:
    (data,) = folder.glob("model.ckpt.data*")
    os.utime(data, ns=(1, 1))
    return {}


def another_mapping(_: Path) -> dict[str, Any]:
    return {"mapping": {**MAPPING, "description": "another"}}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (another_source, "the earlier run had another source"),
        (another_time, "the earlier run had another source"),
        (another_mapping, "the earlier run had another mapping, another provenance"),
        (lambda _: {"expect_sha256": True}, "the earlier run had another source, another provenance"),
    ],
)
def test_another_transfer_begins_anew(folder: Path, change: Callable[[Path], dict[str, Any]], why: str) -> None:
    fail(folder)
    before = left(folder)
    more = change(folder)
    if "expect_sha256" in more:
        more["expect_sha256"] = wp.formats.files.digest(folder / "model.ckpt")
    told: list[str] = []
    assert resumed(folder, resume=told.append, **more) == Resumed(0, TOTAL, why)
    assert told == [f"begins anew: {why}"]
    after = content(folder)
    assert list(after) == ["m.safetensors"]
    assert len(before) == 2
    assert transfer(folder, resume=False, **more).resumed is None
    assert content(folder) == after


def test_a_pinned_source_may_have_another_time(folder: Path) -> None:
    pinned = wp.formats.files.digest(folder / "model.ckpt")
    fail(folder, expect_sha256=pinned)
    another_time(folder)
    assert resumed(folder, expect_sha256=pinned).found


def test_another_version_begins_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from weightport import resuming

    fail(folder)
    monkeypatch.setattr(resuming, "__version__", "999")
    assert resumed(folder).anew == "the earlier run had another version of weightport"


def test_other_options_begin_anew(folder: Path) -> None:
    out = "m.safetensors.index.json"
    fail(folder, out)
    found = resumed(folder, out, shard_size=20_000)
    assert found == Resumed(0, TOTAL, "the earlier run had another format")
    assert not left(folder)


def test_what_another_transfer_left_is_removed_before_it_begins(folder: Path) -> None:
    fail(folder)
    before = the_temporary(folder)
    another_time(folder)
    fail(folder)
    assert not before.exists()
    assert len(left(folder)) == 2


def test_nothing_is_left_of_what_did_nothing(folder: Path) -> None:
    with pytest.raises(wp.Error):
        transfer(folder, mapping={"weightport": 1, "rules": [{"from": "a", "to": "__metadata__"}], "ignore": ["**"]})
    assert content(folder) == {}


@pytest.mark.parametrize("out", OUTS)
def test_a_run_without_it_removes_what_is_left(folder: Path, out: str) -> None:
    expected = whole(folder, out)
    fail(folder, out)
    assert left(folder)
    with pytest.raises(wp.Error):
        transfer(folder, out, resume=False, progress=Failing(5))
    transfer(folder, out, resume=False)
    assert content(folder) == expected


def test_without_it_nothing_is_left(folder: Path) -> None:
    with pytest.raises(wp.Error):
        transfer(folder, resume=False, progress=Failing(5))
    assert content(folder) == {}


# Two at once ---------------------------------------------------------------------------------------------------------


def test_one_at_a_time(folder: Path) -> None:
    expected = whole(folder)
    fail(folder)
    path = the_journal(folder)
    refused: list[str] = []

    def second(_: int) -> None:
        if not refused:
            with pytest.raises(wp.RefusedError) as caught:
                transfer(folder)
            refused.append(str(caught.value))

    transfer(folder, progress=second)
    what = "another transfer to this destination is at work, and has it; wait for its end"
    assert refused == [f"{path}: {what}"]
    assert content(folder) == expected


def test_one_without_it_goes_its_own_way(folder: Path) -> None:
    expected = whole(folder)
    fail(folder)
    done: list[dict[str, bytes]] = []

    def second(_: int) -> None:
        if not done:
            transfer(folder, resume=False)
            done.append(content(folder))

    found = resumed(folder, progress=second)
    assert found.found, "it removed what another one is at"
    assert done[0]["m.safetensors"] == expected["m.safetensors"]
    assert content(folder) == expected


def test_where_there_are_no_locks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = fcntl.flock

    def flock(handle: int, how: int) -> None:
        if how & fcntl.LOCK_NB:
            raise OSError(37, "No locks available")
        inner(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(wp.RefusedError) as caught:
        transfer(folder)
    path = folder / "out" / ".m.safetensors.journal.weightport-tmp"
    assert str(caught.value) == f"{path}: cannot be locked here (No locks available); leave out --resume"


# Durable -------------------------------------------------------------------------------------------------------------


def test_data_is_durable_before_what_the_journal_says_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SYNC", 9000)
    synced: list[str] = []
    inner = os.fsync

    def fsync(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        inner(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    fail(folder, tasks=10)
    journals = [".journal." in path for path in synced]
    assert journals == [False, True] * (len(journals) // 2)
    assert len(journals) >= 4


def test_one_append_for_a_task(folder: Path, monkeypatch: pytest.MonkeyPatch, ran: list[Task]) -> None:
    sizes: list[int] = []
    inner = os.write

    def write(handle: int, data: Any) -> int:
        sizes.append(len(data))
        return inner(handle, data)

    monkeypatch.setattr(os, "write", write)
    transfer(folder)
    assert len(sizes) == len(ran) + 1
    assert max(sizes[1:]) < 3000 // 4


# What cannot be resumed ----------------------------------------------------------------------------------------------


def test_streams(folder: Path) -> None:
    for dry_run in (True, False):
        with pytest.raises(wp.RefusedError) as caught:
            transfer(folder, "m.h5", dry_run=dry_run)
        what = "is written as one stream, which cannot be resumed"
        hint = "write .safetensors, .npz, .pt or a checkpoint, or leave out --resume"
        assert str(caught.value) == f"{folder}/out/m.h5: {what}; {hint}"
    assert content(folder) == {}


def test_urls(folder: Path) -> None:
    with pytest.raises(wp.RefusedError) as caught:
        wp.transfer(folder / "model.ckpt", None, MAPPING, out="memory://place/m.safetensors", resume=True)
    what = "is not here, and what is written first is lost with the process"
    assert says(caught, f"{what}; write to a local path, or leave out --resume")


def test_models_in_memory(folder: Path) -> None:
    rules = {"weightport": 1, "rules": [{"from": "a", "to": "a"}]}
    with pytest.raises(wp.RefusedError) as caught:
        wp.transfer(
            Stub({"a": ARRAYS["a"]}, path="a model of mine"), None, rules, out=folder / "out" / "m.npz", resume=True
        )
    what = "is no file, of which one could say that it is still the same"
    assert str(caught.value) == f"a model of mine: {what}; leave out --resume"
    assert content(folder) == {}


def test_live_models() -> None:
    with pytest.raises(wp.Error) as caught:
        wp.transfer("x.npz", object(), MAPPING, resume=True)
    assert str(caught.value) == "resume is for a file that is written: say where, out='model.safetensors'"


def test_a_folder_that_is_not_there(folder: Path) -> None:
    with pytest.raises(wp.Error) as caught:
        transfer(folder, "nowhere/m.npz")
    assert (
        str(caught.value)
        == f"{folder}/out/nowhere/m.npz: cannot be written: there is no folder {folder}/out/nowhere; make it first"
    )


# Alone ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path: Path) -> Callable[..., Journal]:
    path = str(tmp_path / ".m.journal.weightport-tmp")
    return lambda parts, told=None: Journal(path, parts, told)


def interrupted(begun: Journal, notes: int = 1) -> str:
    """A journal of so many tasks is left; its token."""
    with contextlib.suppress(KeyboardInterrupt), begun as found:
        for n in range(notes):
            found.take(Done(note=bytes([n]) * 20), [])
        raise KeyboardInterrupt
    return found.kept.token


def test_an_empty_journal_is_no_earlier_run(tmp_path: Path, alone: Callable[..., Journal]) -> None:
    (tmp_path / ".m.journal.weightport-tmp").touch()
    with alone({"a": "b"}) as found:
        assert found.resumed == Resumed(0, 0)
    assert list(tmp_path.iterdir()) == []


def test_tokens_are_random_and_stay(alone: Callable[..., Journal]) -> None:
    tokens = {interrupted(alone({"a": "b"})) for _ in range(2)}
    assert len(tokens) == 1
    assert interrupted(alone({"a": "c"})) not in tokens


def test_more_parts_than_before(alone: Callable[..., Journal]) -> None:
    interrupted(alone({"a": "b", "c": "d"}))
    with alone({"a": "b"}) as found:
        assert found.resumed.anew == "the earlier run was another"


def test_more_tasks_than_a_transfer_has(alone: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "_MOST_TASKS", 3)
    interrupted(alone({}), 9)
    with alone({}) as found:
        assert len(found._tasks) == 3
