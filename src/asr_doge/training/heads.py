"""Prepare the CTC head that a run trains beside the adapter, the labels of its texts, and the tokens they use.

Promises: one place decides from the flags whether there is a head, which one, and what is trained; contradicting flags
give one line. It does not train (see `asr_doge.training.warm_up`, and `forward` of the model).
"""

from collections.abc import Callable, Sequence

from asr_doge.data.manifest import Utterance
from asr_doge.errors import ConfigError
from asr_doge.models import ASRDogeProcessor, LoadedModel
from asr_doge.models.adapter_ctc import AdapterCTCHead, adapter_head_settings
from asr_doge.models.ctc_head import CTCHeadSettings, HeadedEncoder
from asr_doge.models.ctc_vocabulary import CTCVocabulary
from asr_doge.training.configuration import TrainConfig

Ids = Callable[[str], Sequence[int]]


def prepare_head(config: TrainConfig, loaded: LoadedModel, utterances: Sequence[Utterance]) -> Ids | None:
    """Give the model the head that the flags request, and return the function for its labels; None without a head.

    Raises:
        ConfigError: the flags request a head but not its training, or a new one although there is one.
    """
    model = loaded.model
    if not config.ctc_weight:
        if config.ctc_head is not None:
            raise ConfigError(f"--ctc_head {config.ctc_head} is trained with --ctc_weight only: give it, 0.3 say")
        if isinstance(model.encoder, HeadedEncoder):
            model.encoder.ctc_head.requires_grad_(False)
        return None
    if not isinstance(model.encoder, HeadedEncoder):
        if model.encoder.has_ctc:
            raise ConfigError(
                "--ctc_weight trains a CTC head, and this encoder has its own, which is frozen: leave it out"
            )
        model.add_ctc_head(_settings(config, loaded.processor, utterances))
    elif config.ctc_head is not None:
        raise ConfigError(
            f"--ctc_head {config.ctc_head}: --speech_encoder {config.speech_encoder} has a head already; leave it out"
        )
    model.ctc_weight = config.ctc_weight
    return ctc_labels(loaded)


def _settings(config: TrainConfig, processor: ASRDogeProcessor, utterances: Sequence[Utterance]) -> CTCHeadSettings:
    """Settings of a new head."""
    if config.ctc_head in (None, "adapter"):
        return adapter_settings(processor, utterances)
    characters = CTCVocabulary.of_characters(utterance.text for utterance in utterances)
    return CTCHeadSettings.read({"type": config.ctc_head, "tokens": list(characters.tokens)})


def adapter_settings(processor: ASRDogeProcessor, utterances: Sequence[Utterance]) -> CTCHeadSettings:
    """Settings of an adapter's head, whose labels are the tokens of these texts."""
    used = {token for utterance in utterances for token in processor.text_ids(utterance.text)[:-1].tolist()}
    return adapter_head_settings(processor.tokenizer, used)


def ctc_labels(loaded: LoadedModel) -> Ids:
    """The function that gives the CTC ids of a text, for the model's head."""
    encoder = loaded.model.encoder
    if isinstance(encoder, HeadedEncoder) and isinstance(encoder.ctc_head, AdapterCTCHead):
        return token_labels(loaded.processor, encoder.ctc_head.settings)
    return encoder.ctc_ids


def token_labels(processor: ASRDogeProcessor, settings: CTCHeadSettings) -> Ids:
    """The function that gives the CTC ids of a text for an adapter's head: those of the language model's tokens."""
    number_of = {token: number for number, token in enumerate(settings.token_ids, start=1)}

    def ids(text: str) -> list[int]:
        tokens = processor.text_ids(text)[:-1].tolist()
        return [number_of[token] for token in tokens if token in number_of]

    return ids


def tokens_of(processor: ASRDogeProcessor, utterances: Sequence[Utterance]) -> list[int]:
    """Ids of the tokens with which these texts are written, end of sequence included, also character by character.

    (Every other text of the same characters can then be written too. A character may be several tokens.)
    """
    texts = {utterance.text for utterance in utterances}
    characters = {" ", *"".join(texts)}
    spelled = {written for character in characters for written in (character, f" {character}")}
    used = {token for text in texts | spelled for token in processor.text_ids(text).tolist()}
    alone = processor.tokenizer.batch_decode([[token] for token in range(len(processor.tokenizer))])
    return sorted(
        used | {token for token, text in enumerate(alone) if text in characters or text.strip() in characters}
    )
