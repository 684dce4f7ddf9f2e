"""Makes a judge, or asks how good one is.

python -m launch.judge data   --input preferences.jsonl --output dialogues.jsonl [--prompt FILE] [--levels 7]
python -m launch.judge report --model DIR --input held_out.jsonl [--prompt FILE] [--levels 7]
python -m launch.judge report --url http://HOST:PORT/v1 --model NAME --input held_out.jsonl [--prompt FILE] [--levels 7]

`data` writes dialogues that `launch.train` learns from (a stage of next_token). `report` prints
agreement, position bias and calibration: of one of our own models, or of one behind a server that
speaks OpenAI's chat protocol.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence

from launch.errors import exit_on_error
from stepaudio_jax.storage import check_output_file, expand_home


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses arguments, and does the one or the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    data, report = commands.add_parser("data"), commands.add_parser("report")
    for command in (data, report):
        command.add_argument(
            "--input",
            type=expand_home,
            required=True,
            help="JSONL of preferences: prompt, chosen, rejected",
        )
        command.add_argument(
            "--prompt", type=expand_home, help="a template of your own (default: the project's)"
        )
        command.add_argument("--levels", type=int, default=7, choices=(3, 5, 7))
    data.add_argument("--output", type=expand_home, required=True, help="JSONL of dialogues")
    report.add_argument(
        "--model",
        type=expand_home,
        required=True,
        help="a Hugging Face folder or a checkpoint of this project; a name at --url",
    )
    report.add_argument("--url", help="of a server, up to and with /v1")
    report.add_argument(
        "--key-variable",
        default="OPENAI_API_KEY",
        help="that holds the server's key; empty for none",
    )
    report.add_argument(
        "--slots", type=int, default=16, help="questions answered side by side (default 16)"
    )
    report.add_argument("--max-tokens", type=int, default=1024, help="of an answer (default 1024)")
    options = parser.parse_args(arguments)
    kept = (
        "nothing was written" if options.command == "data" else "the judge's answers are not kept"
    )
    with exit_on_error(f"{kept}; start the same command again"):
        if options.command == "data":
            given = [path for path in (options.input, options.prompt) if path]
            check_output_file(options.output, given, may_replace=lambda path: True)
        from stepaudio_jax.data import read_jsonl
        from stepaudio_jax.errors import DataError
        from stepaudio_jax.generation import folder_decode_mesh, load_model
        from stepaudio_jax.judge.backends import EndpointBackend, ModelBackend
        from stepaudio_jax.judge.judge import Judge
        from stepaudio_jax.judge.prompt import JudgePrompt
        from stepaudio_jax.judge.training import evaluate_judge, write_judge_data

        prompt = JudgePrompt(options.prompt, levels=options.levels)
        if options.command == "data":
            print(
                f"{write_judge_data(options.input, options.output, prompt)} dialogues in {options.output}"
            )
            return
        records = list(
            read_jsonl(options.input)
        )  # a mistake in it is found before the model is loaded
        if not records:
            raise DataError(f"{options.input}: has no records; give at least one preference")
        if options.url:
            endpoint = EndpointBackend(
                url=options.url,
                model=options.model,
                api_key_env=options.key_variable,
                max_tokens=options.max_tokens,
            )
            judge = Judge(
                endpoint.name,
                endpoint.generate,
                prompt,
                concurrency=options.slots,
                max_abstention_rate=0.9,
            )
        else:
            loaded = load_model(
                options.model, mesh=folder_decode_mesh(options.model), for_generation=True
            )
            model = ModelBackend(loaded, slots=options.slots, max_tokens=options.max_tokens)
            judge = Judge(model.name, model, prompt, together=True, max_abstention_rate=1.0)
        print(json.dumps(dataclasses.asdict(evaluate_judge(judge, records)), indent=2))


if __name__ == "__main__":
    main()
