"""Hotwords: words to listen for, favoured only where the CTC head almost recognizes them.

Promises: a hotword is searched for in the CTC log-posteriors (Viterbi, anywhere in the clip, between spaces). It counts
as found where spelling it costs less than its bonus, `weight` nats per character, compared with the best path of the
same frames. A hotword that is found replaces the words of the CTC text at that place, and gets a bonus in the language
model's scores when the text reaches that place. One that is not found changes nothing, and the prompt never changes.
It does not know which decoder the scores belong to. The bonus depends only on the text so far, so verifying a draft and
generating token by token still agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from asr_doge.decoding.ctc import BLANK, ctc_label_ids, label_log_posteriors
from asr_doge.errors import ConfigError
from asr_doge.models.encoders import SpeechEncoder

IMPOSSIBLE = -1e9


def read_hotwords(path: str | Path) -> list[str]:
    """Words or phrases of a text file, one per line; empty lines and those that begin with # are skipped.

    Raises:
        ConfigError: it cannot be read, or has none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"--hotwords {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--hotwords {path}: not UTF-8 text; save it as UTF-8") from error
    words = [" ".join(line.split()) for line in lines if line.strip() and not line.startswith("#")]
    if not words:
        raise ConfigError(f"--hotwords {path}: no words in it; write one a line")
    return list(dict.fromkeys(words))


@dataclass(frozen=True)
class SpottedHotword:
    """A hotword that was found: its CTC frames `[start, end)`, and by how many nats its bonus exceeds its cost."""

    text: str
    start: int
    end: int
    gain: float


def spot_hotwords(
    encoder: SpeechEncoder, log_posteriors: NDArray[np.float32], hotwords: Sequence[str], weight: float
) -> list[SpottedHotword]:
    """The hotwords found in a clip, in order and without overlaps.

    Args:
        encoder: the owner of the CTC head.
        log_posteriors: `[T, V]`.
        hotwords: words or phrases.
        weight: bonus, in nats per character.
    """
    # Relative to the best label of each frame, so a hotword on the best path costs nothing. A frame of space at both
    # ends stands for the clip's edges.
    relative = log_posteriors - log_posteriors.max(axis=1, keepdims=True)
    edge = np.full((1, relative.shape[1]), IMPOSSIBLE, dtype=np.float32)
    space = encoder.ctc_ids(" ")  # none with BPE, whose tokens hold it
    edge[:, space] = 0.0
    relative = np.concatenate([edge, relative, edge])
    spelled = [(text, ctc_label_ids(encoder, f" {text} ")) for text in hotwords]
    spelled = [(text, labels) for text, labels in spelled if len(labels) > 2 * len(space)]  # else it can write none
    if not spelled:
        return []
    scores, starts = _spell(relative, [labels for _, labels in spelled])
    scores += weight * np.array([len(labels) - 2 if space else len(text) for text, labels in spelled])
    # A space at either end takes a frame that is not the hotword's; with the edge's frame before all others, its first
    # label then begins at `starts`. Tokens of BPE begin and end with the hotword itself.
    own = 0 if space else 1
    found = [
        SpottedHotword(spelled[word][0], int(starts[end, word]) - own, int(end) - 1 + own, float(scores[end, word]))
        for end, word in np.argwhere(scores > 0)
    ]
    chosen: list[SpottedHotword] = []
    for candidate in sorted(found, key=lambda spotted: -spotted.gain):
        if all(candidate.end <= other.start or candidate.start >= other.end for other in chosen):
            chosen.append(candidate)
    return sorted(chosen, key=lambda spotted: spotted.start)


