"""Sources of a response: the estimator in closed form, prompts, and a model that copies from its context."""

import pytest
import torch
from torch import nn

import whence
from whence import errors
from whence.contexts import ablation_design, source_posterior
from whence.contexts.prompt import make_prompt
from whence.contexts.source_posterior import posterior_effects
from whence.core.passages import split_paragraphs, split_sentences

transformers = pytest.importorskip("transformers")
WORDS = "<s> </s> . the has Lily Tom Mia Ben ball kite car dog who ? user system : red".split()  # noqa: SIM905
CONTEXT = "Lily has the ball . Tom has the kite . Mia has the car . Ben has the dog ."


@pytest.fixture(scope="module")
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="</s>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


class Copying(nn.Module):
    """Writes, after a name in the query, the thing that the context says this name has: two hard attention steps by hand.

    A name's sentence is "NAME has the THING"; the last name attends to itself earlier, and the word three tokens later is
    copied.
    """

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(len(WORDS), 16)
        with torch.no_grad():
            self.table.weight.copy_(torch.linalg.qr(torch.randn(len(WORDS), len(WORDS)))[0][:, :16])
        self.eval()

    def forward(self, input_ids, attention_mask=None):
        x = self.table(input_ids)
        shifted = torch.cat([x.new_zeros(len(x), 3, 16), x[:, :-3]], 1)  # of the word three tokens before
        scores = 8 * x @ shifted.transpose(1, 2)
        length = x.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        if attention_mask is not None:
            causal = causal & attention_mask[:, None].bool()
        attention = scores.masked_fill(~causal, -1e4).softmax(-1)
        return 6 * (attention @ x) @ self.table.weight.T


WHOLE = torch.ones(1, 1, dtype=torch.bool)


def effects_slowly(relevance, present, outputs, unit):
    """The posterior mean of the main effects by the joint Gaussian, written out."""
    u = relevance / relevance.norm()
    v = (1 - source_posterior.EVEN) * u.abs() / u.abs().sum() + source_posterior.EVEN / len(u)
    lam, gam, rho = source_posterior.MAIN, source_posterior.COMMON, source_posterior.PAIRS
    z = present.double() * 2 - 1

    def kernel(a, b):
        alike = sum(v[k] * a[k] * b[k] for k in range(len(v)))
        pairs = alike**2 - sum(v[k] ** 2 for k in range(len(v)))
        return source_posterior.CONSTANT + lam**2 * alike + gam**2 * (u @ a) * (u @ b) + rho**2 / 2 * pairs

    gram = torch.stack([torch.stack([kernel(a, b) for b in z]) for a in z])
    gram = gram + source_posterior.NOISE**2 * torch.eye(len(z), dtype=z.dtype)
    residual = outputs.double() / unit - z @ u
    across = torch.stack([lam**2 * v * a + gam**2 * u * (u @ a) for a in z])
    return 2 * unit * (u + across.T @ torch.linalg.solve(gram, residual))


