"""Options of `launch.generate`."""

from launch.generate import make_parser, sampling_of
from stepaudio_jax.generation import Sampling


def test_the_default_options_are_the_default_sampling_settings_but_for_top_p():
    options = make_parser().parse_args(["--model", "m", "--input", "i", "--output", "o"])
    assert sampling_of(options) == Sampling(top_p=0.9)
