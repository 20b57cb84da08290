"""Upload a checkpoint to the Hugging Face hub.

Promises: the repository has the folder's content, model card included; a failure gives one line that says how to upload
it later. It does not create the checkpoint, and never asks for a token (`hf auth login` stores one).
"""

import shlex
from pathlib import Path

from huggingface_hub import HfApi

from asr_doge.errors import TrainingError, first_line


def push_to_hub(folder: Path, model_id: str, *, private: bool = False) -> str:
    """Create the repository if necessary, and upload the folder to it; returns its address.

    Args:
        folder: a checkpoint.
        model_id: of the repository; without an owner, the token's owner is used.
        private: hide it from others.

    Raises:
        TrainingError: the hub cannot be reached, or refuses.
    """
    api = HfApi(library_name="asr-doge")
    try:
        repository = api.create_repo(model_id, private=private, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message="Add what training made")
    except Exception as error:  # the type depends on the HTTP client
        command = shlex.join(["hf", "upload", model_id, str(folder)])
        raise TrainingError(
            f"--push_to_hub {model_id}: {first_line(error)}; {folder} is whole: after 'hf auth login', send it by:"
            f" {command}"
        ) from error
    return str(repository)
