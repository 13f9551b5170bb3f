"""Relevance of words, sentences and other passages: sums over tokens that conserve."""

import pytest
import torch
from torch import nn

import whence
from support.small_language_model import Language
from whence import errors

PIECES = ["The", " cat", " sat", ".", " It", " was", " un", "afr", "aid", "!"]
FACE = "\N{GRINNING FACE}"


@pytest.fixture
def explanation():
    return whence.explain(Language(), torch.arange(10)[None], 3).with_tokens(PIECES)


def test_words_sum_their_pieces(explanation):
    found, tokens = explanation.aggregate(), explanation.relevance[0]
    assert [g.name for g in found.groups[0]] == ["The", "cat", "sat", ".", "It", "was", "unafraid", "!"]
    torch.testing.assert_close(found.scores[0][6], tokens[6:9].sum())
    torch.testing.assert_close(found.scores[0].sum(), tokens.sum())
    assert explanation.aggregate("word").ranking()[0][1] == pytest.approx(float(found.scores[0].max()))


@pytest.mark.parametrize(
    ("by", "names", "sizes"),
    [
        ("sentence", ["The cat sat.", "It was unafraid!"], [4, 6]),
        ("paragraph", ["The cat sat. It was unafraid!"], [10]),
        (["cat  sat", "unafraid"], ["cat  sat", "unafraid", "(other tokens)"], [2, 3, 5]),
        ({"a": (0, 4), "b": (-2, None)}, ["a", "b", "(other tokens)"], [4, 2, 4]),
    ],
)
def test_passages(explanation, by, names, sizes):
    found = explanation.aggregate(by)
    assert [row["passage"] for row in found.table] == names
    assert [row["tokens"] for row in found.table] == sizes
    torch.testing.assert_close(found.scores[0].sum(), explanation.relevance[0].sum())


def test_batches_and_files(tmp_path):
    e = whence.explain(Language(), torch.randint(0, 10, (2, 3))).with_tokens([["a", " b.", " c"], ["d", "e", " f"]])
    found = e.aggregate("sentence")
    assert [[g.name for g in groups] for groups in found.groups] == [["a b.", "c"], ["de f"]]
    assert len(found) == len(found.to_frame()["sample"].unique()) == 2
    assert found.save(tmp_path / "words.png").stat().st_size > 1000
    assert "de f" in found.save(tmp_path / "words.csv").read_text()
    assert "de f" in repr(found)


def test_special_tokens_and_padding_are_no_text():
    ids = {"input_ids": torch.tensor([[0, 2, 3, 1, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]])}
    e = whence.explain(Language(), ids, 3).with_tokens(["<s>", " Not", " bad!", "[SEP]", "<pad>", "<pad>"])
    for by, names in {"sentence": ["Not bad!"], "word": ["Not", "bad"]}.items():
        found = [row for row in e.aggregate(by).table if row["passage"] != "(other tokens)"]
        assert [row["passage"] for row in found] == names
        torch.testing.assert_close(e.aggregate(by).scores[0].sum(), e.relevance["input_ids"].sum())


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("line", "choose 'word', 'sentence', 'paragraph'"),
        ({"a": (0, 4), "b": (3, 5)}, "the passages overlap"),
        ({"a": (4, 4)}, "empty or out of range of 10 tokens"),
        ({"a": (0, 11)}, "empty or out of range of 10 tokens"),
        ({"a": 3}, r"expected \(start, stop\)"),
        (["sat", "cat"], "'cat' does not stand in the text as whole words"),
        (3, "by=3; expected"),
    ],
)
def test_bad_passages(explanation, by, message):
    with pytest.raises(errors.InputError, match=message):
        explanation.aggregate(by)


def test_inputs_without_text():
    with pytest.raises(errors.InputError, match="the tokens have no text"):
        whence.explain(Language(), torch.arange(4)[None], 3).aggregate()
    with pytest.raises(errors.InputError, match="no token ids"):
        whence.explain(nn.Linear(3, 2).eval(), torch.rand(1, 3)).aggregate()


