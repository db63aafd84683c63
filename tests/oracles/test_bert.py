"""BERT-size checkpoints: google-research/bert's variables into transformers' model and back, by ``mappings/bert.yaml``.

The TensorFlow side is written after google-research/bert, modeling.py and run_pretraining.py (names of scopes, order of
operations, tanh's gelu, layer norm's epsilon of 1e-12), with AdamWeightDecayOptimizer's slots beside the weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weightport as wp
from tests.support import need
from weightport.mapping import load_mapping

MAPPING = Path(__file__).resolve().parents[2] / "mappings" / "bert.yaml"
LAYERS, WIDE, HEADS, INNER, WORDS, PLACES = 24, 24, 3, 40, 61, 17


def norm(tf: Any, x: Any) -> Any:
    v1 = tf.compat.v1
    with v1.variable_scope("LayerNorm"):
        beta = v1.get_variable("beta", [WIDE], initializer=v1.random_normal_initializer(stddev=0.1))
        gamma = v1.get_variable("gamma", [WIDE], initializer=v1.random_normal_initializer(mean=1, stddev=0.1))
    mean, variance = tf.nn.moments(x, [-1], keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-12)


def dense(tf: Any, x: Any, size: int, scope: str = "dense") -> Any:
    v1 = tf.compat.v1
    with v1.variable_scope(scope):
        kernel = v1.get_variable("kernel", [x.shape[-1], size], initializer=v1.glorot_uniform_initializer())
        bias = v1.get_variable("bias", [size], initializer=v1.random_normal_initializer(stddev=0.1))
    return tf.tensordot(x, kernel, 1) + bias


def gelu(tf: Any, x: Any) -> Any:
    return x * 0.5 * (1 + tf.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * tf.pow(x, 3))))


def attention(tf: Any, x: Any, hidden: Any) -> Any:
    def heads(y: Any) -> Any:
        return tf.transpose(tf.reshape(y, [*y.shape[:2], HEADS, WIDE // HEADS]), [0, 2, 1, 3])

    with tf.compat.v1.variable_scope("self"):
        query, key, value = (heads(dense(tf, x, WIDE, role)) for role in ("query", "key", "value"))
        scores = tf.matmul(query, key, transpose_b=True) / np.sqrt(WIDE / HEADS) + hidden
        mixed = tf.transpose(tf.matmul(tf.nn.softmax(scores), value), [0, 2, 1, 3])
        return tf.reshape(mixed, x.shape)


def bert(tf: Any, words: np.ndarray, kinds: np.ndarray, mask: np.ndarray) -> tuple[Any, Any]:
    """Scores of the masked words and of the next sentence."""
    v1 = tf.compat.v1
    normal = v1.random_normal_initializer(stddev=0.3)
    hidden = tf.constant((1 - mask[:, None, None, :]) * -10000.0, tf.float32)
    with v1.variable_scope("bert"):
        with v1.variable_scope("embeddings"):
            table = v1.get_variable("word_embeddings", [WORDS, WIDE], initializer=normal)
            kind = v1.get_variable("token_type_embeddings", [2, WIDE], initializer=normal)
            place = v1.get_variable("position_embeddings", [PLACES, WIDE], initializer=normal)
            x = tf.gather(table, words) + tf.gather(kind, kinds) + place[: words.shape[1]]
            x = norm(tf, x)
        with v1.variable_scope("encoder"):
            for layer in range(LAYERS):
                with v1.variable_scope(f"layer_{layer}"):
                    with v1.variable_scope("attention"):
                        mixed = attention(tf, x, hidden)
                        with v1.variable_scope("output"):
                            seen = norm(tf, dense(tf, mixed, WIDE) + x)
                    with v1.variable_scope("intermediate"):
                        inner = gelu(tf, dense(tf, seen, INNER))
                    with v1.variable_scope("output"):
                        x = norm(tf, dense(tf, inner, WIDE) + seen)
        with v1.variable_scope("pooler"):
            pooled = tf.tanh(dense(tf, x[:, 0], WIDE))
    with v1.variable_scope("cls"):
        with v1.variable_scope("predictions"):
            with v1.variable_scope("transform"):
                changed = norm(tf, gelu(tf, dense(tf, x, WIDE)))
            bias = v1.get_variable("output_bias", [WORDS], initializer=normal)
            scores = tf.tensordot(changed, table, [[2], [1]]) + bias
        with v1.variable_scope("seq_relationship"):
            weights = v1.get_variable("output_weights", [2, WIDE], initializer=normal)
            bias = v1.get_variable("output_bias", [2], initializer=normal)
            following = tf.matmul(pooled, weights, transpose_b=True) + bias
    return scores, following


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkpoint with its inputs and what the graph makes of them."""
    tf = need("tensorflow")
    v1 = tf.compat.v1
    rng = np.random.default_rng(3)
    words, kinds = rng.integers(0, WORDS, (2, 9)), rng.integers(0, 2, (2, 9))
    mask = np.ones((2, 9), "int64")
    mask[1, 6:] = 0
    path = str(tmp_path_factory.mktemp("bert") / "bert_model.ckpt")
    with tf.Graph().as_default() as graph, v1.Session() as session:
        graph.seed = 5
        outputs = bert(tf, words, kinds, mask)
        for variable in list(v1.trainable_variables()):  # AdamWeightDecayOptimizer, optimization.py
            for slot in ("adam_m", "adam_v"):
                name = f"{variable.op.name}/{slot}"
                v1.get_variable(name, variable.shape, trainable=False, initializer=v1.zeros_initializer())
        v1.train.get_or_create_global_step()
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, path, write_meta_graph=False)
        scores, following = session.run(outputs)
    return {"path": path, "words": words, "kinds": kinds, "mask": mask, "scores": scores, "following": following}


def test_into_transformers_and_back(trained: dict[str, Any], tmp_path: Path) -> None:
    torch, transformers = need("torch"), need("transformers")
    out, back = str(tmp_path / "model.safetensors"), str(tmp_path / "back.ckpt")
    result = wp.transfer(trained["path"], None, load_mapping(MAPPING), out=out)
    assert sum(said == "moved" for said in result.plan.source.values()) == 398
    assert {rule.classed for rule in result.plan.outcomes} == {"bijective"}
    assert wp.verify(trained["path"], out, MAPPING).equal

    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=WIDE, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=INNER, max_position_embeddings=PLACES, hidden_act="gelu_new", layer_norm_eps=1e-12,
    )  # fmt: skip
    model = transformers.BertForPreTraining(config).eval()
    with wp.open(out) as made:
        state = {name: torch.from_numpy(made.read(name)) for name in made.specs()}
    lacking = model.load_state_dict(state, strict=False)
    assert set(lacking.missing_keys) == {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}
    assert lacking.unexpected_keys == []
    model.tie_weights()
    with torch.no_grad():
        made_of = model(
            input_ids=torch.from_numpy(trained["words"]), token_type_ids=torch.from_numpy(trained["kinds"]),
            attention_mask=torch.from_numpy(trained["mask"]),
        )  # fmt: skip
    seen = trained["mask"] == 1
    np.testing.assert_allclose(made_of.prediction_logits.numpy()[seen], trained["scores"][seen], atol=2e-4)
    np.testing.assert_allclose(made_of.seq_relationship_logits.numpy(), trained["following"], atol=2e-4)

    wp.transfer(out, trained["path"], load_mapping(MAPPING).reversed(), out=back)
    with wp.open(trained["path"]) as first, wp.open(back) as last:
        assert list(first.specs()) == list(last.specs())
        for name in first.specs():
            assert first.read(name).tobytes() == last.read(name).tobytes(), name
