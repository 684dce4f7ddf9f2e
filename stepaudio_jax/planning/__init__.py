"""Plans jobs on TPU slices before they are paid for: memory, fit, and expected speed.

The job's real programs are compiled by the TPU compiler, for which no TPU is needed.
"""

from stepaudio_jax.planning.rl_plan import RLPlan, plan_rl, rl_plan_report
from stepaudio_jax.planning.search import plan_training, stage_index
from stepaudio_jax.planning.serving_plan import ServingPlan, plan_serving, serving_plan_report
from stepaudio_jax.planning.topology import parse_topology
from stepaudio_jax.planning.train_plan import TrainPlan, make_train_plan, train_plan_report

__all__ = [
    "RLPlan",
    "ServingPlan",
    "TrainPlan",
    "make_train_plan",
    "parse_topology",
    "plan_rl",
    "plan_serving",
    "plan_training",
    "rl_plan_report",
    "serving_plan_report",
    "stage_index",
    "train_plan_report",
]
