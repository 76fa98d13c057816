"""What can be known of the launchers without running them: commands, shell, XLA's flags, variables, images."""

import os
import re
import shutil
import subprocess
import sys
import tomllib

import pytest

from tests.launch.conftest import ROOT, Desk

LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
OF_RUNS = [name for file in SCRIPTS if not (name := file.name).startswith("demo_")]
VM = {"PROJECT": "p", "ZONE": "z", "TPU_TYPE": "v5p-32", "IMAGE": "image", "CLUSTER": "c"}
QUEUED = "'gcloud' 'compute' 'tpus' 'queued-resources'"

AGAIN = "again after status 69, 75, 125 or above 127 (but 130), at most 20 times"

EXPECTED = {
    "local.sh": "'env' 'CUDA_VISIBLE_DEVICES=0,1' '{launch}/process.sh' '--workdir=a b'  # {again}\n",
    "slurm.sbatch": "'srun' '--kill-on-bad-exit=0' '--wait=120' 'launch/process.sh' '--workdir=a b' '--distributed'\n"
    "'scontrol' 'requeue' 'JOB'  # {again}\n",
    "gke_xpk.sh": "'xpk' 'workload' 'create' '--project=p' '--zone=z' '--cluster=c' '--workload=dynllava' "
    "'--tpu-type=v5p-32' '--num-slices=1' '--docker-image=image' '--max-restarts=20' '--restart-on-exit-codes=75' "
    "'--termination-grace-period-seconds=300' '--command='\\''exec'\\'' '\\''env'\\'' "
    "'\\''/dynllava/launch/process.sh'\\'' '\\''--workdir=a b'\\'' '\\''--distributed'\\'''\n",
    "tpu_vm.sh": f"{QUEUED} 'describe' 'dynllava' '--project=p' '--zone=z' '--format=value(state.state)'\n"
    f"{QUEUED} 'delete' 'dynllava' '--project=p' '--zone=z' '--force' '--quiet'  "
    "# if it is FAILED or SUSPENDED, and then\n"
    f"{QUEUED} 'create' 'dynllava' '--node-id=dynllava' '--project=p' '--zone=z' '--accelerator-type=v5p-32' "
    "'--runtime-version=v2-alpha-tpuv5'  # if it is not there, at most 21 times\n"
    "'gcloud' 'compute' 'tpus' 'tpu-vm' 'ssh' 'dynllava' '--project=p' '--zone=z' '--worker=all' '--quiet' "
    "$'--command=echo dynllava-begun\\n{{ sudo docker stop -t 300 dynllava; "
    "while sudo docker container inspect dynllava; do sleep 1; done; }} >/dev/null 2>&1"
    "\\n\\'sudo\\' \\'docker\\' \\'run\\' \\'--rm\\' \\'--name=dynllava\\' \\'--privileged\\' \\'--net=host\\' "
    "\\'--ipc=host\\' \\'image\\' \\'--workdir=a b\\' \\'--distributed\\'\\necho dynllava-status $?'  "
    "# {again}\n",
}


@pytest.mark.parametrize("script", EXPECTED)
def test_a_dry_run_prints_the_exact_commands_and_runs_none(script: str, desk: Desk) -> None:
    for name in ("dynllava", "srun", "scontrol", "xpk", "gcloud"):
        desk.fake(name)
    status, out, error = desk.run(script, "--dry-run", "--workdir=a b", GPUS="2", **VM)
    assert (status, error) == (0, "")
    assert out == EXPECTED[script].format(launch=LAUNCH, again=AGAIN)
    assert not list(desk.folder.glob("*.calls"))


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", "-x", *map(str, SCRIPTS)], cwd=ROOT, check=True)


@pytest.mark.parametrize("script", OF_RUNS)
def test_every_variable_that_is_read_is_explained(script: str) -> None:
    text = (LAUNCH / script).read_text()
    taken = set(re.findall(r"\$\{!?([A-Z][A-Z_]+)\b", text)) | set(re.findall(r"\$([A-Z][A-Z_]+)\b", text))
    shared = {"UNFINISHED", "NO_SLICE", "AGAIN", "SLURM_JOB_ID", "SLURM_SUBMIT_DIR", "BASH_SOURCE"}
    made = set(re.findall(r"^([A-Z_]+)=", text, re.MULTILINE)) | shared
    head = text[: text.index("\nset -") if "\nset -" in text else 1000]
    assert [name for name in sorted(taken - made) if name not in head] == []


def flags(variable: str) -> str:
    command = f"unset {variable}; source {LAUNCH / 'xla_flags.sh'}; echo ${variable}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.strip()


def test_xla_knows_every_gpu_flag() -> None:
    """It parses them all on any platform, and ends the program at one that it does not know."""
    program = "import jax; jax.devices()"
    subprocess.run([sys.executable, "-c", program], env=os.environ | {"XLA_FLAGS": flags("XLA_FLAGS")}, check=True)


@pytest.mark.aot
def test_libtpu_knows_every_tpu_flag() -> None:
    pytest.importorskip("libtpu")
    program = "from dynllava_jax.analysis.aot import topology; print(len(topology('v5e:2x2')))"
    environment = os.environ | {"LIBTPU_INIT_ARGS": flags("LIBTPU_INIT_ARGS")}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wrong = environment | {"LIBTPU_INIT_ARGS": "--xla_tpu_no_such_flag=true"}
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=wrong, capture_output=True).returncode != 0


def test_images_hold_what_the_launchers_start() -> None:
    for name in ("cuda", "tpu"):
        text = (LAUNCH / f"Dockerfile.{name}").read_text()
        for copied in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE):
            assert all((ROOT / word).exists() for word in copied.split()), copied
        assert 'ENTRYPOINT ["launch/process.sh"]' in text
        assert os.access(LAUNCH / "process.sh", os.X_OK)
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        (extras,) = re.findall(r"'\.\[(.+)\]'$", text, re.MULTILINE)
        assert set(extras.split(",")) <= set(project["optional-dependencies"])
