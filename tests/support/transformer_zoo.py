# ruff: noqa: C408
"""Transformers of the libraries people use, built small and random; what is additive and not the input can be zeroed."""

import contextlib
import os

import torch
from torch import Tensor, nn

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "critical")
VOCABULARY, LENGTH, SAMPLES = 60, 7, 2

ADDITIVE = ("bias", "running_mean", "q_bias", "v_bias", "dt_bias")  # ends of names
CONSTANT_INPUTS = ("pos_embed", "position_embed", "embed_positions", "wpe.", "cls_token", "class_token", "class_embedding",
                   "dist_token", "distillation_token", "token_type_embeddings", "position_embedding")  # fmt: skip


def randomised(model: nn.Module, additive: bool) -> nn.Module:
    """Weights that keep activations of one size, random norms; biases, class tokens and positions random or zero."""
    with torch.no_grad():
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            if not t.is_floating_point() or "inv_freq" in name or "relative" in name or "attention_biases" in name:
                continue
            if name.endswith(ADDITIVE) or any(part in name for part in CONSTANT_INPUTS):
                t.normal_(0, 0.1) if additive else t.zero_()
            elif t.dim() > 1 and name.split(".")[-1] not in ("A_log", "relative_position_bias_table"):
                t.normal_(0, 1 if "embed" in name or "shared" in name or "wte" in name else t[0].numel() ** -0.5)
            elif name.endswith(("running_var", "norm.weight", "norm1.weight", "norm2.weight")):
                t.uniform_(0.5, 1.5)
    return model.eval()


def ids(length: int = LENGTH) -> Tensor:
    return torch.randint(5, VOCABULARY, (SAMPLES, length))


def text() -> dict[str, Tensor]:
    return {"input_ids": ids(), "attention_mask": torch.ones(SAMPLES, LENGTH, dtype=torch.long)}


def hugging_face(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A model of the family and an input for it."""
    import transformers as t

    size = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    grouped = dict(size, num_key_value_heads=2)
    encoder = dict(size, max_position_embeddings=40, pad_token_id=0)
    older = dict(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    ends = dict(bos_token_id=1, eos_token_id=2)
    experts = dict(experts_implementation="batched_mm")  # the grouped kernel has no float64
    vision = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
    speech = dict(d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
                  encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=20, max_target_positions=20,
                  pad_token_id=0, decoder_start_token_id=1, **ends)  # fmt: skip
    makers = {
        "gpt2": lambda: t.GPT2LMHeadModel(t.GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, **ends)),
        "gpt_neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(**size)),
        "opt": lambda: t.OPTForCausalLM(t.OPTConfig(**older, ffn_dim=48, word_embed_proj_dim=32, pad_token_id=1)),
        "bloom": lambda: t.BloomForCausalLM(t.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**grouped)),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**grouped, sliding_window=4)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**grouped)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**grouped, head_dim=8)),
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**grouped, head_dim=8)),
        "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**grouped, head_dim=8)),
        "phi3": lambda: t.Phi3ForCausalLM(t.Phi3Config(**grouped, pad_token_id=0, **ends)),
        "mixtral": lambda: t.MixtralForCausalLM(t.MixtralConfig(**grouped, num_local_experts=4, **experts)),
        "qwen3_moe": lambda: t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(
            **grouped, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, **experts)),
        "falcon": lambda: t.FalconForCausalLM(t.FalconConfig(**older)),
        "mamba": lambda: t.MambaForCausalLM(t.MambaConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4)),
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**encoder)),
        "distilbert": lambda: t.DistilBertForSequenceClassification(t.DistilBertConfig(
            vocab_size=VOCABULARY, dim=32, hidden_dim=48, n_layers=2, n_heads=4)),
        "roberta": lambda: t.RobertaForSequenceClassification(t.RobertaConfig(**encoder)),
        "electra": lambda: t.ElectraForSequenceClassification(t.ElectraConfig(**encoder, embedding_size=16)),
        "deberta_v2": lambda: t.DebertaV2ForSequenceClassification(t.DebertaV2Config(
            **encoder, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8)),
        "albert": lambda: t.AlbertForSequenceClassification(t.AlbertConfig(**encoder, embedding_size=16)),
        "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(
            vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)),
        "whisper": lambda: t.WhisperForConditionalGeneration(t.WhisperConfig(vocab_size=VOCABULARY, **speech)),
        "vit": lambda: t.ViTForImageClassification(t.ViTConfig(**vision)),
        "clip": lambda: t.CLIPModel(t.CLIPConfig(
            text_config=dict(encoder, projection_dim=16, **ends), vision_config=dict(vision, projection_dim=16),
            projection_dim=16)),
    }  # fmt: skip
    image, sound = torch.randn(SAMPLES, 3, 32, 32), torch.randn(SAMPLES, 8, 40)
    inputs = {
        "t5": lambda: {**text(), "decoder_input_ids": ids(4)},
        "whisper": lambda: {"input_features": sound, "decoder_input_ids": ids(4)},
        "vit": lambda: {"pixel_values": image},
        "clip": lambda: {**text(), "pixel_values": image},
    }
    return makers[name](), inputs.get(name, text)()


FAMILIES = ["gpt2", "gpt_neox", "opt", "bloom", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "mixtral",
            "qwen3_moe", "falcon", "mamba", "bert", "distilbert", "roberta", "electra", "deberta_v2", "albert", "t5", "whisper",
            "vit", "clip"]  # fmt: skip

TORCHVISION = {"vit_b_16": 224, "swin_t": 64, "swin_v2_t": 64, "maxvit_t": 224, "convnext_tiny": 64}
TIMM = {"vit_tiny_patch16_224": 224, "deit_tiny_distilled_patch16_224": 224, "beit_base_patch16_224": 224,
        "eva02_tiny_patch14_224": 224, "cait_xxs24_224": 224, "xcit_nano_12_p16_224": 224, "mobilevit_xxs": 64,
        "levit_128s": 224, "efficientformer_l1": 224, "poolformer_s12": 64, "mixer_s32_224": 224,
        "coatnet_nano_rw_224": 224}  # fmt: skip


def vision(name: str) -> tuple[nn.Module, Tensor]:
    if name in TORCHVISION:
        from torchvision.models import get_model

        return get_model(name, weights=None, num_classes=10).to(torch.get_default_dtype()), torch.randn(
            1, 3, TORCHVISION[name], TORCHVISION[name]
        )
    import timm

    return timm.create_model(name, num_classes=10), torch.randn(1, 3, TIMM[name], TIMM[name])


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
