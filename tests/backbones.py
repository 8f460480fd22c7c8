"""Tiny random models of transformers in folders, in place of pretrained ones."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "eins", "zwei", "drei", "vier", "fünf"]
SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
CONVOLUTIONS = {"conv_dim": (4, 4), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
POSITIONS = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
SPEECH = {**SMALL, **CONVOLUTIONS, **POSITIONS, "vocab_size": 5, "mask_time_prob": 0.0, "layerdrop": 0.0}
LAYERED = {**SPEECH, "feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
TEXT, RECORDINGS = ("bert", "t5"), ("wav2vec2", "wav2vec2 layer", "hubert")


def write_backbone(kind: str, folder: Path) -> Path:
    """Write a model and, where it reads text, its tokenizer."""
    import transformers as t

    torch.manual_seed(0)
    made = {
        "bert": lambda: t.BertModel(t.BertConfig(**SMALL, vocab_size=len(WORDS), max_position_embeddings=20)),
        "t5": lambda: t.T5Model(t.T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)),
        "wav2vec2": lambda: t.Wav2Vec2Model(t.Wav2Vec2Config(**SPEECH)),
        "wav2vec2 layer": lambda: t.Wav2Vec2Model(t.Wav2Vec2Config(**LAYERED)),
        "hubert": lambda: t.HubertModel(t.HubertConfig(**LAYERED)),
        "vit": lambda: t.ViTModel(t.ViTConfig(**SMALL, image_size=16, patch_size=4)),
        "convnext": lambda: t.ConvNextModel(t.ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4)),
    }
    made[kind]().save_pretrained(folder)
    if kind == "bert":
        backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        specials = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        t.PreTrainedTokenizerFast(tokenizer_object=backend, **specials).save_pretrained(folder)
    return folder
