"""Files of PyTorch from before 1.6, pickle by pickle: what is not as it has to be is told, with its place."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.formats._torch import tensor_pickle
from tests.support import says
from weightport.errors import FormatError
from weightport.formats._torch_places import MAGIC
from weightport.formats.torch_file import open_source

HEAD = b"".join(pickle.dumps(value, 2) for value in (MAGIC, 1001, {}))
VALUES = np.float32([1, 2, 3, 4]).tobytes()


def root(**tensors: bytes) -> bytes:
    items = [b"X" + len(key).to_bytes(4, "little") + key.encode() + value for key, value in tensors.items()]
    return b"\x80\2}(" + b"".join(items) + b"u."


ONE = root(a=tensor_pickle())


def legacy(objects: bytes, keys: object, *storages: bytes) -> bytes:
    """A file of these tensors; a storage is its count of elements and its values."""
    return HEAD + objects + pickle.dumps(keys, 2) + b"".join((len(s) // 4).to_bytes(8, "little") + s for s in storages)


def test_one_that_is_sound(tmp_path: Path) -> None:
    both = root(a=tensor_pickle(), b=tensor_pickle("1"), c=tensor_pickle(offset=1, shape=b"K\2\x85"))
    (tmp_path / "m.pt").write_bytes(legacy(both, ["1", "0"], VALUES[::-1], VALUES))
    with open_source(str(tmp_path / "m.pt")) as source:
        assert {n: source.read(n).tobytes() for n in source.specs()} == {
            "a": VALUES,
            "b": VALUES[::-1],
            "c": VALUES[4:12],
        }


BEHIND = len(HEAD + ONE + pickle.dumps(["0"], 2))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (HEAD + ONE[:-1], f" at byte {len(HEAD + ONE) - 1}: truncated: its pickles go on"),
        (HEAD + ONE, f" at byte {len(HEAD + ONE)}: truncated: its pickles go on"),
        (
            legacy(ONE, "0", VALUES),
            f" at byte {len(HEAD + ONE + pickle.dumps('0', 2))}: corrupt: the keys of its storages are no list of text",
        ),
        (
            legacy(ONE, [0], VALUES),
            f" at byte {len(HEAD + ONE + pickle.dumps([0], 2))}: corrupt: the keys of its storages are no list of text",
        ),
        (legacy(ONE, ["1"], VALUES), f" at byte {BEHIND}: corrupt: the storage '1' is of no tensor, or there twice"),
        (
            legacy(ONE, ["0", "0"], VALUES, VALUES),
            f" at byte {len(legacy(ONE, ['0', '0'])) + 24}: corrupt: the storage '0' is of no tensor, or there twice",
        ),
        (
            legacy(ONE, ["0"], VALUES[:8]),
            f" at byte {BEHIND}: corrupt: the storage '0' has 2 elements, 4 are needed",
        ),
        (legacy(ONE, []), ": tensor 'a': the file has no storage '0'"),
    ],
)
def test_damaged(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(data)
    with says(FormatError, f"{path}{message}"):
        open_source(str(path))


def test_a_storage_of_two_sizes(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(legacy(root(a=tensor_pickle(), b=tensor_pickle(numel=5)), ["0"], VALUES))
    with pytest.raises(FormatError, match=r"m\.pt at byte \d+: .*a storage of 16 and of 20 bytes$"):
        open_source(str(path))