def test_the_posterior_is_that_of_the_joint_gaussian(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    relevance = torch.randn(5, generator=generator).double()
    present = torch.rand(7, 5, generator=generator) < 0.5
    outputs = torch.randn(7, generator=generator).double() * 3
    monkeypatch.setattr(source_posterior, "UNITS", torch.tensor([1.0], dtype=torch.float64))
    monkeypatch.setattr(source_posterior, "_usual_unit", lambda relevance, mean, y: 0.7 * float(relevance.norm()))
    expected = effects_slowly(relevance, present, outputs, 0.7 * float(relevance.norm()))
    torch.testing.assert_close(posterior_effects(relevance, present, outputs), expected)


def test_additive_effects_are_found_from_enough_ablations():
    truth = torch.tensor([3.0, -1.0, 0.0, 0.5, 2.0, 0.0])
    present = torch.cat(
        [torch.ones(1, 6, dtype=torch.bool), ablation_design.choose_ablations(truth.abs(), 32, WHOLE.expand(1, 6))]
    )
    found = posterior_effects(torch.ones(6), present, present.float() @ truth - 7)
    torch.testing.assert_close(found.float(), truth, atol=0.2, rtol=0)


def test_the_scale_of_the_relevance_does_not_matter():
    present = ablation_design.choose_ablations(torch.ones(4), 8, WHOLE.expand(1, 4))
    outputs = present.float() @ torch.tensor([2.0, 0.0, 1.0, 0.0])
    for scale in (1e-3, 1e3):
        found = posterior_effects(scale * torch.tensor([2.0, 0.1, 1.0, 0.1]), present, outputs)
        torch.testing.assert_close(found.float(), torch.tensor([2.0, 0.0, 1.0, 0.0]), atol=0.4, rtol=0, msg=f"{scale}: {found}")


def test_no_ablation_and_equal_outputs():
    relevance = torch.tensor([1.0, 2.0])
    everything = torch.ones(1, 2, dtype=torch.bool)
    assert torch.equal(posterior_effects(relevance, everything, torch.zeros(1)).float(), relevance)
    present = torch.tensor([[True, True], [True, False], [False, True]])
    assert not posterior_effects(relevance, present, torch.full((3,), -2.0)).any()
    assert posterior_effects(torch.zeros(2), present, torch.tensor([0.0, -1.0, 0.0])).argmax() == 1


@pytest.mark.parametrize(("k", "count"), [(1, 1), (1, 4), (2, 1), (8, 3), (8, 8), (8, 40), (33, 16)])
def test_designs_have_the_asked_size_and_vary_every_source(k, count):
    evaluated = torch.cat([WHOLE.expand(1, k), ~WHOLE.expand(1, k)])
    present = ablation_design.choose_ablations(torch.rand(k), count, evaluated)
    assert present.shape == (min(count, 2 ** min(k, 20) - 2), k)
    assert present.dtype == torch.bool
    assert len(torch.cat([present, evaluated]).unique(dim=0)) == len(present) + 2
    assert torch.equal(present, ablation_design.choose_ablations(torch.rand(k), count, evaluated)) or count < 2 * k
    if count >= 2 * k > 2:
        assert present.any(0).all()
        assert (~present).any(0).all()


def test_designs_of_few_ablations_tell_more_than_random_halves():
    relevance = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.1])

    def left(present):
        prior, z = source_posterior.SourcePrior(relevance.double()), present.double() * 2 - 1
        gram = prior.covariance(z, z) + source_posterior.NOISE**2 * torch.eye(len(z))
        across = prior.covariance_with_effects(z)
        return float((prior.effect_covariance - across.T @ torch.linalg.solve(gram, across)).trace())

    everything = WHOLE.expand(1, 8)
    chosen = left(torch.cat([everything, ablation_design.choose_ablations(relevance, 4, everything)]))
    halves = [left(torch.cat([everything, torch.rand(4, 8) < 0.5])) for _ in range(20)]
    assert chosen < min(halves)


def test_sentences_and_paragraphs():
    text = 'Dr. Bell came at 3.5 p.m. to U.S. soil. "Why?" he asked.\nNo! 她走了。他没有。 مرحبا؟ نعم.'
    found = [p.text for p in split_sentences(text)]
    assert found[0].startswith("Dr. Bell came at 3.5 p.m.")
    assert found[-5:] == ["No!", "她走了。", "他没有。", "مرحبا؟", "نعم."]
    assert all(text[p.start : p.stop] == p.text for p in split_sentences(text))
    assert [p.text for p in split_paragraphs("a\nb\n\n  c ")] == ["a\nb", "c"]
    assert split_sentences("  \n ") == []


def test_prompts_know_the_tokens_of_their_sources(tokenizer):
    prompt = make_prompt(tokenizer, CONTEXT, "who has the kite ? Tom", "sentence")
    assert [source.text for source in prompt.sources] == [f"{part.strip()} ." for part in CONTEXT.split(".")[:-1]]
    assert [tokenizer.decode(prompt.ids[list(s.tokens)]) for s in prompt.sources] == [s.text for s in prompt.sources]
    without = prompt.ids[prompt.kept(torch.tensor([True, False, True, True]))]
    assert tokenizer.decode(without) == CONTEXT.replace("Tom has the kite . ", "") + " who has the kite ? Tom"
    named = make_prompt(tokenizer, {"a": "the ball", "b": "the ball"}, "who", "sentence")
    assert [s.tokens for s in named.sources] == [(0, 1), (2, 3)]


