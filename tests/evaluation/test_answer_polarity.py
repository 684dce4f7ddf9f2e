"""Yes and no, valid and invalid: the words, and what replies say instead of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.evaluation.answer_polarity import read_polarity, read_validity

VALIDITY = [
    ("The argument is valid.", True),
    ("The argument is not deductively valid.", False),
    ("It's invalid because valid arguments need the conclusion to follow.", False),
    ("The question is whether the argument is valid or invalid.", None),
    ("Is it valid or invalid? It is invalid.", False),
    ("I believe this argument is deductively valid.", True),
    ("No, the argument isn't valid.", False),
    ("I don't know if it is valid.", None),
    ("I don't think that it is valid.", False),
    (
        "An argument is invalid if the premises can be true and the conclusion false."
        " That cannot happen here. So it is valid.",
        True,
    ),
    ("The argument commits the fallacy of affirming the consequent, so it is not valid.", False),
    ("The conclusion cannot be deduced from the premises.", False),
    ("The conclusion doesn't necessarily follow.", False),
    ("The conclusion necessarily follows from the premises.", True),
    ("The premises do not guarantee the conclusion.", False),
    ("The premises entail the conclusion.", True),
    ("答案是无效。", False),
    ("这个论证不成立。", False),
    ("这个论证是有效的。", True),
    ("这个论证不是有效的", False),
    ("论证成立", True),
    ("有效还是无效？", None),
    ("Answer: Invalid", False),
    ("Deductively valid", True),
    ("Deductively invalid.", False),
    ("valid. invalid.", None),
    ("At first it looks valid, but actually it is invalid.", False),
    ("It might seem invalid. However, the final answer is valid.", True),
    ("Nothing can be concluded from this recording.", None),
    ("It's a non sequitur.", False),
    ("validity cannot be determined", None),
    ("Not invalid.", True),
    ("not a valid argument", False),
    ("The argument is deductively invalid; a valid argument would require that all ...", False),
    ("yes, valid", True),
    ("\\boxed{\\text{invalid}}", False),
    ("neither valid nor invalid", None),
    ("This argument fails to be valid.", False),
    ("结论可以从前提推出", True),
    ("结论无法从前提推出", False),
    ("INVALID!", False),
    ("'valid'", True),
    ("Valid — the conclusion follows.", True),
    ("The conclusion does not follow, so it is not valid.", False),
    ("The argument is logically valid, even though one premise may be false.", True),
    ('The answer is "invalid".', False),
]
RETURNS = [
    ("You end up where you started.", True),
    ("You don't end up where you started.", False),
    ("You are 2 steps away from the starting point.", False),
    ("You end up three steps to the left of the starting point.", False),
    ("You are back at the starting point.", True),
    ("You are not back at the origin.", False),
    ("If you return to the starting point, tell me.", None),
    ("You will return to the starting point.", True),
    ("You won't return to the starting point.", False),
    ("You never get back to the start.", False),
    ("You finish in a different place.", False),
    ("You would be back where you began.", True),
    ("I don't know.", None),
    ("没有回到起点。", False),
    ("会回到起点。", True),
    ("You finish 4 steps from the start.", False),
    ("You face north and take 3 steps, then 3 steps back. You are at the starting point.", True),
    ("Following these instructions does not bring you back to the starting point.", False),
    ("The steps bring you back to the starting point.", True),
    ("I'd say no.", False),
    ("That would be a yes.", True),
    ("So, yes", True),
    ("Definitely not.", False),
    ("No, you don't.", False),
    ("Correct answer: yes", True),
    ("Yes and no.", None),
    ("yes? no?", None),
    ("The net displacement is 3 steps, so you do not return.", False),
    ("You take 0 steps from the starting point in total, i.e., you're back.", True),
    ("Nothing to hear", None),
    ("Not quite: no.", False),
    ("Your final position is the starting point.", True),
    ("Your final position is not the starting point.", False),
    ("Your final position differs from the starting point.", False),
    ("Do you return to the starting point?", None),
    ("You return to your original position.", True),
]
TRUTH = [
    ("Kira tells the truth.", True),
    ("Kira does not tell the truth.", False),
    ("Kira lies.", False),
    ("Kira is telling the truth.", True),
    ("Kira is lying.", False),
    ("Kira says Bob lies.", None),
    ("Kira tells the truth because Bob lies.", None),
    ("Kira doesn't lie.", True),
    ("Kira is truthful.", True),
    ("Bob lies. Amy says Bob lies. Therefore, Kira tells the truth.", True),
    ("True", True),
    ("false", False),
    ("Kira does not, so no.", False),
    ("撒谎", False),
    ("说的是真话", True),
    ("她没有说真话", False),
    ("Kira is a liar.", False),
    ("We can't tell whether Kira tells the truth.", None),
    ("是的，她说真话。", True),
    ("Kira isn't telling the truth", False),
    ("Kiera, yes, tells the truth", None),
    ("It's not true that Kira tells the truth.", None),
    ("I cannot determine if Kira tells the truth.", None),
    ("It is impossible to know who tells the truth", None),
]


@pytest.mark.parametrize(("reply", "valid"), VALIDITY)
def test_an_argument_is_called_valid_or_not(reply, valid):
    assert read_validity(reply) is valid


@pytest.mark.parametrize(("reply", "returns"), RETURNS)
def test_one_returns_to_the_start_or_not(reply, returns):
    assert read_polarity(reply, "return") is returns


@pytest.mark.parametrize(("reply", "truth"), TRUTH)
def test_somebody_tells_the_truth_or_not(reply, truth):
    assert read_polarity(reply, "truth") is truth


@settings(max_examples=60, deadline=None)
@given(st.text() | st.text(alphabet="validno yest.?!'"))
def test_no_text_is_an_error(reply):
    assert read_validity(reply) in (True, False, None)
    assert read_polarity(reply, "return") in (True, False, None)
    assert read_polarity(reply, "truth") in (True, False, None)
