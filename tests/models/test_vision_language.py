"""Models that read pictures and texts together: whose rows are whose, what is drawn, and what belongs to all samples."""

import pytest
import torch

import whence
from whence import Logit, errors

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=small | {"vocab_size": 99, "max_position_embeddings": 16, "eos_token_id": 98, "bos_token_id": 97},
        vision_config=small | {"image_size": 16, "patch_size": 8},
        projection_dim=16,
    )
    return transformers.CLIPModel(config).eval()


@pytest.fixture(scope="module")
def qwen():
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2]}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.Qwen2VLConfig(
        text_config=small | ids | {"num_key_value_heads": 2, "vocab_size": 200, "rope_scaling": rope},
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4},
        image_token_id=150,
        video_token_id=151,
        vision_start_token_id=152,
        vision_end_token_id=153,
    )
    return transformers.Qwen2VLForConditionalGeneration(config).eval()


def prompt(samples):
    ids = torch.randint(3, 140, (samples, 10))
    ids[:, 2], ids[:, 3:7], ids[:, 7] = 152, 150, 153
    pixels, grids = torch.randn(16 * samples, 3 * 2 * 16), torch.tensor([[1, 4, 4]] * samples)
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "image_grid_thw": grids,
        "mm_token_type_ids": (ids == 150).long(),
    }  # fmt: skip


def texts(count):
    ids = torch.randint(1, 97, (count, 6))
    ids[:, -1] = 98
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_one_picture_and_several_texts(clip):
    inputs = texts(3) | {"pixel_values": torch.randn(1, 3, 16, 16)}
    e = whence.explain(clip, inputs, lambda out: out.logits_per_image[:, 1])
    assert e.output.shape == (1,)
    assert e.conservation.error.max() < 1e-4
    assert e.relevance["pixel_values"].shape == (1, 3, 16, 16)
    per_text = e.relevance["input_ids"].abs().sum(1)
    assert per_text[1] > 0
    assert not per_text[[0, 2]].any()
    alone = {name: t[1:2] if name != "pixel_values" else t for name, t in inputs.items()}
    same = whence.explain(clip, alone, lambda out: out.logits_per_image[:, 0])
    torch.testing.assert_close(same.relevance["pixel_values"], e.relevance["pixel_values"], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["integrated_gradients", "gradient_times_input", whence.SmoothGrad(n_samples=3)])
def test_other_methods_of_one_picture_and_several_texts(clip, method):
    inputs = texts(3) | {"pixel_values": torch.randn(1, 3, 16, 16)}
    e = whence.explain(clip, inputs, lambda out: out.logits_per_image[:, 1], method=method)
    assert e.output.shape == (1,)
    if method == "integrated_gradients":
        assert e.conservation.error.max() < 1e-2


