"""Voices alike: near their variant, unlike it, and never a held-out speaker's."""

import numpy as np
import pytest

from examples.spoken_corpus import espeak
from examples.spoken_corpus import sessions as planning
from examples.spoken_corpus.voices import similar_voice, speakers


def fields(text: str) -> dict[str, list[str]]:
    found = {}
    for line in text.splitlines():
        key, *rest = line.split() or [""]
        found[f"formant {rest[0]}" if key == "formant" else key] = rest
    return found


@pytest.mark.parametrize("variant", sorted(speaker.variant for speaker in speakers(held_out=False)))
def test_resonances_are_near_the_variants_and_the_rest_is_kept(variant):
    before = fields(espeak.variant_file(variant))
    after = fields(similar_voice(espeak.variant_file(variant), np.random.default_rng(0)))
    for number in range(9):
        own = before.get(f"formant {number}", ["", "100"])
        assert (
            0.9 * float(own[1]) - 1
            <= float(after[f"formant {number}"][1])
            <= 1.1 * float(own[1]) + 1
        )
    for key in ("language", "gender", "pitch", "tone", "intonation", "stressAdd"):
        assert before.get(key) == after.get(key)


def test_a_synthesizer_says_the_same_in_another_voice_of_its_own():
    def said(variants, variant):
        with espeak.Synthesizer(variants) as synthesizer:
            return synthesizer.say("the quiet river", language="en-us", variant=variant)

    voices = {
        f"m3-{seed}": similar_voice(espeak.variant_file("m3"), np.random.default_rng(seed))
        for seed in (1, 2)
    }
    first, second, own = said(voices, "m3-1"), said(voices, "m3-2"), said(voices, "m3")
    assert np.array_equal(said(voices, "m3-1"), first)
    assert np.array_equal(own, said({}, "m3")), "the library's own voices are as they were"
    for other in (second, own):
        samples = min(len(first), len(other))
        assert np.corrcoef(first[:samples], other[:samples])[0, 1] < 0.9
        assert abs(len(first) - len(other)) < 0.1 * len(first)
    with pytest.raises(espeak.CorpusError, match="variant='m3-3' is none of the"):
        said(voices, "m3-3")


def test_training_has_more_voices_the_more_lines_it_has_and_evaluation_has_the_variants_alone():
    for lines, alike in ((900, {0}), (3000, {0, 1, 2, 3})):
        sessions = planning.training_sessions(lines, {"keyword": 1.0}, seed=0)
        assert {session.speaker.similar_index for session in sessions} == alike
        assert len({(session.speaker.name, session.accent) for session in sessions}) == len(
            sessions
        )
        assert not any(session.speaker.held_out for session in sessions)
    phrase_groups = [
        [planning.draw_phrase("keyword", np.random.default_rng(0), held_out=True)]
    ] * 50
    assert {
        session.speaker.similar_index
        for session in planning.evaluation_sessions(phrase_groups, seed=0)
    } == {0}
