"""A model's configuration in JSON: whose a weight is, by the names that Keras gave its weights in each version."""

from __future__ import annotations

from typing import Any

import pytest

from weightport.errors import FormatError
from weightport.formats import keras_config
from weightport.formats.keras_config import facts


def layer(kind: str, name: str | None = None, **config: Any) -> dict[str, Any]:
    return {"class_name": kind, "config": {**({} if name is None else {"name": name}), **config}}


def model(*layers: Any, name: str = "model") -> dict[str, Any]:
    return {"class_name": "Functional", "config": {"name": name, "layers": list(layers)}}


def of(found: Any, owner: str, *weights: str, position: int = 0, major: int = 2) -> dict[str, Any]:
    return facts(found, owner, weights or ("w:0",), position, major)


LSTM = layer("LSTM", "lstm", units=4)
#: What is said of that layer.
SAID = {"class": "LSTM", "units": 4}


@pytest.mark.parametrize("text", ["", "{", '{"a":' + "[" * 100_000])
def test_no_json(text: str) -> None:
    with pytest.raises(FormatError) as caught:
        keras_config.parse(text, "m.h5")
    assert str(caught.value) == "m.h5: the attribute 'model_config' is no JSON"


def test_no_object() -> None:
    with pytest.raises(FormatError) as caught:
        keras_config.document(b"[1]", "m.keras", "config.json")
    assert str(caught.value) == "m.keras: config.json is no JSON object"
    assert keras_config.parse('{"a": 1}', "m.h5") == {"a": 1}


def test_names() -> None:
    assert keras_config.name_of(LSTM) == "lstm"
    assert keras_config.name_of({"name": "old"}) == "old"
    assert keras_config.name_of({"name": "old", "config": {"name": 7}}) == "7"
    assert keras_config.name_of({"name": "old", "config": []}) == "old"
    assert keras_config.name_of({}) == ""


def test_the_layer_of_that_name() -> None:
    assert of(model(layer("Dense", "d"), LSTM), "lstm") == SAID
    assert of({"class_name": "Sequential", "config": [LSTM, 5]}, "lstm") == SAID  # Keras 1
    assert of(model(LSTM), "other") == {}
    assert of({"config": 5}, "lstm") == {}
    assert of(model({"class_name": "LSTM", "name": "lstm"}), "lstm") == {}
    assert of(model({"class_name": "LSTM", "name": "lstm", "config": 3}), "lstm") == {}


def test_models_in_models() -> None:
    inner = model(LSTM, layer("GRU", "gru", units=3), name="inner")
    outer = model(inner)
    weights = "lstm/kernel:0", "gru/kernel:0", "nobody/kernel:0"
    assert of(outer, "inner", *weights) == SAID
    assert of(outer, "inner", *weights, position=1) == {"class": "GRU", "units": 3, "reset_after": False}
    assert of(outer, "inner", *weights, position=2) == {}
    deeper = model(model(inner, name="middle"), name="outer")
    assert of(deeper, "middle", "lstm/kernel:0") == SAID
    assert of(deeper, "middle", "inner/lstm/kernel:0") == SAID
    # Keras 1 and other backends have no path in their weights' names; the longest name is the one.
    flat = model(model(layer("GRU", "lstm", units=3), layer("LSTM", "lstm_1", units=4), name="inner"))
    assert of(flat, "inner", "lstm_1_W_i") == SAID
    assert of(flat, "inner", "lstm_W_i")["class"] == "GRU"
    assert of(flat, "inner", "lstm1") == {}


def test_wrapped_layers() -> None:
    for wrapper in ("TimeDistributed", "Anything"):
        assert of(model(layer(wrapper, "wrapped", layer=LSTM)), "wrapped") == SAID
    nested = LSTM
    for _ in range(40):
        nested = layer("Wrapper", "w", layer=nested)
    assert of(model(nested), "w") == {}  # deeper than Keras goes
    assert of(model(model(nested, name="inner")), "inner", "lstm/kernel:0") == {}
    inside = model(layer("TimeDistributed", "td", layer=LSTM), name="inner")
    assert of(model(inside), "inner", "td/kernel:0") == SAID
    assert of(model(inside), "inner", "lstm/kernel:0") == SAID


