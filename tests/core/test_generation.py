"""Texts: one score a token, targets within sequences, generations, tokens in pictures, pages and the terminal."""

import pytest
import torch

import whence
from support.small_language_model import Language
from whence import errors

pytestmark = pytest.mark.usefixtures("float64")


def test_an_encoder_decoder_writes_and_is_explained(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=60, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0, eos_token_id=59
    )
    model, ids = transformers.T5ForConditionalGeneration(config).eval(), torch.randint(2, 58, (2, 6))
    written = whence.explain_generation(model, ids, max_new_tokens=4)
    with torch.no_grad():
        expected = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(written.ids, expected)
    assert written.relevance.shape == (4, 2, 6 + 4)
    for t, e in enumerate(written):
        assert e.conservation.error.max() < 1e-3
        assert not e.relevance["decoder_input_ids"][:, t + 1 :].any()
        assert e.relevance["input_ids"].any()
    given = {"input_ids": ids, "decoder_input_ids": written.ids[:, :2]}
    rest = whence.explain_generation(model, given, continuation=written.ids[:, 2:])
    torch.testing.assert_close(rest.relevance[0, :, :8], written.relevance[1, :, :8], rtol=1e-3, atol=1e-6)
    assert written.save(tmp_path / "written.png").stat().st_size > 1000


def test_speech_is_written_down_and_explained():
    transformers = pytest.importorskip("transformers")
    small = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    config = transformers.WhisperConfig(
        **small, vocab_size=60, d_model=32, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=10,
        max_target_positions=20, decoder_start_token_id=1, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.WhisperForConditionalGeneration(config).eval()
    written = whence.explain_generation(model, {"input_features": torch.randn(1, 8, 20)}, max_new_tokens=3)
    assert written.relevance.shape == (3, 1, 3)
    assert written[0].relevance["input_features"].shape == (1, 8, 20)
    assert written[0].conservation.error.max() < 1e-3


@pytest.mark.parametrize("method", ["lrp", "gradient_times_input"])
def test_a_cache_is_left_as_it_was(method):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=99
    )
    model, ids, cache = transformers.LlamaForCausalLM(config).eval(), torch.randint(1, 98, (1, 8)), transformers.DynamicCache()
    with torch.no_grad():
        model(input_ids=ids[:, :5], past_key_values=cache)
    first, second = (
        whence.explain(model, {"input_ids": ids[:, 5:], "past_key_values": cache}, method=method) for _ in range(2)
    )
    assert torch.equal(first.relevance["input_ids"], second.relevance["input_ids"])
    assert cache.get_seq_length() == 5
    assert not cache.layers[0].keys.requires_grad
    assert torch.allclose(first.output, model(input_ids=ids).logits[0, -1].max())


@pytest.mark.filterwarnings("ignore")
def test_flex_attention_is_refused_with_the_remedy():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=99
    )
    model = transformers.LlamaForCausalLM(config).eval()
    model.set_attn_implementation("flex_attention")
    with pytest.raises(errors.ModelError, match="attn_implementation='sdpa'"):
        whence.explain(model, torch.randint(1, 98, (1, 8)))


@pytest.mark.parametrize("chunk_size", [2, 16])
def test_relevance_of_a_state_space_does_not_depend_on_how_it_is_chunked(chunk_size):
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1, "num_hidden_layers": 2}
    ids = torch.randint(1, 49, (1, 11))
    chunked, plain = (
        transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**small, vocab_size=50, chunk_size=size)).eval()
        for size in (chunk_size, 4)
    )
    chunked.load_state_dict(plain.state_dict())
    a, b = whence.explain(chunked, ids, 5), whence.explain(plain, ids, 5)
    torch.testing.assert_close(a.output, b.output)
    torch.testing.assert_close(a.relevance, b.relevance, rtol=1e-3, atol=1e-7)
    assert a.conservation.error.max() < 1e-3


