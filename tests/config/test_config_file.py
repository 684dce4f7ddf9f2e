"""Mistakes in a configuration file are named with the file and the line."""

import pytest

from stepaudio_jax.config import load_config
from stepaudio_jax.errors import ConfigError

IMPORT = "from stepaudio_jax.config import *\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:", "line 1"),
        ("x = 1", "does not define get_config"),
        ("def get_config(): return {}", "must return a stepaudio_jax.config.Config, got dict"),
        ("\0", "null bytes"),
        (
            "import nothing_of_this_name",
            "line 1: ModuleNotFoundError: No module named 'nothing_of_this_name'",
        ),
        (
            "def get_config():\n    return OptimizerConfig(\n        learning_rat=1)",
            r"line 3: unknown key OptimizerConfig.learning_rat; did you mean 'learning_rate'\? "
            r"\(allowed: b1",
        ),
        (
            "def get_config():\n    return SourceConfig(path='a', weight=0)",
            "line 3: weight=0 of source 'a' must be positive",
        ),
        (
            "data = DataConfig(sources=(SourceConfig(path='a'),))\n"
            "stage = StageConfig(name='a', steps=2.5, data=data)\n"
            "get_config = lambda: Config(run_dir='r', stages=(stage,))",
            r"config.stages.0.steps=2.5 is not of type int",
        ),
    ],
)
def test_wrong_config_files_are_named(tmp_path, content, message):
    path = tmp_path / "wrong.py"
    path.write_text(IMPORT + content if "Config(" in content else content)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(str(path))
    assert str(path) in str(error.value)
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(str(tmp_path / "missing.py"))
