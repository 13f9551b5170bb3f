"""Models whose weights are on disk: the same relevance as in memory, and no weight left in memory afterwards."""

import json

import pytest
import torch

import whence
from whence import errors
from whence.models.hugging_face import load

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate", reason="needs accelerate; run pip install accelerate")

IDS = torch.tensor([[3, 7, 2, 9, 4, 1]])
TEXT_MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=2, tie_word_embeddings=False,
        )
    ),
    "tied": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, tie_word_embeddings=True,
        )
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    ),
    "bert": lambda: transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=20, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=32, num_labels=3,
        )
    ),
}  # fmt: skip


def tokenizer_of_words():
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: i for i, word in enumerate("a b c d e f g h i j k . l m n o p q r s".split())}  # noqa: SIM905
    made = Tokenizer(models.WordLevel(words, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="s", pad_token="s")


def saved(kind, folder, dtype=torch.float32, shards="1GB"):
    torch.manual_seed(0)
    model = TEXT_MODELS[kind]().eval().to(dtype)
    model.save_pretrained(folder, max_shard_size=shards)
    tokenizer_of_words().save_pretrained(folder)
    return model


def assert_on_disk(model):
    assert all(weight.is_meta for weight in model.parameters())
    assert not any("checkpoint" in repr(vars(module).get("forward")) for module in model.modules())


@pytest.mark.parametrize("method", [None, "gradient_times_input", whence.LRP({torch.nn.Linear: whence.Gamma(0.25)})])
@pytest.mark.parametrize("kind", TEXT_MODELS)
def test_the_relevance_is_that_of_the_model_in_memory(kind, method, tmp_path):
    model = saved(kind, tmp_path)
    loaded = whence.load_model(f"hf:{tmp_path}", offload=True)
    expected = whence.explain(model, {"input_ids": IDS}, 2, method=method)
    found = whence.explain(loaded.model, {"input_ids": IDS}, 2, method=method)
    torch.testing.assert_close(found.relevance["input_ids"], expected.relevance["input_ids"])
    assert_on_disk(loaded.model)


def test_weights_in_several_files_and_in_half_precision(tmp_path):
    model = saved("llama", tmp_path, torch.bfloat16, shards="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    loaded = whence.load_model(f"hf:{tmp_path}", offload=True)
    expected = whence.explain(model, {"input_ids": IDS}, 2)
    assert torch.equal(
        whence.explain(loaded.model, {"input_ids": IDS}, 2).relevance["input_ids"], expected.relevance["input_ids"]
    )


@pytest.mark.filterwarnings("ignore::whence.errors.ContextWarning")
def test_several_targets_and_generations_and_sources_of_an_offloaded_model(tmp_path):
    model = saved("llama", tmp_path)
    loaded = whence.load_model(f"hf:{tmp_path}", offload=True)
    tokenizer = loaded.text.tokenizer
    for e, found in zip(
        whence.explain_targets(model, {"input_ids": IDS}, [1, 2, 5]),
        whence.explain_targets(loaded.model, {"input_ids": IDS}, [1, 2, 5]),
        strict=True,
    ):
        torch.testing.assert_close(found.relevance["input_ids"], e.relevance["input_ids"])
    explainer = whence.Explainer(loaded.model)
    assert torch.equal(
        explainer({"input_ids": IDS}, 2).relevance["input_ids"], explainer({"input_ids": IDS}, 2).relevance["input_ids"]
    )
    expected, found = (
        whence.sources(m, ["b c .", "d e ."], "g h", "i j", tokenizer=tokenizer, progress=False) for m in (model, loaded.model)
    )
    torch.testing.assert_close(found.scores, expected.scores)
    written, again = (whence.explain_generation(m, "b c d", max_new_tokens=3, tokenizer=tokenizer) for m in (model, loaded))
    torch.testing.assert_close(again.relevance, written.relevance)
    assert_on_disk(loaded.model)


def test_models_that_accelerate_offloads_have_their_layers_checkpointed(tmp_path):
    model = saved("llama", tmp_path / "saved")
    expected = whence.explain(model, {"input_ids": IDS}, 2)
    offloaded = accelerate.disk_offload(model, tmp_path / "weights", execution_device=torch.device("cpu"))
    counts = []
    for layer in offloaded.model.layers:
        layer.input_layernorm.register_forward_hook(lambda *_: counts.append(1))
    found = whence.explain(offloaded, {"input_ids": IDS}, 2)
    assert torch.equal(found.relevance["input_ids"], expected.relevance["input_ids"])
    assert len(counts) == 6  # each layer forward, and again for the backward pass
    assert_on_disk(offloaded)


def test_checkpointed_layers_refuse_a_cache_of_earlier_tokens():
    torch.manual_seed(0)
    model = TEXT_MODELS["llama"]().eval()
    with torch.no_grad():
        cache = model(IDS[:, :3], use_cache=True).past_key_values
    given = {"input_ids": IDS[:, 3:], "past_key_values": cache}
    with whence.checkpointed(model, "model.layers.*"), pytest.raises(errors.InputError, match="key-value cache"):
        whence.explain(model, given, 2)


def test_models_that_cannot_be_offloaded(tmp_path):
    with pytest.raises(errors.LoadError, match="for models of Hugging Face"):
        whence.load_model("digits", offload=True)
    saved("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 4}))
    with pytest.raises(errors.LoadError, match=r"has no weight 'model\.layers\.3\."):
        whence.load_model(f"hf:{tmp_path}", offload=True)
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 21}))
    with pytest.raises(errors.LoadError, match="in another shape"):
        load(transformers, str(tmp_path), "cpu")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(errors.LoadError, match=r"has no model\.safetensors"):
        whence.load_model(f"hf:{tmp_path}", offload=True)


