"""Settings of the `serve` command: command line, YAML and Python alike.

Promises: a docstring under every field, which is its `--help`; importing this loads neither torch nor FastAPI.
"""

import ipaddress
from dataclasses import dataclass, field

from asr_doge.choices import Dtype, Quantization
from asr_doge.decoding.configuration import DecodingConfig
from asr_doge.defaults import DEFAULT_MODEL
from asr_doge.errors import ConfigError

OPENAI_MODELS = (
    "whisper-1",
    "gpt-transcribe",
    "gpt-live-transcribe",
    "gpt-realtime-whisper",
    "gpt-4o-transcribe",
    "gpt-4o-mini-transcribe",
)
"""Names of OpenAI's models that clients have as their default, and that do not promise to tell speakers apart."""
KEY_VARIABLE = "ASR_DOGE_API_KEY"


@dataclass
class ServeConfig(DecodingConfig):
    """Serve a model as OpenAI's clients speak it, with a page to try it. Needs: pip install "asr-doge[serve]"."""

    model: str = DEFAULT_MODEL
    """Checkpoint folder, hub id, or a bundled model: english, whose speech encoder is downloaded on first use, or nano,
    which needs no download and knows digit strings only."""
    host: str = "127.0.0.1"
    """Address to listen at. Another than this machine's own (loopback) needs api_key."""
    port: int = 8000
    """Port to listen at; 0 for any that is free."""
    api_key: str | None = None
    """Key that clients must send, as in `Authorization: Bearer KEY`. Others on this machine can read a command line, so
    better set the environment variable ASR_DOGE_API_KEY."""
    allow_without_key: bool = False
    """Listen to other machines without a key: whoever reaches the port may use it."""
    allowed_origins: list[str] = field(default_factory=list)
    """Web sites whose pages may use the server, as https://example.org; * for all. The server's own page always may."""
    aliases: list[str] = field(default_factory=lambda: list(OPENAI_MODELS))
    """Names of models under which clients may request this one."""
    language: str | None = None
    """Language of requests that name none, as a code such as de; it has an effect on models that were trained with
    {language} in their prompt."""
    device: str | None = None
    """cpu, cuda or mps; default, an accelerator if there is one."""
    dtype: Dtype = "fp32"
    """Type of the weights and of what is computed with them."""
    quantization: Quantization = "none"
    """int8: 8-bit matrices, on the CPU."""
    compile: bool = False
    """Compile the conformer blocks of Granite Speech's encoder, for a GPU: 1.3 times as fast in large batches, after
    some seconds at the start. Equal to rounding."""
    batch_seconds: float = 60.0
    """Audio that the model reads at once, padding included, from as many requests and streams as it comes; more suits a
    GPU, less keeps live streams quick."""
    batch_wait_ms: float = 10.0
    """How long the model waits for others to join a batch, in milliseconds."""
    keep_alive: float | None = None
    """Unload the model after this many seconds without work; it is loaded again when needed. Default: never."""
    max_requests: int = 32
    """Files being received, waiting and transcribed at a time; more are refused with 429, to be sent again."""
    max_sessions: int = 32
    """Live sessions at a time; more are refused with close code 1013 (try again later)."""
    max_upload_mb: float = 200.0
    """Largest file, in MB."""
    max_duration: float = 14400.0
    """Longest recording, in seconds."""
    upload_timeout: float = 300.0
    """Seconds that receiving a file may take."""
    idle_timeout: float = 660.0
    """Seconds after which a live session without audio is closed; LiveKit keeps idle ones for ten minutes."""
    decode_memory_mb: int = 1024
    """Memory that decoding one file may take, in MB; what needs more fails alone."""

    def check(self) -> None:
        """Refuse what makes no sense.

        Raises:
            ConfigError: the message names the flag.
        """
        super().check()
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port {self.port} is not a port: give 0 to 65535")
        for name in ("batch_seconds", "max_requests", "max_sessions", "max_upload_mb", "max_duration"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name} {getattr(self, name)} cannot be used: it must be more than 0")
        for name in ("upload_timeout", "idle_timeout", "decode_memory_mb"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name} {getattr(self, name)} cannot be used: it must be more than 0")
        if self.batch_wait_ms < 0 or (self.keep_alive is not None and self.keep_alive < 0):
            raise ConfigError("--batch_wait_ms and --keep_alive cannot be negative")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip() == self.api_key != ""):
            raise ConfigError("--api_key must be of ASCII characters, without spaces at its ends")
        for origin in self.allowed_origins:
            if origin != "*" and not origin.startswith(("http://", "https://")):
                raise ConfigError(f"--allowed_origins '{origin}' is no origin: write it as https://example.org, or *")
        if self.api_key is None and not self.allow_without_key and not is_loopback(self.host):
            raise ConfigError(
                f"--host {self.host} lets other machines in: set a key (environment variable {KEY_VARIABLE}, or"
                " --api_key), or say --allow_without_key true"
            )


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own, which no other reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
