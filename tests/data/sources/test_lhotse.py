"""Cuts of Lhotse."""

import pytest

from tests.data.sources.adapting import adapted, dialogue, record, refused

SOURCE = {"type": "file", "channels": [0], "source": "a.wav"}
RECORDING = {
    "id": "r",
    "sources": [SOURCE],
    "sampling_rate": 16000,
    "num_samples": 160000,
    "duration": 10.0,
    "channel_ids": [0],
}
SAID = {
    "id": "s",
    "recording_id": "r",
    "start": 0.0,
    "duration": 2.0,
    "channel": 0,
    "text": "At seven.",
    "speaker": "x",
    "gender": None,
}
CUT = {
    "type": "MonoCut",
    "id": "c",
    "start": 1.5,
    "duration": 2.0,
    "channel": 0,
    "supervisions": [SAID],
    "recording": RECORDING,
}


def recorded(**keys):
    return {**CUT, "recording": {**RECORDING, **keys}}


def test_a_cut_is_a_part_of_its_recording():
    got = record(CUT, prompt="Write it down.")
    clip = got.messages[0].audio[0]
    assert (clip.path, clip.start_s, clip.end_s) == ("/data/a.wav", 1.5, 3.5)
    assert (clip.transcript, clip.attributes) == ("At seven.", {"speaker": "x"})
    assert (got.id, got.messages[0].text, got.messages[1].text) == (
        "c",
        "Write it down.",
        "At seven.",
    )
    whole = {**CUT, "start": 0, "duration": 10.0}
    clip = record(whole).messages[0].audio[0]
    assert (clip.start_s, clip.end_s) == (0.0, None)
    begun = {**CUT, "start": 0, "duration": 9.0}
    assert record(begun).messages[0].audio[0].end_s == 9.0


def test_supervisions_are_joined_in_the_order_of_their_time():
    first = {**SAID, "duration": 0.5, "custom": {"snr": 3.5}}
    second = {**SAID, "start": 0.5, "duration": 1.5, "text": "Or six.", "speaker": "y"}
    got = record({**CUT, "supervisions": [second, first]})
    assert got.messages[1].text == "At seven. Or six."
    assert got.messages[0].audio[0].attributes == {"speaker": "x, y", "snr": "3.5"}


def test_the_source_of_the_cuts_channel_is_read():
    sources = [SOURCE, {"type": "url", "channels": [1], "source": "https://e.org/b.wav"}]
    row = {**recorded(sources=sources), "channel": 1}
    assert dialogue(row)[0] == ("user", "<https://e.org/b.wav>")


def test_what_is_no_scalar_stays_in_the_row():
    custom = {"room": "hall", "target": {"id": "t"}}
    got = adapted({**CUT, "custom": custom})
    assert got["custom"] == custom
    assert record(got).messages[0].audio[0].attributes == {"speaker": "x", "room": "hall"}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**CUT, "type": "MixedCut", "tracks": []}, 'is a "MixedCut", which is no part'),
        ({"type": "PaddingCut", "id": "p", "duration": 1.0}, 'is a "PaddingCut"'),
        ({**CUT, "type": "MultiCut", "channel": [0, 1]}, 'is a "MultiCut"'),
        ({**CUT, "channel": [0, 1]}, "'channel' must be one channel"),
        ({**CUT, "supervisions": []}, "the cut has no text"),
        ({**CUT, "supervisions": [SAID, {**SAID, "text": None}]}, "supervision 2 of 2 has no text"),
        ({**CUT, "supervisions": ["x"]}, "'supervisions' must be a list of objects"),
        ({**CUT, "supervisions": [{**SAID, "start": -1.0}]}, "from -1 s to 1 s of a cut of 2 s"),
        ({**CUT, "supervisions": [{**SAID, "duration": 5.0}]}, "its text says more than is heard"),
        ({**CUT, "duration": 0}, "the cut of 0 s from 1.5 s is empty"),
        ({**CUT, "start": -1.0}, "begins before the recording"),
        ({**CUT, "start": "1"}, "'start' must be a number of seconds"),
        ({**CUT, "recording": None}, "has no 'recording'"),
        (recorded(transforms=[{"name": "Speed"}]), "has 'transforms'"),
        (recorded(sources=[{**SOURCE, "type": "command"}]), 'of the type "command", not a file'),
        (recorded(sources=[{**SOURCE, "channels": [1]}]), "no source of the recording has"),
        (
            {**recorded(sources=[{**SOURCE, "channels": [0, 1]}]), "channel": 1},
            "the cut is channel 1 of a file with the channels [0, 1]",
        ),
        (RECORDING, "is a recording of Lhotse and no cut; join the manifests"),
        (SAID, "is a supervision of Lhotse and no cut; join the manifests"),
    ],
)
def test_a_cut_that_would_lose_something_is_refused(row, said):
    assert said in refused(row)
