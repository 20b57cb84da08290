"""Settings of decoding: command line, YAML and Python alike.

Promises: a docstring under every field, which is its `--help`; importing this loads neither torch nor transformers.
"""

import math
from dataclasses import dataclass
from typing import Literal

from asr_doge.errors import ConfigError

DecoderName = Literal["draft", "greedy", "beam", "ctc", "rescore"]
Timestamps = Literal["none", "segment", "word", "auto"]

DEFAULT_BEAMS, RESCORED_BEAMS, MOST_BEAMS = 4, 24, 100


@dataclass(kw_only=True)
class DecodingConfig:
    """How what was heard becomes text."""

    decoder: DecoderName | None = None
    """draft: the language model verifies the encoder's CTC draft, for the text of greedy in fewer passes. greedy: token
    by token. beam: the best of several texts. ctc: the encoder alone, which needs no training and loads no language
    model. rescore: the best of the CTC head's hypotheses, weighed by the language model by their text alone. Default:
    what the model's configuration says, else draft where the encoder has a CTC head, else greedy."""
    num_beams: int = 1
    """Beams of beam search, 2 to 100 (which is then the decoder); with `--decoder beam` and no number, 4. Of `rescore`,
    hypotheses that are weighed; with no number, 24."""
    n_best: int = 1
    """Texts of each piece to give as alternatives with their scores; at most the beams."""
    language_model_weight: float = 0.5
    """What the language model's log-probability counts in `rescore`, beside 1 of the CTC head."""
    word_bonus: float = 1.0
    """What each word adds to a score in `rescore`, in nats: language models like short texts too well."""
    accept_threshold: float | None = None
    """Take a token of the draft if the language model gives it at least this probability, 0 to 1, even where it would
    have written another: faster, and no longer exactly greedy. Default: off."""
    timestamps: Timestamps | None = None
    """segment: start and end of every stretch. word: of every word, with its confidence; needs a CTC head. auto: word
    where the model has a CTC head, else none. Default: auto for the formats srt, vtt, tsv, ctm and textgrid, else
    none."""
    hotwords: str | None = None
    """Text file of words or phrases to listen for, one a line, spelled as in transcripts. They raise scores, and do not
    enter the prompt."""
    hotword_weight: float = 1.0
    """How far from the best path a hotword may be and still count as heard, in nats a letter; more finds more of them,
    and more that were not said."""
    guard_silence: bool = True
    """Write nothing where nobody speaks: in silence, steady noise and tones, where the CTC head hears no letter, and
    where it is unsure of its letters, or missing, and the voice activity detector hears no voice."""
    guard_length: bool = True
    """Stop a text that grows far longer than the encoder's draft of it, or without a CTC head than anybody speaks."""
    guard_loops: bool = True
    """Cut a phrase that repeats over and over where the encoder's draft does not."""

    def check(self) -> None:
        """Refuse what makes no sense.

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
        if self.n_best > self.beams:
            raise ConfigError(f"--n_best {self.n_best} needs at least as many beams; give --num_beams {self.n_best}")
        if self.num_beams > 1 and self.decoder not in (None, "beam", "rescore"):
            raise ConfigError(
                f"--num_beams is for --decoder beam or rescore, not {self.decoder}; leave one of them out"
            )
        if self.accept_threshold is not None and not 0 < self.accept_threshold <= 1:
            raise ConfigError(f"--accept_threshold {self.accept_threshold} is not a probability above 0 and up to 1")
        if not 0 <= self.hotword_weight < math.inf:
            raise ConfigError(f"--hotword_weight {self.hotword_weight} is not a number of nats: give 0 or more")

    @property
    def beams(self) -> int:
        """Beams of a search; 1 where there is none."""
        if self.num_beams > 1:
            return self.num_beams
        return {"beam": DEFAULT_BEAMS, "rescore": RESCORED_BEAMS}.get(str(self.decoder), 1)