def test_what_needs_the_weights_in_memory_is_refused(tmp_path):
    saved("bert", tmp_path)
    model = whence.load_model(f"hf:{tmp_path}", offload=True).model
    data = ({"input_ids": IDS}, torch.tensor([0]))
    with pytest.raises(errors.WhenceError, match="cannot be randomized"):
        whence.evaluate(model, data, ["lrp"], ["mprt"], progress=False)
    with pytest.raises(errors.ModelError, match="have no fingerprint"):
        whence.core.fingerprints.fingerprint(model)


def test_weights_that_a_failure_left_in_memory_are_dropped(tmp_path):
    saved("llama", tmp_path)
    model = whence.load_model(f"hf:{tmp_path}", offload=True).model
    with pytest.raises((IndexError, errors.WhenceError)) as caught:
        whence.explain(model, {"input_ids": IDS + 50}, 2)
    assert "pass x.to('meta')" not in str(caught.value)
    assert_on_disk(model)


def test_the_end_tokens_of_the_generation_config_are_known(tmp_path):
    model = saved("llama", tmp_path)
    with torch.no_grad():
        first = int(model(IDS).logits[0, -1].argmax())
    transformers.GenerationConfig(eos_token_id=first).save_pretrained(tmp_path)
    loaded = whence.load_model(f"hf:{tmp_path}", offload=True)
    assert len(whence.explain_generation(loaded, {"input_ids": IDS}, max_new_tokens=4)) == 1


def test_an_index_left_from_an_earlier_version_is_not_read(tmp_path):
    saved("llama", tmp_path, shards="4KB")
    model = saved("llama", tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"lm_head.weight": "gone.safetensors"}}))
    loaded = whence.load_model(f"hf:{tmp_path}", offload=True)
    found = whence.explain(loaded.model, {"input_ids": IDS}, 2)
    assert torch.equal(found.relevance["input_ids"], whence.explain(model, {"input_ids": IDS}, 2).relevance["input_ids"])


def test_the_dtype_is_that_of_the_file_where_the_config_has_none(tmp_path):
    saved("llama", tmp_path, torch.bfloat16)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")}))
    loaded = whence.load_model(f"hf:{tmp_path}", offload=True)
    assert loaded.model.dtype == torch.bfloat16


def test_state_space_models_can_be_offloaded(tmp_path):
    config = transformers.MambaConfig(vocab_size=20, hidden_size=16, state_size=4, num_hidden_layers=2)
    torch.manual_seed(0)
    model = transformers.MambaForCausalLM(config).eval()
    expected = whence.explain(model, {"input_ids": IDS}, 2)
    offloaded = accelerate.cpu_offload(model, torch.device("cpu"))
    found = whence.explain(offloaded, {"input_ids": IDS}, 2)
    torch.testing.assert_close(found.relevance["input_ids"], expected.relevance["input_ids"])
