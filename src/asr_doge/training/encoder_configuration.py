"""Settings of `pretrain encoder`: command line, YAML and Python alike.

Promises: a docstring under every field, which is its `--help`; importing this loads neither torch nor transformers.
"""

from dataclasses import dataclass
from typing import Literal

from asr_doge.errors import ConfigError


@dataclass
class PretrainEncoderConfig:
    """Train a small speech encoder from nothing by CTC, on spoken digits, and print its WER on a speaker kept out."""

    digits_dir: str
    """Free Spoken Digit Dataset folder."""
    output_dir: str = "./encoder"
    """Folder for `encoder/`, which --speech_encoder takes, and for `checkpoint-N` to resume from."""
    architecture: Literal["conformer", "seanet"] = "conformer"
    """conformer: Granite Speech's blocks on log-mel features, as in nano. seanet: EnCodec's convolutions and LSTM, on
    the waveform itself."""
    dev_speaker: str = "lucas"
    """FSDD speaker kept out of training, from whose digits the dev set is made."""
    dev_strings: int = 100
    """Digit strings (2 to 8 digits) of the dev set."""
    hidden_dim: int = 96
    """Width of the conformer, or of SEANet's output."""
    layers: int = 4
    """Layers of the conformer."""
    num_filters: int = 16
    """Channels of SEANet's first convolution; they double at each of its four strides."""
    steps: int = 1600
    """Steps, over which the learning rate falls to zero along a cosine after a warm-up of a tenth."""
    batch_size: int = 24
    """Utterances per step."""
    learning_rate: float = 2e-3
    """Highest learning rate."""
    num_workers: int = 1
    """Processes that generate speech."""
    seed: int = 0
    """Seed of weights and data."""

    def __post_init__(self) -> None:
        for name in ("dev_strings", "hidden_dim", "layers", "num_filters", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: at least 1 is needed")
        if self.architecture == "conformer" and self.hidden_dim % 32:
            raise ConfigError(f"--hidden_dim {self.hidden_dim}: the conformer needs a multiple of 32")
