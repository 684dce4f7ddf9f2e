"""Writes training data for a judge, or reports how well a judge does.

python -m launch.judge data   --input preferences.jsonl --output dialogues.jsonl
python -m launch.judge report --input held_out.jsonl --model DIR
python -m launch.judge report --input held_out.jsonl --url http://HOST:PORT/v1 --model NAME
python -m launch.judge report --human records.jsonl [--model DIR | --url .. --model NAME]

Each takes [--prompt FILE] [--levels 7] [--inputs transcripts|audio|both], and records of two
replies or of two dialogues.

`data` writes the dialogues that a next_token stage of `launch.train` trains a judge on. `report`
prints agreement, position bias and calibration of one of our own models, or of a model behind a
server that speaks OpenAI's chat protocol. With --human it prints how far people agree with each
other and, where a judge is named, with it.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from launch.errors import exit_on_error
from stepaudio_jax.config import DataConfig, JudgeConfig
from stepaudio_jax.storage import check_output_file, expand_home

if TYPE_CHECKING:
    from stepaudio_jax.judge.clips import ClipReader
    from stepaudio_jax.judge.judge import Judge
    from stepaudio_jax.judge.prompt import JudgePrompt


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the arguments and runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    data, report = commands.add_parser("data"), commands.add_parser("report")
    for command in (data, report):
        inputs_help = "JSONL of preferences: prompt, chosen, rejected"
        source = command if command is data else report.add_mutually_exclusive_group(required=True)
        source.add_argument("--input", type=expand_home, required=command is data, help=inputs_help)
        if command is report:
            source.add_argument(
                "--human",
                type=expand_home,
                metavar="FILE",
                help="JSONL of records with annotations, as of launch.data preferences",
            )
        command.add_argument(
            "--prompt", type=expand_home, help="a template of your own (default: the project's)"
        )
        command.add_argument(
            "--levels", type=int, default=JudgeConfig.preference_levels, choices=(3, 5, 7)
        )
        command.add_argument(
            "--rubric",
            default=JudgeConfig.rubric,
            choices=("criteria", "ordinal", "both"),
            help="what the judge says of records with a rubric (default %(default)s)",
        )
        command.add_argument(
            "--inputs",
            default=JudgeConfig.inputs,
            choices=("transcripts", "audio", "both"),
            help="what the judge is given of the dialogues' clips (default %(default)s)",
        )
        command.add_argument(
            "--channel",
            default=DataConfig.channel,
            choices=("first", "mix"),
            help="channel of a multichannel clip that it hears (default %(default)s)",
        )
        command.add_argument("--allow-urls", action="store_true", help="clips may be URLs")
    data.add_argument("--output", type=expand_home, required=True, help="JSONL of dialogues")
    report.add_argument(
        "--model",
        type=expand_home,
        help="a Hugging Face folder or a checkpoint of this project; a name at --url; optional"
        " with --human",
    )
    report.add_argument("--url", help="address of a server, up to and with /v1")
    report.add_argument(
        "--key-variable",
        default=JudgeConfig.api_key_env,
        help="environment variable that holds the server's key; empty for none",
    )
    report.add_argument(
        "--slots",
        type=int,
        default=JudgeConfig.slots,
        help="questions answered side by side (default %(default)s)",
    )
    report.add_argument(
        "--max-tokens",
        type=int,
        default=JudgeConfig.max_tokens,
        help="most tokens of an answer (default %(default)s)",
    )
    options = parser.parse_args(arguments)
    if options.command == "report" and options.model is None:
        if options.input:
            report.error("the following arguments are required: --model")
        if options.url:
            report.error("--url needs --model, the name of a model there")
    if options.command == "data":
        consequence = "nothing was written"
    else:
        consequence = "the judge's answers are not kept"
    with exit_on_error(f"{consequence}; start the same command again"):
        if options.command == "data":
            paths = [path for path in (options.input, options.prompt) if path]
            check_output_file(options.output, paths, may_replace=lambda path: True)
        from stepaudio_jax.errors import DataError
        from stepaudio_jax.judge.clips import ClipReader
        from stepaudio_jax.judge.dialogue_records import read_judged_records
        from stepaudio_jax.judge.human_report import HumanReport, report_on_people
        from stepaudio_jax.judge.prompt import JudgePrompt
        from stepaudio_jax.judge.training import JudgeReport, evaluate_judge, write_judge_data

        prompt = JudgePrompt(
            options.prompt, levels=options.levels, rubric=options.rubric, inputs=options.inputs
        )
        clips = ClipReader(channel=options.channel, allow_urls=options.allow_urls)
        if options.command == "data":
            count = write_judge_data(options.input, options.output, prompt, clips)
            print(f"{count} dialogues in {options.output}")
            return
        # Before the model is loaded, to fail early.
        records = list(read_judged_records(options.human or options.input))
        if not records:
            raise DataError(
                f"{options.human or options.input}: has no records; give at least one preference"
            )
        if options.human:
            report_on_people(records, levels=options.levels)
        judge = None if options.model is None else _open_judge(options, prompt, clips)
        result: HumanReport | JudgeReport
        if options.human:
            result = report_on_people(
                records, judge, name=str(options.model or ""), levels=options.levels
            )
        else:
            assert judge is not None
            result = evaluate_judge(judge, records)
        print(json.dumps(dataclasses.asdict(result), indent=2, ensure_ascii=False))


def _open_judge(options: argparse.Namespace, prompt: "JudgePrompt", clips: "ClipReader") -> "Judge":
    """Opens the judge that the options name: at a server, or a model in this process."""
    from stepaudio_jax.generation import folder_decode_mesh, load_model
    from stepaudio_jax.judge.backends import EndpointBackend, ModelBackend
    from stepaudio_jax.judge.judge import Judge

    if options.url:
        endpoint = EndpointBackend(
            url=options.url,
            model=options.model,
            api_key_env=options.key_variable or None,
            max_tokens=options.max_tokens,
        )
        return Judge(
            endpoint, prompt, clips=clips, concurrency=options.slots, max_abstention_rate=0.9
        )
    loaded = load_model(options.model, mesh=folder_decode_mesh(options.model), for_generation=True)
    model = ModelBackend(loaded, slots=options.slots, max_tokens=options.max_tokens)
    clips = clips.with_convention(loaded.config.length_convention)
    return Judge(model, prompt, clips=clips, max_abstention_rate=1.0)


if __name__ == "__main__":
    main()
