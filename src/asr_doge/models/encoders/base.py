"""The interfaces of a speech encoder (`SpeechEncoder`) and of a family of them (`EncoderFamily`).

Promises: the rest of the package runs an encoder only through `SpeechEncoder`, which may wrap another encoder, and
loads one only through `EncoderFamily`. A family is one file beside this one, listed in the registry of
`asr_doge.models.encoders`.
It does not know any particular family, nor where weights come from.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedConfig

from asr_doge.choices import CTCUnits, EncoderWindow
from asr_doge.errors import ConfigError
from asr_doge.models.checkpoints import Reference
from asr_doge.models.ctc_vocabulary import CTCVocabulary


@dataclass
class SpeechEncoderOutput:
    """The output of an encoder for a batch.

    Attributes:
        speech_embeddings: `[B, T', D]`; rows past a clip's own length are zero.
        speech_lengths: `[B]`, valid speech embeddings of each clip.
        ctc_logits: `[B, T, V]` at the encoder's inner frame rate, where the family has a CTC head and it was asked for.
        ctc_lengths: `[B]`, valid CTC frames of each clip, with `ctc_logits`.
    """

    speech_embeddings: Tensor
    speech_lengths: Tensor
    ctc_logits: Tensor | None = None
    ctc_lengths: Tensor | None = None


def concatenate_outputs(outputs: Sequence[SpeechEncoderOutput]) -> SpeechEncoderOutput:
    """The outputs of several batches as one output, in order; either all have CTC logits or none."""
    if len(outputs) == 1:
        return outputs[0]

    def rows(batches: Sequence[Tensor]) -> Tensor:
        return pad_sequence([row for batch in batches for row in batch], batch_first=True)

    logits = [output.ctc_logits for output in outputs if output.ctc_logits is not None]
    lengths = [output.ctc_lengths for output in outputs if output.ctc_lengths is not None]
    return SpeechEncoderOutput(
        rows([output.speech_embeddings for output in outputs]),
        torch.cat([output.speech_lengths for output in outputs]),
        rows(logits) if logits else None,
        torch.cat(lengths) if lengths else None,
    )


class SpeechEncoder(nn.Module, ABC):
    """A speech encoder: batches of input features in, speech embeddings out, each clip as if it were alone.

    Attributes:
        has_ctc: whether there is a CTC head (`ctc_logits`, `ctc_text` and `ctc_ids` then work).
        hidden_size: width `D` of the speech embeddings.
        frame_rate_hz: speech embeddings per second of audio.
        ctc_frame_rate_hz: CTC frames per second of audio; 0 without a CTC head.
        first_label_delay: of its CTC head, see `CTCHeadSettings`.
        ctc_units: what the ids of the CTC head are.
        vocabulary: the labels of the CTC head; None without one, or where a family spells in a way of its own.
        ctc_layers: names of the modules that only the CTC logits go through; LoRA leaves them out, as no loss reaches
            them.
        unloaded_parameters: number of parameters that were left on disk (see `drop_weights`).
    """

    has_ctc: bool = False
    hidden_size: int
    frame_rate_hz: float
    ctc_frame_rate_hz: float = 0.0
    first_label_delay: float | None = None
    ctc_units: CTCUnits = "characters"
    vocabulary: CTCVocabulary | None = None
    ctc_layers: tuple[str, ...] = ()
    unloaded_parameters: int = 0

    @abstractmethod
    def forward(
        self, input_features: Tensor, input_lengths: Tensor, return_ctc_logits: bool = False
    ) -> SpeechEncoderOutput:
        """Encode a padded batch.

        Args:
            input_features: what the family's feature extractor gives, `[B, T, F]` unless it says otherwise.
            input_lengths: `[B]`, valid frames of each clip, each at least 1.
            return_ctc_logits: also return the CTC head's logits (families with `has_ctc` only).
        """

    def num_frames(self, input_features: Tensor) -> int:
        """`T` of padded `input_features`."""
        return input_features.shape[1]

    def extractor_options(self, longest: int) -> dict[str, Any]:
        """Options of the feature extractor for a batch whose longest clip has `longest` samples.

        They do not change the encoder's output; they save features that it would not read.
        """
        return {}

    @abstractmethod
    def output_lengths(self, input_lengths: Tensor) -> Tensor:
        """Number of speech embeddings of clips of `input_lengths` frames; both `[B]`."""

    @abstractmethod
    def last_layers(self, count: int) -> list[nn.Module]:
        """The last `count` layers and all that comes after them: what `train_encoder: last_k` trains."""

    def ctc_text(self, ids: Sequence[int]) -> str:
        """Text of CTC ids after repeats are collapsed and blanks (id 0) dropped."""
        return self._required_vocabulary().text(ids)

    def ctc_ids(self, text: str) -> list[int]:
        """CTC ids that spell a text, without those of its characters that the head cannot write."""
        return self._required_vocabulary().ids(text)

    def _required_vocabulary(self) -> CTCVocabulary:
        if self.vocabulary is None:
            raise ValueError(f"{type(self).__name__} has no CTC head")
        return self.vocabulary


class EncoderFamily(SpeechEncoder):
    """The speech encoders of one `model_type`, made from their transformers configuration, and their checkpoints.

    Class attributes:
        model_type: the transformers `model_type` of the checkpoints this family reads.
        checkpoint_keys: pattern of the names of needed tensors in a published checkpoint; its group is the name in this
            module. Families that rename more override `rename_checkpoint_key`.
        unread_settings: patterns of names in a checkpoint's configuration that this encoder does not read, such as
            those of a language model beside it. A feature cache stays valid when they change.
        windows: how much it can read at a time, the published way first (see `set_encoder_window`).
    """

    model_type: ClassVar[str]
    checkpoint_keys: ClassVar[str]
    unread_settings: ClassVar[tuple[str, ...]] = ()
    windows: ClassVar[tuple[EncoderWindow, ...]] = ("full",)

    @classmethod
    def rename_checkpoint_key(cls, key: str) -> str | None:
        """The name in this module of a tensor of a published checkpoint, or None for one that is not needed."""
        match = re.fullmatch(cls.checkpoint_keys, key)
        return match.group(1) if match else None

    @staticmethod
    def complete_config(config: PreTrainedConfig, reference: Reference) -> None:
        """Add to a configuration what the family needs from the checkpoint's other files (vocabulary, front end).

        Raises:
            CheckpointError: they are missing or unusable.
        """

    @staticmethod
    @abstractmethod
    def feature_extractor(config: PreTrainedConfig) -> Any:
        """A new transformers feature extractor that makes this family's `input_features` from waveforms.

        It is called with a list of waveforms `[samples]`, `sampling_rate`, `return_tensors="pt"` and
        `return_attention_mask=True`, and must give padded `input_features` and their `attention_mask` `[B, T]`. With
        an attribute `n_samples`, longer clips are refused.
        """


def drop_weights(encoder: SpeechEncoder) -> SpeechEncoder:
    """Drop the weights of an encoder, which is on the meta device: it keeps shapes and labels, but cannot encode."""
    encoder.unloaded_parameters = sum(parameter.numel() for parameter in encoder.parameters())
    for module in encoder.modules():
        for name in [name for name, _ in module.named_parameters(recurse=False)]:
            delattr(module, name)
    return encoder


def unloaded_parameters(module: nn.Module) -> int:
    """Number of the weights that encoders within a module have left on disk."""
    return sum(part.unloaded_parameters for part in module.modules() if isinstance(part, SpeechEncoder))


def encode(
    encoder: SpeechEncoder, input_features: Tensor, attention_mask: Tensor, return_ctc_logits: bool = False
) -> SpeechEncoderOutput:
    """Encode a batch in full precision, on the encoder's device: for training, transcription and features alike.

    It is left to the caller whether gradients are wanted.

    Args:
        encoder: on whatever device.
        input_features: `[B, T, F]` of the feature extractor that it was trained with, or as its family says.
        attention_mask: `[B, T]`, 1 at real frames.
        return_ctc_logits: also return the CTC head's logits.

    Raises:
        ValueError: the encoder's weights were left on disk.
    """
    if unloaded_parameters(encoder):
        raise ValueError("this encoder was loaded without its weights, for training from cached features")
    # Most weights of a quantized encoder are integers, and features need a floating-point type.
    weight = next(weight for weight in encoder.parameters() if weight.is_floating_point())
    lengths = attention_mask.long().sum(dim=1).to(weight.device)
    # Never in the lower precision that the parts being trained may run in: the feature cache holds what full precision
    # gives, and training from it and without it must be the same.
    with torch.autocast(device_type=weight.device.type, enabled=False):
        return encoder(input_features.to(weight.device, weight.dtype), lengths, return_ctc_logits)


def encoder_window(config: PreTrainedConfig) -> EncoderWindow:
    """The window (full or clip) of an encoder's configuration."""
    return getattr(config, "encoder_window", "full")


def set_encoder_window(config: PreTrainedConfig, window: EncoderWindow | None, family: type[EncoderFamily]) -> None:
    """Choose how much an encoder reads at a time: part of its configuration, and so of checkpoints and cache keys.

    Args:
        config: the encoder's, changed in place.
        window: `full`, as it was published; `clip`, each clip at its own length; None leaves what the configuration
            says.
        family: that reads it.

    Raises:
        ConfigError: the family has no such window.
    """
    if window is None or window == encoder_window(config):
        return
    if window not in family.windows:
        raise ConfigError(f"--encoder_window {window} is not for encoders of type '{family.model_type}': leave it out")
    if window == "full":
        del config.encoder_window  # as published, so that caches made before stay good
    else:
        config.encoder_window = window


def length_mask(lengths: Tensor, max_length: int) -> Tensor:
    """`[B, max_length]` booleans: True where a position is within its row's length (`lengths`: `[B]`)."""
    positions = torch.arange(max_length, device=lengths.device)
    return positions[None, :] < lengths[:, None]