def test_pixel_rows_of_a_vision_language_model(qwen):
    both = prompt(2)
    e = whence.explain(qwen, both, Logit(5))
    assert e.output.shape == (2,)
    assert e.conservation.error.max() < 1e-3
    assert e.relevance["image_grid_thw"] is None
    rows = {"pixel_values": 16}
    first = {name: t[: rows.get(name, 1)] for name, t in both.items()}
    alone = whence.explain(qwen, first, Logit(5))
    torch.testing.assert_close(alone.relevance["pixel_values"], e.relevance["pixel_values"][:16], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(alone.relevance["input_ids"], e.relevance["input_ids"][:1], rtol=1e-3, atol=1e-6)


def test_what_belongs_to_all_samples_stays_whole_in_a_slice(qwen):
    e = whence.explain(qwen, prompt(2), Logit(5))
    assert e[1].relevance["input_ids"].shape == (1, 10)
    assert e[1].relevance["pixel_values"].shape == (32, 96)


def test_a_photo_is_put_back_together_from_its_patches(qwen):
    processor = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl").Qwen2VLImageProcessorPil(
        patch_size=4, min_pixels=64, max_pixels=4096, do_normalize=False
    )
    photo = torch.rand(3, 32, 48).mul(255).round().to(torch.uint8)
    rows = processor(photo.permute(1, 2, 0).numpy(), return_tensors="pt")
    _, h, w = rows["image_grid_thw"][0].tolist()
    ids = torch.cat([torch.tensor([5, 152]), torch.full((h * w // 4,), 150), torch.tensor([153, 9])])[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == 150).long(), **rows}
    e = whence.explain(qwen, inputs, Logit(5))
    (picture,) = e.patches["pixel_values"].pictures(e.inputs["pixel_values"], torch.mean)
    assert (picture - photo / 255).abs().max() < 1e-5
    (heat,) = e.patches["pixel_values"].pictures(e.relevance["pixel_values"], torch.sum)
    assert torch.allclose(heat.sum(), e.relevance["pixel_values"].sum(), atol=1e-5)


@pytest.mark.parametrize("suffix", ["png", "html"])
def test_it_is_drawn_as_one(qwen, clip, tmp_path, suffix):
    assert whence.explain(qwen, prompt(1), Logit(5)).save(tmp_path / f"qwen.{suffix}").stat().st_size > 5000
    e = whence.explain(clip, texts(2) | {"pixel_values": torch.randn(1, 3, 16, 16)}, lambda out: out.logits_per_image[:, 1])
    assert e.save(tmp_path / f"clip.{suffix}").stat().st_size > 5000
    assert len(e.panels(0)) == 3


def test_one_value_is_of_all_there_is():
    weight = torch.randn(4, 2)
    graph, x = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]]), torch.randn(5, 4)

    def model(x, edges):
        return torch.zeros(5, 2).index_add(0, edges[1], (x @ weight)[edges[0]])

    e = whence.explain(model, (x, graph), lambda nodes: nodes[3:4, 1])
    assert torch.allclose(e.relevance[0].sum(), e.output[0], atol=1e-5)
    assert e.relevance[0][2].any()
    assert not e.relevance[0][[0, 1, 3, 4]].any()
    every = whence.explain(model, (x, graph), 1)
    assert torch.allclose(every.relevance[0], torch.stack([x[i] * weight[:, 1] for i in range(5)]), atol=1e-5)
    pooled = whence.explain(lambda x, edges: model(x, edges).mean(0, keepdim=True), (x, graph), 1)
    assert pooled.output.shape == (1,)
    assert pooled.conservation.error.max() < 1e-5


@pytest.mark.parametrize("method", [whence.FeatureAblation(), whence.Occlusion(((2,), (1, 4)))], ids=repr)
def test_what_is_taken_away_from_one_sample_is_not_taken_away_from_another_round(method):
    """Each round runs by itself where a part belongs to all samples."""
    seen = []

    def model(x, table):
        seen.append(len(x))
        return x @ table.T

    x, table = torch.randn(1, 4), torch.randn(3, 4)
    e = whence.explain(model, (x, table), 1, method=method)
    assert set(seen) == {1}
    assert e.relevance[0].shape == (1, 4)


def test_values_of_no_part_are_refused():
    with pytest.raises(errors.TargetError, match="one value for each of the 2 samples"):
        whence.explain(lambda a, b: a.repeat(2, 1), (torch.rand(2, 3), torch.rand(3, 3)), lambda out: out[:, 0])
    with pytest.raises(errors.ModelError, match=r"\(2, 3\), \(3, 3\)"):
        whence.explain(lambda a, b: a + b, (torch.rand(2, 3), torch.rand(3, 3)))


def words(special):
    from tokenizers import Tokenizer, models, pre_tokenizers

    listed = [*special, *["a", "photo", "of", "cat", "dog", "what", "is", "in", "the", "picture", "?", "user", "assistant"]]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(listed)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<bos>", eos_token="<eos>",
        additional_special_tokens=special[4:],
    )  # fmt: skip


SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


ENDS = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1}


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    from PIL import Image

    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.effect_noise((64, 48), 80).convert("RGB").save(path)
    return path


