"""The recipe that a run of several stages was begun with, so that it is not continued with another.

Promises: settings are kept beside the stages, whole or not at all. It does not know what they mean.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from asr_doge.data.atomic_writing import write_atomically
from asr_doge.errors import ConfigError

_NAME = "config.yaml"


def store_recipe(stages: Path, recipe: Mapping[str, Any]) -> None:
    """Keep the settings that the weights depend on."""
    write_atomically(stages / _NAME, yaml.safe_dump(dict(recipe), sort_keys=False).encode())


def refuse_another_recipe(stages: Path, recipe: Mapping[str, Any]) -> None:
    """Refuse to continue stages with another recipe. Runs from before recipes were stored may continue.

    Raises:
        ConfigError: they were begun with another, or their recipe is damaged.
    """
    path = stages / _NAME
    if not path.is_file():
        return
    try:
        begun = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        begun = None
    if not isinstance(begun, dict):
        raise ConfigError(f"{path} is damaged: delete {stages}, or choose another --output_dir")
    differing = [
        f"--{name} ({begun.get(name)}, now {recipe.get(name)})"
        for name in {**recipe, **begun}
        if begun.get(name) != recipe.get(name)
    ]
    if differing:
        raise ConfigError(
            f"{stages} was begun with another {', '.join(differing)}: give what it was begun with, choose another"
            f" --output_dir, or delete {stages}"
        )
