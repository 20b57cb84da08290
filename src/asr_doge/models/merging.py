"""LoRA's updates, added into the weights they stand beside.

Promises: the merged model writes the same text, and its checkpoint loads like any other; it is as large as the language
model, of which it then holds every weight. It does not know how the updates were trained.
"""

from peft.tuners.tuners_utils import BaseTunerLayer

from asr_doge.errors import ConfigError
from asr_doge.models.modeling_asr_doge import ASRDogeForConditionalGeneration


def merge_lora(model: ASRDogeForConditionalGeneration) -> None:
    """Merge the language model's updates, in place; its configuration then says `full`.

    Raises:
        ConfigError: there are none, or the encoder has some, whose checkpoint could not hold them merged.
    """
    if model.config.train_encoder != "none":
        raise ConfigError("the encoder was trained too: only the language model's LoRA can be merged")
    if model.config.train_language_model != "lora":
        raise ConfigError(
            f"there is no LoRA to merge: the checkpoint was trained with --train_language_model"
            f" {model.config.train_language_model}"
        )
    for name, layer in [*model.language_model.named_modules()]:
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(model.language_model.get_submodule(parent), attribute, layer.get_base_layer())
    model.config.train_language_model, model.config.lora = "full", None
