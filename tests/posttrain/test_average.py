"""The mean of models, tensor by tensor."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from puna.errors import PunaError
from puna.model.weights import load_hf
from puna.posttrain.average import average


def changed(folder: Path, out: Path, by: float) -> Path:
    shutil.copytree(folder, out)
    state = load_file(folder / "model.safetensors")
    save_file({name: (t.float() + by).to(t.dtype) for name, t in state.items()}, out / "model.safetensors")
    return out


def test_the_mean_of_two_models_lies_between_them(model_folder: Path, tmp_path: Path):
    other = changed(model_folder, tmp_path / "other", 1.0)
    average([model_folder, other], tmp_path / "mean")
    states = [load_hf(folder, dtype=torch.float32).state_dict() for folder in (model_folder, other, tmp_path / "mean")]
    for name, mean in states[2].items():
        expected = ((states[0][name] + states[1][name]) / 2).bfloat16().float()
        assert mean.equal(expected)
    assert (tmp_path / "mean" / "tokenizer.json").read_bytes() == (model_folder / "tokenizer.json").read_bytes()


def test_the_mean_of_equal_models_is_the_model(model_folder: Path, tmp_path: Path):
    average([model_folder] * 3, tmp_path / "mean")
    assert (tmp_path / "mean/model.safetensors").read_bytes() == (model_folder / "model.safetensors").read_bytes()


def test_models_of_other_shapes_are_refused(model_folder: Path, tmp_path: Path):
    shutil.copytree(model_folder, tmp_path / "other")
    state = load_file(model_folder / "model.safetensors")
    save_file(state | {"lm_head.weight": torch.zeros(3, 3)}, tmp_path / "other" / "model.safetensors")
    with pytest.raises(PunaError, match=r"they differ in lm_head\.weight; average models of one shape"):
        average([model_folder, tmp_path / "other"], tmp_path / "mean")
    (tmp_path / "other" / "model.safetensors").unlink()
    with pytest.raises(PunaError, match=r"other/model\.safetensors is missing"):
        average([model_folder, tmp_path / "other"], tmp_path / "mean")
    with pytest.raises(PunaError, match="has no safetensors to average"):
        average([tmp_path / "other"], tmp_path / "mean")
