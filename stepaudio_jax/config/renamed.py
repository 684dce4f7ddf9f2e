"""Names of earlier versions, for errors that say what a key, a value or a class is called now.

No old name is accepted: a key that is unknown and stands here gets its new name in the message.
"""

from collections.abc import Mapping, Sequence

# By class of the section that had the key: old name (dotted where a section moved) -> new name.
RENAMED_KEYS: Mapping[str, Mapping[str, str]] = {
    "Config": {"skipped_steps_allowed": "max_consecutive_skips"},
    "StageConfig": {
        "auxiliary": "objective.auxiliary",
        "gradient_accumulation": "gradient_accumulation_steps",
        "rl": "objective",
        "rl.judge": "objective.judge",
        "rl.policy": "objective",
        "rl.rewards": "objective.rewards",
        "rl.rollout": "objective.rollout",
    },
    "DataConfig": {
        "chunks_per_row": "audio_chunks_per_seq",
        "frames_per_chunk": "mel_frames_per_chunk",
        "packing_rows": "packing_bins_per_seq",
        "rows": "batch_size",
        "tokens_per_row": "seq_len",
    },
    "RolloutConfig": {"prompts": "num_prompts", "samples": "num_generations"},
    "RewardConfig": {"overlong_free": "overlong_penalty_start"},
    "JudgeConfig": {
        "key_variable": "api_key_env",
        "levels": "preference_levels",
        "most_abstentions": "max_abstention_rate",
        "spread": "reward_map_temperature",
        "table": "reward_map",
    },
    "PolicyGradient": {
        "baseline": "advantage_estimator",
        "discount": "gamma",
        "importance_limit": "max_importance_weight",
        "keep_right": "num_correct_range",
        "kl_coefficient": "kl_coef",
        "kl_in": "kl_placement",
        "trace_decay": "gae_lambda",
        "value_coefficient": "value_coef",
    },
}

# By key: old value -> new value.
RENAMED_VALUES: Mapping[str, Mapping[str, str]] = {
    "objective": {"policy": "policy_gradient"},
    "remat_names": {"attended": "attn_out", "projected": "attn_proj"},
}

RENAMED_CLASSES: Mapping[str, str] = {
    "PolicyConfig": "PolicyGradient",
    "RLConfig": "PolicyGradient",
    "Rules": "ShardingRules",
}

_NEW_NAMES = {old: new for keys in RENAMED_KEYS.values() for old, new in keys.items()}


def renamed_key(section: str, names: Sequence[str]) -> str | None:
    """Returns the present dotted key of an old one; None if its first name was never a key.

    Args:
        section: the name of the class that has no field of the first name.
        names: the dotted key from that section on; the later names may be old or new.
    """
    renamed = RENAMED_KEYS.get(section, {})
    for length in range(len(names), 0, -1):
        if new := renamed.get(".".join(names[:length])):
            later = (_NEW_NAMES.get(name, name) for name in names[length:])
            return ".".join((new, *later))
    return None


def renamed_value(key: str, value: object) -> str | None:
    """Returns the present form of an old value of a key; None if the value was never allowed."""
    names = [name for name in key.split(".") if not name.isdigit()]
    return RENAMED_VALUES.get(names[-1], {}).get(str(value))
