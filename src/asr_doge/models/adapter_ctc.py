"""The adapter as a CTC head: its outputs are compared with the language model's own token embeddings.

Promises: logits are cosines, with a learned temperature, between adapter outputs and the output of the embedding
*module* for each token (some modules scale their weights), plus a learned blank; the language model is not run. An
adapter trained this way gives embeddings in directions that the language model reads (`train --warm_up ctc`); decoded
by itself it gives a draft.
It knows only the tokens that occur in the training texts. It does not know how it is trained.
"""

import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from asr_doge.choices import CTCUnits
from asr_doge.models.adapters import Adapter
from asr_doge.models.ctc_head import CTCHeadSettings
from asr_doge.models.ctc_vocabulary import CTCVocabulary
from asr_doge.models.encoders.base import length_mask

FIRST_TEMPERATURE = 10.0
"""Scale of the logits. Cosines are within ±1: unscaled, no token could be much more probable than another."""


class TokenVocabulary(CTCVocabulary):
    """Tokens of a language model, each as its text, including a space before it."""

    units: CTCUnits = "bpe"

    def ids(self, text: str) -> list[int]:
        """Split a text greedily into the longest tokens; characters that no token begins with are left out.

        A word gets the tokens it has after another word or, if there are none, those at the start of a text.
        """
        ids: list[int] = []
        rest = f" {text.strip()}" if text.strip() else ""
        while rest:
            length = next((size for size in range(min(len(rest), self._longest), 0, -1) if rest[:size] in self._ids), 0)
            ids += [self._ids[rest[:length]]] if length else []
            rest = rest[max(length, 1) :]
        return ids

    def text(self, ids: Iterable[int]) -> str:
        """The text of ids other than the blank."""
        return "".join(self.tokens[number - 1] for number in ids)

    @property
    def _longest(self) -> int:
        return max(map(len, self.tokens))


class AdapterCTCHead(nn.Module):
    """Speech embeddings `[B, T', D]` to CTC logits `[B, N, 1 + tokens]`, by way of the adapter.

    Adapter and token embedding stay parts of their model.
    """

    token_ids: Tensor

    def __init__(self, settings: CTCHeadSettings, adapter: Adapter, token_embedding: nn.Module) -> None:
        super().__init__()
        self.settings = settings
        self.vocabulary = TokenVocabulary(settings.tokens)
        self._parts = (adapter, token_embedding)  # in a tuple, that they be no parts of this module too
        self.register_buffer("token_ids", torch.tensor(list(settings.token_ids)), persistent=False)
        size = int(token_embedding(torch.zeros(1, dtype=torch.long, device=_device(token_embedding))).shape[-1])
        self.blank = nn.Parameter(torch.randn(size))
        self.temperature = nn.Parameter(torch.tensor([math.log(FIRST_TEMPERATURE)]))

    @property
    def adapter(self) -> Adapter:
        """The adapter."""
        return self._parts[0]

    @property
    def stack(self) -> int:
        """Speech embeddings per CTC frame."""
        return self.adapter.stack

    def forward(self, speech_embeddings: Tensor, speech_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of a padded batch `[B, T', D]` with lengths `[B]`: `[B, N, 1 + tokens]`, and their lengths `[B]`."""
        adapted, lengths = self.adapter(speech_embeddings.to(self.blank.dtype), speech_lengths)
        embeddings = self._parts[1](self.token_ids).to(self.blank.dtype)
        directions = F.normalize(torch.cat([self.blank[None], embeddings]), dim=-1)
        logits = self.temperature.exp() * (F.normalize(adapted, dim=-1) @ directions.T)
        return logits.masked_fill(~length_mask(lengths, logits.shape[1])[..., None], 0.0), lengths


def adapter_head_settings(tokenizer: PreTrainedTokenizerBase, token_ids: Iterable[int]) -> CTCHeadSettings:
    """Settings of an adapter's head with these tokens as labels."""
    ids = sorted(set(token_ids))
    return CTCHeadSettings(token_texts(tokenizer, ids), type="adapter", token_ids=ids)


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """The text of each token within a text, a space before it included."""
    anchor = tokenizer("a", add_special_tokens=False).input_ids
    before = len(str(tokenizer.decode(anchor)))
    return [str(tokenizer.decode([*anchor, token]))[before:] for token in token_ids]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
