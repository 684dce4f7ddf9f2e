"""The model card of the small base model: what it is, how it was made, how it did."""

import json
import pathlib

import jax

from stepaudio_jax.config import ModelConfig, to_dict
from stepaudio_jax.models import abstract_parameters

_POINTS = 20  # of the loss curve


def model_card(corpus: pathlib.Path, run_dir: pathlib.Path, model: ModelConfig, table: str) -> str:
    """The card in Markdown.

    Args:
        corpus: that it was trained on, with corpus.json.
        run_dir: of the training run, with config.json and metrics.jsonl.
        model: the shape.
        table: the evaluation, in Markdown.
    """
    shape = json.dumps(to_dict(model), indent=2)
    heard = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))["train"]
    variants = len(heard["speakers"])
    return f"""---
license: apache-2.0
---

# A small model that hears

A model of the Step-Audio architecture with {_parameters(model):.1f} M parameters, trained from nothing on speech synthesised
with espeak-ng. It hears English and Mandarin phrases of up to two seconds: the words, and the speaker's gender, rate, pitch and
language. It is the starting point of `make quickstart`, and no model for use: it has heard no human being.

Made by `make tiny-base` (`configs/tiny_base.py`): mid-training on "what do you hear" and text, encoder, adaptor and decoder
trained together, with a word-level CTC loss and attribute classifiers that are left out of this folder. Weights are bfloat16.

It learnt from {heard["clips"]} clips of {heard["phrases"]} phrases, in {heard["voices"]} voices: {variants} of espeak-ng's
variants, and random relatives of those. Many phrases follow no template: any word may follow any other.

## On held-out speakers and held-out phrases

Held out are families of voices that sound alike, about a third of them, and every phrase of some templates. The corpus was
shaped while models were tried on them: the figures are those of a development set.

Greedy answers; 95 % intervals are Wilson's; "silenced" is the same with every clip replaced by zeros.

{table}
## Loss

{_loss_curve(run_dir)}
## Shape

```json
{shape}
```
"""


def _parameters(model: ModelConfig) -> float:
    """Millions of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(abstract_parameters(model))) / 1e6


def _loss_curve(run_dir: pathlib.Path) -> str:
    """Training and held-out loss at some twenty steps, as a Markdown table."""
    lines = [
        json.loads(line)
        for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    training = {line["step"]: line for line in lines if "loss/next_token" in line}
    held_out = {
        line["step"]: line["evaluation/loss"] for line in lines if "evaluation/loss" in line
    }
    steps = sorted(held_out.keys() & training.keys())
    shown = (
        sorted({steps[round(i * (len(steps) - 1) / (_POINTS - 1))] for i in range(_POINTS)})
        if steps
        else []
    )
    rows = [
        f"| {step} | {training[step]['loss/next_token']:.3f} | {training[step].get('loss/ctc', float('nan')):.2f} "
        f"| {training[step].get('loss/attributes', float('nan')):.3f} | {held_out[step]:.3f} |"
        for step in shown
    ]
    head = [
        "| step | next token | CTC | attributes | held-out next token |",
        "|---:|---:|---:|---:|---:|",
    ]
    return "\n".join([*head, *rows]) + "\n"
