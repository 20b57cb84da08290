"""Merge LoRA's updates into the weights after training, or export them for peft.

Promises: the merged model gives the same text, and its checkpoint loads like any other; it contains every weight of the
language model, so it is as large. An exported folder has peft's own format, for the language model alone.
It does not know how the updates were trained.
"""

from pathlib import Path

from safetensors.torch import save_file

from asr_doge.errors import ConfigError
from asr_doge.models.atomic_folder import atomic_folder
from asr_doge.models.lora import UPDATES_NAME, has_updates, merge_updates
from asr_doge.models.modeling_asr_doge import ASRDogeForConditionalGeneration


def merge_lora(model: ASRDogeForConditionalGeneration) -> None:
    """Merge the language model's updates, in place; its configuration then says `full`.

    Raises:
        ConfigError: there are none, or one is of an output layer that shares its weights with the embedding.
    """
    _require_lora(model)
    output = model.language_model.get_output_embeddings()
    if has_updates(output) and model.language_model.config.tie_word_embeddings:
        raise ConfigError(
            "LoRA of an output layer cannot be merged where that layer's weights are the token embedding's too: train"
            " with other --lora_targets, such as all-linear"
        )
    merge_updates(model.language_model)
    model.config.train_language_model = "full"
    if model.config.train_encoder != "lora":
        model.config.lora = None


def export_lora(model: ASRDogeForConditionalGeneration, folder: Path) -> None:
    """Write the language model's updates in the format that `peft.PeftModel.from_pretrained` loads.

    The folder is written completely or not at all.

    Raises:
        ConfigError: there are none.
    """
    from peft import LoraConfig  # slow to import
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    _require_lora(model)
    config = LoraConfig(
        **{
            **(model.config.lora or {}),
            "target_modules": [name for name, layer in model.language_model.named_modules() if has_updates(layer)],
        },
        task_type="CAUSAL_LM",
        inference_mode=True,
        base_model_name_or_path=model.config.language_model,
        revision=model.config.language_model_revision,
    )
    updates = {
        name.replace(f".{UPDATES_NAME}.", "."): update
        for name, update in model.language_model.state_dict().items()
        if ".lora_" in name
    }
    with atomic_folder(folder) as partial:
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
