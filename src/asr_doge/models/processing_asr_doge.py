"""Convert waveforms and texts to model inputs, and token ids back to text.

Promises: training labels and generated ids go through the same tokenizer, with the end-of-sequence token after every
text.
It does not read files, normalize text (see `asr_doge.text`) or run the model.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin

from asr_doge.defaults import DEFAULT_PROMPT
from asr_doge.models.feature_extraction_asr_doge import Waveform
from asr_doge.models.layout import IGNORED_LABEL
from asr_doge.text.prompt import PLACE, fill_prompt


class ASRDogeProcessor(ProcessorMixin):
    """Feature extractor of the speech encoder and tokenizer of the language model, with the model's prompt."""

    def __init__(
        self, feature_extractor: Any, tokenizer: PreTrainedTokenizerBase, prompt_template: str = DEFAULT_PROMPT
    ) -> None:
        super().__init__(feature_extractor, tokenizer)
        self.prompt_template = prompt_template

    def __call__(
        self,
        audio: Waveform | Sequence[Waveform] | None = None,
        text: Sequence[str] | None = None,
        sampling_rate: int | None = None,
        language: Sequence[str | None] | None = None,
    ) -> BatchFeature:
        """A batch of model inputs.

        Args:
            audio: one waveform `[samples]` or a list of them, mono, at the extractor's sampling rate.
            text: the transcripts, for training.
            sampling_rate: of the waveforms in Hz, checked.
            language: spoken in each clip; None if it is not known.

        Raises:
            ValueError: another sampling rate, or a clip that the encoder cannot read whole.

        Returns:
            `input_features` `[B, T, F]` and `attention_mask` `[B, T]` with audio, `labels` `[B, L]` with text,
            `prompt_ids` `[B, P]` with language.
        """
        batch = BatchFeature()
        if audio is not None:
            self._check_duration(audio)
            batch.update(
                self.feature_extractor(
                    audio, sampling_rate=sampling_rate, return_tensors="pt", return_attention_mask=True
                )
            )
        if text is not None:
            batch["labels"] = _padded([self.text_ids(line) for line in text])
        if language is not None:
            batch["prompt_ids"] = _padded([self.prompt_ids(name) for name in language])
        return batch

    def _check_duration(self, audio: Waveform | Sequence[Waveform]) -> None:
        """Refuse clips that the extractor would cut; Whisper's does so silently."""
        limit = getattr(self.feature_extractor, "n_samples", None)
        longest = max(len(waveform) for waveform in ([audio] if getattr(audio, "ndim", 0) == 1 else audio))
        if limit is not None and longest > limit:
            raise ValueError(f"this encoder reads at most {limit} samples at once, got {longest}")

    def text_ids(self, text: str) -> Tensor:
        """Token ids of a transcript and the end-of-sequence token, `[L]`."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return torch.tensor([*ids, self.tokenizer.eos_token_id], dtype=torch.long)

    @property
    def names_language(self) -> bool:
        """Whether the prompt depends on the language."""
        return PLACE in self.prompt_template

    def prompt_ids(self, language: str | None = None) -> Tensor:
        """Token ids of the prompt for a language, after the beginning-of-sequence token if there is one, `[P]`."""
        start = [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
        prompt = fill_prompt(self.prompt_template, language)
        ids = self.tokenizer(prompt, add_special_tokens=False).input_ids
        return torch.tensor([*start, *ids], dtype=torch.long)

    def batch_decode(self, sequences: Tensor | Sequence[Sequence[int]], **_: Any) -> list[str]:
        """Texts of token ids `[B, L]`, without special tokens, padding or space at the ends."""
        rows = torch.as_tensor(sequences)
        rows = rows.masked_fill(rows == IGNORED_LABEL, self.tokenizer.pad_token_id)
        return [text.strip() for text in self.tokenizer.batch_decode(rows, skip_special_tokens=True)]


def _padded(rows: Sequence[Tensor]) -> Tensor:
    """Token ids `[B, L]`, -100 at padding."""
    return pad_sequence(list(rows), batch_first=True, padding_value=IGNORED_LABEL)
