"""The CTC head that a run trains beside the adapter, and the labels of its texts.

Promises: the flags decide in one place whether there is a head, which, and what trains; what contradicts itself is one
line. It does not train (see `asr_doge.training.warm_up`, and `forward` of the model).
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
    """Give the model the head that the flags ask for, and say what its labels are; None where none is trained.

    Raises:
        ConfigError: the flags ask for a head and for no training of it, or for one where there is one.
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
    """Of a new head."""
    if config.ctc_head in (None, "adapter"):
        return adapter_settings(processor, utterances)
    characters = CTCVocabulary.of_characters(utterance.text for utterance in utterances)
    return CTCHeadSettings.read({"type": config.ctc_head, "tokens": list(characters.tokens)})


def adapter_settings(processor: ASRDogeProcessor, utterances: Sequence[Utterance]) -> CTCHeadSettings:
    """Of an adapter's head, which writes the tokens of these texts."""
    used = {token for utterance in utterances for token in processor.label_ids(utterance.text)[:-1].tolist()}
    return adapter_head_settings(processor.tokenizer, used)


def ctc_labels(loaded: LoadedModel) -> Ids:
    """What gives the CTC ids of a text, for the model's head."""
    encoder = loaded.model.encoder
    if isinstance(encoder, HeadedEncoder) and isinstance(encoder.ctc_head, AdapterCTCHead):
        return token_labels(loaded.processor, encoder.ctc_head.settings)
    return encoder.ctc_ids


def token_labels(processor: ASRDogeProcessor, settings: CTCHeadSettings) -> Ids:
    """What gives the CTC ids of a text for an adapter's head: those of the tokens that the language model reads."""
    number_of = {token: number for number, token in enumerate(settings.token_ids, start=1)}

    def ids(text: str) -> list[int]:
        tokens = processor.label_ids(text)[:-1].tolist()
        return [number_of[token] for token in tokens if token in number_of]

    return ids