def test_chat_messages_are_sources(tokenizer):
    import copy

    chat = copy.deepcopy(tokenizer)
    chat.chat_template = (
        "{% for m in messages %}{{ m.role }} : {{ m.content }} {% endfor %}{% if add_generation_prompt %}system :{% endif %}"
    )
    messages = [{"role": "system", "content": "Lily has the ball ."}, {"role": "user", "content": "Tom has the kite ."}]
    prompt = make_prompt(chat, messages, "who ?", "sentence")
    assert [(s.name, s.text) for s in prompt.sources] == [("system 1", "Lily has the ball ."), ("user 2", "Tom has the kite .")]
    assert tokenizer.decode(prompt.ids).endswith("user : who ? system :")
    documents = make_prompt(chat, ["Lily has the ball .", "Tom has the kite ."], "who ?", "sentence")
    assert [s.name for s in documents.sources] == ["document 1", "document 2"]
    assert tokenizer.decode(documents.ids).startswith("user : Lily")


@pytest.mark.parametrize("ablation", ["remove", "mask"])
@pytest.mark.parametrize("n_ablations", [0, 2, 8])
@pytest.mark.parametrize(("name", "thing", "place"), [("Tom", "kite", 1), ("Ben", "dog", 3)])
def test_the_copied_sentence_is_the_source(tokenizer, name, thing, place, n_ablations, ablation):
    model = Copying()
    found = whence.sources(
        model, CONTEXT, name, thing, tokenizer=tokenizer, n_ablations=n_ablations, ablation=ablation, progress=False,
        method="gradient_times_input",
    )  # fmt: skip
    assert found.ranking(0)[0][0].text == f"{name} has the {thing} ."
    assert found.n_evaluations == 1 + n_ablations + 1 + 3
    assert found.deviation > 0.6
    if n_ablations == 8:
        assert float(found.scores[0, place]) > 2 * float(found.scores[0].abs().sort().values[-2])
        assert float(found.support[0]) > 1


def test_log_probabilities_are_those_of_the_shortened_texts(tokenizer):
    from whence.contexts.likelihoods import ResponseLikelihood

    model, prompt = Copying(), make_prompt(tokenizer, CONTEXT, "Tom", "sentence")
    response = torch.tensor(tokenizer("kite . the")["input_ids"])
    present = torch.tensor([[True] * 4, [True, False, True, False], [False] * 4])
    found = ResponseLikelihood(model, prompt, response)(present)
    for row, kept in zip(found, present, strict=True):
        ids = torch.cat([prompt.ids[prompt.kept(kept)], response])[None]
        logs = model(ids).double().log_softmax(-1)[0, -4:-1]
        torch.testing.assert_close(
            row, logs[torch.arange(3), response], rtol=1.3e-6, atol=1e-6
        )  # the model computes in float32


def test_statements_share_the_evaluations_and_are_saved(tokenizer, tmp_path):
    found = whence.sources(
        Copying(), CONTEXT, "Tom", "kite . ball .", tokenizer=tokenizer, method="gradient_times_input", progress=False
    )
    assert [s.text for s in found.statements] == ["kite .", "ball .", "kite . ball ."]
    assert [(s.start, s.stop) for s in found.statements] == [(0, 2), (2, 4), (0, 4)]
    assert len(found.table) == 3 * 4
    assert [row["rank"] for row in found.table[:4]] == [0, 1, 2, 3]
    assert {row["source_text"] for row in found.table} == {s.text for s in found.sources}
    page = found.save(tmp_path / "sources.html").read_text()
    assert page.count('data-statement="') == 3
    assert "Mia has the car ." in page
    assert found.save(tmp_path / "sources.png").stat().st_size > 1000
    one = whence.sources(
        Copying(),
        CONTEXT,
        "Tom",
        "kite",
        tokenizer=tokenizer,
        method="gradient_times_input",
        progress=False,
        statements=["kite"],
    )
    assert one.save(tmp_path / "one.png").stat().st_size > 1000
    assert "kite" in repr(one)


def test_a_response_that_the_context_does_not_matter_for_warns(tokenizer):
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(len(WORDS), len(WORDS))
            self.eval()

        def forward(self, input_ids, attention_mask=None):
            return self.table(input_ids)

    with pytest.warns(errors.ContextWarning, match="hardly depends on the context"):
        found = whence.sources(
            Constant(), CONTEXT, "Tom", "kite", tokenizer=tokenizer, method="gradient_times_input", progress=False
        )
    assert not found.scores.any()
    assert float(found.support[0]) == pytest.approx(0, abs=1e-9)


