"""The Python interface: every kind of source, target and destination; what is refused; nothing is left behind."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.plan.stub import document, numbers
from tests.support import fixture, need
from tests.targets.live import batch
from weightport.errors import Error, FormatError, MappingError, PlanError, RefusedError
from weightport.formats import files
from weightport.provenance import tables_digest

A, B = numbers(4, 3), numbers(3, seed=1)
RULES = [{"from": "a", "to": "new/a", "rearrange": "i j -> j i"}, {"from": "b", "to": "new/b", "as": "constant"}]
EXPECTED = {"new/a": A.T, "new/b": B}
OUTS = ["out.npz", "out.safetensors", "out.h5", "out.ckpt", "tf-checkpoint:out"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.npz"
    np.savez(path, a=A, b=B)
    return path


def read(path: str) -> dict[str, np.ndarray]:
    with wp.open(path) as source:
        return {name: source.read(name) for name in source.specs()}


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, want in expected.items():
        np.testing.assert_array_equal(found[name], want, err_msg=name)


def listing(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# Files ---------------------------------------------------------------------------------------------------------------


def placed(out: str, folder: Path) -> str:
    name, colon, path = out.rpartition(":")
    return f"{name}{colon}{folder / path}"


@pytest.mark.parametrize("out", OUTS)
def test_without_a_target_the_file_is_what_the_mapping_produces(out: str, model: Path, tmp_path: Path) -> None:
    result = wp.transfer(model, None, document(RULES), out=placed(out, tmp_path))
    assert result.path == str(tmp_path / out.rpartition(":")[2])
    assert result.target is None
    same(read(result.path), EXPECTED)
    document_ = result.as_json()
    assert set(document_.pop("integrity")) == set(result.plan.moved)
    assert document_ == result.plan.as_json()
    assert result.as_json()["target"] == {"new/a": "moved", "new/b": "constant"}
    assert str(result) == str(result.plan)


@pytest.mark.parametrize("out", OUTS)
def test_with_a_target_the_file_has_its_tensors_in_its_order(out: str, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.npz"
    np.savez(target, **{"new/b": B * 0, "kept": B * 5, "new/a": A.T * 0, "head": B * 0})
    before = target.read_bytes()
    rules = [*RULES, {"to": "head", "initialize": "ones"}]
    result = wp.transfer(model, target, document(rules, keep=["kept"]), out=placed(out, tmp_path))
    assert result.path is not None
    same(read(result.path), {**EXPECTED, "kept": B * 5, "head": np.ones(3, np.float32)})
    assert list(result.plan.specs) == ["new/b", "kept", "new/a", "head"]
    assert target.read_bytes() == before


def test_sources_targets_and_mappings_as_paths_and_opened(model: Path, tmp_path: Path) -> None:
    mapping = tmp_path / "m.yaml"
    mapping.write_text(str(document(RULES)), encoding="utf-8")
    target = tmp_path / "target.npz"
    np.savez(target, **{n: a * 0 for n, a in EXPECTED.items()})
    with wp.open(model) as source, wp.open(target) as kept:
        for number, (mine, other, rules) in enumerate(
            [
                (model, target, mapping),
                (str(model), str(target), str(mapping)),
                (source, kept, wp.load_mapping(mapping)),
                (f"npz:{model}", f"npz:{target}", document(RULES)),
            ]
        ):
            out = tmp_path / f"out{number}.npz"
            wp.transfer(mine, other, rules, out=out)
            same(read(str(out)), EXPECTED)
            assert wp.plan(mine, other, rules).problems == ()
        np.testing.assert_array_equal(source.read("a"), A)
        np.testing.assert_array_equal(kept.read("new/b"), B * 0)


@pytest.mark.parametrize("suffix", [".h5", ".ckpt"])
def test_a_target_that_is_open_lends_its_structure_as_its_path_does(suffix: str, tmp_path: Path) -> None:
    kind = {".h5": "keras_h5", ".ckpt": "checkpoint_object_based"}[suffix]
    path = fixture("c_keras/lstm_impl1").path(kind)
    with wp.open(path) as target:
        rules = [{"from": "{x**}", "to": "{x**}"}]
        kept = [n for n, s in target.specs().items() if s.role != "weight"]
        one = wp.transfer(path, path, document(rules, ignore=kept), out=tmp_path / f"one{suffix}").path
        two = wp.transfer(path, target, document(rules, ignore=kept), out=tmp_path / f"two{suffix}").path
    assert one is not None
    assert two is not None
    same(read(two), read(one))


def test_where_to_write_has_to_be_said(model: Path) -> None:
    with pytest.raises(wp.Error, match=r"to write a file, say where: out='model\.npz'"):
        wp.transfer(model, None, document(RULES))
    with pytest.raises(wp.Error, match="session: for live models only"):
        wp.transfer(model, None, document(RULES), out="x.npz", session=None)
    with pytest.raises(wp.Error, match="with out=, the target is a file, not int"):
        wp.transfer(model, 3, document(RULES), out="x.npz")
    with pytest.raises(wp.Error, match=r"a source is a path, what weightport\.open returns, or a live model, not int"):
        wp.transfer(3, None, document(RULES), out="x.npz")
    with pytest.raises(wp.Error, match="the suffix says no format to write"):
        wp.transfer(model, None, document(RULES), out="x.what")


def test_a_dry_run_writes_nothing(model: Path, tmp_path: Path) -> None:
    before = listing(tmp_path)
    plans: list[Any] = []
    result = wp.transfer(model, None, document(RULES), out=tmp_path / "o.npz", dry_run=True, on_plan=plans.append)
    assert result.path is None
    assert plans == [result.plan]
    assert wp.transfer(model, None, document(RULES), dry_run=True).plan == result.plan
    with pytest.raises(RefusedError):
        wp.transfer(model, None, document(RULES), out=model, dry_run=True)
    assert listing(tmp_path) == before


def test_progress_is_told_of_every_byte(model: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    wp.transfer(model, None, document(RULES), out=tmp_path / "o.safetensors", progress=seen.append)
    assert sum(seen) == A.nbytes + B.nbytes


def test_provenance_is_in_the_file(model: Path, tmp_path: Path) -> None:
    safetensors = need("safetensors")
    mapping = wp.load_mapping(document(RULES))
    wp.transfer(model, None, mapping, out=tmp_path / "o.safetensors")
    wp.transfer(model, None, mapping, out=tmp_path / "o.h5")
    expected = {
        "weightport.version": wp.__version__,
        "weightport.source": "model.npz",
        "weightport.mapping_sha256": mapping.digest,
        "weightport.layouts_sha256": tables_digest(),
    }
    with safetensors.safe_open(tmp_path / "o.safetensors", "np") as file:
        assert file.metadata() == {**expected, "format": "pt"}
    with need("h5py").File(tmp_path / "o.h5") as file:
        assert {k: v for k, v in file.attrs.items() if k.startswith("weightport.")} == expected


# What is refused -----------------------------------------------------------------------------------------------------


def linked(kind: str, path: Path, link: Path) -> Path:
    if kind == "symlink":
        link.symlink_to(path)
    elif kind == "hard link":
        link.hardlink_to(path)
    else:
        return path
    return link


@pytest.mark.parametrize("kind", ["itself", "symlink", "hard link"])
@pytest.mark.parametrize("which", ["source", "target", "mapping", "vocabulary"])
def test_the_destination_is_none_of_the_inputs(kind: str, which: str, model: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.npz"
    np.savez(target, **{n: a * 0 for n, a in EXPECTED.items()})
    words = tmp_path / "words.txt"
    words.write_text("w\nx\ny\nz\n", encoding="utf-8")
    vocab = {"from": "words.txt", "to": "words.txt"}
    mapping = tmp_path / "m.yaml"
    mapping.write_text(str(document([{**RULES[0], "vocab": {**vocab, "axis": 1}}, RULES[1]])), encoding="utf-8")
    inputs = {"source": model, "target": target, "mapping": mapping, "vocabulary": words}
    out = linked(kind, inputs[which], tmp_path / "link.npz")
    before = listing(tmp_path)
    with pytest.raises(RefusedError) as caught:
        wp.transfer(model, target, mapping, out=out, format="npz")
    assert str(caught.value) == f"{out}: is {inputs[which]} itself, which is only read; write to another path"
    assert listing(tmp_path) == before


def test_a_checkpoint_is_not_written_over_itself(tmp_path: Path, model: Path) -> None:
    wp.transfer(model, None, document(RULES), out=tmp_path / "m.ckpt")
    again = document([{"from": "{x**}", "to": "{x**}"}])
    with pytest.raises(RefusedError, match="itself, which is only read"):
        wp.transfer(tmp_path / "m.ckpt", None, again, out=tmp_path / "m.ckpt")
    with pytest.raises(RefusedError, match="itself, which is only read"):
        wp.transfer(tmp_path / "m.ckpt.index", None, again, out=f"tf-checkpoint:{tmp_path}/m.ckpt")
    same(read(str(tmp_path / "m.ckpt")), EXPECTED)


@pytest.mark.parametrize(
    ("name", "near"), [("expect_sha265", "; closest: 'expect_sha256'"), ("sesion", "; closest: 'session'"), ("zzz", "")]
)
def test_arguments_that_are_none(model: Path, tmp_path: Path, name: str, near: str) -> None:
    given: dict[str, Any] = {name: "0" * 64}
    with pytest.raises(Error) as caught:
        wp.transfer(model, None, document(RULES), out=tmp_path / "o.npz", **given)
    assert str(caught.value) == f"transfer: has no argument {name!r}{near}"


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_at_all(model: Path, tmp_path: Path, threads: int) -> None:
    with pytest.raises(Error, match=rf"^threads: {threads}, at least 1 is needed$"):
        wp.transfer(model, None, document(RULES), out=tmp_path / "o.npz", threads=threads)
    assert not (tmp_path / "o.npz").exists()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_source_may_be_pinned(model: Path, tmp_path: Path) -> None:
    right, wrong = digest(model), "0" * 64
    out = tmp_path / "o.npz"
    for value in (right, right.upper()):
        wp.transfer(model, None, document(RULES, source={"sha256": value}), out=out, expect_sha256=value)
    for none in ("", "abc", right[1:], right + "0", "g" * 64):
        with pytest.raises(Error) as unknown:
            wp.transfer(model, None, document(RULES), out=out, expect_sha256=none)
        told = f"expect_sha256: {none!r} is no digest: 64 hexadecimal digits, as sha256sum prints them"
        assert str(unknown.value) == told
    message = f"{model}: its SHA-256 is {right}; asked for {wrong}; this is another file, or a damaged one"
    with pytest.raises(FormatError) as caught:
        wp.transfer(model, None, document(RULES), out=out, expect_sha256=wrong)
    assert str(caught.value) == message
    with pytest.raises(FormatError) as caught:
        wp.transfer(model, None, document(RULES, source={"sha256": wrong}), out=out)
    assert str(caught.value) == message.replace("asked for", "the mapping is for")


def test_a_pin_holds_for_the_getter_and_for_live_models(model: Path) -> None:
    pinned = document(RULES, source={"sha256": "0" * 64})
    with wp.open(model) as source:
        for given in (source, model):
            with pytest.raises(FormatError, match="the mapping is for 0000"):
                wp.tensorflow.getter(given, pinned)
    tf = need("tensorflow")
    with pytest.raises(FormatError, match="the mapping is for 0000"):
        wp.transfer(model, [tf.Variable(A.T, name="new/a"), tf.Variable(B, name="new/b")], pinned)


@pytest.mark.parametrize(
    "path",
    [
        fixture("d_checkpoints/sharded").path("checkpoint_v2"),
        fixture("a_seed_char_lstm").path("saved_model"),
        fixture("a_seed_char_lstm").path("frozen"),
    ],
)
def test_the_digest_is_that_of_sha256sum(path: str) -> None:
    listed = files.files_of(path)
    names = sorted(os.path.relpath(f, os.path.commonpath(listed)) for f in listed)
    if len(listed) == 1:
        command = f"sha256sum < {listed[0]}"
    else:
        command = f"cd {os.path.commonpath(listed)} && sha256sum {' '.join(names)} | sha256sum"
    found = subprocess.run(command, shell=True, capture_output=True, check=True, text=True).stdout.split()[0]
    assert files.digest(path) == found


# Nothing is left behind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", OUTS)
def test_errors_leave_the_old_file_and_nothing_else(out: str, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    place = placed(out, folder)
    wp.transfer(model, None, document(RULES), out=place)
    before = listing(folder)
    overflow = [{"from": "a", "to": "new/a"}, {"from": "b", "to": "new/b", "scale": 1e30, "cast": "float16"}]
    with pytest.raises(wp.Error, match="outside the range of float16"):
        wp.transfer(model, None, document(overflow), out=place)
    assert listing(folder) == before
    with pytest.raises(PlanError):
        wp.transfer(model, None, document(RULES[:1]), out=place)
    with pytest.raises(MappingError):
        wp.transfer(model, None, {"weightport": 1, "rules": [{"from": "a"}]}, out=place)
    assert listing(folder) == before
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(wp.Error):
        wp.transfer(model, None, document(overflow), out=place)
    assert listing(folder) == {}


def test_a_progress_that_fails_leaves_nothing(model: Path, tmp_path: Path) -> None:
    before = listing(tmp_path)

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    for out in OUTS:
        with pytest.raises(KeyboardInterrupt):
            wp.transfer(model, None, document(RULES), out=placed(out, tmp_path), progress=interrupted)
    assert listing(tmp_path) == before


def test_a_source_that_changes_while_it_is_read(model: Path, tmp_path: Path) -> None:
    def touch(_: int) -> None:
        os.utime(model, ns=(1, 1))

    with pytest.raises(FormatError, match="the file changed while it was read"):
        wp.transfer(model, None, document(RULES), out=tmp_path / "o.npz", progress=touch)
    assert not (tmp_path / "o.npz").exists()


def test_a_shard_that_changes_while_it_is_read(tmp_path: Path, model: Path) -> None:
    wp.transfer(model, None, document(RULES), out=tmp_path / "m.ckpt")
    (shard,) = tmp_path.glob("m.ckpt.data-*")

    def touch(_: int) -> None:
        os.utime(shard, ns=(1, 1))

    again = document([{"from": "{x**}", "to": "{x**}"}])
    with pytest.raises(FormatError, match=r"m\.ckpt\.data-.*: the file changed while it was read"):
        wp.transfer(tmp_path / "m.ckpt", None, again, out=tmp_path / "o.npz", progress=touch)


def test_all_mistakes_of_a_mapping_are_reported_with_their_lines(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "m.yaml"
    lines = ["weightport: 1", "rules:"]
    for number in range(5):
        lines += [f"  - form: a{number}", "    to: b"]
    lines += ["  - {from: a, to: b, cast: floot16}", "  - {from: a, to: b, as: konstant}", "keeep: [x]"]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(MappingError) as caught:
        wp.transfer(model, None, path, out=tmp_path / "o.npz")
    assert len(caught.value.problems) >= 8
    assert all(p.where.startswith(f"{path}:") for p in caught.value.problems)
    assert not (tmp_path / "o.npz").exists()


# Live models ---------------------------------------------------------------------------------------------------------


def sequential(keras: Any) -> Any:
    """An encoder and a head, both built."""
    layers = [keras.Input((6, 3)), keras.layers.LSTM(4, name="encoder"), keras.layers.Dense(1, name="head")]
    return keras.Sequential(layers)


def cell_file(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    weights = {"kernel": numbers(3, 16), "recurrent_kernel": numbers(4, 16, seed=1), "bias": numbers(16, seed=2)}
    path = folder / "cell.npz"
    np.savez(path, **{f"lstm/{n}": w for n, w in weights.items()})
    return path, weights


CELL = {"from": {"layout": "lstm.keras", "scope": "lstm"}, "to": {"layout": "lstm.keras", "scope": "encoder"}}


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
def test_a_frozen_encoder_stays_while_the_head_learns(package: str, tmp_path: Path) -> None:
    keras = need(package)
    keras.utils.set_random_seed(1)
    path, weights = cell_file(tmp_path)
    model = sequential(keras)
    rules = [{**CELL, "as": "constant"}, {"to": "head/{w}", "initialize": {"glorot_uniform": {"seed": 7}}}]
    result = wp.transfer(path, model, document(rules))
    assert result.target is model
    assert result.path is None
    assert sorted(result.plan.target.values()) == ["constant"] * 3 + ["initialized"] * 2
    encoder, head = model.get_layer("encoder"), model.get_layer("head")
    start = [np.array(w) for w in head.get_weights()]
    x, y = batch()
    model.compile("adam", "mse")
    losses = model.fit(x, y, epochs=5, batch_size=16, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    for found, want in zip(encoder.get_weights(), weights.values(), strict=True):
        assert found.tobytes() == want.tobytes()
    assert all(np.any(a != b) for a, b in zip(start, head.get_weights(), strict=True))


@pytest.mark.parametrize("package", ["keras", "tf_keras"])
def test_a_plan_of_a_live_model_is_pure(package: str, tmp_path: Path) -> None:
    path, _ = cell_file(tmp_path)
    model = sequential(need(package))
    before = [np.array(w) for w in model.get_weights()]
    planned = wp.plan(path, model, document([CELL], keep=["head/**"]))
    assert planned.problems == ()
    result = wp.transfer(path, model, document([CELL], keep=["head/**"]), dry_run=True)
    assert result.plan == planned
    with pytest.raises(PlanError, match="head"):
        wp.transfer(path, model, document([CELL]))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_modules_and_lists_of_variables(model: Path) -> None:
    tf = need("tensorflow")
    variables = [tf.Variable(A.T * 0, name="new/a"), tf.Variable(B * 0, name="new/b")]
    initial = document([{**RULES[0]}, {"from": "b", "to": "new/b"}])
    result = wp.transfer(model, variables, initial)
    assert result.target is variables
    np.testing.assert_array_equal(variables[0], A.T)
    module = tf.Module()
    module.w = tf.Variable(B * 0, name="new/b")
    wp.transfer(model, module, document([{"from": "b", "to": "new/b"}], ignore=["a"]))
    np.testing.assert_array_equal(module.w, B)


def graph_model(tf: Any) -> Any:
    """``encoder/w`` and ``head/w`` in a TF1 graph, with a loss; returns what is needed to train."""
    v1 = tf.compat.v1
    with v1.variable_scope("encoder"):
        w = v1.get_variable("w", [3, 4], initializer=v1.zeros_initializer())
    with v1.variable_scope("head"):
        head = v1.get_variable("w", [4, 1], initializer=v1.ones_initializer())
    x, y = v1.placeholder("float32", [None, 3]), v1.placeholder("float32", [None, 1])
    loss = tf.reduce_mean((tf.tanh(x @ w) @ head - y) ** 2)
    return x, y, w, head, loss


GRAPH = [{"from": "a", "to": "encoder/w", "rearrange": "i j -> j i"}]


@pytest.mark.parametrize("as_", ["initial", "constant"])
@pytest.mark.parametrize("way", ["graph", "getter"])
def test_graphs_train_and_restore(way: str, as_: str, model: Path, tmp_path: Path) -> None:
    """A constant encoder stays bit for bit; an initial one learns, starts anew by its initializer, and is restored."""
    tf = need("tensorflow")
    v1 = tf.compat.v1
    mapping = document([{**GRAPH[0], "as": as_}], keep=["head/**"], ignore=["b"])
    random = np.random.default_rng(0)
    feed_x = random.normal(size=(32, 3)).astype(np.float32)
    feed_y = feed_x.sum(1, keepdims=True)
    with tf.Graph().as_default() as graph:
        if way == "getter":
            getter = wp.tensorflow.getter(model, mapping)
            with v1.variable_scope("", custom_getter=getter):
                x, y, w, head, loss = graph_model(tf)
            getter.check()
        else:
            x, y, w, head, loss = graph_model(tf)
            result = wp.transfer(model, graph, mapping)
            assert result.target is graph
        trainable = [v.name for v in v1.trainable_variables()]
        assert trainable == (["head/w:0"] if as_ == "constant" else ["encoder/w:0", "head/w:0"])
        step = v1.train.GradientDescentOptimizer(0.1).minimize(loss)
        saver = v1.train.Saver()
        with v1.Session() as session:
            session.run(v1.global_variables_initializer())
            np.testing.assert_array_equal(session.run(w), A.T)
            feed = {x: feed_x, y: feed_y}
            before = session.run([loss, head], feed)
            for _ in range(20):
                session.run(step, feed)
            after = session.run([loss, head], feed)
            assert after[0] < before[0]
            assert np.any(after[1] != before[1])
            trained = session.run(w)
            assert np.array_equal(trained, A.T) == (as_ == "constant")
            saver.save(session, str(tmp_path / "t.ckpt"))
            session.run(v1.global_variables_initializer())
            np.testing.assert_array_equal(session.run(w), A.T)
            saver.restore(session, str(tmp_path / "t.ckpt"))
            np.testing.assert_array_equal(session.run(w), trained)
            np.testing.assert_array_equal(session.run(head), after[1])


def test_a_source_that_is_given_open_stays_open(model: Path) -> None:
    tf = need("tensorflow")
    variable = tf.Variable(B * 0, name="new/b")
    with wp.open(model) as source:
        for _ in range(2):
            wp.transfer(source, [variable], document([{"from": "b", "to": "new/b"}], ignore=["a"]))
        np.testing.assert_array_equal(source.read("a"), A)
        wp.plan(source, None, document(RULES))
        np.testing.assert_array_equal(source.read("b"), B)


# Opened sources ------------------------------------------------------------------------------------------------------


def test_an_open_source(tmp_path: Path) -> None:
    path, weights = cell_file(tmp_path)
    with wp.open(path) as source:
        assert (source.format, source.path) == ("npz", str(path))
        assert list(source.specs()) == [f"lstm/{n}" for n in weights]
        assert [(c.scope, c.layout.name) for c in source.cells()] == [("lstm", "lstm.keras")]
        assert str(source.tree()).splitlines() == [
            "└─ lstm/",
            "   ├─ kernel  float32 3×16",
            "   ├─ recurrent_kernel  float32 4×16",
            "   └─ bias  float32 16",
        ]
        np.testing.assert_array_equal(source.read("lstm/bias", (slice(2, 5),)), weights["bias"][2:5])
        assert source.facts(["lstm/bias"]) == {}
        with pytest.raises(wp.TensorNotFound, match="closest: 'lstm/bias'"):
            source.read("lstm/bais")
    with pytest.raises(wp.Error):
        source.read("lstm/bias")


def test_a_source_that_is_no_file_of_its_own(model: Path, tmp_path: Path) -> None:
    """Anything with the methods of a source will do."""
    from tests.plan.stub import Stub

    result = wp.transfer(Stub({"a": A, "b": B}), None, document(RULES), out=tmp_path / "o.npz")
    assert result.path is not None
    same(read(result.path), EXPECTED)
    assert model.exists()


def test_mistakes_of_the_mapping_and_of_its_fit_are_said_together(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", weight=np.zeros((2, 3), np.float32), bias=np.zeros(3, np.float32))
    mapping = tmp_path / "m.yaml"
    mapping.write_text(
        "weightport: 1\n"
        "rules:\n"
        "  - {from: weigth, to: w, as: const}\n"
        "  - {from: bias, too: b}\n"
        "  - {from: bias, to: b, rearrange: a b -> b a}\n"
        "  - {from: baias, to: c}\n"
    )
    with pytest.raises(wp.MappingError) as refusal:
        wp.transfer(tmp_path / "a.npz", None, mapping, out=tmp_path / "o.npz")
    source = tmp_path / "a.npz"
    assert str(refusal.value).splitlines() == [
        f"{mapping}:3 rules[0].as: expected initial or constant, found 'const'; closest: 'constant'",
        f"{mapping}:4 rules[1]: unknown key 'too'; closest: 'to'",
        f"{mapping}:3 rules[0].from: no tensor 'weigth' in {source}; closest: 'weight'",
        f"{mapping}:5 rules[2]: 'bias': rearrange: 'a b -> b a' is for 2 axes, the tensor has [3]",
        f"{mapping}:6 rules[3].from: no tensor 'baias' in {source}; closest: 'bias'",
    ]
    assert not (tmp_path / "o.npz").exists()
    # A source that cannot be opened leaves the mapping's own mistakes.
    with pytest.raises(wp.MappingError) as refusal:
        wp.transfer(tmp_path / "none.npz", None, mapping, out=tmp_path / "o.npz")
    assert len(refusal.value.problems) == 2
