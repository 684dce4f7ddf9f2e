"""The objective of a stage that learns from preferences: pairs of replies, one of them better."""

import dataclasses
from typing import ClassVar, Literal

from stepaudio_jax.config.checks import check_floats, check_not_negative, check_positive
from stepaudio_jax.errors import ConfigError

PreferenceLoss = Literal["dpo", "ipo", "simpo", "orpo", "kto"]

# Losses with a place for the probability that a reply is the better one.
_SOFT_LABEL_LOSSES = ("dpo", "ipo", "simpo")
# Losses that compare the policy with a reference policy.
_REFERENCE_LOSSES = ("dpo", "ipo", "kto")
# Losses on a difference of rewards, from which a margin can be subtracted.
_MARGIN_LOSSES = ("dpo", "simpo")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preference:
    """Learns from pairs of replies to a dialogue, without rewards and without rollouts.

    The stage's `data` is of records with a preferred and a rejected reply;
    docs/preference_objectives.md says how each loss reads them.
    """

    name: ClassVar[str] = "preference"

    # "dpo", "ipo" and "kto" compare the policy with the policy at the start of the stage.
    loss: PreferenceLoss = "dpo"
    # Strength: of the KL to the reference in "dpo", "ipo" and "kto", the scale of the rewards in
    # "simpo", the weight of the odds ratio in "orpo".
    beta: float = 0.1
    # Probability that a label is the wrong way round (conservative DPO); for "dpo" and "simpo".
    label_smoothing: float = 0.0
    # Log-probabilities are means over a reply's tokens, not sums; for "dpo". "ipo", "simpo" and
    # "orpo" always take means.
    length_normalized: bool = False
    target_margin: float = 0.0  # gamma of "simpo": by how much the better reward is to be higher
    # Besides, for each level of a record's `margin`; for "dpo" (ODPO) and "simpo".
    target_margin_per_level: float = 0.0
    # Weight of the next-token loss on the preferred replies; None: 1 for "orpo", 0 for the others.
    next_token_coef: float | None = None
    desirable_weight: float = 1.0  # of preferred replies; for "kto"
    undesirable_weight: float = 1.0  # of rejected replies; for "kto"
    # Pairs that are called equal: "half" learns that both replies are as probable to be the better
    # one, "skip" leaves them out and counts them. None: "half" where the loss has a place for it.
    equal_pairs: Literal["half", "skip"] | None = None
    # Log-probabilities of the reference policy are computed once, before the first step, and kept
    # in the run folder: no copy of the model, and no forward pass of it in each step.
    precompute_reference: bool = False

    updates_per_step: ClassVar[int] = 1
    has_value_head: ClassVar[bool] = False
    refreshes_reference: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_floats(self)
        check_positive(self, "beta", "desirable_weight", "undesirable_weight")
        check_not_negative(self, "target_margin", "target_margin_per_level")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"label_smoothing={self.label_smoothing} must be at least 0 and less than 0.5, "
                "where a label would say nothing"
            )
        if self.next_token_coef is not None:
            check_not_negative(self, "next_token_coef")
        for field, allowed in (
            ("label_smoothing", ("dpo", "simpo")),
            ("length_normalized", ("dpo",)),
            ("target_margin", ("simpo",)),
            ("target_margin_per_level", _MARGIN_LOSSES),
            ("desirable_weight", ("kto",)),
            ("undesirable_weight", ("kto",)),
            ("precompute_reference", _REFERENCE_LOSSES),
        ):
            default = type(self).__dataclass_fields__[field].default
            if getattr(self, field) != default and self.loss not in allowed:
                raise ConfigError(
                    f"{field}={getattr(self, field)} is for loss={' or '.join(map(repr, allowed))},"
                    f" and loss is {self.loss!r}: leave it out"
                )
        if self.equal_pairs == "half" and self.loss not in _SOFT_LABEL_LOSSES:
            raise ConfigError(
                f"equal_pairs='half' has no place in loss={self.loss!r}, which needs to know which "
                "reply is better; say 'skip', or take 'dpo', 'ipo' or 'simpo'"
            )

    @property
    def has_reference(self) -> bool:
        """Returns whether the loss compares the policy with a reference policy."""
        return self.loss in _REFERENCE_LOSSES

    @property
    def needs_reference_params(self) -> bool:
        """Returns whether the policy at the start of the stage is kept during the stage."""
        return self.has_reference and not self.precompute_reference

    @property
    def replies_per_record(self) -> int:
        """Returns the most replies that a record's row holds: with "kto" one to another prompt."""
        return 3 if self.loss == "kto" else 2

    @property
    def has_soft_labels(self) -> bool:
        """Returns whether a pair's label is the probability that its first reply is better."""
        return self.loss in _SOFT_LABEL_LOSSES

    @property
    def skips_equal_pairs(self) -> bool:
        """Returns whether pairs that are called equal are left out."""
        return self.equal_pairs == "skip" or not self.has_soft_labels

    @property
    def next_token_weight(self) -> float:
        """Returns the weight of the next-token loss on the preferred replies."""
        if self.next_token_coef is None:
            return 1.0 if self.loss == "orpo" else 0.0
        return self.next_token_coef
