"""The total that a reply counts, and not the numbers that it is made of."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepaudio_jax.evaluation.answer_counts import read_count

REPLIES = [
    ("The answer is 12. That is 3 cats and 4 dogs and 5 birds in total.", 12),
    ("3 cats and 4 dogs, which makes 7 animals.", 7),
    ("You have three cats and four dogs, so seven animals altogether.", 7),
    ("You have three cats and four dogs.", None),
    ("1. piano\n2. flute\n3. drum\nSo you have 8 instruments.", 8),
    ("There are three instruments: one piano, one flute and one drum.", 3),
    ("Let me count: piano (1), flute (2), drum (2). Total: 5", 5),
    ("2+3=5", 5),
    ("2 + 3 is 5", 5),
    ("I count nine fruits.", 9),
    ("nine", 9),
    ("Nine fruits", 9),
    ("twenty-one", 21),
    ("Twenty one.", 21),
    ("一共有十二个。", 12),
    ("十二", 12),
    ("你有七种乐器", 7),
    ("总共是7个", 7),
    ("A dozen.", 12),
    ("at least 12", None),
    ("between 10 and 12", None),
    ("10-12", None),
    ("No idea, it could be anything.", None),
    ("I'm sorry, I can't listen to audio.", None),
    ("The audio is 30 seconds long and mentions 4 and 5 things", None),
    ("7 (2 flutes, 5 violins)", 7),
    ("7: 2 flutes and 5 violins", 7),
    ("7, because 2 + 5 = 7", 7),
    ("Seven, i.e. two plus five", 7),
    ("We have 2 flutes + 5 violins = 7 instruments.", 7),
    ("\\boxed{7}", 7),
    ("**7**", 7),
    ("Answer: 7", 7),
    ("The final count is 7.", 7),
    ("I think it's 7", 7),
    ("It is seven", 7),
    ("First 8, no wait, the answer is 7.", 7),
    ("The number is 7", 7),
    ("one or two", None),
    ("One.", 1),
    ("You have one.", 1),
    ("Total number of animals: 7", 7),
    ("There are a total of 7 animals.", 7),
    ("The total number of musical instruments is seven.", 7),
    ("2 pears, 3 apples, 9 plums. 2 + 3 = 5, 5 + 9 = 14.", 14),
    ("I have 7.", 7),
    ("#### 7", 7),
    ("7个", 7),
    ("答案：7", 7),
    ("Counting them: one, two, three, four, five, six, seven. So the answer is seven.", 7),
    ("<answer>7</answer>", 7),
    ("You listed two cows, one goat, and four pigs. That's 7 animals.", 7),
    ("Adding these up gives 7.", 7),
    ("zero", 0),
    ("7 animals", 7),
    ("You have 7 animals in total: 3 cows and 4 goats.", 7),
]


@pytest.mark.parametrize(("reply", "count"), REPLIES)
def test_the_total_is_read(reply, count):
    assert read_count(reply) == count


@pytest.mark.parametrize(
    "phrase",
    [
        "{n}",
        "{n}.",
        "**{n}**",
        "The answer is {n}.",
        "<think>Maybe {m}.</think>\n{n}",
        "Not {m}, but {n}.",
        "I count {n} of them.",
        "You have {n}.",
        "There are {n} in total.",
        "First I thought of {m}. The final answer is {n}.",
        "{a} + {b} = {n}",
        "{n} ({a} of the one kind and {b} of the other)",
        "总共有{n}个",
    ],
)
@settings(max_examples=20, deadline=None)
@given(a=st.integers(1, 9), b=st.integers(1, 9))
def test_the_sum_is_read_in_any_phrase(phrase, a, b):
    assert read_count(phrase.format(n=a + b, m=a + b + 1, a=a, b=b)) == a + b


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_no_text_is_an_error(reply):
    count = read_count(reply)
    assert count is None or count >= 0
