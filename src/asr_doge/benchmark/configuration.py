"""Settings of the `benchmark` verb: command line, YAML and Python alike.

Promises: a docstring under every field, which is its `--help`; importing this loads neither torch nor transformers.
"""

from dataclasses import dataclass

from asr_doge.published import Quantization


@dataclass
class BenchmarkConfig:
    """Measure a checkpoint's accuracy and speed on a test set."""

    checkpoint_dir: str = "nano"
    """Checkpoint folder, hub id, or nano."""
    data_dir: str = "./processed"
    """Folder with test_manifest.json, from `asr-doge process`."""
    test_manifest: str | None = None
    """Test manifest, if not the one in data_dir."""
    output_dir: str = "./benchmark"
    """Folder for the JSON report."""
    max_samples: int = 200
    """Utterances to measure: those whose ids have the smallest SHA-256, so spread over the manifest; 0 for all."""
    num_speed_runs: int = 5
    """Timed runs of each of a few clips, after one that is not counted; at least 1."""
    device: str | None = None
    """cpu, cuda or mps; default, an accelerator if there is one."""
    quantization: Quantization = "none"
    """int8: 8-bit matrices, on the CPU: less than half the time and a third of the memory, nearly the same text."""
