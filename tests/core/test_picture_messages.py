"""Chat messages with pictures: what the model reads, and why it wrote a phrase of its answer."""

import pytest
import torch

import whence
from whence import errors

transformers = pytest.importorskip("transformers")
Image = pytest.importorskip("PIL.Image")

WORDS = "<pad> <image> <s> </s> what is in the picture ? a red ball on grass . USER: ASSISTANT: cat dog".split()  # noqa: SIM905
TEMPLATE = (
    "{% for m in messages %}{{ m.role.upper() }}: {% for c in m.content %}{% if c.type == 'image' %}<image> {% else %}"
    "{{ c.text }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
ANSWER = torch.tensor([[10, 11, 12, 13, 7, 14]])  # a red ball on the grass


@pytest.fixture(scope="module")
def processor():
    from tokenizers import Tokenizer, models, pre_tokenizers

    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return transformers.LlavaProcessor(
        image_processor=pictures, tokenizer=tokenizer, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model():
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**small, image_size=32, patch_size=8),
        text_config=transformers.LlamaConfig(**small, vocab_size=len(WORDS), num_key_value_heads=4, eos_token_id=3),
        image_token_id=1,
    )
    torch.manual_seed(0)
    return transformers.LlavaForConditionalGeneration(config).eval()


@pytest.fixture
def messages():
    pixels = torch.randint(0, 255, (40, 40, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    picture = {"type": "image", "image": Image.fromarray(pixels.numpy())}
    return [{"role": "user", "content": [picture, {"type": "text", "text": "what is in the picture ?"}]}]


def test_messages_with_pictures_are_read_by_the_processor(model, processor, messages):
    e = whence.explain(model, messages, "ball", tokenizer=processor)
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    given = dict(processor.apply_chat_template(messages, **options))
    expected = whence.explain(model, given, WORDS.index("ball"))
    for name in ("input_ids", "pixel_values"):
        assert torch.equal(e.relevance[name], expected.relevance[name])
    assert e.tokens["input_ids"][0][0] == "USER:"
    assert e.conservation.error.max() < 1e-3


@pytest.mark.parametrize("as_pipeline", [True, False])
def test_a_phrase_of_the_answer_has_a_heatmap_on_the_picture(model, processor, messages, as_pipeline, tmp_path):
    asked = transformers.pipeline("image-text-to-text", model=model, processor=processor) if as_pipeline else model
    written = whence.explain_generation(
        asked, messages, continuation=ANSWER, tokenizer=None if as_pipeline else processor, progress=False
    )
    phrase = written.passage("ball on")
    span = whence.Span(written.start + 2, written.start + 4)
    expected = whence.explain(model, written[0].inputs, span)
    assert phrase.target == span
    for name in ("input_ids", "pixel_values"):
        torch.testing.assert_close(phrase.relevance[name], expected.relevance[name], atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(phrase.output, expected.output)
    torch.testing.assert_close(phrase.conservation.absorbed, expected.conservation.absorbed, atol=1e-5, rtol=1e-3)
    assert phrase.conservation.error.max() < 1e-3
    assert phrase.save(tmp_path / "phrase.png").stat().st_size > 5000
    with pytest.raises(errors.InputError, match="'cat' does not stand in the text"):
        written.passage("cat")


def test_answers_are_those_of_transformers(model, processor, messages):
    written = whence.explain_generation(model, messages, tokenizer=processor, max_new_tokens=5, progress=False)
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    given = processor.apply_chat_template(messages, **options)
    with torch.no_grad():
        expected = model.generate(**given, max_new_tokens=5, do_sample=False)
    assert torch.equal(written.ids, expected)


def test_pictures_need_a_processor_that_can_read_them(model, processor, messages):
    with pytest.raises(errors.InputError, match=r"AutoProcessor\.from_pretrained"):
        whence.explain(model, messages, tokenizer=processor.tokenizer)
    messages[0]["content"][0]["image"] = "no_such_picture.png"
    with pytest.raises(errors.InputError, match="the processor failed on the messages"):
        whence.explain(model, messages, tokenizer=processor)


def test_any_part_that_is_no_text_is_given_to_the_processor(model, processor, messages):
    messages[0]["content"][0] = {"type": "image_url", "image_url": {"url": "nowhere.png"}}
    processor.tokenizer.chat_template = "{{ messages }}"
    try:
        with pytest.raises(errors.InputError, match="the processor failed on the messages"):
            whence.explain(model, messages, tokenizer=processor)
    finally:
        processor.tokenizer.chat_template = None


def test_questions_without_a_picture_are_read_by_the_template_of_the_processor(model, processor):
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is in the picture ?"}]}]
    e = whence.explain(model, messages, "ball", tokenizer=processor)
    assert e.tokens["input_ids"][0][-1].strip() == "ASSISTANT:"