def test_characters_of_several_tokens_belong_to_their_statement():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from whence.contexts.sources import _statements

    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(letters, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    by_bytes = transformers.PreTrainedTokenizerFast(tokenizer_object=made)
    written = torch.tensor(by_bytes("她走了。他没有。")["input_ids"])
    found = _statements(by_bytes, written, None)
    assert [(s.text, s.start, s.stop) for s in found] == [
        ("她走了。", 0, 12),
        ("他没有。", 12, 24),
        ("她走了。他没有。", 0, 24),
    ]


def test_statements_are_whole_words_in_their_order(tokenizer):
    from whence.contexts.sources import _statements

    written = torch.tensor(tokenizer("Tom . Mia . Tom .")["input_ids"])
    assert [(s.start, s.stop) for s in _statements(tokenizer, written, ["Tom .", "Mia .", "Tom ."])] == [(0, 2), (2, 4), (4, 6)]
    with pytest.raises(errors.InputError, match="is not a part"):
        _statements(tokenizer, written, ["om"])


@pytest.mark.parametrize(
    ("before", "after", "both"),
    [
        ("who ?", "Tom", "who ? Tom"),
        ("谁有球", "我有球", "谁有球我有球"),
        ("the", ", and", "the, and"),
        ("a ", "b", "a b"),
        ("", "b", "b"),
    ],
)
def test_texts_are_joined_as_a_reader_expects(before, after, both):
    from whence.contexts.prompt import joined

    assert joined(before, after) == both


def test_messages_are_found_beside_the_same_words_of_the_template(tokenizer):
    import copy

    chat = copy.deepcopy(tokenizer)
    chat.chat_template = (
        "system : the car user {% for m in messages %}{{ m.role }} : {{ m.content | trim }} {% endfor %}"
        "{% if add_generation_prompt %}system :{% endif %}"
    )
    prompt = make_prompt(
        chat, [{"role": "user", "content": " the car "}, {"role": "user", "content": "user"}], "who", "sentence"
    )
    assert [source.tokens for source in prompt.sources] == [(7, 8), (11,)]


def test_an_end_of_the_prompt_is_not_between_it_and_the_response(tokenizer):
    import copy

    from tokenizers import processors

    ending = copy.deepcopy(tokenizer)
    ending._tokenizer.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    prompt = make_prompt(ending, CONTEXT, "Tom", "sentence")
    assert tokenizer.decode(prompt.ids) == f"<s> {CONTEXT} Tom"


def test_models_that_see_the_response_are_refused(tokenizer):
    class Seeing(Copying):
        def forward(self, input_ids, attention_mask=None):
            return super().forward(input_ids) + self.table(input_ids).mean(1, keepdim=True) @ self.table.weight.T

    with pytest.raises(errors.InputError, match="the model is not causal"):
        whence.sources(Seeing(), CONTEXT, "Tom", "kite", tokenizer=tokenizer, progress=False)


BAD = {
    "empty context": ({"context": "  "}, "context is empty"),
    "empty document": ({"context": ["a", " "]}, "source 'document 2' is empty"),
    "no text": ({"context": [3]}, "of type int; expected a text"),
    "a number": ({"context": 3}, "expected a text, a list of documents"),
    "another split": ({"split": "word"}, "choose 'sentence' or 'paragraph'"),
    "no chat template": ({"context": [{"role": "user", "content": "Tom"}]}, "no chat template"),
    "foreign statement": ({"response": "kite", "statements": ["dog"]}, "is not a part of the response"),
    "one statement": ({"response": "kite", "statements": "kite"}, r"pass \[statement\]"),
    "empty response": ({"response": " "}, "expected a text that is not empty"),
    "negative count": ({"n_ablations": -1}, "n_ablations=-1"),
    "another ablation": ({"ablation": "drop"}, "choose 'remove' or 'mask'"),
    "no statements": ({"statements": []}, r"pass \[statement\]"),
    "nothing left": ({"context": "Tom has .", "query": ""}, "pass a query"),
    "another seed": ({"seed": "a"}, "expected an int"),
    "no fast tokenizer": ({"tokenizer": object()}, "load a fast one"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, tokenizer):
    changed, message = BAD[name]
    given = {"context": CONTEXT, "query": "Tom", "tokenizer": tokenizer, "response": "kite", "progress": False} | changed
    with pytest.raises(errors.InputError, match=message):
        whence.sources(Copying(), **given)
