"""What opening a large file takes, format by format: ``python scripts/bench_open.py``.

Makes a file of ``--gb`` GB of zeros in each format, sparse, so that it takes no room; opens it, reads one row, and
prints the milliseconds, the bytes that were read (as the system counts them), and the peak of Python's memory. A format
that is read lazily takes as long for 5 GB as for 5 MB.
"""

from __future__ import annotations

import argparse
import os
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from benchmarks import folder

import weightport as wp
from weightport.checksums import combined, function
from weightport.formats import npz, safetensors_file, tf_bundle_write, torch_write
from weightport.formats._ranged import Ranged
from weightport.formats._table import put_varint
from weightport.tensors import TensorSpec

ROWS, WIDE = 16_384, 4_096
#: One tensor: 268 MB.
NBYTES = ROWS * WIDE * 4


def _ranged(write: Ranged) -> Callable[[Path, int], None]:
    def make(path: Path, count: int) -> None:
        specs = {f"layer_{n}": TensorSpec.of("float32", (ROWS, WIDE)) for n in range(count)}

        def none(_: str) -> Iterator[np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
            raise AssertionError("nothing is written")

        with write.destination(str(path), specs, none) as out:
            if out.checksum is not None:
                block = 1 << 20
                crc = function(out.checksum)(bytes(block), 0)
                zeros = combined(out.checksum, [crc] * (NBYTES // block), [block] * (NBYTES // block))
                for name in out.places:
                    out.done(name, zeros)

    return make


def _field(number: int, content: bytes) -> bytes:
    return put_varint(number << 3 | 2) + put_varint(len(content)) + content


def _frozen(path: Path, count: int) -> None:
    shape = _field(2, b"".join(_field(2, b"\x08" + put_varint(n)) for n in (ROWS, WIDE)))
    with path.open("wb") as file:
        for n in range(count):
            tensor = b"\x08\x01" + shape + put_varint(4 << 3 | 2) + put_varint(NBYTES)
            size = len(tensor) + NBYTES
            above = _field(1, b"layer_%d" % n) + _field(2, b"Const")
            for number, before in ((8, b""), (2, _field(1, b"value")), (5, above)):
                tensor = before + put_varint(number << 3 | 2) + put_varint(size) + tensor
                size = len(tensor) + NBYTES
            file.write(put_varint(1 << 3 | 2) + put_varint(size) + tensor)
            file.seek(NBYTES, os.SEEK_CUR)
        file.truncate()


def _h5(path: Path, count: int) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for n in range(count):
            made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            made.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            made.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple((ROWS, WIDE))
            h5py.h5d.create(file.id, b"layer_%d" % n, h5py.h5t.NATIVE_FLOAT, space, made)


def _gguf(path: Path, count: int) -> None:
    def text(value: bytes) -> bytes:
        return len(value).to_bytes(8, "little") + value

    infos = b""
    for n in range(count):
        dims = WIDE.to_bytes(8, "little") + ROWS.to_bytes(8, "little")
        infos += text(b"layer_%d" % n) + (2).to_bytes(4, "little") + dims + (0).to_bytes(4, "little")
        infos += (n * NBYTES).to_bytes(8, "little")
    head = b"GGUF" + (3).to_bytes(4, "little") + count.to_bytes(8, "little") + (0).to_bytes(8, "little") + infos
    with path.open("wb") as file:
        file.write(head + bytes(-len(head) % 32))
        file.truncate(file.tell() + count * NBYTES)


def _msgpack(path: Path, count: int) -> None:
    with path.open("wb") as file:
        file.write(b"\xde" + count.to_bytes(2, "big"))
        for n in range(count):
            name = b"layer_%d" % n
            shape = b"\x92" + b"".join(b"\xcd" + size.to_bytes(2, "big") for size in (ROWS, WIDE))
            inner = b"\x93" + shape + b"\xa7float32" + b"\xc6" + NBYTES.to_bytes(4, "big")
            size = len(inner) + NBYTES
            file.write(bytes([0xA0 | len(name)]) + name + b"\xc9" + size.to_bytes(4, "big") + b"\x01" + inner)
            file.seek(NBYTES, os.SEEK_CUR)
        file.truncate()


def _onnx(path: Path, count: int) -> None:
    heads = []
    for n in range(count):
        dims = b"".join(b"\x08" + put_varint(size) for size in (ROWS, WIDE))
        tensor = dims + b"\x10\x01" + _field(8, b"layer_%d" % n) + put_varint(9 << 3 | 2) + put_varint(NBYTES)
        heads.append(put_varint(5 << 3 | 2) + put_varint(len(tensor) + NBYTES) + tensor)
    name = _field(2, b"graph")
    with path.open("wb") as file:
        size = len(name) + sum(map(len, heads)) + count * NBYTES
        file.write(b"\x08\x08" + _field(8, b"\x10\x11") + put_varint(7 << 3 | 2) + put_varint(size) + name)
        for head in heads:
            file.write(head)
            file.seek(NBYTES, os.SEEK_CUR)
        file.truncate()


MAKERS: dict[str, Callable[[Path, int], None]] = {
    "safetensors": _ranged(safetensors_file.write),
    "npz": _ranged(npz.write),
    "pt": _ranged(torch_write.write),
    "ckpt": _ranged(tf_bundle_write.write),
    "pb": _frozen,
    "onnx": _onnx,
    "h5": _h5,
    "gguf": _gguf,
    "msgpack": _msgpack,
}


def _read() -> int:
    """Bytes that this process has read so far, by the system's count (Linux)."""
    lines = Path("/proc/self/io").read_text().splitlines() if Path("/proc/self/io").exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("rchar")), 0)


def bench(data: Path, gb: float) -> str:
    """One line for each format."""
    count = max(1, round(gb * 1e9 / NBYTES))
    lines = [f"| {count * NBYTES / 1e9:.1f} GB of | opened in | bytes read | peak memory |", "|---|---|---|---|"]
    for ending, make in MAKERS.items():
        path = data / f"sparse.{ending}"
        make(path, count)
        with wp.open(path):  # what is imported is imported
            pass
        tracemalloc.start()
        before, start = _read(), time.perf_counter()
        with wp.open(path) as source:
            specs = dict(source.specs())
            seconds, read = time.perf_counter() - start, _read() - before
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(specs) == count, (ending, list(specs)[:3])
        assert all(spec.shape == (ROWS, WIDE) for spec in specs.values()), ending
        lines.append(f"| .{ending} | {1000 * seconds:.1f} ms | {read:,} | {peak / 1e6:.1f} MB |")
        for file in data.glob(f"sparse.{ending}*"):
            file.unlink()
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=5.0, help="size of each file (sparse)")
    parser.add_argument("--folder", help="where the files are made, and removed again")
    given = parser.parse_args(arguments)
    print(bench(folder(given.folder, "weightport-bench-open"), given.gb))


if __name__ == "__main__":
    main()
