"""Checks and conversions of single fields, which the dataclasses call in `__post_init__`.

Messages begin with the field's name; `build` puts the section's key in front of it.
"""

import dataclasses

from stepaudio_jax.errors import ConfigError, StorageError
from stepaudio_jax.storage import expand_home, is_bucket_path, truncate

# Of a normal float32: a larger value becomes infinite on a device, a smaller one 0.
MAX_FLOAT32 = 3.4028234663852886e38
MIN_FLOAT32 = 1.1754943508222875e-38
MAX_SEED = 2**62  # JAX makes keys from signed 64-bit integers, and stages add their index


def check_floats(config: object) -> None:
    """Checks that float32 can hold every float in the fields of a dataclass.

    It comes before any comparison, since a comparison with NaN is never true.

    Raises:
        ConfigError: a float is NaN or infinite, too large for float32, or so small that float32
            makes it 0.
    """
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, float):
                continue
            if not abs(number) <= MAX_FLOAT32:
                raise ConfigError(
                    f"{field.name}={value} must be finite, and at most {MAX_FLOAT32:.1e}"
                )
            if 0 < abs(number) < MIN_FLOAT32:
                raise ConfigError(
                    f"{field.name}={value} is 0 in float32, whose smallest number is "
                    f"{MIN_FLOAT32:.1e}"
                )


def check_positive(config: object, *names: str) -> None:
    """Checks that these fields are above 0.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{name}={getattr(config, name)} must be positive")


def check_not_negative(config: object, *names: str) -> None:
    """Checks that these fields are 0 or more.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        if not getattr(config, name) >= 0:
            raise ConfigError(f"{name}={getattr(config, name)} must not be negative")


def check_fractions(config: object, *names: str) -> None:
    """Checks that these fields lie between 0 and 1, both included.

    Raises:
        ConfigError: one does not.
    """
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{name}={getattr(config, name)} must be between 0 and 1")


def check_not_empty(config: object, *names: str) -> None:
    """Checks that none of these optional fields is an empty string.

    Raises:
        ConfigError: one is.
    """
    for name in names:
        if getattr(config, name) == "":
            raise ConfigError(f"{name}='' is empty: write None for none")


def check_seed(seed: int) -> int:
    """Returns the seed, from which JAX can make keys.

    Raises:
        ConfigError: it is negative or too large.
    """
    if seed < 0:
        raise ConfigError(f"seed={format_value(seed)} must not be negative")
    if seed > MAX_SEED:
        raise ConfigError(f"seed={format_value(seed)} must be at most {MAX_SEED} (2**62)")
    return seed


def check_path(name: str, path: str | None) -> None:
    """Checks that a path, if there is one, is local or in a bucket.

    Raises:
        ConfigError: it is an address of another kind.
    """
    if path is None:
        return
    try:
        is_known = is_bucket_path(path) or "://" not in path
    except StorageError as error:
        raise ConfigError(f"{name}: {error}") from None
    if not is_known:
        raise ConfigError(
            f"{name}={format_value(path)} is an address of the web: download what is there, and "
            "give the path of the folder"
        )


def expand_paths(config: object, *names: str) -> None:
    """Replaces a leading `~` of these fields, which are paths, by the home folder."""
    for name in names:
        if isinstance(path := getattr(config, name), str):  # `build` refuses other types
            object.__setattr__(config, name, expand_home(path))


def format_value(value: object) -> str:
    """Returns a value as Python writes it, shortened for a message."""
    try:
        return truncate(repr(value))
    except ValueError:  # Python writes no integer of more than 4300 digits
        return "a number of more than 4300 digits"
