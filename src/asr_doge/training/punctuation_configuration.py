"""Settings of `asr-doge pretrain punctuation`.

Promises: a dataclass with a docstring under every field, which is the flag's help. It does not import torch.
"""

from dataclasses import dataclass


@dataclass
class PretrainPunctuationConfig:
    """Make a small model that restores case and punctuation of recognized words, for `transcribe --text written`."""

    output_dir: str
    """Folder to write `punctuation/` to: that of the checkpoint which shall use it."""
    text_files: list[str]
    """Text files with case and punctuation, a sentence a line, in the order of the text; `.gz` is read too."""
    without_manifests: list[str]
    """Manifests whose transcripts are not read: those of every test set."""
    text_vocab_size: int = 2048
    """Tokens of its vocabulary, byte-level BPE."""
    text_hidden_dim: int = 192
    """Width of the model."""
    text_layers: int = 3
    """Layers of the model."""
    steps: int = 1500
    """Steps; the learning rate falls to zero along a cosine over them."""
    batch_size: int = 24
    """Windows of text in a step, of up to 60 words each."""
    learning_rate: float = 1e-3
    """Highest learning rate, after a warm-up of a tenth of the steps."""
    seed: int = 0
    """Seed of weights and order."""
