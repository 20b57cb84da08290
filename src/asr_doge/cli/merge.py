"""`asr-doge merge`: LoRA's updates into the weights of the language model, or into a folder for peft."""

from pathlib import Path

from asr_doge.cli.configuration import MergeConfig
from asr_doge.errors import ConfigError
from asr_doge.models import load_model
from asr_doge.models.merging import export_lora, merge_lora


def run(config: MergeConfig) -> int:
    """Run the command; returns the exit code."""
    folder = Path(config.output_dir)
    if folder.exists():
        raise ConfigError(f"--output_dir {folder} exists: choose a new folder")
    loaded = load_model(config.checkpoint_dir, device="cpu")
    if config.for_peft:
        export_lora(loaded.model, folder)
        print(f"for peft: {folder}")
        return 0
    merge_lora(loaded.model)
    loaded.save(folder)
    print(f"merged: {folder}")
    return 0
