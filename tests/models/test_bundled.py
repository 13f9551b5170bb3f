"""The bundled networks: what their example inputs are said to show is what the explanation shows."""

import pytest
import torch

import whence
from whence.models.bundled import BUNDLED
from whence.models.word_tokenizer import WordTokenizer


def explained(name, sample=0, method=None):
    loaded = whence.load_model(name)
    x = loaded.examples()[sample]
    e = whence.explain(
        loaded.model, x, method=method, class_names=loaded.class_names, feature_names=loaded.feature_names, progress=False
    )
    return loaded, e


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_models_are_trained_and_explain_their_examples(name):
    loaded, e = explained(name)
    assert loaded.trained
    assert not loaded.model.training
    assert float(e.conservation.error.max()) < 1e-4
    assert e.target_names()[0] in list(map(str, loaded.class_names))


def test_the_lawn_speaks_for_grass():
    _, e = explained("surfaces")
    assert e.target_names() == ["grass"]
    assert e.relevance[0, 0, :, 64:].sum() > 0.9 * e.output  # the right half


def test_the_words_of_a_review():
    loaded, e = explained("reviews")
    words = dict(zip(e.with_tokens(loaded.text.tokenizer).tokens_of(0), e.relevance["input_ids"][0].tolist(), strict=True))
    assert e.target_names() == ["negative"]
    assert min(words[" rude"], words[" dirty"]) > 0.4 > 0 > words[" delicious"]
    assert words[" was"] == 0


def test_the_early_beat():
    _, e = explained("heartbeats")
    assert e.target_names() == ["early beat"]
    positive = e.relevance.clamp(min=0)
    assert positive[..., 180:235].sum() > 0.9 * positive.sum()
    assert explained("heartbeats", 1)[1].target_names() == ["regular"]


def test_words_and_ids():
    tokenizer = WordTokenizer(["<unk>", "the", "soup", "!", "isn't"])
    assert tokenizer("The SOUP isn't new!")["input_ids"] == [1, 2, 4, 0, 3]
    assert torch.equal(tokenizer("soup", return_tensors="pt")["input_ids"], torch.tensor([[2]]))
    assert tokenizer.decode([1, 2, 3]) == "the soup!"


def test_estimators_need_the_rows_of_their_table(tmp_path):
    pytest.importorskip("sklearn")
    pytest.importorskip("pandas")
    (tmp_path / "nets.py").write_text("""
import pandas as pd, whence
from sklearn.linear_model import LogisticRegression
frame = pd.DataFrame({"a": [0.0, 1, 2, 3] * 4, "b": [1.0, 0, 1, 0] * 4})
model = LogisticRegression().fit(frame, [1, 1, 2, 2] * 4)
def bare():
    return model
def whole():
    return whence.LoadedModel("whole", model, table=whence.TableReader(frame))
""")
    with pytest.raises(whence.errors.LoadError, match=r"an estimator; return whence.LoadedModel\('bare', LogisticRegression"):
        whence.load_model(f"{tmp_path / 'nets.py'}:bare")
    loaded = whence.load_model(f"{tmp_path / 'nets.py'}:whole")
    assert loaded.class_names == ("1", "2")  # labels that are numbers: 2 is a name here, not an index
    assert (loaded.class_index("2"), loaded.target_class("2"), loaded.target_class(1)) == (1, "2", "2")
    assert loaded.kind == "table"
    assert loaded.feature_names is None
