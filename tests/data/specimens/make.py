"""Makes the specimens: the smallest file of each format that weightport reads, for the tests of damage and the fuzzers.

    python -m tests.data.specimens.make

Each folder is one model; ``OPENED`` in tests/specimens.py says which path in it is opened. They are kept as files, so
that which bits mean what does not change with a library's version, and no framework is needed to damage them. Made with
TensorFlow 2.21, Keras 3.15, PyTorch 2.13, h5py 3.14 and Orbax 0.12.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import struct
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np

from tests.formats import _graphdef, _onnx, _tflite, test_gguf_file
from tests.formats._arrays import specs_of, tiles_of
from tests.formats.test_flax_msgpack import nested
from tests.formats.test_flax_msgpack import stored as msgpack
from tests.formats.test_tf_bundle import bytes_field, index_bytes, part_entries, stored
from tests.formats.test_tf_v1 import table
from weightport.formats import detect

HERE = Path(__file__).parent
W = np.array([[1.5, -2.25, 3.0], [-0.0, 5.5, 1e-40]], np.float32)
B = np.array([7, -8], np.int16)
ARRAYS = {"a/w": W, "b": B}
#: HDF5's newer structures, without room for more.
NEW = {"libver": "latest", "meta_block_size": 1, "fs_strategy": "none"}


def written(folder: Path, name: str, writer: str, arrays=ARRAYS, **options) -> None:
    path, write = detect.writer_for(str(folder / name), format=writer, **options)
    write(path, specs_of(arrays), tiles_of(arrays))


def tf_v2(folder: Path) -> None:
    written(folder, "m", "tf-checkpoint", {**ARRAYS, "s": np.array([b"x", b"yz"], object)})


def tf_v2_sharded(folder: Path) -> None:
    written(folder, "m", "tf-checkpoint", shard_size=24)
    assert len(list(folder.iterdir())) == 3


def tf_v2_compressed(folder: Path) -> None:
    data = bytearray()
    names = [b"encoder/layer_%d/kernel" % n for n in range(3)]
    entries = {name: stored(W + n, data) for n, name in enumerate(names)}
    (folder / "m.index").write_bytes(index_bytes(entries, compress=True))
    (folder / "m.data-00000-of-00001").write_bytes(bytes(data))


def tf_v2_partitioned(folder: Path) -> None:
    entries, data = part_entries((4, 2), (((0, 2), (0, 2)), ((2, 2), (0, 2))))
    (folder / "m.index").write_bytes(index_bytes(entries))
    (folder / "m.data-00000-of-00001").write_bytes(data)


def tf_objects(folder: Path) -> None:
    import tensorflow as tf

    class Cell(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = tf.Variable(W), tf.Variable(B)

    tf.train.Checkpoint(cell=Cell()).write(str(folder / "m"))


def _v1() -> dict:
    proto = bytes_field(5, W.tobytes())
    ints = bytes_field(7, b"\7" + b"\xf8" + b"\xff" * 8 + b"\1")
    return {"a/w": (1, (2, 3), {((0, -1), (0, -1)): proto}), "b": (5, (2,), {((0, -1),): ints})}


def tf_v1(folder: Path) -> None:
    (folder / "m").write_bytes(table(_v1()))


def tf_v1_compressed(folder: Path) -> None:
    proto = bytes_field(5, np.zeros((2, 8), np.float32).tobytes())
    (folder / "m").write_bytes(table({"a/w": (1, (2, 8), {((0, -1), (0, -1)): proto})}, compress=True))


def tf_v1_sharded(folder: Path) -> None:
    halves = [{((n, 1), (0, 3)): bytes_field(5, W[n : n + 1].tobytes())} for n in range(2)]
    for n, part in enumerate(halves):
        (folder / f"m-{n:05d}-of-00002").write_bytes(table({"a/w": (1, (2, 3), part)}))


def tf_frozen(folder: Path) -> None:
    splat = _graphdef.header(1, (4,)) + bytes_field(5, struct.pack("<f", 2.5))
    nodes = [_graphdef.const("a/w", W), _graphdef.const("b", B), _graphdef.const("c", splat)]
    nodes.append(_graphdef.node("read", "Identity", "a/w"))
    (folder / "m.pb").write_bytes(_graphdef.graph(*nodes))


PBTXT = """node {
  name: "a/w"
  op: "Const"
  attr { key: "dtype" value { type: DT_FLOAT } }
  attr {
    key: "value"
    value { tensor { dtype: DT_FLOAT tensor_shape { dim { size: 2 } dim { size: 2 } }
      float_val: 1.5 float_val: -2.25 float_val: 1e-40 float_val: inf } }
  }
}
node { name: "b" op: "Const" attr { key: "value" value { tensor { dtype: DT_INT32 tensor_shape { dim { size: 2 } }
  tensor_content: "\\\\007\\\\000\\\\000\\\\000\\\\370\\\\377\\\\377\\\\377" } } } }