BOTH = ("forward_lstm/kernel:0", "forward_lstm/bias:0", "backward_lstm/kernel:0", "backward_lstm/bias:0")


def test_both_directions() -> None:
    found = model(layer("Bidirectional", "bi", layer=LSTM))
    for position in range(4):
        side = "forward" if position < 2 else "backward"
        assert of(found, "bi", *BOTH, position=position) == {**SAID, "direction": side}
        assert of(found, "bi", "a", "b", "c", "d", position=position) == {**SAID, "direction": side}
    assert of(found, "bi", "a", "b", "c") == {}  # as many of each, if nothing says which
    assert of(model(layer("Bidirectional", "bi", layer=5)), "bi") == {"class": "Bidirectional"}
    empty = model(layer("Bidirectional", "bi", layer={}))
    assert of(empty, "bi", *BOTH) == {}


@pytest.mark.parametrize(("said", "found"), [(True, False), (False, True), (None, None)])
def test_a_backward_layer_of_its_own(said: bool | None, found: bool | None) -> None:
    """It says what it does, not what it wraps: going backwards is what a backward layer is for."""
    config = {} if said is None else {"go_backwards": said}
    both = model(layer("Bidirectional", "bi", layer=LSTM, backward_layer=layer("GRU", "gru", units=3, **config)))
    expected = {"class": "GRU", "units": 3, "reset_after": False, "direction": "backward"}
    assert of(both, "bi", *BOTH) == {**SAID, "direction": "forward"}
    assert of(both, "bi", *BOTH, position=2) == {**expected, **({} if found is None else {"go_backwards": found})}


def test_names_of_both_directions_in_a_model() -> None:
    inner = model(layer("Bidirectional", "bi", layer=LSTM), LSTM, name="inner")
    assert of(model(inner), "inner", *BOTH)["direction"] == "forward"
    assert of(model(inner), "inner", *BOTH, position=3)["direction"] == "backward"


CELL = layer("LSTMCell", "cell", units=4)


def test_cells() -> None:
    assert of(model(layer("RNN", "rnn", cell=CELL)), "rnn") == SAID
    assert of(model(layer("RNN", "rnn", cell=CELL, go_backwards=True)), "rnn") == {**SAID, "go_backwards": True}
    assert of(model(layer("RNN", "rnn", cell={"class_name": "LSTMCell"}, go_backwards=True)), "rnn") == {}
    wrapped = layer("DropoutWrapper", "drop", cell=CELL)
    assert of(model(layer("RNN", "rnn", cell=wrapped)), "rnn") == SAID
    deep = CELL
    for _ in range(40):
        deep = layer("Wrapper", "w", cell=deep)
    assert of(model(layer("RNN", "rnn", cell=deep)), "rnn") == {}


def stacked(*cells: Any) -> dict[str, Any]:
    return model(layer("RNN", "rnn", cell=layer("StackedRNNCells", "stack", cells=list(cells))))


