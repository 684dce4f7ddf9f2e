"""Folders like those that a run leaves."""

import json
import pathlib
from collections.abc import Iterable, Mapping

from stepaudio_jax.config import Config, DataConfig, ModelConfig, SourceConfig, StageConfig, to_dict


def write_run(
    folder: pathlib.Path, lines: Iterable[tuple[str, int, Mapping[str, float]]], stages=("sft",)
) -> pathlib.Path:
    """config.json and metrics.jsonl, the latter of (stage, step, figures)."""
    data = DataConfig(sources=(SourceConfig(path="clips/<b>.jsonl", weight=2.0),))
    config = Config(
        run_dir=str(folder),
        stages=tuple(StageConfig(name=name, steps=100, data=data) for name in stages),
        model=ModelConfig.presets()["tiny"],
        tokenizer="bytes",
    )
    (folder / "config.json").write_text(json.dumps(to_dict(config)), encoding="utf-8")
    text = "".join(
        json.dumps({"stage": stage, "step": step, **figures}) + "\n"
        for stage, step, figures in lines
    )
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return folder
