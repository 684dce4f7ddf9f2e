"""Measures evaluation on a CPU, ours beside a loop over transformers' `generate` at batch 1.

    python -m benchmarks.evaluate [--items 200]

The loop is what the model adapters of lmms-eval and UltraEval-Audio do: one item at a time,
prompted, generated, decoded. Both sides answer the same questions in MMAU's shape with the decoder
of `models/tiny_base`, greedily, in fp32, from the same prompt tokens: the text that the model's own
format makes of the item. Ours also keeps each reply on disk and scores it. The sides take turns,
each in a process of its own; loading and compiling are not counted.
"""

import argparse
import functools
import os
import pathlib
import random
import tempfile

import torch

from benchmarks.allocator import allocator_environment
from benchmarks.compare import Step, compare_speed
from stepaudio_jax.data import Record
from stepaudio_jax.evaluation.model_under_test import LoadedModelUnderTest
from stepaudio_jax.evaluation.results import ModelIdentity
from stepaudio_jax.evaluation.runner import RunSettings, answer_task
from stepaudio_jax.evaluation.scoring import score_task
from stepaudio_jax.evaluation.task import Item, Strict, Task
from stepaudio_jax.generation import LoadedModel, Sampling, build_record_prompt, load_model
from stepaudio_jax.storage import PathLike
from stepaudio_jax.text import Message, TextPart
from tests.models import torch_reference

OURS, PEER = "stepaudio_jax", "transformers, batch 1"
MODEL = "models/tiny_base"
NEW_TOKENS, SLOTS = 64, 32
_SOUNDS = ("a dog", "a door", "rain", "a car", "a child", "a violin", "a bell", "the wind")
_EVENTS = ("barks", "falls shut", "stops", "comes nearer", "laughs", "plays", "rings", "rises")


def questions(count: int) -> list[Item]:
    """Returns questions in the shape of MMAU's, their sound replaced by what it would say."""
    draw = random.Random(0)
    items = []
    for number in range(count):
        options = [f"{draw.choice(_SOUNDS)} {draw.choice(_EVENTS)}" for _ in range(4)]
        heard = ", then ".join(draw.sample(options, k=draw.randint(1, 3)))
        lines = "".join(f"{letter}. {text}\n" for letter, text in zip("ABCD", options, strict=True))
        text = f"You hear: {heard}.\nWhat is heard first?\nChoose an option.\n{lines}"
        record = Record(
            id=str(number),
            messages=(Message("user", (TextPart(text),)),),
            source="mmau",
            origin=f"question {number}",
        )
        items.append(Item(str(number), record, {"options": options}))
    return items


class Questions(Task):
    """Asks so many questions as the name of its folder says."""

    name = "mmau_shaped"
    version = "1"
    title = "Questions in MMAU's shape"
    sampling = Sampling(temperature=0.0, max_new_tokens=NEW_TOKENS)

    def items(self, folder: PathLike) -> list[Item]:
        """Returns the questions."""
        return questions(int(os.fspath(folder)))

    def strict(self, data: object, output: str | None) -> Strict:
        """Counts what is written at all."""
        return Strict("correct" if output else "unparsed", output)


def loaded() -> LoadedModel:
    """Returns the model, in fp32."""
    return load_model(MODEL, "float32", for_generation=False)


def our_step(count: int) -> Step:
    """Returns a step of ours: all items answered, kept on disk, and scored."""
    model = LoadedModelUnderTest(
        loaded(), slots=SLOTS, identity=ModelIdentity("tiny_base", "folder", "")
    )

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder) / "replies.jsonl"
            run = score_task(answer_task(Questions(), str(count), model, log, RunSettings()), None)
            if len(run.items) != count or run.errors:
                raise RuntimeError(f"{len(run.items)} items, of which {len(run.errors)} failed")

    return run


def peer_step(count: int) -> Step:
    """Returns the same step of the loop."""
    model = loaded()
    oracle = torch_reference.qwen2(
        torch_reference.to_torch(model.parameters)["decoder"], model.config.decoder
    )
    items = questions(count)

    def run() -> None:
        for item in items:
            tokens = build_record_prompt(model, item.record).tokens
            given = torch.tensor(tokens[None], dtype=torch.long)
            generated = oracle.generate(
                given,
                attention_mask=torch.ones_like(given),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                eos_token_id=model.tokenizer.special.eot,
                pad_token_id=0,
            )
            model.tokenizer.decode(generated[0, given.shape[1] :].tolist())

    return run


def main() -> None:
    """Prints the items a second of both sides, and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    options = parser.parse_args()
    seconds = compare_speed(
        {
            OURS: functools.partial(our_step, options.items),
            PEER: functools.partial(peer_step, options.items),
        },
        rounds=options.rounds,
        steps=1,
        environments={OURS: allocator_environment(os.environ, keep_freed=False)},
    )
    print(
        f"{options.items} items: {options.items / seconds[OURS]:.1f} items/s, {PEER}"
        f" {options.items / seconds[PEER]:.1f} items/s; ratio {seconds[PEER] / seconds[OURS]:.2f}"
    )


if __name__ == "__main__":
    main()