def test_stacks_of_cells() -> None:
    """By their number of weights where Keras' own cells say it, by their names elsewhere."""
    two = stacked(CELL, layer("keras>GRUCell", "gru", units=3, use_bias=False))
    weights = "a", "b", "c", "d", "e"
    assert [of(two, "rnn", *weights, position=at)["class"] for at in range(5)] == ["LSTM"] * 3 + ["GRU"] * 2
    assert of(two, "rnn", "a", "b", "c", "d") == {}
    assert of(two, "rnn", "gru/kernel:0") == {"class": "GRU", "units": 3, "use_bias": False, "reset_after": False}
    own = stacked(layer("MyCell", "mine", units=2), CELL)
    assert of(own, "rnn", "mine/kernel:0", "cell/kernel:0") == {"class": "MyCell", "units": 2}
    assert of(own, "rnn", "mine/kernel:0", "cell/kernel:0", position=1) == SAID
    assert of(stacked({"class_name": "LSTMCell"}), "rnn") == {}
    nested = stacked(layer("StackedRNNCells", "inner", cells=[CELL]))
    assert of(nested, "rnn", "cell/kernel:0") == {}
    listed = model(layer("RNN", "rnn", cell=layer("StackedRNNCells", "stack", cells=[5], units=1)))
    assert of(listed, "rnn") == {"class": "StackedRNNCells", "units": 1}


@pytest.mark.parametrize(
    ("kind", "config", "major", "expected"),
    [
        ("LSTM", {"output_dim": 5}, 1, {"class": "LSTM", "units": 5}),
        ("LSTM", {"units": 4.0}, 2, {"class": "LSTM"}),
        ("LSTM", {"units": True}, 2, {"class": "LSTM"}),
        ("pack>LSTMCell", {}, 2, {"class": "LSTM"}),
        ("MyCell", {}, 2, {"class": "MyCell"}),
        ("LSTM", {"inner_activation": "sigmoid"}, 1, {"class": "LSTM", "recurrent_activation": "sigmoid"}),
        ("LSTM", {"activation": "tanh"}, 2, {"class": "LSTM", "activation": "tanh"}),
        ("LSTM", {"use_bias": False}, 2, {"class": "LSTM", "use_bias": False}),
        ("LSTM", {"use_bias": 1, "go_backwards": "no"}, 2, {"class": "LSTM"}),
        ("LSTM", {"activation": "hard_sigmoid"}, 2, {"class": "LSTM", "activation": "hard_sigmoid"}),
        ("LSTM", {"activation": "hard_sigmoid"}, 3, {"class": "LSTM", "activation": "hard_sigmoid_6"}),
        ("GRU", {}, 2, {"class": "GRU", "reset_after": False}),
        ("GRU", {}, 3, {"class": "GRU"}),
        ("GRU", {"reset_after": True}, 2, {"class": "GRU", "reset_after": True}),
        (
            "CuDNNGRU", {"activation": "relu"}, 2,
            {
                "class": "CuDNNGRU", "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True,
                "reset_after": True,
            },
        ),
        (
            "CuDNNLSTM", {}, 2,
            {"class": "CuDNNLSTM", "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True},
        ),
        ("ConvLSTM2D", {"padding": "same"}, 2, {"class": "ConvLSTM2D", "window": ""}),
        ("ConvLSTM2D", {}, 2, {"class": "ConvLSTM2D", "window": "padding valid"}),
        (
            "ConvLSTM2D", {"padding": "same", "strides": [1, 2], "data_format": "channels_first"}, 2,
            {"class": "ConvLSTM2D", "window": "strides 1 2, data format channels_first"},
        ),
        ("ConvLSTM2D", {"padding": "same", "dilation_rate": [1, None]}, 2, {"class": "ConvLSTM2D", "window": ""}),
        (
            "LSTM", {"activation": {"module": "builtins", "config": "tanh"}}, 3,
            {"class": "LSTM", "activation": "tanh"},
        ),
        (
            "LSTM", {"activation": {"module": "keras.activations", "config": {"name": "relu"}}}, 3,
            {"class": "LSTM", "activation": "relu"},
        ),
        ("LSTM", {"activation": {"module": "mine", "config": "tanh"}}, 3, {"class": "LSTM"}),
        ("LSTM", {"activation": {"config": 5}}, 3, {"class": "LSTM"}),
    ],
)  # fmt: skip
def test_what_a_layer_says(kind: str, config: dict[str, Any], major: int, expected: dict[str, Any]) -> None:
    assert of(model(layer(kind, "l", **config)), "l", major=major) == expected
