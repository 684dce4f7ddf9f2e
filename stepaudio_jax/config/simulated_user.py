"""The simulated user of rollouts of several turns, and how its words are spoken."""

import dataclasses

from stepaudio_jax.config.checks import (
    check_floats,
    check_fractions,
    check_not_empty,
    check_not_negative,
    check_positive,
    expand_paths,
)
from stepaudio_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimulatedUserConfig:
    """Writes the user's next turn: an endpoint of OpenAI's protocol, or a model in this process."""

    folder: str | None = None  # folder of a model that plays the user in this process
    slots: int = 16  # turns that this model writes at the same time
    url: str | None = None  # address of an endpoint, up to and including /v1
    model: str | None = None  # the user's name at the endpoint
    # The environment variable that holds the endpoint's key; None if it needs no key.
    api_key_env: str | None = "OPENAI_API_KEY"
    turns: int = 3  # most replies of the policy in a dialogue, the first one included
    # A text file with instructions of your own, in which {scenario} and {end} are replaced; None:
    # the built-in one.
    prompt: str | None = None
    end: str = "[END]"  # a message that holds this ends the dialogue
    # Of its words; None leaves it to the endpoint, as some models need.
    temperature: float | None = 1.0
    send_seed: bool = True  # whether an endpoint gets the seed of a draw, which some refuse
    max_tokens: int = 256  # most tokens of a turn, with the reasoning before it
    timeout_s: float = 60.0  # longest silence of the endpoint, in seconds
    retries: int = 4  # after a failed request to the endpoint
    concurrency: int = 8  # requests to the endpoint, or commands that speak, at the same time
    # A program that speaks the words, and its arguments; empty: they enter the dialogue as text. It
    # reads them from its standard input, and writes a sound file to its standard output, or to the
    # path that stands for {output}. No shell is involved.
    speak: tuple[str, ...] = ()
    speak_timeout_s: float = 60.0  # longest time of the program, in seconds
    # Largest share of a step's dialogues without the user's words; above it the run saves and ends.
    max_failure_rate: float = 0.2

    def __post_init__(self) -> None:
        check_floats(self)
        check_not_empty(self, "folder", "url", "model", "api_key_env", "prompt")
        expand_paths(self, "folder", "prompt")
        if (self.url is None) != (self.model is None):
            raise ConfigError(
                f"url={self.url!r} and model={self.model!r} belong together: give both, or neither"
            )
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url={self.url!r} must begin with http:// or https://")
        if self.folder and self.url:
            raise ConfigError(
                f"folder={self.folder!r} and url={self.url!r} are two users: give one"
            )
        check_positive(self, "turns", "slots", "max_tokens", "concurrency")
        check_positive(self, "timeout_s", "speak_timeout_s")
        check_not_negative(self, "retries")
        if self.temperature is not None:
            check_not_negative(self, "temperature")
        check_fractions(self, "max_failure_rate")
        if not self.end.strip():
            raise ConfigError(
                f"end={self.end!r} must be some characters: every message would end the dialogue"
            )
        if self.speak and not self.speak[0].strip():
            raise ConfigError(f"speak={self.speak!r} must begin with the name of a program")
        if any("\0" in argument for argument in self.speak):
            raise ConfigError(f"speak={self.speak!r} has a NUL, which no argument can hold")
        self._check_enabled()

    @property
    def enabled(self) -> bool:
        """Returns whether there is a simulated user."""
        return bool(self.folder or self.url)

    @property
    def max_turns(self) -> int:
        """Returns the most replies of the policy in a rollout."""
        return self.turns if self.enabled else 1

    def _check_enabled(self) -> None:
        """Checks that nothing is set where there is no user."""
        if self.enabled:
            if self.turns < 2:
                raise ConfigError(
                    f"turns={self.turns} leaves the simulated user nothing to say: set 2 or more, "
                    "or leave out its folder or url"
                )
            if self.folder and self.temperature is None:
                raise ConfigError(
                    "temperature=None leaves it to an endpoint, and the user is the model in "
                    f"folder={self.folder!r}: give a number"
                )
            return
        for name in ("turns", "speak", "prompt"):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} needs a simulated user: set folder, or url and"
                    " model"
                )
