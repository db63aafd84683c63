"""One bit flipped, or the end missing: of every format, at every place, it is an error or all is as it was.

What a format cannot tell is counted here and named: without checksums, another value is a value. The digest that a
mapping or a lock file pins tells all of them.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from damage import Outcome, content, cut, flipped
from specimens import FOLDER, OPENED, Specimen, copied

from tests.support import need
from weightport.errors import Error
from weightport.formats.detect import READERS, detect
from weightport.formats.files import digest


@dataclass(frozen=True)
class Silent:
    """How many damages of a format nothing tells, and why.

    Attributes:
        values: bits that make another value.
        names: bits that make another name, dtype, shape or order.
        cuts: lengths at which the file is a whole one of something else.
        why: what they are.
    """

    values: int = 0
    names: int = 0
    cuts: int = 0
    why: str = ""


#: Formats with structures that are mostly room for more.
HDF5 = ("hdf5", "keras-h5", "keras", "keras-sharded")
#: Formats in which every damage is seen by checksums, and by names that have to agree.
NONE = Silent()
SILENT = {
    "tf_frozen": Silent(264, 170, 2, "protobuf has no checksums, and a graph may end after any node"),
    "tf_pbtxt": Silent(349, 204, 2, "text has no checksums, and a graph may end after any node"),
    "tf_saved_model": Silent(313, 848, 0, "the graph and its constants have no checksums; its variables have"),
    "keras_h5": Silent(178, 110, 0, "HDF5 of before 1.10 has no checksums"),
    "hdf5_new": Silent(192, 0, 0, "HDF5's structures have checksums, and values only where a filter makes one"),
    "keras_weights_h5": Silent(288, 0, 0, "the same"),
    "npy": Silent(193, 0, 0, "an array has no checksum"),
    "safetensors": Silent(224, 26, 0, "neither header nor values have checksums"),
    "safetensors_index": Silent(224, 0, 0, "names are those of the index and of the shard: one alone is seen"),
    "torch_legacy": Silent(228, 186, 0, "pickles before PyTorch 1.6 have no checksums"),
    "onnx": Silent(320, 47, 0, "protobuf has no checksums"),
    "onnx_external": Silent(224, 48, 0, "the same; values beside the model have one only where the model says so"),
    "onnx_checksum": Silent(0, 48, 0, "the values have one, the model that names them has none"),
    "flax": Silent(393, 39, 0, "msgpack has no checksums"),
    "flax_index": Silent(224, 0, 0, "names are those of the index and of the shard: one alone is seen"),
    "orbax_folders": Silent(226, 4, 0, "chunks in files of their own have no checksums"),
    "gguf": Silent(336, 39, 0, "GGUF has no checksums"),
    "tflite": Silent(208, 92, 0, "FlatBuffers have no checksums"),
}
#: Of keras-sharded only the index: its shards are HDF5 files as the others.
INDEX = {"keras_sharded": ".json"}


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder that is memory, where the system has one: a file is opened some hundred thousand times."""
    with contextlib.ExitStack() as stack:
        shared = Path("/dev/shm")
        yield Path(stack.enter_context(tempfile.TemporaryDirectory(dir=shared))) if shared.is_dir() else tmp_path


@pytest.fixture(params=OPENED)
def specimen(request: pytest.FixtureRequest, memory: Path) -> Specimen:
    name: str = request.param
    if name.startswith("orbax"):
        need("tensorstore")
    return copied(name, memory)


def pinned(specimen: Specimen) -> Callable[[], str]:
    def found() -> str:
        try:
            return digest(specimen.path)
        except Error:
            return ""

    return found


def counted(outcome: Outcome) -> tuple[int, int]:
    return outcome.ends["values"], outcome.ends["names"]


def test_every_format_has_a_specimen() -> None:
    assert {opened.partition(":")[0] for opened in OPENED.values()} == set(READERS)
    assert {folder.name for folder in FOLDER.iterdir() if folder.is_dir() and folder.name != "__pycache__"} == set(
        OPENED
    )
    assert set(SILENT) <= set(OPENED)


def test_specimens_are_what_they_say(specimen: Specimen) -> None:
    heads, values = content(specimen)
    assert heads
    assert all(values)
    path = specimen.path if specimen.name != "tf_v1_sharded" else specimen.path.partition("-?")[0]
    assert detect(path) == {"hdf5": "keras-h5"}.get(specimen.format, specimen.format)  # told apart when it is open


def test_every_flipped_bit(specimen: Specimen) -> None:
    found = flipped(specimen, pinned(specimen), sparse=specimen.format in HDF5, ending=INDEX.get(specimen.name, ""))
    told = SILENT.get(specimen.name, NONE)
    assert counted(found) == (told.values, told.names)
    assert found.unpinned == 0
    assert found.ends["seen"] > 0


def test_truncation_at_every_byte(specimen: Specimen) -> None:
    found = cut(specimen, pinned(specimen))
    assert found.ends["values"] + found.ends["names"] == SILENT.get(specimen.name, NONE).cuts
    assert found.unpinned == 0
