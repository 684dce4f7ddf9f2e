"""Base model and quickstart end to end, with few clips and steps: their files, and resuming."""

import pytest

from examples.quickstart.__main__ import run_quickstart
from examples.quickstart.tiny_base import make_tiny_base
from examples.spoken_corpus import TASKS, write_corpus
from stepaudio_jax.config import load_config
from stepaudio_jax.hub import inspect_folder
from tests.end_to_end.runs import ROOT


def shortened(name, corpus, run_dir, **settings):
    overrides = {
        "run_dir": run_dir,
        "log_every_steps": 2,
        "checkpoint.every_steps": 2,
        "compute.unroll": 1,
        **settings,
    }
    stage = {
        "steps": 4,
        "data.batch_size": 4,
        "evaluation.data.batch_size": 4,
        "evaluation.batches": 1,
        "evaluation.every_steps": 2,
    }
    for split, data in (("train", "data"), ("validation", "evaluation.data")):
        for index, file in enumerate(("audio_qa", "two_turn", "text")):
            stage[f"{data}.sources.{index}.path"] = corpus / split / f"{file}.jsonl"
    overrides |= {f"stages.0.{key}": value for key, value in stage.items()}
    return load_config(
        str(ROOT / "configs" / f"{name}.py"),
        [(key, str(value)) for key, value in overrides.items()],
    )


@pytest.mark.slow
def test_from_nothing_to_a_report(tmp_path):
    corpus, base, results = tmp_path / "corpus", tmp_path / "tiny_base", tmp_path / "quickstart"
    write_corpus(corpus, "base", clips=120, per_task=16)
    config = shortened("tiny_base", corpus, tmp_path / "base_run", tokenizer=tmp_path / "tokenizer")
    table = make_tiny_base(config, corpus, base)
    assert all(task in table for task in ("gender", "rate", "pitch", "language"))
    assert "espeak-ng" in (base / "README.md").read_text(encoding="utf-8")
    assert inspect_folder(base).problems == ()
    assert sum(file.stat().st_size for file in base.iterdir()) < 8e6

    config = shortened("quickstart", corpus, results / "train", **{"initial.model": base})
    table = run_quickstart(config, corpus, results)
    assert all(task in table for task in TASKS)
    report = (results / "report.html").read_text(encoding="utf-8")
    assert "<audio" in report
    assert "http://" not in report.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in report
    assert inspect_folder(results / "hugging_face").problems == ()
    before = (results / "train" / "metrics.jsonl").read_bytes()
    assert run_quickstart(config, corpus, results) == table
    assert (results / "train" / "metrics.jsonl").read_bytes() == before
