"""The real small language model of shared/data as a model and a tokenizer of transformers."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def story_model(data: Path):
    """LlamaForCausalLM with the weights of stories260k."""
    import transformers

    arrays = {name: torch.from_numpy(value) for name, value in np.load(data / "stories260k.npz").items()}
    config = transformers.LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=172, num_hidden_layers=5, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=512, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=1,
        eos_token_id=2, pad_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    places = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "wq": "self_attn.q_proj",
              "wk": "self_attn.k_proj", "wv": "self_attn.v_proj", "wo": "self_attn.o_proj", "w1": "mlp.gate_proj",
              "w2": "mlp.down_proj", "w3": "mlp.up_proj"}  # fmt: skip
    state = {"model.embed_tokens.weight": arrays["tok_embeddings"], "model.norm.weight": arrays["norm"],
             "lm_head.weight": arrays["tok_embeddings"]}  # fmt: skip
    for name, place in places.items():
        for layer, weight in enumerate(arrays[name]):
            state[f"model.layers.{layer}.{place}.weight"] = _halves(weight) if name in ("wq", "wk") else weight
    model.load_state_dict(state)
    return model


def _halves(weight: Tensor, head: int = 8) -> Tensor:
    """Rows of each head from neighbouring pairs (0, 1), (2, 3), … to halves, as transformers' rotary embedding has them."""
    return weight.view(-1, head // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def story_tokenizer(data: Path):
    """The byte-fallback BPE of the model: pieces ranked by their scores, a space put in front of a text."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, normalizers, processors

    pieces = json.loads((data / "stories260k_tokenizer.json").read_text())
    words = ["<unk>", "<s>", "</s>", *(_unspaced(piece) for piece, _ in pieces[3:])]
    vocabulary = {word: i for i, word in enumerate(words)}
    merges = [
        (word[:cut], word[cut:])
        for word in words[259:]
        for cut in range(1, len(word))
        if word[:cut] in vocabulary and word[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _unspaced(piece: str) -> str:
    return piece.replace(" ", "▁")


def save_story_model(data: Path, folder: Path) -> Path:
    """A folder as `save_pretrained` makes it, for `hf:FOLDER`."""
    story_model(data).save_pretrained(folder)
    story_tokenizer(data).save_pretrained(folder)
    return folder
