"""Load a model: the same functions for training, transcription, benchmark and server.

Promises: `load_model` gives the model and processor of any checkpoint; `assemble_model` puts an untrained adapter
between any supported encoder and any causal language model; `load_encoder_alone` reads only the encoder of a
checkpoint or of a published model.
It does not know how the model is used.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from transformers import AutoFeatureExtractor, GenerationConfig, PreTrainedTokenizerBase

from asr_doge.choices import Dtype, EncoderWindow, Quantization
from asr_doge.defaults import DEFAULT_LANGUAGE_MODEL, DEFAULT_MODEL, DEFAULT_PROMPT, DEFAULT_SPEECH_ENCODER
from asr_doge.errors import CheckpointError, ConfigError, first_line
from asr_doge.models.atomic_folder import atomic_folder
from asr_doge.models.checkpoints import Reference, find_model, load_model_config, load_tokenizer
from asr_doge.models.configuration_asr_doge import ASRDogeConfig
from asr_doge.models.ctc_head import HeadedEncoder, with_head, without_head
from asr_doge.models.ctc_head_checkpoints import CTCHeadConfig, find_speech_encoder, load_head_weights
from asr_doge.models.encoders import SpeechEncoder, SpeechEncoderOutput, concatenate_outputs, encode, encoder_family
from asr_doge.models.encoders.loading import load_encoder
from asr_doge.models.feature_extraction_asr_doge import Waveform
from asr_doge.models.fetching import find_or_fetch
from asr_doge.models.frozen_parts import load_frozen_encoder
from asr_doge.models.lora import add_lora_for_inference, merge_updates
from asr_doge.models.modeling_asr_doge import HEAD_PREFIX, ASRDogeForConditionalGeneration
from asr_doge.models.one_at_a_time import one_at_a_time
from asr_doge.models.parameters import ParameterCounts, trained_encoder_weights
from asr_doge.models.processing_asr_doge import ASRDogeProcessor
from asr_doge.models.quantization import quantize_linear_layers
from asr_doge.models.weights import check_keys, check_shapes, read_weights

MAX_NEW_TOKENS = 256
ENCODED_SECONDS = 15
"""Seconds of audio, with padding, that a CPU encodes at once, if no single clip is longer."""
TORCH_TYPES: dict[Dtype, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass
class LoadedEncoder:
    """A speech encoder ready to use, on its device, with the feature extractor that it was trained with.

    Attributes:
        unsure_below, silent_below: of its CTC head's labels, as in `ASRDogeConfig`.
    """

    encoder: SpeechEncoder
    feature_extractor: Any
    unsure_below: float | None = None
    silent_below: float | None = None

    @property
    def speech_encoder(self) -> "LoadedEncoder":
        """Itself, as of a `LoadedModel`."""
        return self

    @property
    def module(self) -> nn.Module:
        """The module that holds all weights."""
        return self.encoder

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return next(chain(self.encoder.parameters(), self.encoder.buffers())).device

    def count_parameters(self) -> ParameterCounts:
        """Parameters of the encoder, its CTC head included."""
        return ParameterCounts(sum(parameter.numel() for parameter in self.encoder.parameters()), 0, 0, 0)

    def count_tokens(self, text: str) -> int:
        """Labels of a text, as the CTC head writes it."""
        return len(self.encoder.ctc_ids(text))

    @property
    def sampling_rate(self) -> int:
        """Sampling rate of its input, in Hz."""
        return int(self.feature_extractor.sampling_rate)

    @property
    def max_samples(self) -> int | None:
        """Samples of the longest clip that the feature extractor reads whole; None for no limit."""
        return getattr(self.feature_extractor, "n_samples", None)  # Whisper's, which cuts longer clips silently

    @property
    def max_seconds(self) -> float:
        """Length of the longest clip that the feature extractor reads whole, in seconds."""
        return self.max_samples / self.sampling_rate if self.max_samples is not None else math.inf

    def input_features(self, waveforms: Sequence[Waveform]) -> tuple[torch.Tensor, torch.Tensor]:
        """Input features of a batch of clips `[samples]` and their mask, on the CPU, as `encode` makes them."""
        inputs = self.feature_extractor(
            list(waveforms),
            sampling_rate=self.sampling_rate,
            return_tensors="pt",
            return_attention_mask=True,
            **self.encoder.extractor_options(max(len(waveform) for waveform in waveforms)),
        )
        return inputs["input_features"], inputs["attention_mask"]

    def encode(self, waveforms: Sequence[Waveform], return_ctc_logits: bool = False) -> SpeechEncoderOutput:
        """Encode a batch of clips `[samples]`; the result of each is the same as if it were alone.

        On a CPU only neighbours that are short are encoded at once. More would be no faster, would compute padding, and
        would take several times the memory.
        """
        return concatenate_outputs(
            [
                self.encode_features(*self.input_features(waveforms[rows]), return_ctc_logits)
                for rows in self._sub_batches([len(waveform) for waveform in waveforms])
            ]
        )

    def _sub_batches(self, samples: Sequence[int]) -> list[slice]:
        """The rows of a batch that are encoded at once, given the lengths of all its clips."""
        if self.device.type != "cpu":
            return [slice(0, len(samples))]
        most, start, sub_batches = ENCODED_SECONDS * self.sampling_rate, 0, []
        for end in range(1, len(samples) + 1):
            if end == len(samples) or (end + 1 - start) * max(samples[start : end + 1]) > most:
                sub_batches.append(slice(start, end))
                start = end
        return sub_batches

    def encode_features(
        self, input_features: torch.Tensor, attention_mask: torch.Tensor, return_ctc_logits: bool = False
    ) -> SpeechEncoderOutput:
        """Encode a batch of `input_features`."""
        with torch.no_grad():
            return encode(self.encoder, input_features, attention_mask, return_ctc_logits)


@dataclass
class LoadedModel:
    """A model ready to use, on its device, in eval mode."""

    model: ASRDogeForConditionalGeneration
    processor: ASRDogeProcessor

    @property
    def module(self) -> nn.Module:
        """The module that holds all weights."""
        return self.model

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return self.model.device

    def count_parameters(self) -> ParameterCounts:
        """Parameters of each part."""
        return self.model.count_parameters()

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, as the language model writes it, including the end-of-sequence token."""
        return len(self.processor.text_ids(text))

    @property
    def speech_encoder(self) -> LoadedEncoder:
        """Its encoder only."""
        limits = self.model.config.unsure_below, self.model.config.silent_below
        return LoadedEncoder(self.model.encoder, self.processor.feature_extractor, *limits)

    def save(self, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> None:
        """Write a checkpoint folder, completely or not at all; an existing one is replaced.

        Args:
            folder: of the checkpoint.
            weights: to write instead of the model's own (if several processes share them).
        """
        with atomic_folder(folder) as partial:
            self.model.save_pretrained(partial, state_dict=weights)
            self.processor.save_pretrained(partial)


@one_at_a_time
def load_model(
    name: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    quantization: Quantization = "none",
) -> LoadedModel:
    """Load a trained model, to be used and not trained further.

    Args:
        name: checkpoint folder, hub id, or bundled name; default `english`.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; default, an accelerator if there is one.
        dtype: of the weights in memory.
        quantization: `int8` for 8-bit matrices (see `asr_doge.models.quantization`), for inference on the CPU.

    Raises:
        CheckpointError: the checkpoint or a part it points to is missing or damaged.
        ConfigError: there is no such device, or it cannot run quantized models.
    """
    found_device = _find_device_for(quantization, device)
    reference = find_model(name if name is not None else DEFAULT_MODEL)
    model = ASRDogeForConditionalGeneration.from_pretrained(
        reference.folder or reference.name,
        dtype=dtype,
        device_map=found_device,
        quantization=quantization,
        for_inference=True,
    )
    reference.required_file("tokenizer.json")
    tokenizer = load_tokenizer(reference)
    try:
        feature_extractor = AutoFeatureExtractor.from_pretrained(reference.location, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint '{reference.name}' has no usable processor configuration: {first_line(error)}"
        ) from error
    return LoadedModel(model, ASRDogeProcessor(feature_extractor, tokenizer, model.config.prompt_template))


@one_at_a_time
def load_encoder_alone(
    name: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    quantization: Quantization = "none",
) -> LoadedEncoder:
    """Load a speech encoder without adapter or language model.

    Args:
        name: an ASR-Doge checkpoint, or a model whose encoder a family of `asr_doge.models.encoders` supports (for
            example published Granite Speech), or the folder of a CTC head: folder, hub id, or bundled name; default
            `english`.
        device, dtype, quantization: as in `load_model`.

    Raises:
        CheckpointError, ConfigError: as in `load_model`.
    """
    found_device = _find_device_for(quantization, device)
    reference = find_or_fetch(name if name is not None else DEFAULT_MODEL)
    config = load_model_config(reference)
    if isinstance(config, CTCHeadConfig):
        return _load_encoder_of(reference, config, "", found_device, dtype, quantization)
    if not isinstance(config, ASRDogeConfig):
        encoder = load_encoder(reference, config, dtype, quantization)
    elif config.speech_encoder is None or (config.ctc_head is not None and config.ctc_head["type"] == "adapter"):
        # All of it is in the checkpoint, or the head is the adapter.
        return load_model(name, device=device, dtype=dtype, quantization=quantization).speech_encoder
    else:
        return _load_encoder_of(reference, config, HEAD_PREFIX, found_device, dtype, quantization)
    return LoadedEncoder(encoder.to(found_device), encoder_family(config).feature_extractor(config))


def _load_encoder_of(
    reference: Reference,
    config: ASRDogeConfig | CTCHeadConfig,
    prefix: str,
    device: torch.device,
    dtype: torch.dtype,
    quantization: Quantization,
) -> LoadedEncoder:
    """The encoder that a checkpoint points to, as it was trained; its CTC head's weights have names with `prefix`."""
    is_frozen = isinstance(config, CTCHeadConfig) or config.train_encoder == "none"
    encoder = with_head(load_frozen_encoder(config, dtype, quantization if is_frozen else "none"), config.ctc_head)
    if isinstance(encoder, HeadedEncoder):
        encoder.ctc_head.to(dtype)
        load_head_weights(encoder, reference, prefix)
    if isinstance(config, ASRDogeConfig):
        _load_trained_weights(encoder, reference, config)
    if quantization == "int8":
        quantize_linear_layers(encoder)
    extractor = encoder_family(config.encoder_config).feature_extractor(config.encoder_config)
    limits = (config.unsure_below, config.silent_below) if isinstance(config, ASRDogeConfig) else ()
    return LoadedEncoder(encoder.requires_grad_(False).eval().to(device), extractor, *limits)


def _load_trained_weights(encoder: SpeechEncoder, reference: Reference, config: ASRDogeConfig) -> None:
    """Load what a checkpoint trained of its encoder, if anything, with LoRA's updates merged.

    Raises:
        CheckpointError: some weights are missing, unexpected, of another shape, or damaged.
    """
    if config.train_encoder == "lora":
        add_lora_for_inference(below := without_head(encoder), config.lora or {}, below.ctc_layers)
    expected = {name.removeprefix("encoder.") for name in trained_encoder_weights(encoder, config)}

    def own_name(key: str) -> str | None:
        of_encoder = key.startswith("encoder.") and not key.startswith(HEAD_PREFIX)
        return key.removeprefix("encoder.") if of_encoder else None

    weights, source = read_weights(reference, own_name), f"checkpoint '{reference.name}'"
    check_keys(expected, weights, source)
    check_shapes(encoder.state_dict(), weights, source)
    encoder.load_state_dict(weights, strict=False)
    merge_updates(encoder)


@one_at_a_time
def assemble_model(
    speech_encoder: str | Path = DEFAULT_SPEECH_ENCODER,
    language_model: str | Path = DEFAULT_LANGUAGE_MODEL,
    *,
    prompt_template: str = DEFAULT_PROMPT,
    encoder_window: EncoderWindow | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    skip_encoder_weights: bool = False,
    **options: Any,
) -> LoadedModel:
    """A new model: two pretrained parts and an untrained adapter between them.

    Args:
        speech_encoder: hub id, local folder or bundled name of the checkpoint with the encoder; or the folder of a CTC
            head, which is loaded too, with its encoder.
        language_model: the same for the language model and its tokenizer.
        prompt_template: text the language model reads before the speech; `{language}` in it is the language spoken.
        encoder_window: how much the encoder reads at a time (see `set_encoder_window`).
        device, dtype: as in `load_model`.
        skip_encoder_weights: leave the encoder's weights on disk, to train from cached features.
        options: other fields of `ASRDogeConfig` (`adapter_hidden_dim`, `train_language_model`, …).

    Raises:
        CheckpointError, ConfigError: as in `load_model`.
    """
    found, text_reference = find_speech_encoder(speech_encoder, encoder_window), find_model(language_model)
    encoder_reference, encoder_config = found.reference, found.config
    text_config = load_model_config(text_reference)
    tokenizer = load_tokenizer(text_reference)
    if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
        raise CheckpointError(
            f"the tokenizer of '{language_model}' has no end-of-sequence or padding token; add them to its"
            " tokenizer_config.json"
        )
    config = ASRDogeConfig(
        encoder_config=encoder_config,
        text_config=text_config,
        speech_encoder=encoder_reference.pointer,
        speech_encoder_revision=encoder_reference.commit,
        speech_encoder_fingerprint=found.fingerprint,
        language_model=text_reference.pointer,
        language_model_revision=text_reference.commit,
        prompt_template=prompt_template,
        pad_token_id=tokenizer.pad_token_id,
        **{"ctc_head": found.ctc_head, **options},
    )
    feature_extractor = encoder_family(encoder_config).feature_extractor(encoder_config)
    processor = ASRDogeProcessor(feature_extractor, tokenizer, prompt_template)
    config.prompt_ids = processor.prompt_ids().tolist()
    model = ASRDogeForConditionalGeneration.from_parts(config, dtype=dtype, skip_encoder_weights=skip_encoder_weights)
    if found.head is not None and isinstance(model.encoder, HeadedEncoder):
        load_head_weights(model.encoder, found.head[0])
    model.generation_config = _default_generation(tokenizer)
    return LoadedModel(model.to(find_device(device)), processor)  # type: ignore[arg-type]  # transformers wraps `to`, and hides its signature


def _default_generation(tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """Generation settings of a new model: greedy search."""
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
        num_beams=1,  # explicit, since transformers' pipeline defaults to 5
    )


def _find_device_for(quantization: Quantization, device: str | torch.device | None) -> torch.device:
    """`find_device`, if that device can run a model with this quantization."""
    found = find_device(device)
    if quantization not in get_args(Quantization):
        raise ConfigError(f"quantization must be one of {', '.join(get_args(Quantization))}; got '{quantization}'")
    if quantization != "none" and found.type != "cpu":
        raise ConfigError(f"--quantization {quantization} runs on the CPU only, not on {found}; give --device cpu")
    return found


def find_device(device: str | torch.device | None = None) -> torch.device:
    """The requested device, or the machine's accelerator, or the CPU.

    Raises:
        ConfigError: it is not a device, or this machine does not have it.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device is None or device == "auto":
        return accelerator or torch.device("cpu")
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device '{device}' is not a device; use cpu, cuda, cuda:0 or mps") from error
    if wanted.type != "cpu" and (accelerator is None or accelerator.type != wanted.type):
        available = f"cpu and {accelerator.type}" if accelerator else "only cpu"
        raise ConfigError(f"device '{device}' is not available; this machine has {available}")
    if wanted.type != "cpu" and (wanted.index or 0) >= torch.accelerator.device_count():
        last = torch.accelerator.device_count() - 1
        raise ConfigError(f"device '{device}' is not available; the last of this machine is {wanted.type}:{last}")
    return wanted
