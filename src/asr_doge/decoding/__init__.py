"""From scores to token ids and text. Greedy and beam search over the language model are transformers' own."""

from asr_doge.decoding.ctc import ctc_greedy_texts

__all__ = ["ctc_greedy_texts"]
