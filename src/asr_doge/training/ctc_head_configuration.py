"""Settings of `pretrain ctc_head`: command line, YAML and Python alike.

Promises: a docstring under every field, which is its `--help`; importing this loads neither torch nor transformers.
"""

from dataclasses import dataclass

from asr_doge.choices import CTCHeadType, CTCUnits, EncoderWindow
from asr_doge.defaults import DEFAULT_SPEECH_ENCODER


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
