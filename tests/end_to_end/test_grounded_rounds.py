"""Step-Audio-R1's distillation of its own grounded reasoning: sample, select, SFT, again."""

import json
import re

import pytest

from examples.spoken_corpus import write_corpus
from launch.generate import main as generate
from launch.select import main as select
from launch.train import main as train
from stepaudio_jax.data import read_records
from stepaudio_jax.rl.selection import names_attributes
from stepaudio_jax.storage import write_json_lines
from tests.end_to_end.runs import ROOT

pytestmark = pytest.mark.slow

TASKS = ("gender", "pitch", "rate")
REWARD = "{'verifier': 'exact_text', 'verifier_weight': 1.0}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Writes a corpus, and the questions about voices in two halves."""
    corpus = tmp_path_factory.mktemp("grounded") / "corpus"
    write_corpus(corpus, "quickstart", clips=160, per_task=48)
    halves = {"prompts": [], "held_out": []}
    for task in TASKS:
        lines = (corpus / "evaluation" / f"{task}.jsonl").read_text("utf-8").splitlines()
        for number, line in enumerate(lines):
            halves["held_out" if number % 2 else "prompts"].append(line + "\n")
    for name, lines in halves.items():
        (corpus / "evaluation" / f"{name}.jsonl").write_text("".join(lines), "utf-8")
    write_json_lines(corpus / "train" / "cold.jsonl", half_grounded(corpus))
    return corpus


def half_grounded(corpus):
    """Yields questions about voices whose reasoning names what is heard in half of the answers."""
    for number, line in enumerate((corpus / "train" / "audio_qa.jsonl").open(encoding="utf-8")):
        record = json.loads(line)
        question, answer = record["messages"][:2]
        if "reasoning_content" in answer:
            reasoning = answer["reasoning_content"] if number % 2 else "Let me think."
            messages = [question, {**answer, "reasoning_content": reasoning}]
            yield {"id": record["id"], "messages": messages}


def sft(folder, name, model, files, steps):
    """Trains by the quickstart's configuration; returns the folder of the model."""
    sources = [{"path": str(path)} for path in files]
    settings = {
        "initial.model": model,
        "run_dir": folder / name,
        "compute.unroll": 1,
        "stages.sft.steps": steps,
        "stages.sft.data.sources": json.dumps(sources),
        "stages.sft.data.batch_size": 4,
        "stages.sft.data.augmentation.silence_probability": 0.0,
        "stages.sft.evaluation.data.sources": "()",
        "stages.sft.optimizer.warmup_steps": 4,
    }
    train(
        [
            f"--config={ROOT / 'configs' / 'quickstart.py'}",
            *(f"--config.{key}={value}" for key, value in settings.items()),
        ]
    )
    return folder / name / "model"


def sample(folder, name, model, prompts):
    """Samples four replies to each prompt; returns the file."""
    output = folder / f"{name}.jsonl"
    files = ["--model", str(model), "--input", str(prompts), "--output", str(output)]
    settings = ["--num-samples=4", "--temperature=1", "--top-p=1", "--max-new-tokens=40"]
    generate([*files, *settings])
    return output


def shares(prompts, replies):
    """Returns the shares of replies with grounded reasoning, and of right ones."""
    grounded, right = [], []
    for record, line in zip(read_records(prompts), replies.open(encoding="utf-8"), strict=True):
        for reply in json.loads(line)["samples"]:
            grounded.append(names_attributes(reply["reasoning"], record))
            right.append(reply["reply"].strip().lower() == record.answer)
    return sum(grounded) / len(grounded), sum(right) / len(right)


def test_the_share_of_grounded_reasonings_rises(corpus, tmp_path, capsys):
    prompts, held_out = (
        corpus / "evaluation" / f"{name}.jsonl" for name in ("prompts", "held_out")
    )
    cold = [corpus / "train" / "cold.jsonl"]
    model = sft(tmp_path, "cold", ROOT / "models" / "tiny_base", cold, steps=80)
    measured = [shares(held_out, sample(tmp_path, "cold_held_out", model, held_out))]
    for number in range(2):
        replies = sample(tmp_path, f"replies_{number}", model, prompts)
        selected = tmp_path / f"selected_{number}.jsonl"
        files = ["--input", str(prompts), "--replies", str(replies), "--output", str(selected)]
        select([*files, "--keep=right", "--grounded=attributes", f"--reward={REWARD}"])
        counts = dict(re.findall(r"(\w+): (\d+)", capsys.readouterr().out))
        assert int(counts["kept"]) > 0
        for record in read_records(selected):
            assert names_attributes(record.messages[-1].reasoning, record)
        model = sft(tmp_path, f"round_{number}", model, [selected], steps=30)
        output = sample(tmp_path, f"held_out_{number}", model, held_out)
        measured.append(shares(held_out, output))
    print("shares of grounded reasonings and of right replies, before and after rounds:", measured)
    assert measured[-1][0] > measured[0][0] + 0.3
    assert measured[-1][1] >= measured[0][1] - 0.05
