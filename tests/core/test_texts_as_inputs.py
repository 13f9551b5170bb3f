"""Texts, chat messages, pipelines and names of classes and tokens as inputs and targets."""

import copy

import pytest
import torch
from torch import nn

import whence
from support.small_language_model import Language
from whence import errors

transformers = pytest.importorskip("transformers")
WORDS = "[PAD] [UNK] the cat dog sat on mat not bad good".split()  # noqa: SIM905


def word_tokenizer(**special):
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", **special)


@pytest.fixture
def tokenizer():
    return word_tokenizer(pad_token="[PAD]")


@pytest.fixture
def classifier():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=len(WORDS), id2label={0: "NEGATIVE", 1: "POSITIVE"}, **sizes)
    return transformers.BertForSequenceClassification(config).eval()


def ids(text):
    return torch.tensor([[WORDS.index(word) for word in text.split()]])


def test_a_text_is_the_text_encoded(tokenizer):
    model, text = Language(), "the cat sat"
    e = whence.explain(model, text, "mat", tokenizer=tokenizer)
    expected = whence.explain(model, ids(text), WORDS.index("mat"))
    assert torch.equal(e.relevance["input_ids"], expected.relevance)
    assert e.tokens == {"input_ids": [["the", " cat", " sat"]]}
    assert e.target_names() == ["mat"]
    rather = whence.explain(model, text, whence.Logit("mat", rather_than="dog"), tokenizer=tokenizer)
    index = whence.Logit(WORDS.index("mat"), rather_than=WORDS.index("dog"))
    assert torch.equal(rather.relevance["input_ids"], whence.explain(model, ids(text), index).relevance)
    assert rather.target_names() == ["mat rather than dog"]


def test_texts_of_several_lengths_are_each_as_alone(tokenizer):
    model, texts = Language(), ["the cat sat", "not bad", "the dog sat on the mat"]
    several = whence.explain(model, texts, ["mat", 4, "good"], tokenizer=tokenizer)
    for i, (text, target) in enumerate(zip(texts, ["mat", "dog", "good"], strict=True)):
        alone = whence.explain(model, text, target, tokenizer=tokenizer)
        count = len(text.split())
        found = several.relevance["input_ids"][i]
        torch.testing.assert_close(found[:count], alone.relevance["input_ids"][0], rtol=1e-4, atol=1e-6)
        assert not found[count:].any()


def test_explainers_targets_and_generations_read_texts(tokenizer):
    model = Language()
    explainer = whence.Explainer(model, tokenizer=tokenizer)
    expected = whence.explain(model, "the cat", "sat", tokenizer=tokenizer).relevance["input_ids"]
    assert torch.equal(explainer("the cat", "sat").relevance["input_ids"], expected)
    assert torch.equal(explainer.targets("the cat", ["sat", "on"])[0].relevance["input_ids"], expected)
    (first, second) = whence.explain_targets(model, "the cat", ["sat", "on"], tokenizer=tokenizer)
    assert torch.equal(first.relevance["input_ids"], expected)
    assert second.target_names() == ["on"]
    written = whence.explain_generation(model, ["the cat", "the dog sat on"], max_new_tokens=2, tokenizer=tokenizer)
    assert written.explanations[0].tokens["input_ids"][0][:2] == ["[PAD]", "[PAD]"], "padded on the left"
    one = whence.explain_generation(model, "the cat", max_new_tokens=2, tokenizer=tokenizer)
    assert torch.equal(one.ids[0], written.ids[0, 2:])


def test_classes_by_name(classifier, tokenizer):
    for name in ("POSITIVE", "positive"):
        e = whence.explain(classifier, "not bad", name, tokenizer=tokenizer)
        assert e.target_names() == ["POSITIVE"]
        assert int(e.target[0]) == 1
    pictures = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    named = whence.explain(pictures, torch.rand(2, 3, 2, 2), ["bee", "ant"], class_names=["ant", "bee", "cat"])
    assert named.target.tolist() == [1, 0]


def test_pipelines(classifier, tokenizer):
    pipeline = transformers.pipeline("text-classification", model=classifier, tokenizer=tokenizer)
    e = whence.explain(pipeline, "not bad", "NEGATIVE")
    expected = whence.explain(classifier, "not bad", 0, tokenizer=tokenizer)
    assert torch.equal(e.relevance["input_ids"], expected.relevance["input_ids"])
    assert e.tokens["input_ids"] == [["not", " bad"]]
    assert whence.Explainer(pipeline).model is pipeline.model


def test_loaded_models():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    loaded = whence.LoadedModel("mine", net, whence.Preprocessing((2, 2)), ["ape", "bee"])
    x = torch.rand(1, 3, 2, 2)
    e = whence.explain(loaded, x, "bee")
    assert torch.equal(e.relevance, whence.explain(net, x, 1).relevance)
    assert e.target_names() == ["bee"]