def pixels():
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    return module.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("clip"), words(["<unk>", "<pad>", "<bos>", "<eos>"])
    config = transformers.CLIPConfig(
        text_config=SMALL | ENDS | {"vocab_size": len(tokenizer), "max_position_embeddings": 32},
        vision_config=SMALL | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPProcessor(pixels(), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("llava"), words(["<unk>", "<pad>", "<bos>", "<eos>", "<image>"])
    text = transformers.LlamaConfig(**SMALL, **ENDS, vocab_size=len(tokenizer), num_key_value_heads=2)
    vision = transformers.CLIPVisionConfig(**SMALL, image_size=32, patch_size=8)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, image_seq_length=16)
    torch.manual_seed(0)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    settings = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    transformers.LlavaProcessor(pixels(), tokenizer, image_token="<image>", **settings).save_pretrained(folder)
    return folder


def whence_explain(capsys, *arguments):
    import json

    from whence.frontends.cli import app

    app(["explain", *map(str, arguments), "--json"], standalone_mode=False)
    return json.loads(capsys.readouterr().out)


def test_a_photo_and_texts_by_clip(clip_folder, photo, tmp_path, capsys):
    given = (photo, "--text", "a photo of a cat", "--text", "a photo of a dog", "--model", f"hf:{clip_folder}")
    best = whence_explain(capsys, *given, "--out", tmp_path / "clip.html")
    dog = whence_explain(capsys, *given, "--target", "a photo of a dog", "--rather-than", 0, "--out", tmp_path / "clip.png")
    assert best["target"][0]["name"] in ("a photo of a cat", "a photo of a dog")
    assert best["error"][0] < 1e-3
    assert dog["target"][0]["name"] == "a photo of a dog rather than a photo of a cat"
    page = (tmp_path / "clip.html").read_text()
    assert "cat</span>" in page
    assert "dog</span>" in page
    assert "base64" in page


def test_a_photo_and_a_question(llava_folder, photo, tmp_path, capsys):
    found = whence_explain(
        capsys, photo, "--text", "what is in the picture ?", "--model", f"hf:{llava_folder}", "--out", tmp_path / "llava.html"
    )
    assert found["error"][0] < 1e-3
    assert len(found["tokens"]) == 16 + 6
    assert "&lt;image&gt;×16" in (tmp_path / "llava.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to explain: pass a photo"),
        (("photo",), "pass --text"),
        (("photo", "--text", "a", "--text", "b"), "the model continues a single text, got"),
    ],
)
def test_what_is_missing_is_said(llava_folder, photo, arguments, message):
    from whence.frontends.cli import app

    given = [str(photo) if argument == "photo" else argument for argument in arguments]
    with pytest.raises(errors.InputError, match=message):
        app(["explain", *given, "--model", f"hf:{llava_folder}"], standalone_mode=False)


@pytest.mark.parametrize("method", ["shapley", whence.FeatureAblation(), "integrated_gradients"], ids=str)
def test_methods_that_take_features_away_refuse_what_several_samples_share(method):
    with pytest.raises(errors.InputError, match="explains one sample at a time"):
        whence.explain(lambda x, t: (x.sum(1) * t.sum())[:, None], (torch.rand(4, 6), torch.rand(7, 3)), 0, method=method)


def test_a_number_beside_texts_is_no_picture():
    table = torch.randn(9, 3)
    inputs = {"input_ids": torch.randint(9, (3, 4)), "scale": torch.tensor([2.0])}
    e = whence.explain(lambda input_ids, scale: table[input_ids].sum(1) * scale, inputs, 1)
    assert e.output.shape == (3,)


def test_several_pictures_of_one_text(llava_folder, tmp_path):
    model = transformers.LlavaForConditionalGeneration.from_pretrained(llava_folder).eval()
    ids = torch.tensor([[5, *[4] * 16, 6, *[4] * 16, 7, 8]])
    pictures = torch.randn(2, 3, 32, 32)
    e = whence.explain(model, {"input_ids": ids, "pixel_values": pictures, "attention_mask": torch.ones_like(ids)}, Logit(5))
    assert e.output.shape == (1,)
    assert e.relevance["pixel_values"].shape == (2, 3, 32, 32)
    assert e.relevance["pixel_values"].flatten(1).abs().sum(1).min() > 0
    assert e.conservation.error.max() < 1e-3
    assert len(e.panels(0)) == 3
    assert e.save(tmp_path / "two.png").stat().st_size > 1000
