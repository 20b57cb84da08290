"""Settings of the `process` and `download` commands: command line, YAML and Python alike.

Promises: a docstring under every field, which is its `--help`; invalid values are refused here; importing this loads no
library.
"""

from dataclasses import dataclass, field
from pathlib import Path

from asr_doge.errors import ConfigError

ENCODER_SAMPLE_RATE = 16_000
"""`asr_doge.audio.SAMPLE_RATE`, repeated here since importing that package takes a while."""


@dataclass
class ProcessConfig:
    """Make the manifests of a corpus: measure its recordings, normalize its transcripts, and keep what is usable."""

    data_dir: Path
    """Folder of the corpus, in its original layout."""
    output_dir: Path
    """Folder for train_manifest.json, dev_manifest.json, test_manifest.json, dropped.tsv and report.html."""
    dataset: str = "librispeech"
    """Corpus or layout: librispeech, mini_librispeech, ljspeech, fsdd (Free Spoken Digit Dataset), speechocean762,
    folder (recordings with a .txt beside each), manifest (SPLIT.jsonl, SPLIT.json or SPLIT_manifest.json, ours or
    NeMo's), table (SPLIT.csv or SPLIT.tsv with a header), common_voice (SPLIT.tsv and clips/), kaldi (SPLIT/wav.scp and
    SPLIT/text), lhotse (cuts_SPLIT.jsonl.gz, or a Shar folder SPLIT; needs asr-doge[lhotse])."""
    train_split: str | None = None
    """Split to train on. Default: the corpus's own; train-clean-100 for librispeech, train-without-dev for fsdd and
    speechocean762, else train. Empty ("") leaves it out. fsdd also takes all, a speaker's name, and forms like
    train-without-lucas and test-of-lucas; folder takes a subfolder's name or all."""
    dev_split: str | None = None
    """Split to tune on. Default: dev-clean for librispeech, else dev. Empty ("") leaves it out."""
    test_split: str | None = None
    """Split to test on. Default: test-clean for librispeech, else test. Empty ("") leaves it out."""
    language: str | None = None
    """Language code, such as de, of utterances for which the corpus names none. Default: none."""
    sample_rate: int = ENCODER_SAMPLE_RATE
    """Rate, in Hz, that recordings are resampled to when they are read; the files are not changed. The speech encoder
    needs 16000."""
    max_duration: float = 30.0
    """Longest recording to keep, in seconds."""
    min_duration: float = 0.5
    """Shortest recording to keep, in seconds. Single words are shorter: for fsdd give 0.1."""
    min_chars: int = 1
    """Fewest characters of the normalized transcript."""
    max_chars: int | None = None
    """Most characters of the normalized transcript. Default: any number."""
    max_chars_per_second: float | None = None
    """Most characters of the normalized transcript per second of recording: transcripts with more seldom match the
    speech (fast English is below 25). Default: any number."""
    verify: bool = False
    """Decode every recording to its end, which finds truncated ones. By default only headers are read."""
    num_workers: int = 8
    """Recordings that are opened at the same time."""
    lhotse_cuts: bool = False
    """Also write each manifest as cuts for lhotse: cuts_train.jsonl.gz, cuts_dev.jsonl.gz, cuts_test.jsonl.gz. Needs
    asr-doge[lhotse]."""

    def __post_init__(self) -> None:
        if self.sample_rate != ENCODER_SAMPLE_RATE:
            raise ConfigError(
                f"--sample_rate {self.sample_rate} cannot be used: the encoder takes {ENCODER_SAMPLE_RATE} Hz, and"
                " recordings of any rate are resampled to it when read; leave the flag out"
            )
        if not 0 <= self.min_duration < self.max_duration:
            raise ConfigError(
                f"--min_duration {self.min_duration} and --max_duration {self.max_duration} leave nothing to keep:"
                " choose seconds with 0 <= min_duration < max_duration"
            )
        if self.min_chars < 1 or (self.max_chars is not None and self.max_chars < self.min_chars):
            raise ConfigError(
                f"--min_chars {self.min_chars} and --max_chars {self.max_chars} leave nothing to keep: choose"
                " 1 <= min_chars <= max_chars"
            )
        if self.max_chars_per_second is not None and not self.max_chars_per_second > 0:
            raise ConfigError(f"--max_chars_per_second {self.max_chars_per_second} leaves nothing to keep: try 25")
        if self.num_workers < 1:
            raise ConfigError(f"--num_workers {self.num_workers}: at least 1 is needed")


MODEL = "model"
"""The word after `download` that says that models follow instead of corpora."""


@dataclass
class DownloadConfig:
    """Fetch corpora or models: resumable, checked, completely or not at all. A second run does nothing."""

    corpora: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Corpora of --list; hub:NAME for a Hugging Face dataset (needs asr-doge[datasets]); or the word"
            " model and then models of --list."
        },
    )
    output_dir: Path = Path("./data")
    """Folder to unpack into; each corpus or model gets a folder of its own in it."""
    splits: list[str] = field(default_factory=list)
    """Splits to fetch, several after one flag. Default: what process takes by default (for librispeech train-clean-100,
    dev-clean and test-clean)."""
    mirror: str | None = None
    """Address of a folder with the archives under their original names. Default: the corpus's own addresses."""
    timeout: float = 30.0
    """Seconds without a byte after which a connection is closed and reopened."""
    keep_archives: bool = False
    """Keep the archives after unpacking."""
    subset: str | None = None
    """For hub: the dataset's configuration, such as a language. Default: its own."""
    text_column: str | None = None
    """For hub: the column of transcripts. Default: the first existing one of text, sentence, transcription, transcript,
    normalized_text and raw_text."""
    max_utterances: int | None = None
    """For hub: maximum number of utterances to fetch for each split. Default: all."""
    # Last in the class, whose later lines could not say `list[str]`.
    list: bool = False
    """List the corpora and models with their licences, sizes and checksums, and fetch nothing."""

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ConfigError(f"--timeout {self.timeout}: give seconds, more than 0")
        if self.max_utterances is not None and self.max_utterances < 1:
            raise ConfigError(f"--max_utterances {self.max_utterances}: at least 1 is needed")