def test_chat_messages(tokenizer):
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}on{% endif %}"
    messages = [{"role": "system", "content": "the cat"}, {"role": "user", "content": "sat"}]
    e = whence.explain(Language(), messages, tokenizer=chat)
    assert e.tokens["input_ids"] == [["the", " cat", " sat", " on"]]


def test_an_encoder_decoder_starts_its_decoder(tokenizer):
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(vocab_size=len(WORDS), **sizes)).eval()
    e = whence.explain(model, "the cat sat", "mat", tokenizer=tokenizer)
    assert e.relevance["decoder_input_ids"].shape == (1, 1)
    assert e.relevance["input_ids"].shape == (1, 3)


def test_token_names_are_exact_where_they_are_no_words():
    from tokenizers import Tokenizer, models, pre_tokenizers

    from whence.core.texts import TextModel

    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(letters | {"Ġa": 256, "Ġ.": 257}, [("Ġ", "a"), ("Ġ", ".")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model = TextModel(None, transformers.PreTrainedTokenizerFast(tokenizer_object=made))
    assert model.target("a") == 256, "a word, with the space in front of it"
    assert model.target(".") == letters["."]
    assert model.target("\n") == letters["Ċ"]
    assert model.target(whence.Logit(["a", 3])) == whence.Logit([256, 3])


def test_padding_that_the_model_would_read_is_refused(tokenizer):
    class Unmasked(Language):
        def forward(self, input_ids):
            return super().forward(input_ids)

    whence.explain(Unmasked(), ["the cat", "the dog"], tokenizer=tokenizer)
    with pytest.raises(errors.InputError, match="takes no attention_mask"):
        whence.explain(Unmasked(), ["the", "the dog"], tokenizer=tokenizer)


BAD = {
    "no tokenizer": ({"inputs": "the cat"}, "the input is a text; pass the tokenizer of the model"),
    "empty": ({"inputs": " ", "tokenizer": word_tokenizer}, "the text is empty"),
    "an empty one": ({"inputs": ["the", ""], "tokenizer": word_tokenizer}, "text 1 is empty"),
    "no padding": ({"inputs": ["the", "the cat"], "tokenizer": word_tokenizer}, "set tokenizer.pad_token"),
    "no template": ({"inputs": [{"role": "user", "content": "a"}], "tokenizer": word_tokenizer}, "no chat template"),
    "two tokens": ({"inputs": "the cat", "target": "cat dog", "tokenizer": word_tokenizer}, "is not a single token but 2"),
    "name without names": ({"inputs": torch.tensor([[2, 3]]), "target": "cat"}, "pass class_names=, tokenizer="),
    "not in the vocabulary": ({"inputs": "the cat", "target": "zebra", "tokenizer": word_tokenizer}, "not in the vocabulary"),
    "two of a name": (
        {"inputs": torch.tensor([[2, 3]]), "target": "CAT", "class_names": ["cat", "Cat"]},
        "2 classes are named",
    ),
    "names as keys": (
        {"inputs": torch.tensor([[2]]), "target": "dog", "class_names": {"cat": "dog"}},
        "expected a list of names",
    ),
    "no such class": ({"inputs": torch.tensor([[2, 3]]), "target": "act", "class_names": ["cat", "dog"]}, "no class 'act'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    given, message = BAD[name]
    made = {key: value() if value is word_tokenizer else value for key, value in given.items()}
    with pytest.raises((errors.InputError, errors.TargetError), match=message):
        whence.explain(Language(), made.pop("inputs"), **made)


def test_a_tokenizer_of_another_model(classifier):
    big = word_tokenizer(additional_special_tokens=["<extra>"])
    with pytest.raises(errors.InputError, match="pass the tokenizer of this model"):
        whence.explain(classifier, "the <extra>", tokenizer=big)


def test_tokens_are_the_parts_of_the_text_that_was_given():
    """Where decoding changes it: WordPiece puts spaces around punctuation, and lowers letters."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = "[PAD] [UNK] [CLS] [SEP] don ' t pay 3 . 5 it was good ##ness !".split()  # noqa: SIM905
    pieces = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    pieces.normalizer, pieces.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    pieces.decoder = decoders.WordPiece()
    pieces.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=len(words), **sizes)).eval()
    texts = ["Don't pay 3.5! It was goodness.", "It was good."]
    e = whence.explain(model, texts, 0, tokenizer=tokenizer)
    assert "".join(e.tokens["input_ids"][0][1:-1]) == texts[0]
    assert [group.name for group in e.aggregate("word").groups[0]][:4] == ["Don't", "pay", "3.5", "!"]
    assert [group.name for group in e.aggregate("sentence").groups[0]][:2] == ["Don't pay 3.5!", "It was goodness."]
    assert [group.name for group in e.aggregate("sentence").groups[1]][:1] == ["It was good."]
    explainer = whence.Explainer(model, tokenizer=tokenizer)
    assert "".join(explainer(texts[1], 0).tokens["input_ids"][0][1:-1]) == texts[1]
