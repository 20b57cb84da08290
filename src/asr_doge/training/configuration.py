"""Settings of the `train` command: command line, YAML and Python alike.

Promises: a docstring under every field, which is its `--help`; importing this loads neither torch nor transformers.
It does not check values (see `asr_doge.training.training`).
"""

from dataclasses import dataclass, field

from asr_doge.choices import (
    AdapterType,
    EncoderWindow,
    SampleChoice,
    ScheduleName,
    TrainCTCHead,
    TrainEncoder,
    TrainingDtype,
    TrainLanguageModel,
    Vocabulary,
    WarmUp,
    WeightDecayScope,
)
from asr_doge.data.manifest import check_manifest, manifest_path
from asr_doge.defaults import DEFAULT_LANGUAGE_MODEL, DEFAULT_PROMPT, DEFAULT_SPEECH_ENCODER


@dataclass
class TrainConfig:
    """Train the adapter between a frozen speech encoder and a language model."""

    data_dir: str = "./processed"
    """Folder with train_manifest.json and dev_manifest.json, from `asr-doge process`."""
    output_dir: str = "./checkpoints"
    """Folder for checkpoints: `best` (lowest dev CER), `final`, and `checkpoint-N` to resume from."""
    train_manifest: str | None = None
    """Training manifest, if it is not the one in data_dir."""
    dev_manifest: str | None = None
    """Dev manifest, if it is not the one in data_dir."""
    features_dir: str | None = None
    """Feature cache from `asr-doge features`, a folder or URL; default, `features` in data_dir if it exists. Empty ("")
    uses none: every step then runs the encoder."""
    speech_encoder: str = DEFAULT_SPEECH_ENCODER
    """Frozen speech encoder: hub id, folder, or nano/encoder; a CTC head's folder gives its encoder with that head."""
    encoder_window: EncoderWindow | None = None
    """Audio that Whisper reads at once. full: 30 s; clip: the clip and a second of silence, at a fraction of the cost.
    Default: as in the model's configuration, else full."""
    language_model: str = DEFAULT_LANGUAGE_MODEL
    """Language model: hub id, folder, or nano/language_model."""
    prompt_template: str = DEFAULT_PROMPT
    """Text the language model reads before the speech. {language} in it, as in "transcribe the following {language}
    audio: ", is the language of each utterance in the manifest; it is left out if the manifest names none."""
    adapter_type: AdapterType = "mlp"
    """mlp (two layers), linear (one), conv (mlp that also sees the embeddings before and after), or qformer (a learned
    query reads adapter_stack embeddings by attention)."""
    adapter_hidden_dim: int = 512
    """Width between the two layers of mlp and conv, and of qformer's attention."""
    adapter_stack: int = 1
    """Neighbouring speech embeddings joined into one; 5 suits Whisper's 50 a second."""
    adapter_output_norm: bool = False
    """RMS norm after the adapter, at the scale of the token embeddings."""
    ctc_weight: float = 0.0
    """Weight of a CTC head's loss beside the language model's; 0 trains no head. The head is that in speech_encoder's
    folder (`pretrain ctc_head`), or a new one (ctc_head)."""
    ctc_head: TrainCTCHead | None = None
    """New CTC head for an encoder that has none, with ctc_weight: adapter (the adapter itself, by cosine to the
    language model's token embeddings; the default), linear, blstm or conformer (characters of the training texts)."""
    warm_up: WarmUp | None = None
    """ctc: before the run, the adapter learns by CTC to give token embeddings; the language model is not run.
    Default: ctc with a feature cache if the language model is frozen or has LoRA, else none."""
    warm_up_steps: int = 200
    """Steps of the warm-up stage."""
    vocabulary: Vocabulary = "all"
    """Tokens that the model can write: all, or texts, those of the training and dev texts and of their single
    characters, so that new words can be spelled. Logits of a large vocabulary are a good part of a training step."""
    train_language_model: TrainLanguageModel = "none"
    """Part of the language model to train: none, lora or full."""
    train_encoder: TrainEncoder = "none"
    """Part of the encoder to train: none, lora, or last_k (its last layers). The feature cache can be used only with
    none."""
    train_encoder_layers: int = 2
    """Number of layers that last_k trains."""
    lora_rank: int = 8
    """Rank of LoRA's updates."""
    lora_alpha: float = 16.0
    """LoRA's updates are multiplied by lora_alpha / lora_rank."""
    lora_dropout: float = 0.0
    """Dropout before LoRA's updates, in the language model."""
    lora_targets: list[str] = field(default_factory=lambda: ["all-linear"])
    """Names of the layers that LoRA updates, such as q_proj; all-linear is all but the output layer."""
    batch_size: int = 16
    """Utterances per step, over all processes."""
    like_length: bool = True
    """Whether the utterances of a step are of similar length, which reduces padding; false takes them at random. (With
    batch_seconds they always are.)"""
    batch_seconds: float | None = None
    """Seconds of audio per batch, padding included, in batches of similar length; default, batch_size utterances per
    step. Evaluations use it too. Each process reads its own batch, and gradient_accumulation_steps of them make a
    step."""
    augment: bool = False
    """Vary recordings (speed, room, noise, band, level) and mask their features (SpecAugment), newly drawn each epoch;
    only without a feature cache. With one, make copies by `features --augment_copies`, from which training draws."""
    frame_dropping: float = 0.0
    """Share of speech embeddings left out at random; only with a feature cache."""
    embedding_noise: float = 0.0
    """Noise added to speech embeddings, as a fraction of their level; only with a feature cache."""
    gradient_accumulation_steps: int = 1
    """Parts into which each process splits its share of a batch, to save memory; the result is the same. With
    batch_seconds, batches per step."""
    learning_rate: float = 2e-3
    """Highest learning rate of the schedule."""
    language_model_learning_rate: float | None = None
    """The same for the trained part of the language model; default, learning_rate."""
    encoder_learning_rate: float | None = None
    """The same for the trained part of the encoder."""
    stages: list[dict[str, float]] = field(default_factory=list)
    """Consecutive stages, in YAML, instead of epochs and the learning rates: each has `epochs` and, by part,
    `adapter_learning_rate`, `language_model_learning_rate`, `encoder_learning_rate` (default 0: not trained)."""
    schedule: ScheduleName = "linear"
    """linear: up over warmup_steps, then down to zero. onecycle: torch's OneCycleLR, up from a 25th along a cosine over
    pct_start of all steps, then down to almost zero, and AdamW's first beta down from 0.95 to 0.85 and up again."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises (schedule linear)."""
    pct_start: float = 0.1
    """Share of all steps over which the learning rate rises (schedule onecycle)."""
    weight_decay: float = 0.01
    """AdamW weight decay."""
    weight_decay_scope: WeightDecayScope = "matrices"
    """Parameters with weight decay: matrices (neither biases nor norms), or all trained ones."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    epochs: float = 1.0
    """Passes over the training data."""
    patience: int = 2
    """Evaluations without a lower dev CER before training stops."""
    eval_steps: int = 100
    """Steps between evaluations."""
    eval_samples: int = 200
    """Dev utterances that each evaluation transcribes, at most."""
    sample_choice: SampleChoice = "spread"
    """Which dev utterances to take. spread: those whose ids have the smallest SHA-256. first: the manifest's first."""
    save_steps: int = 100
    """Steps between checkpoints; a multiple of eval_steps."""
    device: str | None = None
    """cpu, cuda or mps; default, an accelerator if there is one."""
    dtype: TrainingDtype = "auto"
    """Type of the computation: fp32, or bf16 (mixed precision, weights and optimizer in fp32). auto times a step in
    both on the device, and takes bf16 if it is faster by a tenth or more."""
    fsdp: bool = False
    """Divide weights, gradients and optimizer among the processes (FSDP2), if one device cannot hold them."""
    num_workers: int = 2
    """Processes that read audio; with a feature cache, or with 0, a thread of the process reads ahead."""
    seed: int = 0
    """Seed of the adapter's initial weights and the order of the data."""
    max_unreadable: int = 20
    """Maximum number of unreadable recordings, dev set included, that are left out before training stops (without a
    feature cache)."""
    plan: bool = False
    """Print parameters and the memory that training will need, and stop."""
    resume_from: str | None = None
    """A checkpoint-N folder to resume from, or `latest`."""
    allow_config_change: bool = False
    """Resume even if settings or data differ from those the run began with."""
    push_to_hub: bool = False
    """Upload `best` to the Hugging Face hub when training has ended; run `hf auth login` first."""
    hub_model_id: str | None = None
    """Repository on the hub, such as me/my-recognizer; default, the name of output_dir under the token's owner."""
    hub_private_repo: bool = False
    """If the repository is created, make it private."""
    wandb_project: str | None = None
    """Weights & Biases project to log to."""
    wandb_entity: str | None = None
    """Weights & Biases team or user."""
    wandb_run_name: str | None = None
    """Name of the run there."""
    no_wandb: bool = False
    """Do not log to Weights & Biases even if a project is set."""

    def check_data(self) -> None:
        """Raise a DataError if a manifest is missing."""
        check_manifest(manifest_path("train", self.data_dir, self.train_manifest))
        check_manifest(manifest_path("dev", self.data_dir, self.dev_manifest))
