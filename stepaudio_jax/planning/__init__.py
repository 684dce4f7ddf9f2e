"""What a job needs of a TPU slice, known before it is paid for: the real programs, compiled with no TPU at hand."""

from stepaudio_jax.planning.plan import Plan, as_text, make_plan
from stepaudio_jax.planning.policy import PolicyPlan, plan_policy, policy_as_text
from stepaudio_jax.planning.search import plan_job, stage_index
from stepaudio_jax.planning.serving import ServingPlan, plan_serving, serving_as_text
from stepaudio_jax.planning.topology import parse_topology

__all__ = [
    "Plan",
    "PolicyPlan",
    "ServingPlan",
    "as_text",
    "make_plan",
    "parse_topology",
    "plan_job",
    "plan_policy",
    "plan_serving",
    "policy_as_text",
    "serving_as_text",
    "stage_index",
]
