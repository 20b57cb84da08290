"""A CTC head for any encoder: a small network that maps the encoder's speech embeddings to labels.

Promises: an encoder with a head *has CTC* for every function that needs it: drafts, word times, hotwords, guards. A
clip's logits do not depend on its neighbours or its padding. The head reads speech embeddings, which are in the feature
cache, so it is trained without running the encoder. `CTCHeadSettings` has everything about it except its weights.
It does not know where its weights come from (see `asr_doge.models.ctc_head_checkpoints`), nor how it is trained.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from transformers import GraniteSpeechEncoderConfig
from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechConformerBlock

from asr_doge.choices import CTCHeadType
from asr_doge.errors import ConfigError
from asr_doge.models.ctc_vocabulary import CTCVocabulary
from asr_doge.models.encoders.base import SpeechEncoder, SpeechEncoderOutput, length_mask
from asr_doge.models.encoders.granite_speech import ConformerRunner, padded_rows
from asr_doge.models.layout import IGNORED_LABEL

if TYPE_CHECKING:
    from asr_doge.models.adapter_ctc import AdapterCTCHead

CONTEXT = 200
"""Frames of the head over which attention is computed at once."""


@dataclass(frozen=True)
class CTCHeadSettings:
    """The `ctc_head` of a model's configuration.

    Attributes:
        type: `linear` (one layer), `blstm`, `conformer` (Granite Speech's blocks), or `adapter`, the adapter itself
            (see `asr_doge.models.adapter_ctc`), for which only the tokens below matter.
        stack: neighbouring speech embeddings joined into one frame of the head.
        hidden_dim: width of the conformer, or of each direction of the LSTM.
        layers: of the conformer or LSTM.
        dropout: in training.
        tokens, merges: of its `CTCVocabulary`.
        token_ids: for an `adapter`, the language model's id of each of the tokens.
        first_label_delay: seconds from where a word begins to its first label, for a head that marks words at their
            beginning (`bench/word_times.py --labels` measures it); None for one that marks where they end.
    """

    tokens: Sequence[str]
    merges: Sequence[Sequence[str]] = ()
    type: CTCHeadType | Literal["adapter"] = "conformer"
    stack: int = 2
    hidden_dim: int = 144
    layers: int = 2
    dropout: float = 0.1
    token_ids: Sequence[int] = ()
    first_label_delay: float | None = None

    @classmethod
    def read(cls, values: Mapping[str, Any]) -> "CTCHeadSettings":
        """Settings from a configuration.

        Raises:
            ConfigError: a value is invalid; the message names it.
        """
        try:
            settings = cls(**values)
        except TypeError as error:
            raise ConfigError(f"ctc_head: {error}") from error
        types = (*get_args(CTCHeadType), "adapter")
        if settings.type not in types:
            raise ConfigError(f"ctc_head: type must be one of {', '.join(types)}; got '{settings.type}'")
        for name in ("stack", "hidden_dim", "layers"):
            if getattr(settings, name) < 1:
                raise ConfigError(f"ctc_head: {name} must be at least 1")
        delay = settings.first_label_delay
        if delay is not None and (isinstance(delay, bool) or not isinstance(delay, float | int) or not 0 <= delay <= 1):
            raise ConfigError(f"ctc_head: first_label_delay must be seconds from 0 to 1; got '{delay}'")
        if settings.type == "conformer" and settings.hidden_dim % _HEADS:
            raise ConfigError(f"ctc_head: hidden_dim {settings.hidden_dim} must be a multiple of {_HEADS}")
        if not settings.tokens:
            raise ConfigError("ctc_head: tokens are empty: there is nothing that it could write")
        return settings

    def values(self) -> dict[str, Any]:
        """The settings in the form of a configuration."""
        return {
            **asdict(self),
            "tokens": list(self.tokens),
            "merges": [list(merge) for merge in self.merges],
            "token_ids": list(self.token_ids),
        }


_HEADS = 4


class CTCHead(nn.Module):
    """Speech embeddings `[B, T', D]` to CTC logits `[B, T, V]`; `speech_size` is `D`."""

    attention_dists: Tensor

    def __init__(self, settings: CTCHeadSettings, speech_size: int) -> None:
        super().__init__()
        self.settings = settings
        self.stack = settings.stack
        self.vocabulary = CTCVocabulary(settings.tokens, settings.merges)
        self.input_norm = nn.LayerNorm(speech_size)
        stacked_size, hidden_dim = speech_size * settings.stack, settings.hidden_dim
        width = {"linear": stacked_size, "blstm": 2 * hidden_dim, "conformer": hidden_dim}[settings.type]
        self.lstm: nn.LSTM | None = None
        self.blocks = nn.ModuleList()
        if settings.type == "blstm":
            dropout = settings.dropout if settings.layers > 1 else 0.0
            self.lstm = nn.LSTM(stacked_size, hidden_dim, settings.layers, True, True, dropout, bidirectional=True)
        elif settings.type == "conformer":
            config = _block_config(settings)
            self.input = nn.Linear(stacked_size, hidden_dim)
            self.blocks.extend(GraniteSpeechConformerBlock(config) for _ in range(settings.layers))
            places = torch.arange(CONTEXT)
            self.register_buffer("attention_dists", places[:, None] - places[None] + CONTEXT, persistent=False)
        self.dropout = nn.Dropout(settings.dropout)
        self.output = nn.Linear(width, len(self.vocabulary))

    def forward(self, speech_embeddings: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of a padded batch, and their lengths.

        Args:
            speech_embeddings: `[B, T', D]`.
            speech_lengths: `[B]`, each at least 1.

        Returns:
            `[B, ceil(T' / stack), V]`, zero past a clip's length, and `[B]`.
        """
        mask = length_mask(speech_lengths, speech_embeddings.shape[1])
        frames = self.input_norm(speech_embeddings).masked_fill(~mask[..., None], 0.0)
        frames = F.pad(frames, (0, 0, 0, -frames.shape[1] % self.stack))
        frames = frames.reshape(len(frames), -1, frames.shape[2] * self.stack)
        lengths = self.output_lengths(speech_lengths)
        mask = length_mask(lengths, frames.shape[1])
        return padded_rows(self.output(self._body(frames, lengths, mask)), mask), lengths

    def output_lengths(self, speech_lengths: Tensor) -> Tensor:
        """Number of CTC frames `[B]` for numbers of speech embeddings `[B]`."""
        return (speech_lengths + self.stack - 1) // self.stack

    def _body(self, frames: Tensor, lengths: Tensor, mask: Tensor) -> Tensor:
        """The input of the output layer, `[N, width]`, for the `N` real frames of all clips."""
        if self.lstm is not None:
            packed = pack_padded_sequence(self.dropout(frames), lengths.cpu(), batch_first=True, enforce_sorted=False)
            states, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=mask.shape[1])
            return self.dropout(states[mask])
        hidden = self.dropout(frames[mask])
        blocks = cast(list[GraniteSpeechConformerBlock], list(self.blocks))
        if blocks:
            hidden = self.dropout(self.input(hidden))
            run = ConformerRunner(lengths, self.attention_dists, blocks[0])
            for block in blocks:
                hidden = run(block, hidden)
        return hidden


