"""Teaches the small base model to think before it answers, with LoRA, in 20 steps.

    python -m examples.lora_sft [RUN_DIR]

The base model answers at once. Twelve dialogues about four clips give it a reasoning; their scores
before and after say how much more probable it has become. Expected, on a CPU (the numbers move a
little from machine to machine):

    before: log p = -109.0; it answers 'female' after thinking ''
    after:  log p = -10.4; it answers 'female' after thinking 'I hear a female voice.'
"""

import json
import pathlib
import sys
from typing import Any

import stepaudio_jax as sa

BASE = "models/tiny_base"
CLIPS = pathlib.Path("examples/clips").resolve()
GENDERS = {"kitchen": "female", "camel": "female", "dolphin": "male", "river": "male"}
QUESTIONS = (
    "Is the speaker female or male?",
    "A female or a male voice?",
    "What is the speaker's gender?",
)


def dialogues() -> list[list[dict[str, Any]]]:
    """Returns each question about each clip, with a reasoning and a reply."""
    return [
        [
            {
                "role": "user",
                "content": [
                    {"type": "audio", "audio": str(CLIPS / f"{clip}.flac")},
                    {"type": "text", "text": question},
                ],
            },
            {
                "role": "assistant",
                "reasoning_content": f"I hear a {gender} voice.",
                "content": gender,
            },
        ]
        for clip, gender in GENDERS.items()
        for question in QUESTIONS
    ]


def make_config(run_dir: pathlib.Path, data: pathlib.Path) -> sa.Config:
    """Returns the run: one stage, in which LoRA matrices beside the decoder's learn."""
    stage = sa.StageConfig(
        name="sft",
        steps=20,
        data=sa.DataConfig(
            sources=(sa.SourceConfig(path=str(data)),),
            batch_size=4,
            seq_len=256,
            audio_chunks_per_seq=4,
            mel_frames_per_chunk=224,
        ),
        lora=sa.LoRAConfig(rank=8, alpha=16.0),
        trainable=(),  # the base model stays as it is
        optimizer=sa.OptimizerConfig(learning_rate=5e-3, warmup_steps=2),
    )
    return sa.Config(
        run_dir=str(run_dir),
        initial=sa.InitialWeights(model=BASE),
        stages=(stage,),
        compute=sa.ComputeConfig(dtype="float32", remat="none"),
    )


def report(name: str, model: sa.ChatModel, dialogue: list[dict[str, Any]]) -> None:
    """Prints how probable a dialogue's answer is, and what the model says itself."""
    (turn,) = model.score(dialogue)
    reply = model.chat(dialogue[:1], temperature=0, max_new_tokens=64)
    print(
        f"{name} log p = {turn.logprob:.1f}; it answers {reply.text!r} after thinking "
        f"{reply.reasoning!r}"
    )


def main(run_dir: str = "runs/examples/lora_sft") -> None:
    """Scores the base model, trains an adapter, and scores the result."""
    folder = pathlib.Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "dialogues.jsonl"
    data.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in dialogues()))

    report("before:", sa.load(BASE), dialogues()[0])
    trained = sa.train(make_config(folder / "run", data))
    report("after: ", sa.load(trained), dialogues()[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
