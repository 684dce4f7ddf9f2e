"""Times the parser of a judge's answers: `python -m benchmarks.judge_parser` (CPU, seconds).

Draws answers of the kinds of `tests/judge/random_answers.py`, and prints the slowest and the mean
in milliseconds of process time, so that other programs on the machine do not count.
"""

import argparse
import collections
import random
import time

from stepaudio_jax.judge.verdict import parse_verdict

_HUGE = {
    "500 kB of braces": "{" * 500_000,
    "500 kB of braces, closed": "{" * 250_000 + "}" * 250_000,
    "500 kB of objects in objects": '{"a":' * 83_000 + "1" + "}" * 83_000,
    "a number of 500 000 digits": '{"comparison": "a is better", "n": ' + "9" * 500_000 + "}",
    "500 kB of quotation marks": '{"a": "' + '\\"' * 250_000 + '"}',
}


def main() -> None:
    """Parses the arguments, times every answer and prints a line for each kind."""
    from tests.judge.random_answers import KINDS, draw_answer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    seconds: dict[str, list[float]] = collections.defaultdict(list)
    for number in range(arguments.answers):
        kind = list(KINDS)[number % len(KINDS)]
        drawn = draw_answer(rng, kind, size=rng.choice((100, 1000, 10_000)))
        question = drawn.question
        began = time.process_time()
        parse_verdict(
            drawn.text,
            levels=7,
            criteria=question.criteria,
            code=question.code,
            in_material=question.in_material,
        )
        seconds[kind].append(time.process_time() - began)
    for name, text in _HUGE.items():
        began = time.process_time()
        parse_verdict(text, levels=7)
        seconds[name].append(time.process_time() - began)
    for name, times in seconds.items():
        print(
            f"{name}: {len(times)} answers, slowest {1000 * max(times):.2f} ms, "
            f"mean {1000 * sum(times) / len(times):.3f} ms"
        )
    print(f"all: slowest {1000 * max(map(max, seconds.values())):.2f} ms")


if __name__ == "__main__":
    main()
