"""What a job needs of a TPU slice, known before it is paid for: the real programs, compiled with no TPU at hand."""

from stepaudio_jax.planning.plan import Plan, as_text, make_plan
from stepaudio_jax.planning.search import plan_job
from stepaudio_jax.planning.serving import ServingPlan, plan_serving, serving_as_text
from stepaudio_jax.planning.topology import parse_topology

__all__ = [
    "Plan",
    "ServingPlan",
    "as_text",
    "make_plan",
    "parse_topology",
    "plan_job",
    "plan_serving",
    "serving_as_text",
]
