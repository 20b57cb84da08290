"""`asr-doge export`: a model as ONNX graphs."""

from pathlib import Path

from asr_doge.cli.configuration import ExportConfig
from asr_doge.data.atomic_writing import check_writable
from asr_doge.models import load_model
from asr_doge.models.export import export_onnx


def run(config: ExportConfig) -> int:
    """Run the command; returns the exit code."""
    folder = Path(config.output_dir)
    check_writable(folder.parent)
    export_onnx(load_model(config.checkpoint_dir, device="cpu"), folder)
    print(f"exported: {folder}")
    return 0
