"""Merge LoRA's updates into the weights after training, or export them for peft.

Promises: the merged model gives the same text, and its checkpoint loads like any other; it contains every weight of the
language model, so it is as large. An exported folder has peft's own format, for the language model alone.
It does not know how the updates were trained.
"""

from pathlib import Path

from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file

from asr_doge.errors import ConfigError
from asr_doge.models.modeling_asr_doge import ASRDogeForConditionalGeneration
from asr_doge.models.whole_folder import whole_folder


def merge_lora(model: ASRDogeForConditionalGeneration) -> None:
    """Merge the language model's updates, in place; its configuration then says `full`.

    Raises:
        ConfigError: there are none, or the encoder has some, which its checkpoint could not hold merged.
    """
    if model.config.train_encoder != "none":
        raise ConfigError("the encoder was trained too: only the language model's LoRA can be merged")
    _require_lora(model)
    for name, layer in [*model.language_model.named_modules()]:
        if isinstance(layer, BaseTunerLayer):
            layer.merge()
            parent, _, attribute = name.rpartition(".")
            setattr(model.language_model.get_submodule(parent), attribute, layer.get_base_layer())
    model.config.train_language_model, model.config.lora = "full", None


def export_lora(model: ASRDogeForConditionalGeneration, folder: Path) -> None:
    """Write the language model's updates in the format that `peft.PeftModel.from_pretrained` loads.

    The folder is written completely or not at all.

    Raises:
        ConfigError: there are none.
    """
    _require_lora(model)
    configs: dict[str, LoraConfig] = model.language_model.peft_config  # type: ignore[assignment]  # where peft put it
    (config,) = configs.values()
    config.task_type, config.inference_mode = "CAUSAL_LM", True
    config.base_model_name_or_path = model.config.language_model
    config.revision = model.config.language_model_revision
    updates = get_peft_model_state_dict(model.language_model)
    with whole_folder(folder) as partial:
        config.save_pretrained(str(partial))
        save_file(
            {f"base_model.model.{name}": update.contiguous() for name, update in updates.items()},
            partial / SAFETENSORS_WEIGHTS_NAME,
            {"format": "pt"},
        )


def _require_lora(model: ASRDogeForConditionalGeneration) -> None:
    if model.config.train_language_model != "lora":
        raise ConfigError(
            f"there is no LoRA of the language model: the checkpoint was trained with --train_language_model"
            f" {model.config.train_language_model}"
        )