"""


def tf_pbtxt(folder: Path) -> None:
    (folder / "m.pbtxt").write_text(PBTXT.replace("\\\\", "\\"), encoding="utf-8")


def tf_meta(folder: Path) -> None:
    from tests.formats.test_tf_meta import saving, variable

    nodes = [variable("a/w", (2, 3)), variable("b", (2,), dtype=5), *saving(("a/w", "b"), ("", ""), "a/w", "b")]
    (folder / "m.meta").write_bytes(_graphdef.meta_graph(_graphdef.graph(*nodes), "train"))
    written(folder, "m", "tf-checkpoint")


def tf_saved_model(folder: Path) -> None:
    from tests.formats.test_tf_meta import saving, variable

    nodes = [variable("a/w", (2, 3)), variable("b", (2,), dtype=5), *saving(("a/w", "b"), ("", ""), "a/w", "b")]
    inner = _graphdef.function("f", ["x"], {"o": "k:output:0"}, [_graphdef.const("k", W)])
    graph = _graphdef.graph(*nodes, _graphdef.const("c", B), functions=[inner])
    _graphdef.saved_model(folder, _graphdef.meta_graph(graph, "serve"))
    (folder / "variables").mkdir()
    written(folder / "variables", "variables", "tf-checkpoint")


def _small(path: Path) -> None:
    """The same HDF5 file in the structures of HDF5 1.10, which take a tenth of the room."""
    import h5py

    def copy(old: h5py.Group, new: h5py.Group) -> None:
        for name, value in old.attrs.items():
            new.attrs[name] = value
        for name, item in old.items():
            if isinstance(item, h5py.Group):
                copy(item, new.create_group(name))
            else:
                new.create_dataset(name, data=item[()])

    with h5py.File(path) as old, h5py.File(path.with_name("new"), "w", **NEW) as new:
        copy(old, new)
    path.with_name("new").rename(path)


def keras_h5(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "m.h5", "w", libver="earliest") as file:
        file.attrs["layer_names"] = [b"d"]
        file.create_group("d").attrs["weight_names"] = [b"d/kernel:0"]
        file["d/d/kernel:0"] = W


def hdf5_new(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "m.bin", "w", **NEW) as file:
        file.create_dataset("a/w", data=W)
        file.create_dataset("b", data=B, chunks=(2,), fletcher32=True)


def hdf5_chunked(folder: Path) -> None:
    import h5py

    with h5py.File(folder / "m.bin", "w", **NEW) as file:
        file.create_dataset("w", data=W, chunks=(1, 3), compression="gzip", shuffle=True)


def _keras():
    import keras

    keras.utils.set_random_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, name="one", bias_initializer="normal")])


def keras_weights_h5(folder: Path) -> None:
    _keras().save_weights(folder / "m.weights.h5")
    _small(folder / "m.weights.h5")


def keras(folder: Path) -> None:
    _keras().save(folder / "full.keras")
    with zipfile.ZipFile(folder / "full.keras") as old, zipfile.ZipFile(folder / "m.keras", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".h5"):
                (folder / "h5").write_bytes(content)
                _small(folder / "h5")
                content = (folder / "h5").read_bytes()
            new.writestr(zipfile.ZipInfo(name), content)
    (folder / "full.keras").unlink()
    (folder / "h5").unlink()


def keras_sharded(folder: Path) -> None:
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(2)])
    model.save_weights(folder / "m.weights.json", max_shard_size=40 / 1024**3)
    for path in folder.glob("*.h5"):
        _small(path)
    assert len(list(folder.iterdir())) > 2


def npz(folder: Path) -> None:
    np.savez(folder / "m.npz", **ARRAYS)


def npz_deflated(folder: Path) -> None:
    np.savez_compressed(folder / "m.npz", w=np.zeros((4, 3), np.float32) + W[0], b=B)


def npy(folder: Path) -> None:
    np.save(folder / "m.npy", np.asfortranarray(W))


def safetensors(folder: Path) -> None:
    written(folder, "m.safetensors", "safetensors")


def safetensors_index(folder: Path) -> None:
    written(folder, "m.safetensors.index.json", "safetensors-index", shard_size=24)
    assert len(list(folder.iterdir())) == 3


def torch_zip(folder: Path) -> None:
    import torch

    torch.save({"a.w": torch.tensor(W), "b": torch.tensor(B)}, folder / "m.pt")


def torch_zip_own(folder: Path) -> None:
    written(folder, "m.pt", "torch", {"w": W})


def torch_legacy(folder: Path) -> None:
    import torch

    given = {"a.w": torch.tensor(W).T, "b": torch.tensor(B)}
    torch.save(given, folder / "m.pt", _use_new_zipfile_serialization=False)


def torch_export(folder: Path) -> None:
    import torch

    net = torch.nn.Linear(2, 1)
    exported = torch.export.export(net, (torch.ones(1, 2),))
    torch.export.save(exported, folder / "full.pt2")
    # What is there beside the weights is not read: without it the file is small.
    with zipfile.ZipFile(folder / "full.pt2") as old, zipfile.ZipFile(folder / "m.pt2", "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if "/models/" in info.filename:
                content = b"{}"
            if len(content) < 3000 and "sample_inputs" not in info.filename:
                new.writestr(zipfile.ZipInfo(info.filename), content)
    (folder / "full.pt2").unlink()


def torch_script(folder: Path) -> None:
    import torch

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.tensor(W))

        def forward(self, x):  # noqa: ANN001, ANN202
            return x

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(Net()), buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(folder / "m.pt", "w") as new:
        for info in old.infolist():
            if not info.filename.endswith(".debug_pkl"):
                new.writestr(zipfile.ZipInfo(info.filename), old.read(info))


def torch_index(folder: Path) -> None:
    for n, (name, array) in enumerate(ARRAYS.items(), 1):
        written(folder, f"m-{n:05d}-of-00002.bin", "torch", {name: array})
    shards = {name: f"m-{n:05d}-of-00002.bin" for n, name in enumerate(ARRAYS, 1)}
    (folder / "m.bin.index.json").write_text(json.dumps({"weight_map": shards}), encoding="utf-8")


def onnx(folder: Path) -> None:
    doubles = np.array([7, -8], np.float64)
    made = _onnx.tensor("b", 11, (2,), _onnx.field(10, doubles.tobytes()))
    node = _onnx.node("LSTM", ("x", "a/w"), ("y",), "l")
    _onnx.written(folder, _onnx.model(_onnx.graph(_onnx.raw("a/w", W), made, nodes=(node,))))


def _external(folder: Path, checksum: bool) -> None:
    data = W.tobytes() + B.tobytes()
    (folder / "m.bin").write_bytes(data)

    def held(name: str, number: int, array: np.ndarray, offset: int) -> bytes:
        entries = {"location": "m.bin", "offset": str(offset), "length": str(array.nbytes)}
        if checksum:
            entries["checksum"] = hashlib.sha1(data).hexdigest()
        pairs = [_onnx.field(13, _onnx.field(1, k) + _onnx.field(2, v)) for k, v in entries.items()]
        return _onnx.tensor(name, number, array.shape, *pairs, _onnx.field(14, 1))

    _onnx.written(folder, _onnx.model(_onnx.graph(held("a/w", 1, W, 0), held("b", 5, B, W.nbytes))))


def onnx_external(folder: Path) -> None:
    _external(folder, False)


def onnx_checksum(folder: Path) -> None:
    _external(folder, True)


def flax(folder: Path) -> None:
    msgpack(folder / "m.msgpack", {"a": {"w": W}, "b": B, "n": 70000, "c": 1j, "l": [np.int8(1)]})


def flax_index(folder: Path) -> None:
    names = list(ARRAYS)
    for n, name in enumerate(names, 1):
        msgpack(folder / f"m-{n:05d}-of-00002.msgpack", nested({name: ARRAYS[name]}))
    shards = {name: f"m-{n:05d}-of-00002.msgpack" for n, name in enumerate(names, 1)}
    (folder / "m.msgpack.index.json").write_text(json.dumps({"weight_map": shards}), encoding="utf-8")


def _orbax(folder: Path, **options) -> None:
    import orbax.checkpoint as ocp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        handler = ocp.PyTreeCheckpointHandler(**options)
        ocp.Checkpointer(handler).save(folder / "m", {"a": {"w": W}, "b": B})
    # It names the folder that it was made in, which is nobody's business.
    (folder / "m" / "commit_success.txt").write_text("Checkpoint commit was successful to m", encoding="utf-8")


def orbax(folder: Path) -> None:
    _orbax(folder, use_ocdbt=True)


def orbax_folders(folder: Path) -> None:
    _orbax(folder, use_ocdbt=False)


def gguf(folder: Path) -> None:
    u, pair, head = test_gguf_file.u, test_gguf_file.pair, test_gguf_file.head
    metadata = (
        pair("general.name", 8, test_gguf_file.text("m")),
        pair("scores", 9, u(6, 4) + u(2) + b"\0" * 8),
    )
    data = W.tobytes().ljust(32, b"\0") + bytes(range(18))
    heads = (head("a/w", (3, 2), 0, 0), head("q", (32,), 2, 32))
    (folder / "m.gguf").write_bytes(test_gguf_file.model(*heads, data=data, metadata=metadata))


def tflite(folder: Path) -> None:
    T = _tflite.Tensor
    tensors = [T("a/w", 0, (2, 3), 1), T("q", 9, (2,), 2, scale=[0.5], zero=[1])]
    _tflite.written(folder, _tflite.model(tensors, buffers=[W.tobytes(), b"\7\xf8"], names=["m"]))


def main() -> None:
    makers = {k: v for k, v in globals().items() if callable(v) and getattr(v, "__module__", None) == __name__}
    chosen = sys.argv[1:]
    for name, make in makers.items():
        if chosen and name not in chosen:
            continue
        if name.startswith("_") or name in ("main", "written"):
            continue
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        make(folder)
        files = [f for f in folder.rglob("*") if f.is_file()]
        print(name, sum(f.stat().st_size for f in files), [f.name for f in files])


if __name__ == "__main__":
    main()
