"""Reinforcement learning with a verifier of one's own: which noun does the clip name?

    python -m examples.rl_verifier [RUN_DIR]

A verifier is a function (reply, answer of the record) -> 0 to 1, named in the configuration as
"module:function". The base model names the nouns of two clips and guesses at those of the others;
policy gradients make the replies that the verifier accepts more probable. Expected, on a CPU (the
numbers move a little from machine to machine):

    accepted in the first step: 48%, in the last: 100%
"""

import json
import pathlib
import sys

import stepaudio_jax as sa

CLIPS = pathlib.Path("examples/clips").resolve()
NOUNS = ("kitchen", "dolphin", "camel", "river")


def names_the_noun(reply: str, answer: str) -> float:
    """Returns 1 where the reply is the answer, whatever its capitals and full stop, else 0."""
    return float(reply.strip(" .").lower() == answer)


def make_config(
    run_dir: pathlib.Path, data: pathlib.Path, rewards: tuple[sa.RewardConfig, ...], steps: int
) -> sa.Config:
    """Returns the run: one stage, in each of whose steps every clip is asked about 16 times."""
    stage = sa.StageConfig(
        name="rl",
        steps=steps,
        objective=sa.PolicyGradient(
            rollout=sa.RolloutConfig(
                num_prompts=len(NOUNS), num_generations=16, max_new_tokens=24, slots=64
            ),
            rewards=rewards,
            advantage_estimator="rloo",
            kl_coef=0.0,
        ),
        data=sa.DataConfig(
            sources=(sa.SourceConfig(path=str(data)),),
            batch_size=8,
            seq_len=256,
            audio_chunks_per_seq=4,
            mel_frames_per_chunk=224,
        ),
        optimizer=sa.OptimizerConfig(
            name="muon", learning_rate=4e-4, muon_learning_rate=4e-3, decay="constant"
        ),
    )
    return sa.Config(
        run_dir=str(run_dir),
        initial=sa.InitialWeights(model="models/tiny_base"),
        stages=(stage,),
        compute=sa.ComputeConfig(dtype="float32", remat="none"),
        log_every_steps=1,
    )


def write_questions(file: pathlib.Path) -> None:
    """Writes a record for each clip: a question, and the answer that the verifier gets."""
    with file.open("w") as lines:
        for noun in NOUNS:
            sound = {"type": "audio", "audio": str(CLIPS / f"{noun}.flac")}
            question = {"type": "text", "text": "Name the keyword."}
            turn = {"role": "user", "content": [sound, question]}
            lines.write(json.dumps({"messages": [turn], "answer": noun}) + "\n")


def read_metric(run_dir: pathlib.Path, name: str) -> list[float]:
    """Returns a metric of a run, step by step."""
    lines = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines if name in line]


def main(run_dir: str = "runs/examples/rl_verifier") -> None:
    """Trains with the verifier, and prints how often it accepted a reply."""
    folder = pathlib.Path(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_questions(folder / "questions.jsonl")
    reward = sa.RewardConfig(verifier="examples.rl_verifier:names_the_noun", verifier_weight=1.0)
    config = make_config(folder / "run", folder / "questions.jsonl", (reward,), steps=10)
    sa.train(config)
    rewards = read_metric(folder / "run", "reward")
    print(f"accepted in the first step: {rewards[0]:.0%}, in the last: {rewards[-1]:.0%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
