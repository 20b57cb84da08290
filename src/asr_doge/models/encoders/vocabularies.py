"""Vocabularies of published CTC heads, read from a checkpoint's tokenizer files into its encoder's configuration.

Promises: `ctc_tokens` and `ctc_merges` of a configuration are a `CTCVocabulary`'s, in the order of the head's ids
without the blank; special tokens (`<s>`, `<unk>`) have no text. `blank_first` puts a head's logits into that order. A
vocabulary of capitals only is read in lower case, since its transcripts had no case.
It does not know which family reads the checkpoint.
"""

import json
from typing import Any

from torch import Tensor, cat
from transformers import PreTrainedConfig

from asr_doge.errors import CheckpointError
from asr_doge.models.checkpoints import Reference
from asr_doge.models.ctc_vocabulary import CTCVocabulary

_SPACE_BY_DEFAULT = "|"  # as transformers' Wav2Vec2CTCTokenizer has it


def read_characters(config: PreTrainedConfig, reference: Reference) -> None:
    """Put the characters of `vocab.json` into a configuration, where it has no vocabulary yet.

    Raises:
        CheckpointError: the file is missing or does not fit the head.
    """
    if getattr(config, "ctc_tokens", None):
        return
    vocabulary = _json(reference, "vocab.json")
    path = reference.file("tokenizer_config.json")
    settings = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    space = settings.get("word_delimiter_token", _SPACE_BY_DEFAULT)
    characters = {number: character for character, number in vocabulary.items() if len(character) == 1}
    spelled = {number: " " if character == space else character for number, character in characters.items()}
    if not any(character.islower() for character in spelled.values()):
        spelled = {number: character.lower() for number, character in spelled.items()}
    _store(config, [spelled.get(number, "") for number in range(config.vocab_size)], [])


def read_pieces(config: PreTrainedConfig, reference: Reference) -> None:
    """Put the pieces of words of `tokenizer.json` into a configuration, where it has no vocabulary yet.

    Raises:
        CheckpointError: the file is missing, or is not SentencePiece's BPE.
    """
    if getattr(config, "ctc_tokens", None):
        return
    tokenizer = _json(reference, "tokenizer.json")
    model = tokenizer.get("model", {})
    if model.get("type") != "BPE" or (tokenizer.get("pre_tokenizer") or {}).get("type") != "Metaspace":
        raise CheckpointError(
            f"model '{reference.name}': tokenizer.json is not SentencePiece's BPE, which its head needs"
        )
    special = {token["content"] for token in tokenizer.get("added_tokens", []) if token.get("special")}
    pieces = {number: piece for piece, number in model["vocab"].items() if piece not in special}
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    known = set(pieces.values())
    usable = [[first, second] for first, second in merges if {first, second, first + second} <= known]
    _store(config, [pieces.get(number, "") for number in range(config.vocab_size)], usable)


def vocabulary_of(config: PreTrainedConfig) -> CTCVocabulary | None:
    """The vocabulary in a configuration, if there is one."""
    tokens = getattr(config, "ctc_tokens", None)
    return CTCVocabulary(tokens, getattr(config, "ctc_merges", ())) if tokens else None


def blank_first(logits: Tensor, blank: int | None) -> Tensor:
    """Logits `[..., V]` of a head whose id `blank` is the blank, in the order in which id 0 is."""
    if not blank:
        return logits
    return cat([logits[..., blank : blank + 1], logits[..., :blank], logits[..., blank + 1 :]], dim=-1)


def _store(config: PreTrainedConfig, tokens: list[str], merges: list[list[str]]) -> None:
    del tokens[config.pad_token_id or 0]
    config.ctc_tokens = tokens
    if merges:
        config.ctc_merges = merges


def _json(reference: Reference, filename: str) -> dict[str, Any]:
    path = reference.file(filename)
    if path is None:
        raise CheckpointError(f"model '{reference.name}' has a CTC head but no {filename}, its vocabulary")
    try:
        content: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"model '{reference.name}': {filename} is not a vocabulary") from error
    return content
