"""The configuration that these tests change: one stage of each objective."""

MINIMAL = {
    "run_dir": "runs/x",
    "stages": [{"name": "sft", "steps": 3, "data": {"sources": [{"path": "a.jsonl"}]}}],
}
TWO_STAGES = MINIMAL | {
    "stages": [
        *MINIMAL["stages"],
        MINIMAL["stages"][0]
        | {
            "name": "rl",
            "objective": {"name": "policy_gradient", "rewards": [{"format_weight": 1.0}]},
        },
    ]
}