def test_the_page_of_a_generation_has_its_words_and_relevance(tmp_path):
    import json
    import re

    from support.small_language_model import Language

    def letters(ids):
        return [" abcdefghijk"[i + 1] for i in ids]

    written = whence.explain_generation(
        Language().double(), torch.tensor([[1, 2, 3], [4, 5, 6]]), max_new_tokens=3, tokenizer=letters
    )
    assert written.words == tuple(letters(row) for row in written.ids.tolist())
    page = written.save(tmp_path / "why.html").read_text()
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>', page).group(1))
    for sample in range(2):
        assert page.count('<span role="button"') == 6
        found = torch.tensor(data["texts"][sample]["relevance"])
        torch.testing.assert_close(found, written.relevance[:, sample].to(found), rtol=1e-3, atol=1e-6)
        assert len(data["texts"][sample]["notes"]) == 3
    assert (
        whence.explain_generation(Language().double(), torch.tensor([[1, 2]]), max_new_tokens=1)
        .save(tmp_path / "ids.html")
        .exists()
    )


PIECES = ["The", " cat", " sat", ".", " It", " was", " un", "afr", "aid", "!", " So"]


def pieces(ids):
    return [PIECES[i] for i in ids]


@pytest.mark.parametrize("batch", [1, 2])
def test_passages_of_the_generated_text_rest_on_those_before(batch):
    ids = torch.tensor([[0, 1, 2, 3, 4], [4, 5, 2, 3, 0]])[:batch]
    continuation = torch.tensor([[5, 6, 7, 8, 3, 10, 1, 9], [5, 3, 0, 1, 2, 9, 10, 4]])[:batch]
    written = whence.explain_generation(Language(), ids, continuation=continuation, tokenizer=pieces)
    found = written.aggregate("sentence")
    assert list(found.targets)[:2] == ["was unafraid.", "So cat!"]
    assert [group.name for group in found.groups[1]] == ["The cat sat.", "It", "was unafraid.", "So cat!"]
    rows = written.relevance[:, 0].float()
    torch.testing.assert_close(found.scores[0].sum(), rows[:5].sum())
    torch.testing.assert_close(
        found.scores[1], torch.stack([rows[5:, a:b].sum() for a, b in ((0, 4), (4, 5), (5, 10), (10, 12))])
    )
    named = written.aggregate({"start": (0, 2)})
    assert [group.name for group in named.groups[0]] == ["start", "was unafraid.", "(other tokens)"]
    assert len(found.to_frame()) == sum(map(len, found.groups))
    with pytest.raises(errors.InputError, match="with_tokens"):
        whence.explain_generation(Language(), ids, continuation=continuation).aggregate()


def test_an_encoder_decoder_rests_on_the_passages_of_both():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(
        vocab_size=11, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=3, eos_token_id=9
    )
    model, ids = transformers.T5ForConditionalGeneration(config).eval(), torch.tensor([[0, 1, 2, 3, 4, 5, 9]])
    written = whence.explain_generation(model, ids, continuation=torch.tensor([[0, 1, 3, 4]]), tokenizer=pieces)
    found = written.aggregate("sentence")
    assert list(found.targets) == ["The cat.", "It"]
    assert [group.name for group in found.groups[0]][:2] == ["The cat sat.", "It was!."]
    torch.testing.assert_close(found.scores[0].sum(), written.relevance[:3].sum().float())


def test_a_contrast_explains_the_difference_to_the_likeliest_other_token():
    model, ids = Language(), torch.tensor([[0, 1, 2], [3, 4, 5]])
    written = whence.explain_generation(model, ids, max_new_tokens=3, contrast=True)
    with torch.no_grad():
        logits = model(written.ids)
    for step, e in enumerate(written):
        best = logits[:, ids.shape[1] - 1 + step].topk(2).values
        torch.testing.assert_close(e.output, best[:, 0] - best[:, 1])
        assert e.conservation.error.max() < 1e-6
    sampled = whence.explain_generation(model, ids, continuation=torch.tensor([[7], [7]]), contrast=True)
    assert (sampled[0].target.rather_than == logits[:, 2].scatter(1, torch.full((2, 1), 7), -9e9).argmax(1)).all()


def test_the_progress_of_a_generation_is_counted_in_tokens():
    seen = []
    whence.explain_generation(
        Language(), torch.tensor([[0, 1]]), max_new_tokens=4, progress=lambda done, total: seen.append((done, total))
    )
    assert seen[-1] == (4, 4)


