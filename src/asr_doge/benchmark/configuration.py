"""Settings of the `benchmark` command: command line, YAML and Python alike.

Promises: a docstring under every field, which is its `--help`; importing this loads neither torch nor transformers.
"""

from dataclasses import dataclass, field

from asr_doge.choices import Dtype, Quantization, SampleChoice
from asr_doge.data.manifest import check_manifest, manifest_path
from asr_doge.decoding.configuration import DecodingConfig


@dataclass
class BenchmarkConfig(DecodingConfig):
    """Measure a checkpoint's accuracy, speed and memory on a test set, or compare two reports."""

    checkpoint_dir: str = "nano"
    """Checkpoint folder, hub id, or nano."""
    data_dir: str = "./processed"
    """Folder with test_manifest.json, from `asr-doge process`."""
    test_manifest: str | None = None
    """Test manifest, if it is not the one in data_dir."""
    output_dir: str = "./benchmark"
    """Folder for the reports: one JSON file and one HTML page per run."""
    language: str | None = None
    """Language of the utterances for which the manifest names none, as a code such as de or a name; it determines the
    scoring rule, and the prompt of models that were trained with {language} in it."""
    max_samples: int = 200
    """Utterances of the manifest to measure, at most; 0 for all."""
    sample_choice: SampleChoice = "spread"
    """Which utterances to take. spread: those whose ids have the smallest SHA-256. first: the first ones, as for the
    published figures; in a sorted manifest they are of few speakers."""
    num_speed_runs: int = 5
    """Timed runs of each of a few clips, at batch size 1; at least 1."""
    num_warmup_runs: int = 1
    """Runs of each clip before these that are not counted."""
    batch_size: int = 8
    """Chunks of recordings that the model reads at once while accuracy is measured; does not affect the texts."""
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8])
    """Batch sizes whose throughput is measured."""
    peer: list[str] = field(default_factory=list)
    """Other recognizers to measure on the same files: pocketsphinx, or hf:ID_OR_FOLDER for a Hugging Face model."""
    shard: str | None = None
    """Measure only a part of the samples: 2/4 is the second of four parts. `merge` joins their reports."""
    num_worst: int = 10
    """Worst utterances to show on the HTML page."""
    embed_audio: bool = True
    """Put the recordings of the worst utterances into the HTML page."""
    guard_silence: bool = field(default=False, kw_only=True)
    """Write nothing for chunks without speech. Guards are off by default, as in the evaluations during training, so
    that figures are comparable; `transcribe` has them on."""
    guard_length: bool = field(default=False, kw_only=True)
    """Stop a text that grows far longer than the encoder's draft."""
    guard_loops: bool = field(default=False, kw_only=True)
    """Shorten a phrase that repeats over and over if it does not in the encoder's draft."""
    seed: int = 0
    """Seed of the resampling for confidence intervals and significance."""
    device: str | None = None
    """cpu, cuda or mps; default, an accelerator if there is one."""
    dtype: Dtype = "fp32"
    """Type of the weights and of the computation; bf16 takes half the memory, and half the time if the processor has
    instructions for it."""
    quantization: Quantization = "none"
    """int8: 8-bit matrices, on the CPU: less than half the memory and nearly the same text, in a third of the time of
    fp32 if the processor has VNNI, else in about the same, up to a third more for some layers."""
    compile: bool = False
    """Compile the conformer blocks of Granite Speech's encoder, for a GPU: 1.3 times as fast in large batches, after
    some seconds at the start. Equal to rounding."""
    compare: list[str] = field(default_factory=list)
    """Measure nothing; compare two JSON reports on the utterances that both have."""
    merge: list[str] = field(default_factory=list)
    """Measure nothing; join the JSON reports of all shards into one."""

    def check_data(self) -> None:
        """Raise a DataError if the test set has no manifest."""
        if not (self.compare or self.merge):
            check_manifest(manifest_path("test", self.data_dir, self.test_manifest))
