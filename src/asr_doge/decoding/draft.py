"""Draft verification: the language model's greedy text, checked against a draft instead of generated token by token.

Promises: the tokens are those of greedy search, whatever the draft: a token is taken only if it is the language model's
own first choice after the ones before it. A good draft costs one pass, a useless one as many as greedy search. Each row
of a batch accepts as many tokens as agree. (As with any other batching, sums are computed in another order than one
token at a time: if two tokens score the same to within rounding, either may be first.)
It does not know where drafts come from.

A pass reads the tokens that are certain but not read yet, then the rest of the draft. The agreeing prefix is accepted,
and the language model's own next token is appended. The next pass continues with the draft from the place that is
nearest, by edit distance, to the text so far.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from asr_doge.models import ASRDogeForConditionalGeneration
from asr_doge.models.encoders import SpeechEncoderOutput, length_mask
from asr_doge.models.layout import IGNORED_LABEL

PROPOSAL_TOKENS = 24
"""Draft tokens proposed in each pass after the first disagreement: the next disagreement is probably near, and the pass
over tokens beyond it is wasted."""

AddBias = Callable[[Tensor, Sequence[int], Sequence[int]], Tensor]
"""Takes logits `[K, V]`, the tokens before them and the K - 1 tokens between them; adds a row's bias to the logits."""


@dataclass
class DecodedSequence:
    """The result for one row of a batch.

    Attributes:
        tokens: including the end-of-sequence token, if it was reached.
        log_probs: natural logarithm of the probability of each, without bias.
        passes: number of language-model passes for this row.
    """

    tokens: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    passes: int = 0


class Draft:
    """A draft's tokens, and the place in it that corresponds to the end of a text that may differ from it.

    Args:
        tokens: ids.
        pieces: the characters of each token. The two texts are compared by characters, since a word spelled otherwise
            has other tokens.
    """

    def __init__(self, tokens: Sequence[int], pieces: Sequence[str]) -> None:
        self._tokens = list(tokens)
        self._ends = np.cumsum([0, *map(len, pieces)])
        self._characters = _code_points("".join(pieces))
        self._costs = np.arange(len(self._characters) + 1)  # edit distance of the text so far to each prefix
        self._position = 0

    def rest(self, most: int | None = None) -> list[int]:
        """The next expected tokens, at most `most` of them."""
        return self._tokens[self._position :][:most]

    def follow(self, token: int, piece: str) -> None:
        """Advance by a token of the text."""
        for character in _code_points(piece):
            self._costs = _next_costs(self._costs, self._characters, character)
        costs = self._costs[self._ends]
        nearest = np.flatnonzero(costs == costs.min())
        expected = self._ends[self._position] + len(piece)
        # Of equally near places, prefer one after the same token, then the one nearest to the token's length ahead.
        self._position = min(
            nearest.tolist(),
            key=lambda place: (place == 0 or self._tokens[place - 1] != token, abs(self._ends[place] - expected)),
        )


@dataclass
class _Row:
    """An utterance in progress: its place in the batch, its draft, and how many tokens it may have."""

    index: int
    draft: Draft
    limit: int
    decoded: DecodedSequence
    finished: bool = False


class _Score(NamedTuple):
    """What the language model says of one place: its choice, and log-probabilities of that and of the proposed token.

    The last is without meaning behind a proposal's end.
    """

    choice: int
    of_choice: float
    of_proposed: float


