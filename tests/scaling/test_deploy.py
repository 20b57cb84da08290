"""The commands in files for Slurm and Kubernetes are ones that the command line takes."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from asr_doge.cli.commands import parse_command
from asr_doge.data.sharding import parse_shard

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_command_for_kubernetes() -> None:
    job = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())
    program, verb, *arguments = shlex.split(job["spec"]["entrypoint"])
    assert (program, verb) == ("asr-doge", "transcribe")
    config = parse_command(verb, arguments)
    config.check_job()
    assert config.engine == "ray"
    (group,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert config.worker_range() == (group["minReplicas"], group["maxReplicas"])
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert config.num_gpus_per_worker == float(limits["nvidia.com/gpu"])
    assert config.num_cpus_per_worker <= float(limits["cpu"])


# The fields of KubeRay's RayJobSpec, RayClusterSpec, HeadGroupSpec and WorkerGroupSpec (apis/ray/v1, 2026) that
# such a job may want, with the types of their values in YAML.
RAY_JOB: dict[str, type] = {
    **dict.fromkeys(("entrypoint", "runtimeEnvYAML", "jobId", "submissionMode", "entrypointResources"), str),
    **dict.fromkeys(("activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"), int),
    **dict.fromkeys(("shutdownAfterJobFinishes", "suspend"), bool),
    **dict.fromkeys(("rayClusterSpec", "submitterPodTemplate", "submitterConfig", "metadata", "clusterSelector"), dict),
}
RAY_CLUSTER: dict[str, type] = {
    "rayVersion": str,
    "enableInTreeAutoscaling": bool,
    "workerGroupSpecs": list,
    **dict.fromkeys(("headGroupSpec", "autoscalerOptions", "headServiceAnnotations"), dict),
}
HEAD_GROUP: dict[str, type] = {"serviceType": str, "enableIngress": bool, "rayStartParams": dict, "template": dict}
WORKER_GROUP: dict[str, type] = {
    "groupName": str,
    **dict.fromkeys(("replicas", "minReplicas", "maxReplicas", "numOfHosts"), int),
    **dict.fromkeys(("rayStartParams", "template", "scaleStrategy"), dict),
}


def test_the_job_has_the_fields_of_the_operators_types() -> None:
    """Those that it uses of RayJobSpec, RayClusterSpec, HeadGroupSpec and WorkerGroupSpec (KubeRay, apis/ray/v1)."""
    job = yaml.safe_load((DEPLOY / "kuberay.yaml").read_text())
    cluster = job["spec"]["rayClusterSpec"]
    parts = [(job["spec"], RAY_JOB), (cluster, RAY_CLUSTER), (cluster["headGroupSpec"], HEAD_GROUP)]
    parts += [(group, WORKER_GROUP) for group in cluster["workerGroupSpecs"]]
    for values, types in parts:
        assert {name: type(value) for name, value in values.items()}.items() <= types.items()
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(type(value) is str for value in group["rayStartParams"].values())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_the_command_for_slurm(tmp_path: Path) -> None:
    """Run as one task of an array, with a program in the place of ours that notes its arguments."""
    stand_in = tmp_path / "asr-doge"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    task = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "64", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = ["bash", str(DEPLOY / "slurm.sh")]
    verb, *arguments = subprocess.run(command, env=task, capture_output=True, text=True, check=True).stdout.splitlines()
    config = parse_command(verb, arguments)
    config.check_job()
    shard = parse_shard(config.shard)
    assert (shard.index, shard.count) == (3, 64)


def test_slurm_is_told_all_that_it_asks_for() -> None:
    """sbatch 22.05: "--gpus-per-task used without either --gpus or -n/--ntasks is not allowed"."""
    options = [line.split("=")[0] for line in (DEPLOY / "slurm.sh").read_text().splitlines() if line[:7] == "#SBATCH"]
    assert "#SBATCH --gpus-per-task" in options
    assert {"#SBATCH --gpus", "#SBATCH --ntasks"} & set(options)