def _block_config(settings: CTCHeadSettings) -> GraniteSpeechEncoderConfig:
    return GraniteSpeechEncoderConfig(
        hidden_dim=settings.hidden_dim,
        num_heads=_HEADS,
        dim_head=settings.hidden_dim // _HEADS,
        context_size=CONTEXT,
        max_pos_emb=CONTEXT,
        conv_kernel_size=15,
        conv_expansion_factor=2,
        feedforward_mult=4,
        dropout=settings.dropout,
    )


class HeadedEncoder(SpeechEncoder):
    """An encoder of any family with a trained CTC head on its speech embeddings, which replaces any of its own."""

    has_ctc = True

    def __init__(self, family: SpeechEncoder, head: "CTCHead | AdapterCTCHead") -> None:
        super().__init__()
        self.family = family
        self.ctc_head: Any = head
        self.hidden_size = family.hidden_size
        self.frame_rate_hz = family.frame_rate_hz
        self.ctc_frame_rate_hz = family.frame_rate_hz / head.stack
        self.first_label_delay = head.settings.first_label_delay
        self.vocabulary = head.vocabulary
        self.ctc_units = head.vocabulary.units

    def forward(
        self, input_features: Tensor, input_lengths: Tensor, return_ctc_logits: bool = False
    ) -> SpeechEncoderOutput:
        """See `SpeechEncoder.forward`."""
        output: SpeechEncoderOutput = self.family(input_features, input_lengths)
        if return_ctc_logits:
            output.ctc_logits, output.ctc_lengths = self.ctc_head(output.speech_embeddings, output.speech_lengths)
        return output

    def summed_ctc_loss(self, speech_embeddings: Tensor, speech_lengths: Tensor, ctc_labels: Tensor) -> Tensor:
        """The head's CTC loss, summed over the clips with labels; a text that is too long for its clip counts as 0.

        Args:
            speech_embeddings: `[B, T', D]`.
            speech_lengths: `[B]`.
            ctc_labels: `[B, L]`, -100 at padding.
        """
        weight = next(self.ctc_head.parameters())
        logits, frames = self.ctc_head(speech_embeddings.to(weight.dtype), speech_lengths)
        log_probs = logits.float().log_softmax(dim=-1).transpose(0, 1)
        is_label = ctc_labels != IGNORED_LABEL
        losses = F.ctc_loss(
            log_probs, ctc_labels.clamp(min=0), frames, is_label.sum(dim=1), reduction="none", zero_infinity=True
        )
        return losses.masked_fill(~is_label.any(dim=1), 0.0).sum()

    def num_frames(self, input_features: Tensor) -> int:
        """The family's."""
        return self.family.num_frames(input_features)

    def extractor_options(self, longest: int) -> dict[str, Any]:
        """The family's."""
        return self.family.extractor_options(longest)

    def output_lengths(self, input_lengths: Tensor) -> Tensor:
        """The family's."""
        return self.family.output_lengths(input_lengths)

    def last_layers(self, count: int) -> list[nn.Module]:
        """The family's."""
        return self.family.last_layers(count)


def with_head(encoder: SpeechEncoder, settings: Mapping[str, Any] | None) -> SpeechEncoder:
    """The encoder with a new head of these settings; unchanged if there are none or it has a head of its own already.

    A head that is the adapter is not made here (see `asr_doge.models.modeling_asr_doge`).
    """
    if settings is None or settings.get("type") == "adapter" or isinstance(encoder, HeadedEncoder):
        return encoder
    return HeadedEncoder(encoder, CTCHead(CTCHeadSettings.read(settings), encoder.hidden_size))


def without_head(encoder: SpeechEncoder) -> SpeechEncoder:
    """The encoder below a trained CTC head, or itself."""
    return encoder.family if isinstance(encoder, HeadedEncoder) else encoder
