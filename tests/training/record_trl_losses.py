"""Records what TRL's own trainers compute for `test_preference_losses.py`.

    pip install --target DIR --no-deps trl==1.16.0 datasets multiprocess dill xxhash pandas
    PYTHONPATH=DIR:. python -m tests.training.record_trl_losses

Runs the loss methods of TRL's DPOTrainer, KTOTrainer, ORPOTrainer and CPOTrainer on drawn
log-probabilities, in float64, and writes losses and gradients to trl_losses.json. The tests compare
with the file, so that they need not install TRL.
"""

import collections
import json
import pathlib
import types

import numpy as np
import torch

RECORDED = pathlib.Path(__file__).with_name("trl_losses.json")
PAIRS, TOKENS = 5, 7


class Accelerator:
    """Answers for one process what the trainers ask of accelerate."""

    device = "cpu"

    @staticmethod
    def gather(x):
        return x

    gather_for_metrics = gather


class PlainModel(torch.nn.Module):
    """Stands for the model of a trainer where it asks about adapters and checkpointing."""

    is_gradient_checkpointing = False


def draw():
    """Returns log-probabilities [2 * PAIRS, TOKENS] of policy and reference, and the lengths."""
    rng = np.random.default_rng(0)
    policy = -rng.gamma(1.5, 0.7, (2 * PAIRS, TOKENS))
    return policy, policy + rng.normal(scale=0.8, size=policy.shape), rng.integers(2, 8, 2 * PAIRS)


def model_of(logprobs, mask):
    """Returns a stand-in for a model: its forward pass returns these log-probabilities."""
    outputs = types.SimpleNamespace(
        log_probs=logprobs * mask,
        entropy=torch.zeros_like(mask),
        mean_logits=torch.zeros_like(mask),
        is_top1=torch.zeros_like(mask, dtype=torch.bool),
    )

    def model(**_):
        return outputs

    model.training = True
    return model


def batch_of(mask):
    # The first position is the prompt: the trainers shift masks by one.
    completion_mask = torch.nn.functional.pad(mask, (1, 0)).long()
    return {
        "input_ids": torch.zeros_like(completion_mask),
        "attention_mask": torch.ones_like(completion_mask),
        "completion_mask": completion_mask,
    }


def trainer(**settings):
    defaults = {
        "model": PlainModel(),
        "accelerator": Accelerator(),
        "args": types.SimpleNamespace(gradient_checkpointing_kwargs=None),
        "aux_loss_enabled": False,
        "_metrics": {"train": collections.defaultdict(list)},
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return types.SimpleNamespace(**defaults | settings)


def of_dpo(loss_type, policy, reference, mask, **settings):
    from trl.trainer.dpo_trainer import DPOTrainer

    self = trainer(
        loss_types=[loss_type],
        loss_weights=[1.0],
        use_weighting=False,
        ld_alpha=None,
        precompute_ref_logps=False,
        f_divergence_type="reverse_kl",
        **{"beta": 0.3, "label_smoothing": 0.0, **settings},
    )
    self.ref_model = model_of(reference, mask)
    return DPOTrainer._compute_loss(self, model_of(policy, mask), batch_of(mask), False)


def of_kto(policy, reference, mask):
    from trl.trainer.kto_trainer import KTOTrainer

    kl_policy, kl_reference = policy.detach().flip(0), reference.flip(0)
    self = trainer(
        loss_type="kto",
        beta=0.3,
        desirable_weight=1.2,
        undesirable_weight=0.7,
        calculate_KL=True,
        precompute_ref_logps=False,
    )
    self.ref_model = model_of(reference, mask)
    kl_of = iter([kl_policy, kl_reference])
    self._compute_kl_logps = lambda *_: (next(kl_of) * mask).sum(-1)
    label = torch.tensor([True] * PAIRS + [False] * PAIRS)
    batch = batch_of(mask) | {"label": label}
    return KTOTrainer._compute_loss(self, model_of(policy, mask), batch, False)


def main():
    import trl  # here, so that the tests, which draw the same numbers, do without it
    from trl.experimental.cpo.cpo_trainer import CPOTrainer
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    drawn_policy, drawn_reference, lengths = draw()
    mask = torch.tensor(np.arange(TOKENS) < lengths[:, None], dtype=torch.float64)
    reference = torch.tensor(drawn_reference)
    recorded = {}

    def record(name, compute):
        policy = torch.tensor(drawn_policy, requires_grad=True)
        loss = compute(policy)
        loss.backward()
        recorded[name] = {"loss": loss.item(), "gradient": policy.grad.tolist()}

    def means(policy):
        return ((policy * mask).sum(-1) / mask.sum(-1)).chunk(2)

    record("dpo", lambda policy: of_dpo("sigmoid", policy, reference, mask))
    record("ipo", lambda policy: of_dpo("ipo", policy, reference, mask))
    record("dpo_length_normalized", lambda policy: of_dpo("sigmoid_norm", policy, reference, mask))
    simpo = trainer(alpha=0.0, beta=2.5, simpo_gamma=0.4, label_smoothing=0.1, loss_type="simpo")
    record("simpo", lambda policy: CPOTrainer.cpo_loss(simpo, *means(policy))[0].mean())
    conservative = trainer(alpha=0.0, beta=0.3, label_smoothing=0.1, loss_type="sigmoid")

    def conservative_dpo(policy):
        ratios = ((policy - reference) * mask).sum(-1).chunk(2)
        return CPOTrainer.cpo_loss(conservative, *ratios)[0].mean()

    record("dpo_conservative", conservative_dpo)
    orpo = trainer(beta=0.4)
    record("orpo", lambda policy: -ORPOTrainer.odds_ratio_loss(orpo, *means(policy))[0].mean())
    record("kto", lambda policy: of_kto(policy, reference, mask))
    content = {"trl": trl.__version__, "losses": recorded}
    RECORDED.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
