"""The configuration of an ASR-Doge model: its three parts, the prompt, and the settings of training.

Promises: `ASRDogeConfig()` is the published pair (Granite Speech 3.3-2B's encoder, Doge-320M, adapter 2048→512→1024)
with every shape filled in, so that a model can be built on the meta device without a download. `from_pretrained` needs
only a saved configuration and its checkpoint.
It does not hold weights, nor check that the frozen parts can be found.
"""

from typing import Any, get_args

from transformers import CONFIG_MAPPING, AutoConfig, GraniteSpeechConfig, PreTrainedConfig

from asr_doge.choices import AdapterType, TrainEncoder, TrainLanguageModel
from asr_doge.defaults import DEFAULT_LANGUAGE_MODEL, DEFAULT_PROMPT, DEFAULT_SPEECH_ENCODER
from asr_doge.errors import ConfigError
from asr_doge.models.early_doge import EarlyDogeConfig
from asr_doge.text.prompt import PLACE


class ASRDogeConfig(PreTrainedConfig):
    """Configuration of `ASRDogeForConditionalGeneration`.

    Args:
        encoder_config: configuration of the frozen speech encoder (a transformers configuration of a family in
            `asr_doge.models.encoders`, or its dictionary). Default: Granite Speech 3.3-2B.
        text_config: configuration of the language model, any causal one. Default: Doge-320M.
        speech_encoder: location of the encoder's weights: hub id, local folder, or a bundled name (`nano/encoder`).
            None: they are saved in the checkpoint itself.
        speech_encoder_revision: hub commit of those weights.
        speech_encoder_fingerprint: digest of those weights, compared on loading.
        language_model, language_model_revision, language_model_fingerprint: the same for the language model; None in
            checkpoints of `full` training, which hold all of it.
        adapter_type: `mlp` (two layers with GELU), `linear` (one layer), `conv` (`mlp` whose first layer also sees the
            embeddings before and after), or `qformer` (a learned query for each group of `adapter_stack` embeddings
            reads the group by attention).
        adapter_hidden_dim: width between the two layers of `mlp` and `conv`, and of `qformer`'s attention.
        adapter_stack: neighbouring speech embeddings joined into one before the adapter.
        adapter_output_norm: RMS norm after the adapter, scaled to the language model's token embeddings.
        prompt_template: text the language model reads before the speech; `{language}` in it is the language spoken.
        prompt_ids: token ids of the prompt for an unknown language, with the beginning-of-sequence token if the
            tokenizer has one.
        pad_token_id: id of padding in a batch; default, the language model's.
        vocabulary_ids: ids of the only tokens that the model writes, in ascending order; None for all.
        max_audio_seconds: longest clip of the training data; longer recordings are transcribed in chunks of at most
            this length, since a model is not reliable on clips longer than in training.
        ctc_head: a CTC head on the speech embeddings, of `asr_doge.models.ctc_head.CTCHeadSettings`; None if there is
            at most the encoder's own.
        calibration: of word confidences, in the form of `asr_doge.decoding.confidence.Calibration`
            (`bench/confidence.py --save` fits it); None for nano's.
        unsure_below: mean probability of the CTC head's labels (`asr_doge.decoding.ctc.best_path_probabilities`) below
            which users are told that the model is unsure of a recording; None to tell nobody.
        silent_below: mean probability of those labels below which the guard `silence` takes a clip of 2 s or more for
            no speech, whatever the voice activity detector says; None never to.
        train_language_model: trained part of the language model: `none`, `lora` or `full`.
        train_encoder: trained part of the encoder: `none`, `lora`, or `last_k`, its last layers and what follows.
        train_encoder_layers: number of its layers that `last_k` trains.
        lora: options of `peft.LoraConfig` (`r`, `lora_alpha`, `lora_dropout`, `target_modules`), for `lora`.
        default_decoder: the decoder to use where the user names none (see `asr_doge.decoding.configuration`).
    """

    model_type = "asr_doge"
    sub_configs = {"encoder_config": AutoConfig, "text_config": AutoConfig}

    encoder_config: PreTrainedConfig = None  # type: ignore[assignment]  # None only until __post_init__
    text_config: PreTrainedConfig = None  # type: ignore[assignment]  # None only until __post_init__
    speech_encoder: str | None = DEFAULT_SPEECH_ENCODER
    speech_encoder_revision: str | None = None
    speech_encoder_fingerprint: str | None = None
    language_model: str | None = DEFAULT_LANGUAGE_MODEL
    language_model_revision: str | None = None
    language_model_fingerprint: str | None = None
    adapter_type: str = "mlp"
    adapter_hidden_dim: int = 512
    adapter_stack: int = 1
    adapter_output_norm: bool = False
    prompt_template: str = DEFAULT_PROMPT
    prompt_ids: list[int] | None = None
    pad_token_id: int | None = None
    vocabulary_ids: list[int] | None = None
    max_audio_seconds: float = 30.0
    ctc_head: dict[str, Any] | None = None
    calibration: dict[str, float] | None = None
    unsure_below: float | None = None
    silent_below: float | None = None
    train_language_model: str = "none"
    train_encoder: str = "none"
    train_encoder_layers: int = 2
    lora: dict[str, Any] | None = None
    default_decoder: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in defaults and check values; raises ConfigError for an invalid choice."""
        self.encoder_config = sub_config(
            published_encoder_config() if self.encoder_config is None else self.encoder_config
        )
        self.text_config = sub_config(published_text_config() if self.text_config is None else self.text_config)
        self.prompt_template = kwargs.pop("prompt", self.prompt_template)  # name in older checkpoints and in nano's
        if set("{}") & set(self.prompt_template.replace(PLACE, "")):
            raise ConfigError(f"prompt_template '{self.prompt_template}': only {PLACE} can stand in braces")
        if self.pad_token_id is None:
            self.pad_token_id = self.text_config.pad_token_id
        _check_choice("adapter_type", self.adapter_type, get_args(AdapterType))
        _check_choice("train_language_model", self.train_language_model, get_args(TrainLanguageModel))
        _check_choice("train_encoder", self.train_encoder, get_args(TrainEncoder))
        for name in ("unsure_below", "silent_below"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, float | int) and 0 <= value <= 1):
                raise ConfigError(f"{name} must be a probability from 0 to 1; got '{value}'")
        if self.adapter_hidden_dim < 1 or self.adapter_stack < 1:
            raise ConfigError("adapter_hidden_dim and adapter_stack must be at least 1")
        if "lora" in (self.train_language_model, self.train_encoder) and self.lora is None:
            self.lora = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear"}
        super().__post_init__(**kwargs)


def published_encoder_config() -> GraniteSpeechConfig:
    """The shapes of ibm-granite/granite-speech-3.3-2b; of its language model only the width matters here."""
    return GraniteSpeechConfig(
        encoder_config={
            "input_dim": 160,
            "num_layers": 16,
            "hidden_dim": 1024,
            "num_heads": 8,
            "dim_head": 128,
            "output_dim": 256,
            "context_size": 200,
            "max_pos_emb": 512,
            "conv_kernel_size": 15,
            "conv_expansion_factor": 2,
            "feedforward_mult": 4,
        },
        projector_config={
            "model_type": "blip_2_qformer",
            "hidden_size": 1024,
            "num_hidden_layers": 2,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
            "encoder_hidden_size": 1024,
            "cross_attention_frequency": 1,
        },
        text_config={"model_type": "granite", "hidden_size": 2048},
        window_size=15,
        downsample_rate=5,
    )


def published_text_config() -> EarlyDogeConfig:
    """The shapes of SmallDoge/Doge-320M, which has Doge's early layout."""
    return EarlyDogeConfig(
        vocab_size=32768,
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=32,
        num_attention_heads=8,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )


def sub_config(value: dict[str, Any] | PreTrainedConfig) -> PreTrainedConfig:
    """A configuration within another, which a file holds as a dictionary."""
    return CONFIG_MAPPING[value["model_type"]](**value) if isinstance(value, dict) else value


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}; got '{value}'")
