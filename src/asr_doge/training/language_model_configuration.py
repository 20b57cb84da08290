"""Settings of `asr-doge pretrain language_model`.

Promises: a dataclass with a docstring under every field, which is the flag's help. It does not import torch.
"""

from dataclasses import dataclass


@dataclass
class PretrainLanguageModelConfig:
    """Make a small language model of text: its vocabulary and its weights."""

    output_dir: str
    """Folder to write `language_model/` to."""
    text_files: list[str]
    """Text files, a sentence a line; `.gz` is read too."""
    without_manifests: list[str]
    """Manifests whose transcripts are not read: those of every test set."""
    text_vocab_size: int = 2048
    """Tokens of the language model, byte-level BPE."""
    text_hidden_dim: int = 256
    """Width of the language model."""
    text_layers: int = 2
    """Layers of the language model."""
    steps: int = 1600
    """Steps; the learning rate falls to zero along a cosine over them."""
    batch_tokens: int = 2048
    """Tokens of a step, padding included."""
    learning_rate: float = 3e-3
    """Highest learning rate, after a warm-up of a twentieth of the steps."""
    seed: int = 0
    """Seed of weights and order."""
