"""Bytes a few of which are changed, as hypothesis likes them; the fuzzers' mutants are those of scripts/mutants.py."""

from __future__ import annotations

from hypothesis import strategies as st


def mutated(draw: st.DataObject, data: bytes) -> bytes:
    """A few bytes changed, removed, doubled or put in."""
    out = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(0, max(0, len(out) - 1)))
        kind = draw.draw(st.sampled_from(["change", "remove", "insert", "double", "cut"]))
        if kind == "change" and out:
            out[at] = draw.draw(st.integers(0, 255))
        elif kind == "remove":
            del out[at : at + draw.draw(st.integers(1, 4))]
        elif kind == "insert":
            out[at:at] = draw.draw(st.binary(min_size=1, max_size=10))
        elif kind == "double":
            out += out[at:]
        else:
            del out[at:]
    return bytes(out)
