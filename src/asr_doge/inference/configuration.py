"""Settings of the `transcribe` and `features` verbs: command line, YAML and Python alike.

Promises: a docstring under every field, which is its `--help`; importing this loads neither torch nor transformers.
"""

from dataclasses import dataclass, field
from typing import Literal

from asr_doge.published import DEFAULT_SPEECH_ENCODER, Quantization

OutputFormat = Literal["txt", "json"]


@dataclass
class TranscribeConfig:
    """Recordings to text. Reads WAV, FLAC, MP3, Ogg, Opus, M4A, video with sound and more, at any rate."""

    files: list[str] = field(default_factory=list, metadata={"help": "Recordings, or folders of them."})
    model: str = "nano"
    """Checkpoint folder, hub id, or nano (bundled; knows English digit strings only)."""
    format: OutputFormat = "txt"
    """txt: a line for each recording, after its name if there are several. json: one document."""
    batch_size: int = 8
    """Pieces of recordings that the model reads at once; none is longer than what it was trained on."""
    num_beams: int = 1
    """Beams of beam search; 1 is greedy."""
    device: str | None = None
    """cpu, cuda or mps; default, an accelerator if there is one."""
    quantization: Quantization = "none"
    """int8: 8-bit matrices, on the CPU: less than half the time and a third of the memory, nearly the same text."""


@dataclass
class FeaturesConfig:
    """Run the frozen encoder over processed speech once, so that training need not."""

    data_dir: str = "./processed"
    """Folder with the manifests that `asr-doge process` wrote."""
    output_dir: str | None = None
    """Feature cache to write; default, `features` in data_dir."""
    speech_encoder: str = DEFAULT_SPEECH_ENCODER
    """Speech encoder: hub id, folder, or nano/encoder."""
    batch_size: int = 8
    """Utterances encoded at once."""
    device: str | None = None
    """cpu, cuda or mps; default, an accelerator if there is one."""
    overwrite: bool = False
    """Replace the features of another encoder that are in output_dir."""
