"""Rows of verl: a prompt for RL, what a verifier compares with, and the clips beside it.

{"data_source": "..", "prompt": [{"role": "user", "content": "<audio>How much is it?"}],
"audios": ["a.wav"], "reward_model": {"style": "rule", "ground_truth": "7"}, "extra_info": {..}}

`data_source` is the row's `source`, by which rewards are grouped; `extra_info` and `ability` stay
in the row, which nothing reads. Every clip needs its `<audio>`.
"""

from collections.abc import Mapping
from typing import Any

from stepaudio_jax.data.sources.base import FormOptions, answer_of, text_of, without
from stepaudio_jax.data.sources.json_values import format_json, is_empty, parse_literal
from stepaudio_jax.data.sources.placeholders import Clips, take_clips
from stepaudio_jax.data.sources.tools import insert_schemas
from stepaudio_jax.data.sources.turns import read_turns
from stepaudio_jax.errors import DataError


def adapt(value: Mapping[str, Any], origin: str, options: FormOptions) -> dict[str, Any]:
    """Returns a row of verl in the project's form.

    Raises:
        DataError: a placeholder has no clip, a clip has no placeholder, or the ground truth is
            neither a string nor a number.
    """
    del options
    if is_empty(value.get("prompt")):
        raise DataError(f"{origin}: has no 'prompt' (keys given: {format_json(list(value))})")
    paths, row = take_clips(value, origin)
    clips = Clips(paths, origin)
    system = text_of(row, "system", origin)
    messages = read_turns(row["prompt"], f"{origin}: 'prompt'", clips, system=system)
    rest: dict[str, Any] = without(row, "prompt", "data_source", "reward_model", "system", "tools")
    if not is_empty(row.get("data_source")):
        rest.setdefault("source", row["data_source"])
    answer = _ground_truth(row, origin)
    if answer is not None:
        rest["answer"] = answer
    clips.check_all_taken("write one <audio> where each clip is heard")
    return {**rest, "messages": insert_schemas(messages, row.get("tools"), origin)}


def _ground_truth(row: Mapping[str, Any], origin: str) -> str | int | float | None:
    reward = parse_literal(row.get("reward_model"))
    if is_empty(reward):
        return None
    if not isinstance(reward, Mapping):
        raise DataError(
            f"{origin}: 'reward_model' must be an object with 'ground_truth',"
            f" got {format_json(reward)}"
        )
    return answer_of(reward.get("ground_truth"), f"{origin}: 'ground_truth' of 'reward_model'")
