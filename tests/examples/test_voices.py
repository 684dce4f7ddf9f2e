"""Similar voices: close to their variant, different from it, and never a held-out speaker's."""

import numpy as np
import pytest

from examples.spoken_corpus import espeak
from examples.spoken_corpus import sessions as planning
from examples.spoken_corpus.voices import similar_voice, speakers


def fields(text: str) -> dict[str, list[str]]:
    parsed = {}
    for line in text.splitlines():
        key, *rest = line.split() or [""]
        parsed[f"formant {rest[0]}" if key == "formant" else key] = rest
    return parsed


@pytest.mark.parametrize("variant", sorted(speaker.variant for speaker in speakers(held_out=False)))
def test_formants_are_close_to_the_variant_and_other_fields_are_kept(variant):
    before = fields(espeak.variant_file(variant))
    after = fields(similar_voice(espeak.variant_file(variant), np.random.default_rng(0)))
    for number in range(9):
        frequency = float(before.get(f"formant {number}", ["", "100"])[1])
        assert 0.9 * frequency - 1 <= float(after[f"formant {number}"][1]) <= 1.1 * frequency + 1
    for key in ("language", "gender", "pitch", "tone", "intonation", "stressAdd"):
        assert before.get(key) == after.get(key)


def test_a_synthesizer_speaks_with_additional_variants():
    def speak(variants, variant):
        with espeak.Synthesizer(variants) as synthesizer:
            return synthesizer.say("the quiet river", language="en-us", variant=variant)

    voices = {
        f"m3-{seed}": similar_voice(espeak.variant_file("m3"), np.random.default_rng(seed))
        for seed in (1, 2)
    }
    first, second, variant = speak(voices, "m3-1"), speak(voices, "m3-2"), speak(voices, "m3")
    assert np.array_equal(speak(voices, "m3-1"), first)
    assert np.array_equal(variant, speak({}, "m3")), "the library's voices are unchanged"
    for other in (second, variant):
        samples = min(len(first), len(other))
        assert np.corrcoef(first[:samples], other[:samples])[0, 1] < 0.9
        assert abs(len(first) - len(other)) < 0.1 * len(first)
    with pytest.raises(espeak.CorpusError, match="variant='m3-3' is none of the"):
        speak(voices, "m3-3")


def test_similar_voices_grow_with_the_training_lines_and_are_not_in_the_evaluation():
    for lines, similar in ((900, {0}), (3000, {0, 1, 2, 3})):
        sessions = planning.training_sessions(lines, {"keyword": 1.0}, seed=0)
        assert {session.speaker.similar_index for session in sessions} == similar
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
