"""A pretrained cell into the graph of a new model, by commands alone; TensorFlow only runs the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.command import weightport
from tests.support import fixture, need

LSTM = fixture("b_cells/basic_lstm_fb1")
MAPPING = """\
weightport: 1
rules:
  - from: {layout: lstm.tf1, scope: rnn/basic_lstm_cell}
    to: {layout: lstm.tf1, scope: encoder/lstm_cell}
    as: constant
  - to: "head/{w}"
    initialize: {glorot_uniform: {seed: 3}}
"""


@pytest.fixture
def mapping(tmp_path: Path) -> Path:
    file = tmp_path / "mapping.yaml"
    file.write_text(MAPPING, encoding="utf-8")
    return file


def build(folder: Path, *, writes: bool = False) -> dict[str, str]:
    """The new model with a hand-written cell, its optimizer and a Saver, as each kind of file."""
    tf = need("tensorflow")
    v1 = tf.compat.v1
    v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as graph, v1.Session() as session:
            x = v1.placeholder(tf.float32, [None, None, 7], "x")
            with v1.variable_scope("encoder/lstm_cell"):
                kernel, bias = v1.get_variable("kernel", [19, 48]), v1.get_variable("bias", [48])

            def step(i: Any, h: Any, c: Any) -> tuple[Any, Any, Any]:
                gates = tf.split(tf.concat([x[:, i], h], 1) @ kernel + bias, 4, 1)
                c = tf.sigmoid(gates[2] + 1.0) * c + tf.sigmoid(gates[0]) * tf.tanh(gates[1])
                return i + 1, tf.sigmoid(gates[3]) * tf.tanh(c), c

            zero = tf.zeros([tf.shape(x)[0], 12])
            _, h, _ = v1.while_loop(lambda i, *_: i < tf.shape(x)[1], step, [0, zero, zero])
            state = tf.identity(h, "state")
            y = tf.identity(h @ v1.get_variable("head/kernel", [12, 3]), "y")
            v1.train.GradientDescentOptimizer(0.1).minimize(tf.reduce_mean(y**2), name="train")
            if writes:
                tf.raw_ops.AssignAddVariableOp(resource=bias.handle, value=tf.ones([48]), name="drift")
            saver = v1.train.Saver()
            session.run(v1.global_variables_initializer())
            v1.train.export_meta_graph(str(folder / "new.meta"), saver_def=saver.as_saver_def())
            (folder / "new.pb").write_bytes(graph.as_graph_def().SerializeToString())
            v1.saved_model.simple_save(session, str(folder / "new"), {"x": x}, {"y": y, "state": state})
    finally:
        v1.enable_control_flow_v2()
    return {kind: str(folder / name) for kind, name in (("meta", "new.meta"), ("pb", "new.pb"), ("", "new"))}


@pytest.mark.parametrize("kind", ["meta", "pb", ""])
def test_a_pretrained_cell_becomes_a_constant(tmp_path: Path, mapping: Path, kind: str) -> None:
    tf = need("tensorflow")
    v1 = tf.compat.v1
    target = build(tmp_path)[kind]
    out = str(tmp_path / f"out{'.' * bool(kind)}{kind}")
    source = LSTM.path("checkpoint_v2")
    found = weightport("inspect", target, "--json").json["cells"]
    assert [(c["scope"], c["layout"]) for c in found] == [("encoder/lstm_cell", "lstm.tf1")]
    before = {p.name for p in tmp_path.iterdir()}
    weightport("transfer", source, target, "-m", mapping, "-o", out, "--dry-run")
    assert {p.name for p in tmp_path.iterdir()} == before
    document = weightport("transfer", source, target, "-m", mapping, "-o", out, "--json").json
    assert {n for n, d in document["target"].items() if d == "constant"} == {
        "encoder/lstm_cell/bias", "encoder/lstm_cell/kernel",
    }  # fmt: skip
    assert document["target"]["head/kernel"] == "initialized"
    proof = weightport("verify", source, out, "-m", mapping, "--json").json
    assert proof["equal"]
    assert proof["cells"][0]["max_abs_diff"] == 0

    x, expected = LSTM.reference["x"], LSTM.reference["full_final_h"]
    with tf.Graph().as_default() as graph, v1.Session() as session:
        if kind == "meta":
            v1.train.import_meta_graph(out)
            session.run(v1.global_variables_initializer())
        elif kind == "pb":
            v1.import_graph_def(v1.GraphDef.FromString(Path(out).read_bytes()), name="")
            session.run("head/kernel/Assign")
        else:
            v1.saved_model.load(session, ["serve"], out)
        assert graph.get_operation_by_name("encoder/lstm_cell/kernel").type == "Const"
        np.testing.assert_allclose(session.run("state:0", {"x:0": x}), expected, rtol=1e-5, atol=1e-6)
        first = session.run("y:0", {"x:0": x})
        session.run("train", {"x:0": x})
        assert not np.array_equal(session.run("y:0", {"x:0": x}), first), "the head learns"
        np.testing.assert_allclose(session.run("state:0", {"x:0": x}), expected, rtol=1e-5, atol=1e-6)

    back = str(tmp_path / "back.ckpt")
    weightport("transfer", out, source, "-m", mapping, "--reverse", "-o", back)
    reader = tf.train.load_checkpoint(back)
    for name, value in LSTM.variables.items():
        assert reader.get_tensor(name).tobytes() == value.tobytes()


@pytest.mark.parametrize("kind", ["meta", "pb", ""])
def test_a_dry_run_finds_what_forbids_a_constant(tmp_path: Path, mapping: Path, kind: str) -> None:
    target = build(tmp_path, writes=True)[kind]
    out = tmp_path / f"out{'.' * bool(kind)}{kind}"
    for more in (["--dry-run"], []):
        ran = weightport("transfer", LSTM.path("checkpoint_v2"), target, "-m", mapping, "-o", out, *more, code=1)
        assert ran.told[0] == (
            "variable 'encoder/lstm_cell/bias': cannot become a constant: AssignAddVariableOp 'drift' writes it; make "
            "it an initial value, or take a graph without that operation"
        )
    assert not out.exists()


def test_a_folder_that_the_source_is_in_is_not_replaced(tmp_path: Path, mapping: Path) -> None:
    target = build(tmp_path)[""]
    out = tmp_path / "out"
    weightport("transfer", LSTM.path("checkpoint_v2"), target, "-m", mapping, "-o", out)
    again = tmp_path / "again.yaml"
    again.write_text('weightport: 1\nrules: [{from: "{x**}", to: "{x**}"}]\nkeep: ["encoder/**"]\n', encoding="utf-8")
    ran = weightport("transfer", out / "variables" / "variables", target, "-m", again, "-o", out, code=1)
    assert "itself, which is only read; write to another path" in ran.err
