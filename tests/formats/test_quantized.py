from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.formats._arrays import same
from tests.support import need
from weightport.errors import Error, MissingPackage
from weightport.formats._quantized import Affine, Blocks
from weightport.ranges import cut_out, whole


def ranges_in(draw: st.DataObject, shape: tuple[int, ...]) -> tuple[range, ...]:
    found = []
    for n in shape:
        low = draw.draw(st.integers(0, n))
        found.append(range(low, draw.draw(st.integers(low, n)), draw.draw(st.integers(1, 3))))
    return tuple(found)


@given(st.data())
def test_affine_parts(draw: st.DataObject) -> None:
    shape = tuple(draw.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    axis = draw.draw(st.integers(0, len(shape) - 1))
    count = draw.draw(st.sampled_from([1, shape[axis]]))
    rng = np.random.default_rng(draw.draw(st.integers(0, 99)))
    zeros = rng.integers(-9, 9, draw.draw(st.sampled_from([1, count])))
    how = Affine(shape, tuple(rng.normal(size=count).astype("f4").tolist()), tuple(zeros.tolist()), axis)
    stored = rng.integers(-128, 128, shape, np.int8)
    along = [-1 if k == axis else 1 for k in range(len(shape))]
    scale, zero = (np.resize(np.array(v), count) for v in (how.scales, how.zeros))
    scale, zero = (v.reshape(along) if count > 1 else v for v in (scale, zero))
    expected = (stored.astype(np.int64) - zero).astype(np.float32) * scale.astype(np.float32)
    assert same(how.decode(stored, whole(shape)), expected)
    ranges = ranges_in(draw, shape)
    assert how.stored(ranges) == ranges
    assert same(how.decode(cut_out(stored, ranges), ranges), np.array(cut_out(expected, ranges), order="C"))
    how.check()


@given(st.data())
def test_parts_of_blocks(draw: st.DataObject) -> None:
    gguf = need("gguf")
    how = Blocks("Q8_0", 8, (2, 3, 96), 32, 34)
    values = np.random.default_rng(3).normal(size=how.shape).astype("f4")
    stored = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
    expected = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType.Q8_0)
    ranges = ranges_in(draw, how.shape)
    needed = how.stored(ranges)
    assert all(r.start <= r.stop <= n for r, n in zip(needed, stored.shape, strict=True))
    if all(map(len, ranges)):
        last = ranges[-1]
        assert len(needed[-1]) == 34 * (last[-1] // 32 - last[0] // 32 + 1)  # only the blocks it touches
    part = how.decode(cut_out(stored, needed), ranges)
    assert same(part, np.array(cut_out(expected, ranges), order="C"))


def test_titles() -> None:
    assert Affine((2,), (0.5,), (-3,)).title == "quantized: scale 0.5, zero point -3"
    assert Affine((2000,), (0.5,) * 2000, (0,)).title == "quantized: 2,000 scales along axis 0"
    assert Blocks("Q4_0", 2, (4, 32), 32, 18).title == "quantized: Q4_0 of 4×32"
    assert Affine((2,), (0.5,), (-3,)).dtype == Blocks("Q4_0", 2, (4, 32), 32, 18).dtype == np.float32


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    need("gguf")
    Blocks("Q4_0", 2, (4, 32), 32, 18).check()
    with pytest.raises(Error, match=r"^the installed gguf package cannot dequantize Q8_1$"):
        Blocks("Q8_1", 9, (4, 32), 32, 40).check()
    with pytest.raises(Error, match=r"^the installed gguf package cannot dequantize Q9_9$"):
        Blocks("Q9_9", 99, (4, 32), 32, 40).check()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingPackage, match=r"^dequantizing Q4_0 needs gguf; pip install 'weightport\[gguf\]'$"):
        Blocks("Q4_0", 2, (4, 32), 32, 18).check()
