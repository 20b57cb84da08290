"""`asr-doge serve`: the server, until Ctrl-C."""

import os
import sys
from dataclasses import replace

from asr_doge.cli.console import quiet_libraries
from asr_doge.errors import ConfigError
from asr_doge.serving.configuration import KEY_VARIABLE, ServeConfig


def run(config: ServeConfig) -> int:
    """Run the command; returns the exit code."""
    config = replace(
        config, api_key=config.api_key or os.environ.get(KEY_VARIABLE) or None, timestamps=config.timestamps or "auto"
    )
    config.check()
    try:
        from asr_doge.serving import server
    except ImportError as error:
        raise ConfigError(f'serve needs {error.name}: pip install "asr-doge[serve]"') from None
    quiet_libraries()
    server.run(config, on_ready=_announce)
    return 0


def _announce(address: str) -> None:
    print(
        f"listening at {address} (Ctrl-C ends it): a page to try it, and OpenAI's interface under /v1", file=sys.stderr
    )
