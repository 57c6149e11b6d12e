"""Ready recipes compile, and a wrong one says which key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.engine import recipes
from trtllm_engines.engine.build import build
from trtllm_engines.engine.folder import load_engine
from trtllm_engines.engine.recipes import load_recipe
from trtllm_engines.errors import EngineError
from trtllm_engines.models.presets import resolve_model


@pytest.mark.parametrize("name", recipes.names())
def test_every_ready_recipe_compiles_to_a_plan(name: str) -> None:
    recipe = load_recipe(name)
    config = replace(resolve_model(recipe.model).config, num_layers=2)
    source = {"kind": "dummy", "seed": 0}
    plan = compile_model(config, recipe.precision, recipe.profile, arches=recipe.arches, weights_source=source, gpu=recipe.gpu).plan
    assert plan.fingerprint.arches == recipe.arches
    assert (recipe.gpu or name.rpartition("-")[2]) == name.rpartition("-")[2]
    assert all(set(op.tactics) == set(recipe.arches) - {"cpu"} for op in plan.ops)


def test_a_recipe_builds(tmp_path: Path) -> None:
    recipe = load_recipe("tiny-llama-fp32-cpu")
    engine = load_engine(build(**recipe.build_arguments(), out=tmp_path / "e"))
    assert engine.plan.profile == recipe.profile


def test_wrong_recipes(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no recipe 'absent': neither a file nor one of .*tiny-llama-fp32-cpu"):
        load_recipe("absent")
    path = tmp_path / "r.toml"
    text = (recipes.folder() / "tiny-llama-fp32-cpu.toml").read_text()
    path.write_text(text + "max_batchsize = 3\n")
    with pytest.raises(EngineError, match=r"r\.toml: max_batchsize is not a known key \(did you mean max_batch_size\?\)"):
        load_recipe(path)
    path.write_text(text.replace("max_seq_len = 1024", 'max_seq_len = "long"'))
    with pytest.raises(EngineError, match=r"r\.toml: max_seq_len is .*; it must be a whole number"):
        load_recipe(path)
    path.write_text("= 3")
    with pytest.raises(EngineError, match="is not TOML"):
        load_recipe(path)