def _spell(
    log_posteriors: NDArray[np.float32], spellings: Sequence[Sequence[tuple[int, ...]]]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For each frame and word, the score of the best path that spells the word up to it, and where that path begins.

    All words are spelled in one pass over the frames, their states (a character, blank, a character, ...) side by side.

    Args:
        log_posteriors: `[T, V]`.
        spellings: for each of W words, the labels of each of its characters.

    Returns:
        Score and first frame, `[T, W]` each.
    """
    columns = {label: number for number, label in enumerate(dict.fromkeys(chain.from_iterable(spellings)), 1)}
    emissions = np.empty((len(log_posteriors), len(columns) + 1))
    emissions[:, 0] = log_posteriors[:, BLANK]
    emissions[:, 1:] = label_log_posteriors(log_posteriors, list(columns))
    lengths = np.array([2 * len(labels) - 1 for labels in spellings])
    last = np.cumsum(lengths) - 1
    first = last - lengths + 1
    states = np.zeros(lengths.sum(), dtype=np.int64)  # the column of each, 0 for the blank
    skips = np.full(len(states), IMPOSSIBLE)  # from a character to a different next one, without a blank between
    for start, labels in zip(first.tolist(), spellings, strict=True):
        numbers = np.array([columns[label] for label in labels])
        states[start : start + 2 * len(labels) : 2] = numbers
        skips[start + 2 : start + 2 * len(labels) : 2][numbers[1:] != numbers[:-1]] = 0.0

    best = np.full(len(states), IMPOSSIBLE)
    began = np.zeros(len(states), dtype=np.int64)
    scores, starts = np.empty((len(emissions), len(spellings))), np.zeros((len(emissions), len(spellings)), np.int64)
    for frame, emission in enumerate(emissions):
        options = [best, np.roll(best, 1), np.roll(best, 2) + skips]
        origins = [began, np.roll(began, 1), np.roll(began, 2)]
        options[1][first], origins[1][first] = 0.0, frame  # a word may begin at any frame
        for option, origin in zip(options[1:], origins[1:], strict=True):
            better = option > best
            best, began = np.where(better, option, best), np.where(better, origin, began)
        best = best + emission[states]
        scores[frame], starts[frame] = best[last], began[last]
    return scores, starts


def insert_hotwords(
    encoder: SpeechEncoder, log_posteriors: NDArray[np.float32], spotted: Sequence[SpottedHotword]
) -> tuple[str, list[int]]:
    """The CTC text of a clip with each hotword in place of the words of the best path there.

    Returns:
        The text, and for each hotword the number of its first word.
    """
    best = log_posteriors.argmax(axis=1)
    words: list[str] = []
    places: list[int] = []
    frame = 0
    for hotword in [*spotted, None]:
        stretch = best[frame : hotword.start if hotword else len(best)]
        changed = stretch[np.flatnonzero(np.diff(stretch, prepend=-1))]
        words += encoder.ctc_text(changed[changed != BLANK].tolist()).split()
        if hotword is not None:
            places.append(len(words))
            words += hotword.text.split()
            frame = hotword.end
    return " ".join(words), places


@dataclass(frozen=True)
class _Favoured:
    """A hotword to favour: its tokens at the start and after other words, its place, its gain."""

    first: tuple[int, ...]
    later: tuple[int, ...]
    place: int
    gain: float


class HotwordBias:
    """The bonus that hotwords add to the language model's scores of one clip.

    Args:
        tokenizer: of the language model.
        spotted: the hotwords found.
        draft: the text with them, and the number of the word at which each is, from `insert_hotwords`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, spotted: Sequence[SpottedHotword], draft: tuple[str, Sequence[int]]
    ) -> None:
        text, places = draft
        self._tokenizer = tokenizer
        self._draft = text.split()
        self._costs: dict[tuple[str, ...], list[int]] = {(): list(range(len(self._draft) + 1))}
        self._favoured = []
        start = self._spell("a")
        for hotword, place in zip(spotted, places, strict=True):
            later = self._spell(f"a {hotword.text}")[len(start) :]
            self._favoured.append(_Favoured(self._spell(hotword.text), later, place, hotword.gain))

    def _spell(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)

    def bonuses(self, tokens: Sequence[int]) -> dict[int, float]:
        """Bonus in nats for each token that a hotword could continue the text with."""
        bonuses: dict[int, float] = {}
        for favoured in self._favoured:
            for done in range(min(len(tokens), len(favoured.later)) + 1):
                before, begun = tokens[: len(tokens) - done], tuple(tokens[len(tokens) - done :])
                spelling = favoured.later if before else favoured.first
                if begun == spelling[:done] and done < len(spelling) and self._is_due(favoured, before):
                    bonuses[spelling[done]] = max(favoured.gain, bonuses.get(spelling[done], 0.0))
        return bonuses

    def _is_due(self, favoured: _Favoured, tokens: Sequence[int]) -> bool:
        """Whether a text has reached the place where the hotword was found."""
        words = tuple(str(self._tokenizer.decode(list(tokens))).split())
        costs = self._distances(words)
        nearest = [place for place, cost in enumerate(costs) if cost == min(costs)]
        return min(nearest, key=lambda place: abs(place - len(words))) == favoured.place

    def _distances(self, words: tuple[str, ...]) -> list[int]:
        """Edit distance, in words, of a text to each prefix of the draft; cached, since texts grow word by word."""
        if words not in self._costs:
            before = self._distances(words[:-1])
            costs = [before[0] + 1]
            for place, word in enumerate(self._draft):
                costs.append(min(before[place] + (word != words[-1]), before[place + 1] + 1, costs[-1] + 1))
            self._costs[words] = costs
        return self._costs[words]

    def __call__(self, logits: Tensor, before: Sequence[int], between: Sequence[int]) -> Tensor:
        """Logits `[K, V]` with bonuses: for the token after `before`, then after each of the K - 1 tokens `between`."""
        logits = logits.clone()
        for place, row in enumerate(logits):
            for token, bonus in self.bonuses([*before, *between[:place]]).items():
                row[token] += bonus
        return logits


class HotwordLogitsProcessor(LogitsProcessor):
    """The same for transformers' own searches.

    Args:
        biases: one for each clip.
        num_beams: number of rows of each clip.
    """

    def __init__(self, biases: Sequence[HotwordBias | None], num_beams: int) -> None:
        self.biases = biases
        self.num_beams = num_beams

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores `[B, V]` of the token after `input_ids` `[B, written so far]`."""
        scores = scores.clone()
        for index, row in enumerate(scores):
            bias = self.biases[index // self.num_beams]
            if bias is not None:
                for token, bonus in bias.bonuses(input_ids[index].tolist()).items():
                    row[token] += bonus
        return scores
