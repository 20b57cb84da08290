"""Tiny random encoders of families with published checkpoints, each in a folder as its publisher lays it out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    EncodecConfig,
    HubertConfig,
    HubertForCTC,
    ParakeetCTCConfig,
    ParakeetForCTC,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WavLMConfig,
    WavLMForCTC,
)
from transformers.models.granite_speech5.configuration_granite_speech5 import GraniteSpeech5CTCConfig
from transformers.models.granite_speech5.modeling_granite_speech5 import GraniteSpeech5ForCTC

from asr_doge.models.encoders.seanet import SEANetSpeechEncoder
from tests.models import tiny

CHARACTERS = ["<s>", "</s>", "<unk>", "|", "E", "T", "A", "O", "<pad>", "N", "'"]
BLANK = 8
WAV2VEC2: dict[str, Any] = {
    "vocab_size": len(CHARACTERS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "hidden_dropout": 0.5,
    "attention_dropout": 0.5,
    "layerdrop": 0.5,
    "pad_token_id": BLANK,
}
SHORTEST = 5 * (2 * (2 - 1) + 3 - 1) + 10  # samples of one frame
LARGE: dict[str, Any] = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
SEANET: dict[str, Any] = {
    "sampling_rate": 16_000,
    "pad_mode": "constant",
    "upsampling_ratios": [5, 4, 2],
    "num_filters": 4,
    "hidden_size": 16,
    "codebook_size": 8,
    "codebook_dim": 16,
}
SEANET_WITH_HEAD = SEANET | {"ctc_tokens": [" ", "a", "b"]}
PIECES = 41
FEATURES = {"parakeet": 16, "granite": 320}
"""Sizes of input features; families that are not here read samples."""


def parakeet() -> PreTrainedModel:
    encoder = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_mel_bins": FEATURES["parakeet"],
        "subsampling_conv_channels": 4,
        "dropout": 0.5,
        "layerdrop": 0.5,
    }
    return ParakeetForCTC(ParakeetCTCConfig(vocab_size=PIECES, pad_token_id=PIECES - 1, encoder_config=encoder))


def granite() -> PreTrainedModel:
    """Granite Speech 5."""
    encoder = {
        "vocab_size": PIECES,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "context_size": 8,
        "max_position_embeddings": 16,
    }
    return GraniteSpeech5ForCTC(GraniteSpeech5CTCConfig(vocab_size=PIECES, encoder_config=encoder))


OF_CHARACTERS: dict[str, Callable[[], PreTrainedModel]] = {
    "wav2vec2": lambda: Wav2Vec2ForCTC(Wav2Vec2Config(**WAV2VEC2)),
    "wav2vec2-large": lambda: Wav2Vec2ForCTC(Wav2Vec2Config(**WAV2VEC2, **LARGE)),
    "hubert": lambda: HubertForCTC(HubertConfig(**WAV2VEC2)),
    "hubert-large": lambda: HubertForCTC(HubertConfig(**WAV2VEC2, **LARGE)),
    "wavlm": lambda: WavLMForCTC(WavLMConfig(**WAV2VEC2)),
    "wavlm-large": lambda: WavLMForCTC(WavLMConfig(**WAV2VEC2, **LARGE)),
}
OF_PIECES: dict[str, Callable[[], PreTrainedModel]] = {"parakeet": parakeet, "granite": granite}


def pieces_tokenizer(blank: int) -> PreTrainedTokenizerFast:
    """SentencePiece's kind of BPE, with the blank where the head has it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<pad>"] if blank == 0 else []
    trainer = trainers.BpeTrainer(vocab_size=40 + len(special), special_tokens=special, show_progress=False)
    bpe.train_from_iterator(tiny.SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>")


def save_of_characters(model: PreTrainedModel, folder: Path) -> Path:
    """With the vocabulary and the front end of a Wav2Vec2 checkpoint."""
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(CHARACTERS)}))
    Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    return folder


def save_of_pieces(model: PreTrainedModel, folder: Path) -> Path:
    """With the tokenizer of a Parakeet checkpoint."""
    model.save_pretrained(folder)
    pieces_tokenizer(model.config.pad_token_id).save_pretrained(folder)
    return folder


def save_seanet(folder: Path) -> Path:
    """As `pretrain encoder` writes it, with a CTC head."""
    config = EncodecConfig(**SEANET_WITH_HEAD)
    encoder = SEANetSpeechEncoder(config)
    tiny.randomize(encoder, seed=5)
    config.save_pretrained(folder)
    save_file(encoder.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save(name: str, folder: Path) -> Path:
    """The folder of an encoder of `OF_CHARACTERS`, of `OF_PIECES`, or of `seanet`, with random weights."""
    if name == "seanet":
        return save_seanet(folder)
    model = (OF_CHARACTERS | OF_PIECES)[name]()
    tiny.randomize(model, seed=5)
    return (save_of_characters if name in OF_CHARACTERS else save_of_pieces)(model, folder)
