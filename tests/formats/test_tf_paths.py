from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.formats.test_table import TAIL, raw_table
from tests.support import fixture, says
from weightport.errors import FormatError
from weightport.formats import tf_bundle, tf_paths, tf_v1

V2 = fixture("b_cells/gru").path("checkpoint_v2")
V1 = fixture("b_cells/gru").path("checkpoint_v1")
SHARD = ".data-00000-of-00001"


def v2(folder: Path, *prefixes: str) -> None:
    folder.mkdir(exist_ok=True)
    for prefix in prefixes:
        shutil.copy(V2 + ".index", f"{folder}/{prefix}.index")
        shutil.copy(V2 + SHARD, f"{folder}/{prefix}{SHARD}")


def v1(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(V1, folder / name)


def state(folder: Path, latest: str, *more: str) -> None:
    lines = [f'model_checkpoint_path: "{latest}"', *(f'all_model_checkpoint_paths: "{m}"' for m in more)]
    (folder / "checkpoint").write_text("\n".join(lines) + "\n")


def found(path: str | Path) -> tuple[str, str]:
    resolved = tf_paths.resolve(path)
    for file in resolved.paths:
        assert os.path.exists(file)
    return resolved.kind, os.path.relpath(resolved.prefix, Path(path) if os.path.isdir(path) else Path(path).parent)


def test_a_prefix_and_its_files(tmp_path: Path) -> None:
    v2(tmp_path, "m.ckpt-9", "other")
    (tmp_path / "m.ckpt-9.meta").write_bytes(b"a graph")
    for suffix in ("", ".index", SHARD, ".meta"):
        resolved = tf_paths.resolve(tmp_path / f"m.ckpt-9{suffix}")
        assert resolved == tf_paths.Resolved("v2", f"{tmp_path}/m.ckpt-9", (f"{tmp_path}/m.ckpt-9.index",))
        assert tf_bundle.open_source(f"{tmp_path}/m.ckpt-9{suffix}").specs()
    assert tf_bundle.sniff(f"{tmp_path}/other")
    assert not tf_v1.sniff(f"{tmp_path}/other")


def test_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    v2(tmp_path, "m")
    monkeypatch.chdir(tmp_path)
    assert tf_paths.resolve("m").prefix == "m"
    assert tf_paths.resolve(".").prefix == "./m"
    state(tmp_path, "m")
    assert tf_paths.resolve("checkpoint").prefix == "m"
    with pytest.raises(FormatError, match="no such file or checkpoint; near: 'm'"):
        tf_paths.resolve("mm")


def test_v1_file_and_its_meta(tmp_path: Path) -> None:
    v1(tmp_path, "model", "checkpoint")
    (tmp_path / "model.meta").write_bytes(b"a graph")
    assert found(tmp_path / "model") == ("v1", "model")
    assert found(tmp_path / "model.meta") == ("v1", "model")
    assert found(tmp_path / "checkpoint") == ("v1", "checkpoint")  # by content it is no state file
    assert tf_v1.open_source(str(tmp_path / "model")).specs()
    with pytest.raises(FormatError, match="is no V2 checkpoint but a V1 checkpoint"):
        tf_bundle.open_source(str(tmp_path / "model"))


def test_v1_shards(tmp_path: Path) -> None:
    model = fixture("d_checkpoints/sharded")
    for file in model.folder.glob("model_v1*"):
        shutil.copy(file, tmp_path)
    stem = f"{tmp_path}/model_v1.ckpt"
    shards = tuple(f"{stem}-{n:05d}-of-00002" for n in range(2))
    for path in (stem, f"{stem}-?????-of-00002", *shards, str(tmp_path)):
        assert tf_paths.resolve(path) == tf_paths.Resolved("v1-sharded", stem, shards)
    with pytest.raises(FormatError, match="is no V2 checkpoint but a sharded V1 checkpoint"):
        tf_bundle.open_source(stem)
    shutil.copy(shards[0], f"{stem}-00000-of-00003")
    with pytest.raises(FormatError, match="sharded checkpoints of 2 and of 3 shards are there"):
        tf_paths.resolve(stem)
    with pytest.raises(FormatError, match="no such file or checkpoint"):
        tf_paths.resolve(f"{stem}-?????-of-00009")


def test_what_is_there_and_no_file(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(tmp_path / "gone")
    what = f"{pipe}: is no regular file but a pipe, a socket or a device; copy it to a file first"
    with says(FormatError, what):
        tf_paths.resolve(pipe)
    with says(FormatError, f"{link}: is a link to {tmp_path.resolve()}/gone, which is not there"):
        tf_paths.resolve(link)


def test_a_prefix_that_is_only_a_slash(tmp_path: Path) -> None:
    v2(tmp_path / "d", "", "named")
    assert tf_paths.resolve(f"{tmp_path}/d/").prefix == f"{tmp_path}/d/"
    assert tf_paths.resolve(f"{tmp_path}/d/.index").prefix == f"{tmp_path}/d/"
    assert tf_bundle.open_source(f"{tmp_path}/d/").specs()
    os.unlink(tmp_path / "d" / "named.index")
    assert tf_paths.resolve(f"{tmp_path}/d").prefix == f"{tmp_path}/d/"
    state(tmp_path / "d", "/gone/d/")
    assert tf_paths.resolve(f"{tmp_path}/d").prefix == f"{tmp_path}/d/"


def test_a_folder_of_the_prefix_s_name(tmp_path: Path) -> None:
    v2(tmp_path, "model")
    v2(tmp_path / "model", "inner")
    assert tf_paths.resolve(tmp_path / "model").prefix == f"{tmp_path}/model"
    assert tf_paths.resolve(f"{tmp_path}/model/").prefix == f"{tmp_path}/model/inner"


def test_state_files(tmp_path: Path) -> None:
    v2(tmp_path, "m-9", "m-100")
    for latest, expected in (
        ("m-9", "m-9"),
        ("./m-100", "m-100"),
        (f"{tmp_path}/m-9", "m-9"),
        ("/mnt/gone/run/m-9", "m-9"),
        ("gone/m-100", "m-100"),
        (r"C:\\runs\\m-9", "m-9"),
        (r"m-\061\x300", "m-100"),
    ):
        state(tmp_path, latest, "m-1", latest)
        assert found(tmp_path) == ("v2", expected)
        assert found(tmp_path / "checkpoint") == ("v2", expected)
    (tmp_path / "checkpoint").write_text(
        "# a comment\nmodel_checkpoint_path: 'm-9'  all_model_checkpoint_paths: \"m-9\"\n"
        "all_model_checkpoint_timestamps: 1600000000.5\nlast_preserved_timestamp: 1.6e9\n"
    )
    assert found(tmp_path) == ("v2", "m-9")
    assert tf_paths.read_state(str(tmp_path / "checkpoint")) == ("m-9", ["m-9"])


def test_a_copied_folder_reads_its_own_files(tmp_path: Path) -> None:
    v2(tmp_path / "original", "m")
    v2(tmp_path / "copy", "m")
    state(tmp_path / "copy", f"{tmp_path}/original/m")
    assert tf_paths.resolve(tmp_path / "copy").prefix == f"{tmp_path}/copy/m"
    os.unlink(tmp_path / "copy" / "m.index")
    with pytest.raises(FormatError, match=r"the latest checkpoint '.*/original/m' is not there"):
        tf_paths.resolve(tmp_path / "copy")


@pytest.mark.parametrize("entry", ["../original/m", "x/../../original/m", "linked/m", "m"])
def test_a_state_file_does_not_lead_out(tmp_path: Path, entry: str) -> None:
    v2(tmp_path / "original", "m")
    (tmp_path / "folder").mkdir()
    state(tmp_path / "folder", entry)
    (tmp_path / "folder" / "linked").symlink_to(tmp_path / "original")
    if entry == "m":
        (tmp_path / "folder" / "m.index").symlink_to(tmp_path / "original" / "m.index")
    with pytest.raises(FormatError, match=r"is not there|is a link that leads out of the model's folder"):
        tf_paths.resolve(tmp_path / "folder")


def test_folders_of_links_as_model_hubs_have_them(tmp_path: Path) -> None:
    v2(tmp_path / "blobs", "m")
    (tmp_path / "snapshot").mkdir()
    state(tmp_path / "blobs", "m")
    for name in os.listdir(tmp_path / "blobs"):
        (tmp_path / "snapshot" / name).symlink_to(tmp_path / "blobs" / name)
    assert tf_paths.resolve(tmp_path / "snapshot").prefix == f"{tmp_path}/snapshot/m"


def test_bad_state_files(tmp_path: Path) -> None:
    v2(tmp_path, "m-9", "m-100")
    state(tmp_path, "/gone/m-7", "/gone/m-5", "/gone/m-7")
    with pytest.raises(
        FormatError,
        match=r"checkpoint: the latest checkpoint '/gone/m-7' is not there; in this folder: 'm-100', 'm-9'; name one",
    ):
        tf_paths.resolve(tmp_path)
    for text, what in (
        ("", "names no model_checkpoint_path"),
        ("what is this\n", "line 1 is no entry"),
        ('model_checkpoint_path: "a"\n\nb c', "line 3 is no entry"),
        ('model_checkpoint_path: "checkpoint"', "'checkpoint' is not there"),
        ('model_checkpoint_path: "./checkpoint"', "is not there"),
        ('model_checkpoint_path: ""', "is not there|no checkpoint"),
    ):
        (tmp_path / "checkpoint").write_text(text)
        with pytest.raises(FormatError, match=what):
            tf_paths.resolve(tmp_path)


def test_state_files_that_name_each_other(tmp_path: Path) -> None:
    for a, b in (("x", "y"), ("y", "x")):
        (tmp_path / a).mkdir()
        state(tmp_path / a, f"../{b}/checkpoint")
    with pytest.raises(FormatError, match="is not there"):
        tf_paths.resolve(tmp_path / "x")


def test_folders_without_a_state_file(tmp_path: Path) -> None:
    v2(tmp_path, "m-9")
    assert found(tmp_path) == ("v2", "m-9")
    v2(tmp_path, "m-100", "m-20")
    assert found(tmp_path) == ("v2", "m-100")  # by number, not by name
    v1(tmp_path, "m-300")
    assert found(tmp_path) == ("v1", "m-300")
    v2(tmp_path, "best")
    with pytest.raises(
        FormatError,
        match=r"several checkpoints and no state file: 'best', 'm-100', 'm-20', 'm-300', 'm-9'; name one of them",
    ):
        tf_paths.resolve(tmp_path)


def test_other_folders(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"no checkpoint in this folder, it is empty$"):
        tf_paths.resolve(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(FormatError, match=r"no checkpoint in this folder; it has 'notes.txt'$"):
        tf_paths.resolve(tmp_path)
    model = fixture("b_cells/gru")
    assert tf_paths.resolve(model.path("saved_model")).kind == "saved_model"
    assert not tf_bundle.sniff(model.path("saved_model"))
    # Fixtures hold a V1, a V2 checkpoint and other tables side by side.
    with pytest.raises(FormatError, match=r"several checkpoints and no state file: 'model\.ckpt', 'model_v1\.ckpt'"):
        tf_paths.resolve(model.folder)


def test_what_is_not_there(tmp_path: Path) -> None:
    v2(tmp_path, "model.ckpt-1000", "model.ckpt-2000")
    with pytest.raises(
        FormatError, match=r"model\.ckpt-100: no such file or checkpoint; near: 'model\.ckpt-1000', 'model\.ckpt-2000'$"
    ):
        tf_paths.resolve(tmp_path / "model.ckpt-100")
    with pytest.raises(FormatError, match=r"no such file or checkpoint; near: 'model\.ckpt-1000', 'model\.ckpt-2000'$"):
        tf_paths.resolve(tmp_path / "model")
    with pytest.raises(FormatError, match=r"no such file or checkpoint$"):
        tf_paths.resolve(tmp_path / "zzz")
    with pytest.raises(FormatError, match="no such folder either"):
        tf_paths.resolve(tmp_path / "nowhere" / "m")
    os.unlink(tmp_path / "model.ckpt-1000.index")
    with pytest.raises(
        FormatError, match=r"the index 'model\.ckpt-1000\.index' is not there, only 'model\.ckpt-1000\.d"
    ):
        tf_paths.resolve(tmp_path / "model.ckpt-1000")
    (tmp_path / "lone.meta").write_bytes(b"a graph")
    with pytest.raises(FormatError, match="is a graph without its checkpoint"):
        tf_paths.resolve(tmp_path / "lone.meta")
    (tmp_path / "text").write_text("no checkpoint")
    with pytest.raises(FormatError, match="is no TensorFlow checkpoint"):
        tf_paths.resolve(tmp_path / "text")
    shutil.copy(V2 + ".index", tmp_path / "renamed")
    with pytest.raises(FormatError, match=r"is the index of a V2 checkpoint under another name; name it PREFIX\.index"):
        tf_paths.resolve(tmp_path / "renamed")


def test_pattern_characters_are_literal(tmp_path: Path) -> None:
    v2(tmp_path, "m[1]*?", "m1xy")
    assert tf_paths.resolve(tmp_path / "m[1]*?").prefix == f"{tmp_path}/m[1]*?"
    with pytest.raises(FormatError):
        tf_paths.resolve(tmp_path / "m?xy")
    v1(tmp_path, "[a]-00000-of-00001")
    assert tf_paths.resolve(tmp_path / "[a]").paths == (f"{tmp_path}/[a]-00000-of-00001",)


def test_sniffing_never_raises(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "short", tmp_path / "nothing", tmp_path / "fifo", "\0"):
        assert not tf_bundle.sniff(str(path))
        assert not tf_v1.sniff(str(path))


def test_tables_that_are_no_checkpoint(tmp_path: Path) -> None:
    """Without any block, and damaged ones: a folder is looked through as if they were not there."""
    v1(tmp_path, "m")
    empty, damaged = tmp_path / "empty", tmp_path / "damaged"
    empty.write_bytes(raw_table([]))
    (tmp_path / "nothing").write_bytes(raw_table([TAIL]))
    data = bytearray(raw_table([b""]))
    data[10:20] = bytes(10)
    damaged.write_bytes(data)
    what = "is the index of a V2 checkpoint under another name; name it PREFIX.index again"
    for path in (empty, tmp_path / "nothing"):
        with says(FormatError, f"{path}: {what}"):
            tf_paths.resolve(path)
    with pytest.raises(FormatError, match="damaged at byte"):
        tf_paths.resolve(damaged)
    assert found(tmp_path) == ("v1", "m")
    shutil.copy(V2 + ".index", tmp_path / "renamed")
    assert found(tmp_path) == ("v1", "m"), "an index under another name is none that a folder means"


def test_an_index_beside_a_file_of_the_prefix_s_name(tmp_path: Path) -> None:
    v2(tmp_path, "m")
    (tmp_path / "m").write_bytes(b"something else")
    assert found(tmp_path / "m") == ("v2", "m")


def test_a_state_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state(tmp_path, "m")
    size = (tmp_path / "checkpoint").stat().st_size
    monkeypatch.setattr(tf_paths, "_MAX_STATE", size)
    assert tf_paths.read_state(str(tmp_path / "checkpoint")) == ("m", [])
    monkeypatch.setattr(tf_paths, "_MAX_STATE", size - 1)
    with says(FormatError, f"{tmp_path / 'checkpoint'}: a state file of {size} bytes, at most {size - 1} are read"):
        tf_paths.read_state(str(tmp_path / "checkpoint"))


def test_what_tells_which_checkpoint_a_folder_means(tmp_path: Path) -> None:
    for name in ("checkpoint", "saved_model.pb", "saved_model.pbtxt"):
        folder = tmp_path / f"with {name}"
        folder.mkdir()
        assert not tf_paths.is_told(str(folder))
        (folder / name).write_bytes(b"")
        assert tf_paths.is_told(str(folder))
    v2(tmp_path, "m")
    assert tf_paths.is_told(str(tmp_path / "m"))
