"""A teacher behind a server, and what a teacher is given of a dialogue."""

import dataclasses
from typing import Literal

from stepaudio_jax.config.checks import (
    check_floats,
    check_not_empty,
    check_not_negative,
    check_positive,
)
from stepaudio_jax.errors import ConfigError

# "audio": the dialogue as the student has it. "transcripts": each clip's transcript in its place.
TeacherInputs = Literal["audio", "transcripts"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherEndpointConfig:
    """A teacher behind a server of OpenAI's completions protocol, as vLLM and SGLang are."""

    # Address up to and including /v1. The server must return the log-probabilities of a prompt's
    # tokens: by `prompt_logprobs` (vLLM), or by `echo` with `logprobs`.
    url: str | None = None
    model: str | None = None  # the teacher's name at the server
    # The environment variable that holds the server's key; None if it needs no key.
    api_key_env: str | None = "OPENAI_API_KEY"
    timeout_s: float = 60.0  # longest silence of the server, in seconds
    retries: int = 4  # after a failed request
    concurrency: int = 8  # requests at the same time

    def __post_init__(self) -> None:
        check_floats(self)
        check_not_empty(self, "url", "model", "api_key_env")
        if (self.url is None) != (self.model is None):
            raise ConfigError(
                f"url={self.url!r} and model={self.model!r} belong together: give both, or neither"
            )
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url={self.url!r} must begin with http:// or https://")
        check_positive(self, "timeout_s", "concurrency")
        check_not_negative(self, "retries")


def check_teacher(
    folder: str | None, endpoint: TeacherEndpointConfig, temperature: float, *, on_policy: bool
) -> None:
    """Checks that there is one teacher at most, and that it can give what is asked of it.

    Args:
        folder: of a teacher on the mesh.
        endpoint: of a teacher behind a server.
        temperature: of the distributions that are compared.
        on_policy: whether the student's own tokens are scored.

    Raises:
        ConfigError: there are two teachers, or the server cannot give what is compared.
    """
    if endpoint.url is None:
        return
    if folder is not None:
        raise ConfigError(
            f"teacher={folder!r} and teacher_endpoint.url are two teachers: give one of them"
        )
    if not on_policy:
        raise ConfigError(
            "teacher_endpoint gives the log-probabilities of single tokens, from which only the "
            "reverse KL on the student's own replies can be estimated: set on_policy=true, or "
            "give the folder of a teacher"
        )
    if temperature != 1:
        raise ConfigError(
            f"rollout.temperature={temperature} tempers the student's distribution, and a "
            "teacher_endpoint gives log-probabilities at temperature 1: set it to 1"
        )
