"""What `launch.plan` plans."""

import pytest

from launch.plan import main, with_initial_model_config
from stepaudio_jax.config import load_config
from tests.end_to_end.runs import ROOT


def test_the_planned_model_is_that_of_the_initial_weights(capsys):
    base = load_config(
        ROOT / "configs" / "sft_mini_8b.py", [("initial.model", str(ROOT / "models" / "tiny_base"))]
    )
    assert base.model.decoder.layers > 4
    assert with_initial_model_config(base).model.decoder.layers == 4
    assert not capsys.readouterr().err


def test_initial_weights_that_are_missing_here_are_reported(capsys):
    away = load_config(
        ROOT / "configs" / "sft_mini_8b.py", [("initial.model", "/nowhere/Step-Audio-2-mini")]
    )
    assert with_initial_model_config(away) == away
    assert (
        "/nowhere/Step-Audio-2-mini: not here, so the plan is of the model that the configuration"
        " describes" in capsys.readouterr().err
    )


def test_a_gpu_is_told_in_a_sentence_that_it_is_not_planned(capsys):
    config = ROOT / "configs" / "sft_mini_8b.py"
    with pytest.raises(SystemExit) as ended:
        main([f"--config={config}", "--topology=h100:8"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: topology 'h100:8' is of GPUs: launch.plan plans TPU slices")
