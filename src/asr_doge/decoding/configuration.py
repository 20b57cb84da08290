"""Settings of decoding: command line, YAML and Python alike.

Promises: a docstring under every field, which is its `--help`; importing this loads neither torch nor transformers.
"""

import math
from dataclasses import dataclass
from typing import Literal

from asr_doge.errors import ConfigError

DecoderName = Literal["draft", "greedy", "beam", "ctc", "fusion"]
Timestamps = Literal["none", "segment", "word", "auto"]

DEFAULT_BEAMS, FUSION_BEAMS, MOST_BEAMS = 4, 24, 100


@dataclass(kw_only=True)
class DecodingConfig:
    """How the encoder's output becomes text."""

    decoder: DecoderName | None = None
    """draft: the language model verifies the encoder's CTC draft, for the text of greedy in fewer passes. greedy: token
    by token. beam: the best of several hypotheses. ctc: the encoder alone, which needs no training and loads no
    language model. fusion: search over the CTC head's labels, weighed by the language model's probability of their
    words (shallow fusion). Default: what the checkpoint names, else draft if the encoder has a CTC head, else
    greedy."""
    num_beams: int = 1
    """Beams of beam search, 2 to 100; a number selects beam search, or fusion where the checkpoint names it. With
    `--decoder beam` and no number, 4. For `--decoder fusion`, the hypotheses kept at each frame; without a number,
    24."""
    language_model_weight: float = 0.5
    """Weight of the language model's log-probability in `fusion`; that of the CTC head is 1."""
    word_bonus: float = 1.1
    """Added to the score of a hypothesis in `fusion` for each word, in nats, since language models favour short
    texts."""
    n_best: int = 1
    """Hypotheses of each chunk to give as alternatives with their scores; at most the number of beams."""
    accept_threshold: float | None = None
    """Take a token of the draft if the language model gives it at least this probability, 0 to 1, even if another is
    more probable: faster, and no longer exactly greedy. Default: off."""
    timestamps: Timestamps | None = None
    """segment: start and end of every segment. word: of every word, with its confidence; needs a CTC head. auto: word
    if the model has a CTC head, else none. Default: auto for the formats srt, vtt, tsv, ctm and textgrid, else none."""
    hotwords: str | None = None
    """Text file of words or phrases to listen for, one per line, spelled as in transcripts. They raise scores, and do
    not enter the prompt."""
    hotword_weight: float = 1.0
    """How far from the best path a hotword may be and still count as found, in nats per character; a higher value finds
    more of them, and more that were not said."""
    cut_at_pauses: bool = False
    """Cut every recording at pauses, as streams are cut; by default only those longer than the longest recording that
    the model was trained on."""
    guard_silence: bool = True
    """Write nothing for chunks without speech: silence, steady noise and tones, chunks for which the CTC head gives
    only blanks, and those for which it is unsure, or missing, and the voice activity detector finds no speech."""
    guard_length: bool = True
    """Stop a text that grows far longer than the encoder's draft or, without a CTC head, than the duration of the
    speech allows."""
    guard_loops: bool = True
    """Shorten a phrase that repeats over and over if it does not in the encoder's draft."""

    def check(self) -> None:
        """Refuse settings that contradict each other; those that depend on the model, `build_decoder` refuses.

        Raises:
            ConfigError: the message names the flag.
        """
        if not 1 <= self.num_beams <= MOST_BEAMS:
            raise ConfigError(f"--num_beams must be at least 1 and at most {MOST_BEAMS}, not {self.num_beams}")
        if self.n_best < 1:
            raise ConfigError(f"--n_best must be at least 1, not {self.n_best}")
        for flag in ("language_model_weight", "word_bonus"):
            if not math.isfinite(getattr(self, flag)):
                raise ConfigError(f"--{flag} is {getattr(self, flag)}: give a number")
        if self.num_beams > 1 and self.decoder not in (None, "beam", "fusion"):
            raise ConfigError(f"--num_beams is for --decoder beam or fusion, not {self.decoder}; leave one of them out")
        if self.accept_threshold is not None and not 0 < self.accept_threshold <= 1:
            raise ConfigError(f"--accept_threshold {self.accept_threshold} is not a probability above 0 and up to 1")
        if not 0 <= self.hotword_weight < math.inf:
            raise ConfigError(f"--hotword_weight {self.hotword_weight} is not a number of nats: give 0 or more")

    @property
    def beams(self) -> int:
        """Beams of a search; 1 for other decoders."""
        if self.num_beams > 1:
            return self.num_beams
        return {"beam": DEFAULT_BEAMS, "fusion": FUSION_BEAMS}.get(str(self.decoder), 1)
