"""Texts: one score a token, targets within sequences, generations, tokens in pictures, pages and the terminal."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import whence
from support.command_line import command
from support.small_language_model import Language
from whence import LRP, Logit, Span, errors

TESTS = Path(__file__).parents[1]


pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("method", [LRP(), "gradient_times_input", "sensitivity"], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_a_token_has_the_sum_over_its_vector(method, tied):
    model, ids = Language(tied), torch.tensor([[1, 4, 1, 9], [0, 0, 2, 3]])
    ours = whence.explain(model, ids, 7, method=method)
    assert ours.relevance.shape == ids.shape

    def rest(vectors):
        queries = F.scaled_dot_product_attention(model.q(vectors), model.k(vectors), model.v(vectors), is_causal=True)
        return F.linear(vectors + queries, model.head.weight)

    vectors = model.table.weight[ids].detach()
    theirs = whence.explain(rest, vectors, lambda y: y[:, -1, 7], method=method)
    torch.testing.assert_close(ours.relevance, theirs.relevance.sum(-1))
    torch.testing.assert_close(ours.output, theirs.output)
    if isinstance(method, LRP):
        assert ours.conservation.error.max() < 1e-10


def test_ids_are_followed_through_views_casts_and_merges():
    model, ids = Language(), torch.tensor([[1, 4, 1, 9], [0, 0, 2, 3]])
    expected = whence.explain(model, ids, 7).relevance
    turned = torch.tensor([3, 2, 1, 0])
    ways = [
        lambda i: i[:, turned][:, turned],
        lambda i: i[torch.tensor([1, 0])][torch.tensor([1, 0])],
        lambda i: i.index_select(1, turned).gather(1, turned.expand(2, 4)),
        lambda i: i.take_along_dim(turned.expand(2, 4), 1).flip(1),
        lambda i: torch.arange(11)[i],
        lambda i: F.pad(i, (0, 2))[:, :-2],
        lambda i: i.view(-1).view(i.shape),
        lambda i: i.int().long().clone(),
        lambda i: i.clamp(max=10),
        lambda i: torch.where(i > 50, 0, i),
        lambda i: torch.cat([i[:, :2], i[:, 2:]], 1),
        lambda i: torch.stack(i.unbind(1), 1),
        lambda i: i.flip(1).flip(1),
    ]
    for way in ways:
        torch.testing.assert_close(whence.explain(lambda i, way=way: model(way(i)), ids, 7).relevance, expected)
    by_index = Language()
    by_index.load_state_dict(model.state_dict())
    weight = by_index.table.weight
    for look_up in (
        lambda i: weight[i],
        lambda i: weight[i, :],
        lambda i: weight.index_select(0, i.flatten()).view(*i.shape, -1),
    ):
        by_index.table.forward = look_up
        torch.testing.assert_close(whence.explain(by_index, ids, 7).relevance, expected)


def test_ids_looked_up_twice_get_both_and_others_get_none():
    table, positions = nn.Embedding(11, 3), nn.Embedding(5, 3)

    def model(ids, mask, where):
        return ((table(ids) + 2 * table(ids)) * mask[..., None] + positions(where)).sum(1)

    ids, where = torch.tensor([[1, 4]]), torch.tensor([[0, 1]])
    e = whence.explain(model, (ids, torch.ones(1, 2, dtype=torch.long), where), 0)
    assert e.relevance[1] is None
    torch.testing.assert_close(e.relevance[0], 3 * table.weight[ids][..., 0].detach())
    torch.testing.assert_close(e.relevance[2], positions.weight[where][..., 0].detach())


def test_order_matters_where_ids_are_sorted():
    """A network that sorts its texts by length gives each its own scores."""
    table, lengths = nn.Embedding(11, 3), torch.tensor([2, 4, 3])

    def model(ids):
        order = lengths.argsort(descending=True)
        return table(ids[order])[order.argsort()].sum(1)

    ids = torch.randint(0, 11, (3, 4))
    torch.testing.assert_close(whence.explain(model, ids, 0).relevance, table.weight[ids][..., 0].detach())


def test_tables_of_any_rank_and_one_tensor_given_twice():
    ids = torch.tensor([[1, 4], [2, 2]])
    words, maps = torch.randn(11), torch.randn(11, 2, 3)
    torch.testing.assert_close(whence.explain(lambda i: words[i].sum(1, keepdim=True), ids, 0).relevance, words[ids])
    torch.testing.assert_close(whence.explain(lambda i: maps[i].sum((1, 2)), ids, 0).relevance, maps[ids][..., 0].sum(-1))
    e = whence.explain(lambda a, b: words[a].sum(1, keepdim=True) + 2 * words[b].sum(1, keepdim=True), (ids, ids), 0)
    torch.testing.assert_close(e.relevance, (words[ids], 2 * words[ids]))


def test_ids_of_another_batch_size_and_float_masks():
    table = nn.Embedding(11, 3)
    shared = torch.tensor([[1, 2, 3, 4]])
    e = whence.explain(lambda a, b: (table(a) + table(b)).sum(1), (torch.ones(2, 4).long(), shared), lambda out: out[:, 0])
    assert torch.allclose(e.relevance[1], 2 * table(shared)[..., 0])  # of both samples
    assert e.conservation.error.max() < 1e-5

    def pooled(input_ids, attention_mask):
        return (table(input_ids) * attention_mask[..., None]).sum(1)

    e = whence.explain(pooled, {"input_ids": torch.tensor([[1, 4]]), "attention_mask": torch.tensor([[1.0, 0.5]])})
    assert e.relevance["attention_mask"] is None


def test_what_was_looked_up_can_be_overwritten():
    table = nn.Embedding(11, 3)

    def model(ids):
        x = table(ids)
        x *= 2
        return x.sum(1)

    ids = torch.tensor([[1, 4]])
    torch.testing.assert_close(whence.explain(model, ids, 0).relevance, 2 * table.weight[ids][..., 0].detach())


def test_padding_changes_nothing():
    model, text = Language(), torch.tensor([[1, 4, 6]])
    alone = whence.explain(model, {"input_ids": text})
    left, right = torch.tensor([[0, 0, 1, 4, 6]]), torch.tensor([[1, 4, 6, 0, 0]])
    for ids, mask in ((left, [[0, 0, 1, 1, 1]]), (right, [[1, 1, 1, 0, 0]])):
        padded = whence.explain(model, {"input_ids": ids, "attention_mask": torch.tensor(mask)})
        assert padded.target.tolist() == alone.target.tolist()
        real = torch.tensor(mask).bool()
        torch.testing.assert_close(padded.relevance["input_ids"][real], alone.relevance["input_ids"][0])
        assert (padded.relevance["input_ids"][~real] == 0).all()


def test_targets_in_a_sequence():
    model, ids = Language(), torch.tensor([[1, 4, 1, 9], [5, 0, 2, 3]])
    with torch.no_grad():
        logits = model(ids)
    explain = lambda target: whence.explain(model, ids, target)  # noqa: E731
    assert torch.equal(explain(None).target, logits[:, -1].argmax(1))
    assert torch.equal(explain(3).output, logits[:, -1, 3])
    assert torch.equal(explain([3, 5]).output, logits[[0, 1], -1, [3, 5]])
    assert torch.equal(explain(Logit(3, position=1)).output, logits[:, 1, 3])
    assert torch.equal(explain(Logit(3, position=-3)).output, logits[:, 1, 3])
    assert (explain(Logit(3, position=1)).relevance[:, 2:] == 0).all()
    contrast = explain(Logit(3, rather_than=5))
    assert torch.equal(contrast.output, logits[:, -1, 3] - logits[:, -1, 5])
    torch.testing.assert_close(contrast.relevance, explain(3).relevance - explain(5).relevance)
    assert contrast.target_names() == ["3 rather than 5"] * 2
    assert contrast[1].target_names() == ["3 rather than 5"]
    span = explain(Span(2))
    torch.testing.assert_close(span.output, logits[[0, 1], 1, ids[:, 2]] + logits[[0, 1], 2, ids[:, 3]])
    single = [explain(Logit(ids[:, t], position=t - 1)).relevance for t in (2, 3)]
    torch.testing.assert_close(span.relevance, single[0] + single[1])


def test_a_span_reads_the_ids_and_not_the_mask():
    model, ids = Language(), torch.tensor([[1, 4, 1, 9], [5, 0, 2, 3]])
    plain = whence.explain(model, ids, Span(1))
    masked = whence.explain(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, Span(1))
    torch.testing.assert_close(masked.output, plain.output)
    with pytest.raises(errors.TargetError, match="targets must be a list of targets"):
        list(whence.explain_targets(model, ids, Logit(2)))
    with pytest.raises(errors.TargetError, match="position must be one int"):
        Logit(1, position=[1, 2])


def test_contrast_of_classes():
    model, x = nn.Linear(4, 3).eval(), torch.randn(2, 4)
    e = whence.explain(model, x, Logit(0, rather_than=[1, 2]))
    torch.testing.assert_close(e.relevance, x * (model.weight[0] - model.weight[[1, 2]]).detach())


@pytest.mark.parametrize(
    ("inputs", "target", "error", "message"),
    [
        (torch.tensor([[1, 11]]), None, errors.InputError, "is out of range for a vocabulary of size"),
        (torch.tensor([[1, -1]]), None, errors.InputError, "is out of range for a vocabulary of size"),
        (torch.zeros(1, 0, dtype=torch.long), None, errors.InputError, "is empty"),
        (torch.tensor([[1, 2]]), Logit(3, position=2), errors.TargetError, "position 2 is out of range for a text of 2 tokens"),
        (torch.tensor([[1, 2]]), Logit(3, position=-3), errors.TargetError, "position -3 is out of range for a text of "
            "2 tokens"),
        (torch.tensor([[1, 2]]), 11, errors.TargetError, "out of range"),
        (torch.tensor([[1, 2]]), Span(0), errors.TargetError, r"Span\(0, None\) is empty or out of range"),
        (torch.tensor([[1, 2]]), Span(1, 9), errors.TargetError, "for a sequence of 2 tokens"),
        ({"input_ids": torch.tensor([[1, 2], [3, 4]]), "attention_mask": torch.tensor([[1, 1], [0, 0]])}, None,
         errors.InputError, "attention_mask masks all tokens of a sample"),
        ({"input_ids": torch.tensor([[1, 2]]), "attention_mask": torch.tensor([[1, 0]])}, Logit(position=-2),
         errors.TargetError, "out of range for a text of 1 tokens"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)  # fmt: skip
def test_bad_input_is_one_clear_line(inputs, target, error, message):
    with pytest.raises(error, match=message) as caught:
        whence.explain(Language(), inputs, target)
    assert "\n" not in str(caught.value)


def test_integer_images_and_headless_models_say_what_to_do():
    with pytest.raises(errors.InputError, match="no integer input was looked up in an embedding table; pass i"):
        whence.explain(lambda x: x.float().flatten(1), torch.ones(1, 3, 4, 4, dtype=torch.long))
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    with pytest.raises(
        errors.TargetError,
        match=r"no logits but a .* of last_hidden_state: a tensor of shape \(1, 2, 8\); .* load it with a head",
    ):
        whence.explain(transformers.BertModel(config).eval(), {"input_ids": torch.tensor([[1, 2]])})
    with pytest.raises(errors.ModelError, match="float16"):
        whence.explain(Language().half(), torch.tensor([[1, 2]]))


def test_bfloat16_is_near_float64():
    model, ids = Language(), torch.tensor([[1, 4, 1, 9]])
    exact = whence.explain(model, ids, 3).relevance
    half = whence.explain(model.bfloat16(), ids, 3)
    assert half.relevance.dtype == torch.float32
    assert (half.relevance - exact).norm() < 0.1 * exact.norm()


def test_relevance_at_every_layer_by_a_pattern():
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    e = whence.explain(model.eval(), torch.randn(2, 4), layers=["*", "0.*"])
    assert set(e.layers) == {"0", "1", "2", "0.0", "0.1"}
    with pytest.raises(errors.SelectorError, match=r"no layer 'layers\.\*' in the model"):
        whence.explain(model, torch.randn(2, 4), layers="layers.*")


class Tupled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0][:, -1]


def test_relevance_at_a_layer_that_gives_several_is_that_of_its_first():
    e = whence.explain(Tupled().eval(), torch.randn(2, 5, 4), layers=["layer"])
    assert e.layers["layer"].shape == (2, 5, 3)
    torch.testing.assert_close(e.layers["layer"].sum((1, 2)), e.output)


def test_generation_explains_every_token_it_writes():
    model, ids = Language(), torch.tensor([[1, 4], [3, 3]])
    written = whence.explain_generation(model, ids, max_new_tokens=3)
    assert written.ids.shape == (2, 5)
    assert torch.equal(written.ids[:, :2], ids)
    assert written.relevance.shape == (3, 2, 4)
    for i, t in enumerate(range(2, 5)):
        alone = whence.explain(model, written.ids[:, :t])
        assert torch.equal(alone.target, written.ids[:, t])
        torch.testing.assert_close(written[i].relevance[:, :t], alone.relevance)
        assert (written[i].relevance[:, t:] == 0).all()
    again = whence.explain_generation(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)},
                                      continuation=written.ids[:, 2:])  # fmt: skip
    torch.testing.assert_close(again.relevance, written.relevance)
    with pytest.raises(errors.InputError, match="pad them on the left"):
        whence.explain_generation(model, {"input_ids": ids, "attention_mask": torch.tensor([[1, 1], [1, 0]])})
    for continuation in (torch.tensor([1]), torch.tensor([[1]]), torch.tensor([[1.0], [2.0]])):
        with pytest.raises(errors.InputError, match=r"the continuation must be integer token ids \[2, n\]"):
            whence.explain_generation(model, ids, continuation=continuation)
    with pytest.raises(errors.WhenceError, match=r"cannot save as 'grid.npz': the suffix must be one of .png"):
        written.save("grid.npz")
    with pytest.raises(errors.InputError, match="max_new_tokens=0; expected an int of at least 1"):
        whence.explain_generation(model, ids, max_new_tokens=0)
    with pytest.raises(errors.TargetError, match="no token was generated"):
        whence.explain_generation(model, ids, continuation=ids[:, :0])


@pytest.fixture(scope="module")
def stories(data, tmp_path_factory):
    pytest.importorskip("transformers")
    from support import story_model as stories

    folder = tmp_path_factory.mktemp("stories")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    model, tokenizer = stories.story_model(data), stories.story_tokenizer(data)
    stories.save_story_model(data, folder)
    torch.set_default_dtype(before)
    return model, tokenizer, folder


def test_the_story_goes_on_and_is_explained(stories):
    model, tokenizer, _ = stories
    written = whence.explain_generation(model, torch.tensor([[1]]), max_new_tokens=15).with_tokens(tokenizer)
    assert tokenizer.decode(written.ids[0, 1:]).strip() == "Once upon a time, there was a little girl named Lily."
    assert all(e.conservation.error.max() < 1e-4 for e in written)
    named = written.explanations[12]
    assert named.target_names() == ["named"]
    scores = dict(zip(named.tokens_of(0), named.relevance[0].tolist(), strict=True))
    assert max(scores, key=scores.get) == "l"  # of "girl": what came just before


def test_her_comes_from_lily_and_his_from_tim(stories):
    model, tokenizer, _ = stories
    text = tokenizer("Lily went to the park. Tim went to the park. Lily saw", return_tensors="pt")
    inputs = {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}
    her, his = (tokenizer.convert_tokens_to_ids(f"▁{word}") for word in ("her", "his"))
    e = whence.explain(model, inputs, Logit(her, rather_than=his)).with_tokens(tokenizer)
    assert e.target_names() == ["her rather than his"]
    scores = list(zip(e.tokens_of(0), e.relevance["input_ids"][0].tolist(), strict=True))
    strongest = sorted(scores, key=lambda pair: -abs(pair[1]))[:3]
    assert {word for word, _ in strongest} == {" Lily", " Tim"}
    assert all((score > 0) == (word == " Lily") for word, score in strongest)


def test_pictures_and_pages_of_texts(stories, tmp_path):
    from PIL import Image

    model, tokenizer, _ = stories
    ids = tokenizer("Once upon a time, there was a little girl <b>named", return_tensors="pt")["input_ids"]
    e = whence.explain(model, ids)
    without = np.asarray(Image.open(e.save(tmp_path / "ids.png")))
    e = e.with_tokens(tokenizer)
    with_tokens = np.asarray(Image.open(e.save(tmp_path / "tokens.png")).convert("RGB"))
    assert without.std() > 0
    assert (with_tokens[..., 0].astype(int) - with_tokens[..., 2] > 100).any()  # something is red
    page = e.save(tmp_path / "e.html").read_text()
    assert " upon</span>" in page
    assert "<b>" not in page.split('class="text"')[1].split("</p>")[0].replace("<b> ", "").split("<br>", 1)[1]
    assert "base64" not in page
    assert set(np.load(e.save(tmp_path / "e.npz"))) >= {"relevance", "inputs", "output", "target", "absorbed"}
    whence.explain_generation(model, ids, max_new_tokens=3).with_tokens(tokenizer).save(tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.size[0] > 300


def test_the_command_line_reads_texts(stories, tmp_path):
    _, _, folder = stories
    model = ("--model", f"hf:{folder}")
    text = "Once upon a time, there was a little girl named"
    done = command("explain", text, *model, "--out", "why.html", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert text in done.stdout
    assert "Lily" in done.stdout
    assert (tmp_path / "why.html").is_file()
    done = command("explain", text, *model, "--target", "Lily", "--rather-than", "Tim", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["target"][0]["name"] == "Lily rather than Tim"
    assert report["tokens"][1:3] == [" Once", " upon"]
    assert abs(sum(report["scores"]) - report["relevance"][0]) < 1e-3
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((" ",), "the text is empty"),
        ((), "nothing to explain: pass a text"),
        (("Hi", "--position", "9"), "position 9 is out of range for a text of 3 tokens"),
        (("Hi", "--target", "elephant"), "is not a single token but"),
        (("Hi", "--rules", "epsilon_gamma_box"), "needs pixel bounds"),
    ],
)
def test_the_command_line_refuses_in_one_line(stories, tmp_path, args, message):
    done = command("explain", *args, "--model", f"hf:{stories[2]}", cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_classifier_and_a_vision_transformer_by_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    from PIL import Image
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.set_default_dtype(torch.float32)
    words = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad", "film"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", pad_token="[PAD]")
    config = transformers.BertConfig(
        vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    done = command("explain", "good film", "--model", "hf:bert", "--target", "positive", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["target"] == [{"index": 1, "name": "POSITIVE"}]
    done = command("explain", "good film", "--model", "hf:bert", "--target", "neutral", cwd=tmp_path)
    assert "hf:bert has no class 'neutral'" in done.stderr

    vision = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32, patch_size=8
    )
    transformers.ViTForImageClassification(vision).save_pretrained(tmp_path / "vit")
    settings = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True,
                "image_processor_type": "ViTImageProcessor"}  # fmt: skip
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(settings))
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    done = command("explain", "photo.png", "--model", "hf:vit", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    transformers.BertModel(config).save_pretrained(tmp_path / "headless")
    done = command("explain", "good film", "--model", "hf:headless", cwd=tmp_path)
    assert "is a BertModel; supported are" in done.stderr