@dataclass(frozen=True)
class Verifier:
    """Decodes a batch greedily by verifying drafts.

    Args:
        model: whose language model decides.
        eos_ids: tokens that end a text.
        piece: gives the characters of a token.
        accept_threshold: probability from which a draft's token is accepted even if it is not the first choice.
        proposal_tokens: see `PROPOSAL_TOKENS`.
    """

    model: ASRDogeForConditionalGeneration
    eos_ids: frozenset[int]
    piece: Callable[[int], str]
    accept_threshold: float | None = None
    proposal_tokens: int = PROPOSAL_TOKENS

    @torch.inference_mode()
    def decode(
        self,
        speech: SpeechEncoderOutput,
        drafts: Sequence[Sequence[int]],
        limits: Sequence[int],
        add_bias: Sequence[AddBias | None] | None = None,
        prompt_ids: Tensor | None = None,
    ) -> list[DecodedSequence]:
        """Decode a batch.

        Args:
            speech: the encoder's output.
            drafts: token ids of each row's draft; any tokens are allowed, and an empty draft too.
            limits: maximum number of tokens of each row.
            add_bias: for each row, the function that adds its bias to logits.
            prompt_ids: as in `ASRDogeForConditionalGeneration.forward`.
        """
        rows = [
            _Row(index, Draft(tokens, [self.piece(token) for token in tokens]), limit, DecodedSequence())
            for index, (tokens, limit) in enumerate(zip(drafts, limits, strict=True))
        ]
        results = [row.decoded for row in rows]
        proposals = [row.draft.rest(row.limit) for row in rows]
        mask = length_mask(speech.speech_lengths, speech.speech_embeddings.shape[1])
        logits, state = self.model.prefill(speech.speech_embeddings, mask, self._batch(proposals), prompt_ids)
        while True:
            rejected = [
                self._accept(row, proposal, scores)
                for row, proposal, scores in zip(
                    rows, proposals, self._scores(rows, proposals, logits, add_bias), strict=True
                )
            ]
            going = [number for number, row in enumerate(rows) if not row.finished]
            if not going:
                return results
            if len(going) < len(rows):
                state.select(torch.tensor(going, device=logits.device))
                rows, rejected = [rows[number] for number in going], [rejected[number] for number in going]
            state.reject(rejected)
            proposals = [row.draft.rest(min(self.proposal_tokens, row.limit - len(row.decoded.tokens))) for row in rows]
            unread = [[row.decoded.tokens[-1], *proposal] for row, proposal in zip(rows, proposals, strict=True)]
            logits = self.model.extend(state, self._batch(unread))

    def _scores(
        self,
        rows: Sequence[_Row],
        proposals: Sequence[Sequence[int]],
        logits: Tensor,
        add_bias: Sequence[AddBias | None] | None,
    ) -> list[list[_Score]]:
        """What the language model says before, between and after the K tokens of each proposal: K + 1 scores each.

        All of it is computed on the device and fetched at once.

        Args:
            proposals: of each row.
            logits: `[B, L, V]`, right-aligned.
            add_bias: of each utterance of the batch.
        """
        counts = [len(proposal) + 1 for proposal in proposals]
        proposed = torch.tensor([token for proposal in proposals for token in (*proposal, 0)]).to(logits.device)
        shown = torch.cat([row[-count:] for row, count in zip(logits, counts, strict=True)]).float()
        log_probs = shown.log_softmax(dim=-1)  # without bias, which must not raise confidences
        if add_bias is not None:
            biases = [add_bias[row.index] for row in rows]
            shown = torch.cat(
                [
                    bias(part, row.decoded.tokens, proposal) if bias is not None else part
                    for bias, part, row, proposal in zip(biases, shown.split(counts), rows, proposals, strict=True)
                ]
            )
        choices = shown.argmax(dim=-1)
        of_choices, of_proposed = (log_probs.gather(1, ids[:, None])[:, 0] for ids in (choices, proposed))
        # In one tensor, as each transfer waits for the device; float32 holds whole numbers below 2 ** 24 exactly.
        fetched = zip(*torch.stack([choices.float(), of_choices, of_proposed]).tolist(), strict=True)
        return [[_Score(int(choice), *log_probs) for choice, *log_probs in islice(fetched, count)] for count in counts]

    def _accept(self, row: _Row, proposal: Sequence[int], scores: Sequence[_Score]) -> int:
        """Accept the agreeing tokens and one more; returns how many of the K proposed tokens were rejected."""
        accepted = 0
        while accepted < len(proposal) and self._agrees(proposal[accepted], scores[accepted]):
            accepted += 1
        taken = [(token, score.of_proposed) for token, score in zip(proposal[:accepted], scores, strict=False)]
        taken.append((scores[accepted].choice, scores[accepted].of_choice))
        row.decoded.passes += 1
        for token, log_prob in taken:
            row.decoded.tokens.append(token)
            row.decoded.log_probs.append(log_prob)
            if token in self.eos_ids or len(row.decoded.tokens) >= row.limit:
                row.finished = True
                break
            row.draft.follow(token, self.piece(token))
        return len(proposal) - accepted

    def _agrees(self, token: int, score: _Score) -> bool:
        """Whether a proposed token is taken."""
        likely = self.accept_threshold is not None and math.exp(score.of_proposed) >= self.accept_threshold
        return token == score.choice or likely

    def _batch(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Token ids `[B, L]`, -100 at padding."""
        tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
        return pad_sequence(tensors, batch_first=True, padding_value=IGNORED_LABEL).to(self.model.device)


def _code_points(text: str) -> NDArray[np.int64]:
    return np.array([ord(character) for character in text], dtype=np.int64)


def _next_costs(costs: NDArray[np.int64], draft: NDArray[np.int64], character: int) -> NDArray[np.int64]:
    """The next row of the edit-distance table: the text one `character` longer, against every prefix of the draft."""
    extended = np.empty_like(costs)
    extended[0] = costs[0] + 1
    extended[1:] = np.minimum(costs[1:] + 1, costs[:-1] + (draft != character))
    steps = np.arange(len(costs))
    # Skipping characters of the draft costs one each: a running minimum instead of a loop over the row.
    return np.minimum.accumulate(extended - steps) + steps