@pytest.mark.parametrize("count", [5, 120])
def test_long_generations_are_drawn_by_sentence(count, tmp_path):
    generator = torch.Generator().manual_seed(0)
    continuation = torch.randint(0, 11, (1, count), generator=generator)
    written = whence.explain_generation(Language(), torch.tensor([[0, 1, 2, 3]]), continuation=continuation, tokenizer=pieces)
    figure = written.figure()
    rows = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(rows) == (5 if count == 5 else len(written.aggregate("sentence")))
    assert max(figure.get_size_inches()) < 16
    written.save(tmp_path / "written.png")


WORDS = ["Then", " she", " saw", " a", " big", " hen", ".", " was", "<s>", " cat", " dog"]


def words(ids):
    return [WORDS[i] for i in ids]


def test_a_passage_is_found_as_whole_words():
    written = whence.explain_generation(
        Language(), torch.tensor([[8]]), continuation=torch.tensor([[0, 1, 2, 3, 4, 5, 6]]), tokenizer=words
    )
    assert written.passage("hen").target == whence.Span(6, 7)
    for text, reason in (("he", "as whole words"), ("ad. The", "as whole words"), ("cat", "as whole words")):
        with pytest.raises(errors.InputError, match=reason):
            written.passage(text)
    with pytest.raises(errors.InputError, match="as whole words"):
        written.aggregate(["he"])
    with pytest.raises(errors.InputError, match="sample=5 is out of range"):
        written.passage("hen", 5)
    assert repr(written).splitlines() == ["Generation of 7 tokens, 1 texts", "  '<s>' → 'Then she saw a big hen.'"]


def test_a_passage_of_a_contrast_is_that_contrast():
    model, ids = Language(), torch.tensor([[8, 0]])
    written = whence.explain_generation(model, ids, continuation=torch.tensor([[1, 2, 5, 6]]), tokenizer=words, contrast=True)
    found = written.passage("she saw")
    with torch.no_grad():
        logits = model(written.ids)
    torch.testing.assert_close(found.target(logits), found.output)
    torch.testing.assert_close(found.output, written[0].output + written[1].output)
    assert found.target_names() == ["tokens 2 to 4 rather than the likeliest others"]
    again = whence.explain(model, written[0].inputs, found.target)
    torch.testing.assert_close(again.relevance, found.relevance)


def test_all_relevance_of_the_new_tokens_is_aggregated():
    """That of line breaks and special tokens too."""
    written = whence.explain_generation(
        Language(), torch.tensor([[8, 0]]), continuation=torch.tensor([[1, 2, 6, 8, 0, 1, 8]]), tokenizer=words
    )
    found = written.aggregate("sentence")
    assert found.targets[-1] == "(other tokens)"
    torch.testing.assert_close(torch.stack([s.sum() for s in found.scores]).sum(), written.relevance.sum().float())


class Ending(Language):
    """A model whose every logit of token 3 is the largest behind token 2."""

    def forward(self, input_ids, attention_mask=None):
        logits = super().forward(input_ids, attention_mask).clone()
        logits[..., 7] += 100 * (input_ids != 2)
        logits[..., 6] += 100 * (input_ids == 2)
        return logits


def test_a_text_that_has_ended_is_padded_while_others_go_on():
    model = Ending()
    model.generation_config = type("Settings", (), {"eos_token_id": 6})()
    written = whence.explain_generation(model, torch.tensor([[0, 2], [2, 0]]), max_new_tokens=4)
    assert written.ids.tolist() == [[0, 2, 6, 6, 6, 6], [2, 0, 7, 7, 7, 7]]


def test_scores_of_features_are_not_counted_for_each_token():
    method = whence.FeatureAblation(feature_mask=torch.tensor([[0, 0, 1, 1]]), baselines=8)
    written = whence.explain_generation(
        Language(), torch.tensor([[8, 0, 1]]), continuation=torch.tensor([[2, 6]]), tokenizer=words, method=method
    )
    with pytest.raises(errors.InputError, match="aggregate the explanation of each token"):
        written.aggregate("sentence")


@pytest.mark.parametrize("count", [1.5, True, "3"])
def test_the_number_of_new_tokens_is_checked(count):
    with pytest.raises(errors.InputError, match="max_new_tokens="):
        whence.explain_generation(Language(), torch.tensor([[0]]), max_new_tokens=count)
