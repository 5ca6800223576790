"""The launch files: shells and parsers read them, torchrun knows every option, the recipes are there."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import get_args_parser

from puna.recipe import load_recipe

ROOT = Path(__file__).parents[2]
FILES = {name: ROOT / "examples" / "cluster" / name for name in ("slurm.sbatch", "kubernetes.yaml", "skypilot.yaml")}


def torchrun_words(name: str) -> list[str]:
    """The words after `torchrun`, variables and substitutions taken for a word."""
    text = FILES[name].read_text()
    if name == "kubernetes.yaml":
        job = list(yaml.safe_load_all(text))[1]
        container = job["spec"]["template"]["spec"]["containers"][0]
        assert container["command"] == ["torchrun"]
        return container["args"]
    if name == "skypilot.yaml":
        text = yaml.safe_load(text)["run"]
    text = re.sub(r"\$\([^)]*\)", "value", text.replace("\\\n", " "))
    line = next(line for line in text.splitlines() if "torchrun " in line and not line.startswith("#"))
    return shlex.split(line.partition("torchrun ")[2])


@pytest.mark.parametrize("name", FILES)
def test_torchrun_takes_the_command(name: str) -> None:
    options = get_args_parser().parse_args(torchrun_words(name))
    assert options.module
    assert options.training_script == "puna"
    assert options.training_script_args[0] == "run"
    assert options.rdzv_backend == "c10d"
    assert options.max_restarts > 0
    if (recipe := options.training_script_args[1]).endswith(".toml"):
        layout = load_recipe(ROOT / recipe).pretrain.layout
        assert int(options.nproc_per_node.replace("$SKYPILOT_NUM_GPUS_PER_NODE", "8")) % layout.tp == 0


def test_the_shell_and_slurm_can_read_the_script() -> None:
    assert subprocess.run(["bash", "-n", str(FILES["slurm.sbatch"])], check=False).returncode == 0
    lines = FILES["slurm.sbatch"].read_text().splitlines()
    options = [line for line in lines if line.startswith("#SBATCH ")]
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert max(lines.index(option) for option in options) < first_command, "Slurm reads no option after a command"
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", option) for option in options)


def test_the_pods_find_each_other() -> None:
    service, job = yaml.safe_load_all(FILES["kubernetes.yaml"].read_text())
    spec = job["spec"]["template"]["spec"]
    assert service["metadata"]["name"] == spec["subdomain"]
    assert service["spec"]["selector"]["job-name"] == job["metadata"]["name"]
    words = torchrun_words("kubernetes.yaml")
    assert f"--rdzv-endpoint={job['metadata']['name']}-0.{spec['subdomain']}:29500" in words
    mounted = {mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}