class BagOfWords(nn.Module):
    """The sum of a weight of each token, and of each pair of neighbours."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Embedding(20, 1)

    def forward(self, input_ids):
        values = self.weight(input_ids)
        return (values.sum(1) + 0.1 * (values[:, 1:] * values[:, :-1]).sum(1)).expand(-1, 2)


def words_tokenizer():
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate("[PAD] [MASK] the cat sat . a dog ran away ! <s>".split())}  # noqa: SIM905
    made = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", mask_token="[MASK]", bos_token="<s>")


TEXT = "<s> the cat sat . a dog ran away !"


@pytest.mark.parametrize("kind", [whence.FeatureAblation, whence.Shapley])
def test_sentences_are_the_features_of_methods_that_remove_them(kind):
    torch.manual_seed(0)
    model, tokenizer = BagOfWords().eval(), words_tokenizer()
    ids = tokenizer(TEXT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    mask = whence.token_passages(ids, tokenizer)
    assert mask.tolist() == [[2, 0, 0, 0, 0, 1, 1, 1, 1, 1]]
    method = kind(feature_mask=mask, baselines=tokenizer.mask_token_id)
    e = whence.explain(model, {"input_ids": ids}, 0, method=method, tokenizer=tokenizer, progress=False)
    found = e.aggregate("sentence")
    assert [name for name, _ in sorted(found.ranking())][1:] == ["a dog ran away !", "the cat sat ."]
    ablated = [torch.where(mask == number, tokenizer.mask_token_id, ids) for number in range(3)]
    with torch.no_grad():
        drops = [float((model(ids) - model(one))[0, 0]) for one in ablated]
        whole = float((model(ids) - model(torch.full_like(ids, tokenizer.mask_token_id)))[0, 0])
    if kind is whence.FeatureAblation:
        torch.testing.assert_close(found.scores[0], torch.tensor(drops))
    else:
        assert float(found.scores[0].sum()) == pytest.approx(whole, rel=1e-4)
    torch.testing.assert_close(e.aggregate({"all": (0, 10)}).scores[0], found.scores[0].sum()[None])


def test_unknown_and_masked_words_belong_to_their_sentence():
    tokenizer = words_tokenizer()
    tokenizer.add_special_tokens({"unk_token": "[UNK]"})
    ids = torch.tensor([[11, 2, tokenizer.unk_token_id, 4, 5, 6, 1, 8, 10]])
    assert whence.token_passages(ids, tokenizer).tolist() == [[2, 0, 0, 0, 0, 1, 1, 1, 1]]


def test_a_page_of_passages(tmp_path):
    e = whence.explain(Language(), torch.arange(10)[None], 3).with_tokens(PIECES)
    page = e.aggregate("sentence").save(tmp_path / "passages.html").read_text()
    assert page.index("The cat sat.") < page.index("It was unafraid!")
    assert page.count("<span style") == 2 * 2


def test_features_that_are_not_known_are_refused(tmp_path):
    torch.manual_seed(0)
    model, tokenizer = BagOfWords().eval(), words_tokenizer()
    ids = tokenizer([TEXT, TEXT], return_tensors="pt", add_special_tokens=False)["input_ids"]
    method = whence.FeatureAblation(feature_mask=whence.token_passages(ids, tokenizer, "word"), baselines=1)
    e = whence.explain(model, {"input_ids": ids}, 0, method=method, tokenizer=tokenizer, progress=False)
    assert len(e.aggregate("sentence").scores) == 2
    with pytest.raises(errors.InputError, match="whole batch, before saving"):
        e[:1].aggregate("sentence")
    with pytest.raises(errors.InputError, match="whole batch, before saving"):
        whence.load(e.save(tmp_path / "e.safetensors")).aggregate("sentence")


def test_sentences_are_the_regions_of_an_evaluation():
    torch.manual_seed(0)
    model, tokenizer = BagOfWords().eval(), words_tokenizer()
    ids = tokenizer(
        [TEXT, "the dog sat . the cat ran ! a cat sat ."], return_tensors="pt", padding=True, add_special_tokens=False
    )
    data = ({"input_ids": ids["input_ids"]}, torch.tensor([0, 1]))
    seen = []

    def sentences(x):
        seen.append(whence.token_passages(x, tokenizer))
        return seen[-1]

    found = whence.evaluate(model, data, ["gradient_times_input"], ["mif"], regions=sentences, imputer=1, progress=False)
    assert seen[0].max() == 3
    assert all(torch.tensor(row["mean"]).isfinite() for row in found.table)


@pytest.mark.parametrize(
    ("ids", "by", "message"),
    [
        (torch.rand(1, 3), "word", "token ids"),
        (torch.tensor([1, 2]), "word", "token ids"),
        (torch.tensor([[2, 3]]), "line", "by='line'"),
    ],
)
def test_passages_of_what_is_no_text(ids, by, message):
    with pytest.raises(errors.InputError, match=message):
        whence.token_passages(ids, words_tokenizer(), by)


def test_parts_of_a_character_are_drawn_with_it():
    from whence.plotting.token_text import merge_runs

    words, sums = merge_runs(["a", "", "", FACE, " b", ""], torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    assert words == ["a", FACE, " b", ""]
    assert sums.tolist() == [1, 9, 5, 6]


def test_tokens_read_as_in_the_text():
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from whence.core.tokens import text_strings

    vocabulary = {word: i for i, word in enumerate("[UNK] [CLS] un ##aff ##able cat ##s !".split())}  # noqa: SIM905
    pieces = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    pieces.pre_tokenizer, pieces.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    word_piece = transformers.PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]", cls_token="[CLS]")
    assert text_strings(word_piece, [1, 2, 3, 4, 5, 6, 7]) == ["[CLS]", "un", "aff", "able", " cat", "s", "!"]
    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    bytewise = Tokenizer(models.BPE(letters, []))
    bytewise.pre_tokenizer, bytewise.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    by_bytes = transformers.PreTrainedTokenizerFast(tokenizer_object=bytewise)
    text = f"né {FACE} a"
    found = text_strings(by_bytes, by_bytes(text)["input_ids"])
    assert "".join(found) == text
    assert found[-3:] == [FACE, " ", "a"]
