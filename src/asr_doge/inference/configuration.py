"""Settings of the `transcribe` and `features` commands: command line, YAML and Python alike.

Promises: a docstring under every field, which is its `--help`; importing this loads neither torch nor transformers.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from asr_doge.audio.channels import Channels
from asr_doge.choices import ComputeDtype, EncoderWindow, LoadDtype, Quantization
from asr_doge.data.manifest import manifests_in
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.defaults import DEFAULT_MODEL, DEFAULT_SPEECH_ENCODER

TextStyle = Literal["plain", "written"]
StorageType = Literal["fp32", "bf16", "int8"]
_WITHOUT_EFFECT = frozenset(
    ["files", "model", "format", "output_dir", "overwrite", "stream", "stream_rate", "batch_size", "device", "compile"]
)
"""Settings of `transcribe` that change no text, or are known otherwise."""


@dataclass
class TranscribeConfig(DecodingConfig):
    """Recordings to text. Reads WAV, FLAC, MP3, Ogg, Opus, M4A, video with sound and more, at any rate."""

    files: list[str] = field(default_factory=list, metadata={"help": "Recordings, or folders of them."})
    model: str = DEFAULT_MODEL
    """Checkpoint folder, hub id, or a bundled model: english, whose speech encoder is downloaded on first use, or nano,
    which needs no download and knows digit strings only."""
    format: str = "txt"
    """txt, json, jsonl, srt, vtt, tsv, ctm or textgrid; with output_dir also several, as in srt,json."""
    text: TextStyle = "plain"
    """plain: words in lower case, as the model gives them; written: with case and punctuation, which a small model
    restores that comes with english. It changes no word."""
    output_dir: str | None = None
    """Folder that gets one file per recording and format; default, everything is printed. Files made from the same
    recording by the same model and settings are kept."""
    overwrite: bool = False
    """Transcribe recordings again whose files are already in output_dir, and replace files of other origin."""
    stream: bool = False
    """Transcribe one recording while it arrives: a file, or - for standard input, which must then be 16-bit
    little-endian mono samples without a header."""
    stream_rate: int = 16000
    """Sampling rate of the samples from standard input, in Hz."""
    channels: Channels = "mix"
    """mix: the mean of all channels; left or right: one of two; each: every channel by itself, as for a call that was
    recorded with one speaker on each."""
    language: str | None = None
    """Language spoken, as a code such as de or a name; it has an effect on models that were trained with {language} in
    their prompt."""
    batch_size: int = 8
    """Chunks of recordings that the model reads at once; no chunk is longer than the longest training recording."""
    device: str | None = None
    """cpu, cuda or mps; default, an accelerator if there is one."""
    dtype: LoadDtype = "fp32"
    """Type of the weights and of the computation (in `features`, that is compute_dtype); bf16 takes half the memory,
    and half the time if the processor has instructions for it. auto: on a CPU, measure in half a second whether fp32,
    bf16 or int8 is fastest, and say which; on an accelerator, bf16 if it has it."""
    quantization: Quantization = "none"
    """int8: 8-bit matrices, on the CPU: less than half the memory and nearly the same text, in a third of the time of
    fp32 if the processor has VNNI, else in about the same, up to a third more for some layers."""
    compile: bool = False
    """Compile the conformer blocks of Granite Speech's encoder, for a GPU: 1.3 times as fast in large batches, after
    some seconds at the start. Equal to rounding."""

    def text_settings(self) -> dict[str, Any]:
        """All settings that a text depends on besides the model; of hotwords, a digest of their file."""
        names = [one.name for one in fields(TranscribeConfig) if one.name not in _WITHOUT_EFFECT]
        settings = {name: getattr(self, name) for name in names}
        if self.hotwords is not None:
            with suppress(OSError, ValueError):  # its fault will be told when it is read
                settings["hotwords"] = hashlib.sha256(Path(self.hotwords).read_bytes()).hexdigest()
        return settings


@dataclass
class ListenConfig:
    """Transcribe a microphone until Ctrl-C. Needs the `listen` extra: pip install "asr-doge[listen]"."""

    model: str = DEFAULT_MODEL
    """Checkpoint folder, hub id, or a bundled model: english, whose speech encoder is downloaded on first use, or nano,
    which needs no download and knows digit strings only."""
    format: str = "txt"
    """txt, json, jsonl, srt, vtt, tsv, ctm or textgrid; only txt and jsonl print anything before the end."""
    language: str | None = None
    """Language spoken, as a code such as de or a name; it has an effect on models that were trained with {language} in
    their prompt."""
    microphone: str | None = None
    """Name of a microphone, or a part of it; default, the system's own choice."""
    device: str | None = None
    """Where the model runs: cpu, cuda or mps; default, an accelerator if there is one."""


@dataclass
class FeaturesConfig:
    """Run the frozen encoder over processed speech once and store its output, so that training need not run it."""

    data_dir: str = "./processed"
    """Folder with the manifests that `asr-doge process` wrote."""
    output_dir: str | None = None
    """Feature cache to write, a folder or s3://… or gs://…; default, `features` in data_dir."""
    speech_encoder: str = DEFAULT_SPEECH_ENCODER
    """Speech encoder: hub id, folder (that of a CTC head too), or nano/encoder."""
    encoder_window: EncoderWindow | None = None
    """How much of the time axis Whisper reads: full, its 30 s; clip, the clip and a second of silence, at a fraction of
    the cost, which gives other features. Default: as the model's configuration says, else full."""
    batch_seconds: float | None = None
    """Seconds of audio encoded at once, padding included; default, 60 on a CPU, and on an NVIDIA GPU as many times 60
    as its free memory holds."""
    compute_dtype: ComputeDtype = "fp32"
    """How the encoder computes: fp32, tf32 (float32 weights, faster and coarser products, on NVIDIA GPUs from Ampere
    on) or bf16 (half the memory; faster where the processor has instructions for it)."""
    compile: bool = False
    """Compile the conformer blocks of Granite Speech's encoder, for a GPU: 1.3 times as fast in large batches, after
    some seconds at the start. Equal to rounding."""
    dtype: StorageType = "fp32"
    """How embeddings are stored, not computed (see compute_dtype): fp32, bf16 (half the disk) or int8 (a quarter, one
    scale per frame)."""
    ctc_top_k: int = 8
    """Number of CTC labels stored for each frame, the most probable, if the encoder has a CTC head; 0 for none."""
    augment_copies: int = 0
    """Extra copies of each utterance of train_manifest.json to store, varied in speed, room, noise and level."""
    shard: str = "1/1"
    """Which part of the files this process writes, and of how many, such as 2/3: one process or machine per part."""
    shard_minutes: float = 30.0
    """Audio in one file of the cache, in minutes, at most on average; a killed run loses at most one file."""
    num_workers: int = 4
    """Threads that read audio; log-mel features, the encoder and storing have one each besides."""
    device: str | None = None
    """cpu, cuda or mps; default, an accelerator if there is one."""
    verify: bool = False
    """Read every recording and compare its content with the one that was encoded. This finds recordings replaced by
    others of the same size and modification time; without it, only those with a new modification time are read."""
    overwrite: bool = False
    """Replace features in output_dir that are of another encoder or were stored in another way."""

    def check_data(self) -> None:
        """Raise a DataError if there is no manifest."""
        manifests_in(self.data_dir)
