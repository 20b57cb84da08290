"""Settings of the `pretrain` commands: command line, YAML and Python alike.

Promises: a docstring under every field, which is its `--help`; importing this loads neither torch nor transformers.
"""

from dataclasses import dataclass
from typing import Literal

from asr_doge.choices import CTCHeadType, CTCUnits, EncoderWindow
from asr_doge.data.manifest import check_manifest, manifest_path
from asr_doge.defaults import DEFAULT_SPEECH_ENCODER
from asr_doge.errors import ConfigError


@dataclass
class PretrainConfig:
    """Make the frozen parts of a small model from nothing: encoder, projector and language model."""

    output_dir: str
    """Folder to write `encoder/` and `language_model/` to."""
    digits_dir: str
    """Free Spoken Digit Dataset folder."""
    sentences_manifest: str | None = None
    """Manifest of other read speech, to train the conformer on more voices (speechocean762 `train`)."""
    dev_speaker: str = "lucas"
    """FSDD speaker kept out of training."""
    encoder_hidden_dim: int = 96
    """Width of the conformer."""
    encoder_layers: int = 4
    """Layers of the conformer."""
    speech_embedding_dim: int = 192
    """Width of the projector's speech embeddings."""
    text_hidden_dim: int = 128
    """Width of the language model."""
    text_layers: int = 4
    """Layers of the language model."""
    text_vocab_size: int = 512
    """Vocabulary size of the language model, byte-level BPE."""
    batch_size: int = 24
    """Utterances per step."""
    ctc_steps: int = 3200
    """Steps over which stage 1's learning rate would fall to zero."""
    ctc_until: float = 0.5
    """Fraction of those steps after which stage 3 follows, at a high learning rate again."""
    language_steps: int = 500
    """Steps of stage 2."""
    text_steps: int = 1600
    """Steps of stage 3."""
    long_text_steps: int = 900
    """Steps of stage 4, which is stage 3 with strings of up to eight digits."""
    learning_rate: float = 2e-3
    """Highest learning rate of stage 1, after a warm-up of a tenth of the steps; it falls to zero along a cosine."""
    language_learning_rate: float = 2e-3
    """The same for stage 2."""
    text_learning_rate: float = 1e-3
    """The same for stage 3."""
    long_text_learning_rate: float = 5e-4
    """The same for stage 4."""
    sentence_share: float = 0.15
    """Share of stage 1's batches that are sentences, if there are any."""
    digit_sentence_share: float = 0.25
    """Share of stage 3's batches that are sentences of digits only, if there are any."""
    num_workers: int = 1
    """Processes that generate speech."""
    seed: int = 0
    """Seed of weights and data."""


@dataclass
class PretrainCTCHeadConfig:
    """Train a CTC head on the cached features of a frozen encoder, which then has drafts, word times and hotwords."""

    data_dir: str = "./processed"
    """Folder with train_manifest.json and dev_manifest.json, from `asr-doge process`."""
    output_dir: str = "./ctc_head"
    """Folder of the run: `best` (lowest dev CER), for `--speech_encoder` and `transcribe --model`, and `checkpoint-N`
    to resume from."""
    train_manifest: str | None = None
    """Training manifest, if it is not the one in data_dir."""
    dev_manifest: str | None = None
    """Dev manifest, if it is not the one in data_dir."""
    features_dir: str | None = None
    """Feature cache from `asr-doge features`, a folder or URL; default, `features` in data_dir."""
    speech_encoder: str = DEFAULT_SPEECH_ENCODER
    """Encoder of the features: hub id or folder. With a CTC head's folder, training continues from that head, with its
    shape and vocabulary."""
    encoder_window: EncoderWindow | None = None
    """The value of `features --encoder_window` with which the features were made."""
    head_type: CTCHeadType = "conformer"
    """conformer (the best here), blstm, or linear (one layer, too little for an encoder not trained by CTC)."""
    stack: int = 2
    """Neighbouring speech embeddings joined into one frame of the head; 2 suits 50 a second."""
    hidden_dim: int = 144
    """Width of the conformer, or of each direction of the LSTM."""
    layers: int = 2
    """Layers of either."""
    dropout: float = 0.1
    """Dropout in training."""
    units: CTCUnits = "characters"
    """Labels of the head: the characters of the training texts, or bpe, subwords."""
    vocab_size: int = 256
    """Maximum number of bpe subwords."""
    batch_seconds: float = 160.0
    """Seconds of audio per step, padding included, in batches of similar length."""
    time_masking: float = 0.1
    """Share of the speech embeddings that is masked in stretches of up to 10."""
    learning_rate: float = 2e-3
    """Highest learning rate; it rises over the warm-up and falls to zero along a cosine."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    warmup_steps: int = 200
    """Steps over which the learning rate rises."""
    max_grad_norm: float = 5.0
    """Gradients are clipped to this norm."""
    epochs: float = 20.0
    """Passes over the training data."""
    eval_steps: int = 200
    """Steps between evaluations, each followed by a checkpoint."""
    eval_samples: int = 200
    """Dev utterances that each evaluation decodes: those whose ids have the smallest SHA-256."""
    average: int = 5
    """Newest checkpoints whose mean is evaluated at the end, and is `best` if its dev CER is the lowest; 1 for none."""
    device: str | None = None
    """cpu, cuda or mps; default, an accelerator if there is one."""
    seed: int = 0
    """Seed of the head's initial weights and the order of the data."""
    resume_from: str | None = None
    """A checkpoint-N folder to resume from, or `latest`."""

    def check_data(self) -> None:
        """Raise a DataError if a manifest is missing."""
        check_manifest(manifest_path("train", self.data_dir, self.train_manifest))
        check_manifest(manifest_path("dev", self.data_dir, self.dev_manifest))


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
