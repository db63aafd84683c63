"""HDF5 files read by the HDF5 library in a process that may be lost: those that are not trusted, and those whose damage
it does not survive (:class:`~weightport.formats._h5_objects.Crashes`).

Promise: as :class:`~weightport.formats.keras_h5.KerasH5Source`, of which it is one, and the library never sees the file
in this process; values in one run are read by position here. Limit: what the library itself is needed for
(:attr:`~KerasH5Source.file`, to repeat the structure of a TARGET) is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightport.errors import Error, FormatError, Problem, TensorNotFound
from weightport.formats import _strided, keras_config
from weightport.formats._h5_preflight import Dataset
from weightport.formats._io import ByteFile, Bytes
from weightport.formats._isolated import Child, spec_of, structure_limit
from weightport.formats._zipmember import Stored
from weightport.formats.keras_h5 import KerasH5Source, Layer, Weight
from weightport.tensors import Array, Budget, Index

_CHUNKED = 2  # H5D_CHUNKED


class IsolatedH5Source(KerasH5Source):
    """An open HDF5 file, through another process."""

    def _look_over(self, base: int, budget: Budget) -> None:
        del base
        whole, offset = _place(self._bytes)
        handle = whole.fileno()
        opens = {
            "kind": "hdf5",
            "path": f"/dev/fd/{handle}",  # the very file, whatever its path means by now
            "offset": offset,
            "part": whole is not self._bytes or not whole.local,
            "size": self._bytes.size,
        }
        self._child = Child(self.path, "the HDF5 library", opens, budget, (handle,))
        said = self._child.described(structure_limit(self._bytes.size, budget))
        try:
            self._take(said, budget)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError):
            raise FormatError(self.path, "corrupt or hostile: what was read of it is no structure") from None

    def _take(self, said: Mapping[str, Any], budget: Budget) -> None:
        """What :func:`structure` says, believed no more than a file."""
        self.format = "keras-h5" if said["keras"] else "hdf5"
        self.nested = bool(said["nested"])
        self.layers = [Layer(str(name), tuple(map(str, weights))) for name, weights in said["layers"]]
        self.attributes = {str(k): str(v) for k, v in said["attributes"].items()}
        self.metadata = {str(k): str(v) for k, v in said["metadata"].items()}
        self.optimizer = tuple(map(str, said["optimizer"]))
        if said["config"] is not None:
            self._model = keras_config.parse(str(said["config"]), self.path)
        self._checksums: dict[str, str] = {}
        for entry, (offset, code, strings, checksum) in zip(said["tensors"], said["datasets"], strict=True):
            name, spec = spec_of(entry, budget, self.path)
            self._checksums[name] = "fletcher32" if checksum == "fletcher32" else ""
            if name in self._specs or strings not in ("", "fixed", "variable") or code not in "=>":
                raise ValueError
            if offset is not None:
                if type(offset) is not int:
                    raise ValueError
                self._bytes.check(offset, spec.nbytes if not strings else 0, tensor=name)
            self._specs[name] = spec
            dtype = spec.dtype.newbyteorder(code) if spec.dtype.kind != "O" else spec.dtype
            self.datasets[name] = Dataset(None, dtype, spec.shape, offset, strings)
        for name, (layer, position) in said["weights"].items():
            inside = layer == -1 or 0 <= layer < len(self.layers)
            if name not in self._specs or type(layer) is not int or type(position) is not int or not inside:
                raise ValueError
            if position < 0 or (layer >= 0 and position >= len(self.layers[layer].weights)):
                raise ValueError
            self.weights[name] = Weight(layer, position)
        groups, titles, stored = said["objects"]
        self._objects = (
            list(map(str, groups)),
            {str(k): str(v) for k, v in titles.items()},
            {str(k): list(map(str, v)) for k, v in stored.items()},
        )

    @property
    def file(self) -> Any:
        """Refused."""
        what = "is read by HDF5 in a process of its own, and repeating its structure needs the library in this one"
        raise Error(Problem(self.path, what, "write another format; or trust the file, if it is not trusted"))

    def objects(self) -> tuple[list[str], dict[str, str], dict[str, list[str]]]:
        """See :meth:`KerasH5Source.objects`."""
        return self._objects

    def checksum(self, name: str) -> str:
        """See :meth:`KerasH5Source.checksum`; the other process verifies it."""
        return self._checksums.get(name, "")

    def read(self, name: str, index: Index = None) -> Array:
        """The tensor or the part of it that ``index`` cuts out."""
        dataset = self.datasets.get(name)
        if dataset is not None and dataset.offset is not None and not dataset.strings:
            return super().read(name, index)
        if self._closed:
            raise Error(f"{self.path}: is closed")
        if dataset is None:
            raise TensorNotFound(name, self._specs, self.path)
        cuts = _strided.bounds(index, dataset.shape, f"{self.path}: tensor {name!r}")
        # Strings of one size may repeat in a compressed file; others share no bytes.
        most = self._bytes.size if dataset.strings == "variable" else self._specs[name].nbytes
        return self._child.values(name, self._specs[name], cuts, most)

    def close(self) -> None:
        """Release the file, and end the process."""
        if hasattr(self, "_child"):
            self._child.close()
        super().close()


def structure(source: KerasH5Source) -> dict[str, Any]:
    """All that is known of a file besides its specs, as plain data."""
    return {
        "keras": source.format == "keras-h5",
        "nested": source.nested,
        "layers": [[layer.name, layer.weights] for layer in source.layers],
        "attributes": source.attributes,
        "metadata": source.metadata,
        "optimizer": source.optimizer,
        "config": source.config,
        "datasets": [
            [held.offset, ">" if held.dtype.byteorder == ">" else "=", held.strings, source.checksum(name)]
            for name, held in source.datasets.items()
        ],
        "weights": {name: [weight.layer, weight.position] for name, weight in source.weights.items()},
        "objects": source.objects(),
    }


def chunk_rows(source: KerasH5Source, name: str) -> int:
    """How many rows lie in one chunk of a dataset."""
    plist = source.datasets[name].handle.get_create_plist()
    return int(plist.get_chunk()[0]) if plist.get_layout() == _CHUNKED else 1


def _place(file: Bytes) -> tuple[ByteFile, int]:
    """The file that these bytes lie in, and where."""
    if isinstance(file, ByteFile):
        return file, 0
    assert isinstance(file, Stored)
    return file.file, file.offset
