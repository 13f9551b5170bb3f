"""The gate on attention: finite differences, the two ends of the gate, and models that take none."""

import pytest
import torch
from torch import nn

import whence
from whence.contexts import attention_gate
from whence.contexts.likelihoods import ResponseLikelihood
from whence.contexts.prompt import Prompt, Source

transformers = pytest.importorskip("transformers")
PROMPT = Prompt(
    torch.tensor([1, 4, 5, 6, 7, 8, 9]), (Source("a", "", (1, 2)), Source("b", "", (3, 4)), Source("c", "", (5,))), ""
)
RESPONSE = torch.tensor([10, 11, 12])


@pytest.fixture
def model():
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return (
        transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, initializer_range=0.5, **sizes)).double().eval()
    )


def log_probability(model, gates, part=slice(None)):
    ids = torch.cat([PROMPT.ids, RESPONSE])[None]
    with torch.no_grad():
        bias = attention_gate._bias(PROMPT, ids, torch.tensor(gates, dtype=torch.float64))
        return float(attention_gate._log_probabilities(model, ids, bias, RESPONSE)[part].sum())


def test_the_relevance_is_the_derivative_by_each_gate(model):
    parts, step = [slice(0, 3), slice(1, 2)], 1e-2  # norms and softmax of Llama are in float32
    found = attention_gate.gate_relevance(model, PROMPT, RESPONSE, parts)
    for row, part in zip(found, parts, strict=True):
        for k in range(3):
            up, down = ([attention_gate.GATE + sign * step * (i == k) for i in range(3)] for sign in (1, -1))
            slope = (log_probability(model, up, part) - log_probability(model, down, part)) / (2 * step)
            assert float(row[k]) == pytest.approx(slope, rel=5e-3, abs=1e-4)


def test_a_closed_gate_masks_its_source(model):
    masked = ResponseLikelihood(model, PROMPT, RESPONSE, mask=True)(torch.tensor([[True, True, False], [True, True, True]]))
    assert log_probability(model, [1.0, 1.0, 1e-30]) == pytest.approx(float(masked[0].sum()), abs=1e-4)
    assert log_probability(model, [1.0, 1.0, 1.0]) == pytest.approx(float(masked[1].sum()), abs=1e-4)


def test_models_without_a_bias_on_attention_have_no_gate():
    table = nn.Embedding(20, 20)
    assert (
        attention_gate.gate_relevance(lambda input_ids, attention_mask: table(input_ids), PROMPT, RESPONSE, [slice(0, 3)])
        is None
    )
    assert attention_gate.gate_relevance(table, PROMPT, RESPONSE, [slice(0, 3)]) is None


def test_sources_with_default_settings_use_the_gate(model):
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate("a b c d e f g h i j k . l m n o p q r s".split())}  # noqa: SIM905
    made = Tokenizer(models.WordLevel(words, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made)
    found = whence.sources(model, ["b c", "d e f"], "g h", "i j", tokenizer=tokenizer)
    prompt = whence.contexts.prompt.make_prompt(tokenizer, ["b c", "d e f"], "g h", "sentence")
    expected = attention_gate.gate_relevance(model, prompt, torch.tensor([8, 9]), [slice(0, 2)])
    torch.testing.assert_close(found.relevance, expected)
    assert found.n_evaluations == 4  # all subsets of two sources
