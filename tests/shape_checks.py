"""Checks the shapes and dtypes that functions of the package declare, while tests run."""

import functools
import sys
import typing
from collections.abc import Callable
from typing import Any

import beartype
import beartype.roar
import jax.numpy as jnp
import jaxtyping
import numpy as np

_CONF = beartype.BeartypeConf(is_pep484_tower=True)  # an int is a float
_CHECKERS = ("jaxtyping", "beartype", "dataclasses", __name__, "<string>")
_REBUILDERS = ("jax", "flax", "optax", "orbax")
# The packages with arrays. Not config, where a checked constructor would have another message for
# a misspelt key.
_PACKAGES = (
    *("audio", "data", "evaluation", "generation", "hub", "judge", "kernels", "models"),
    *("parallel", "planning", "rl", "training"),
)


def install() -> None:
    """Has every module of these packages that is imported from now on checked by `check`."""
    packages = [f"stepaudio_jax.{name}" for name in _PACKAGES]
    jaxtyping.install_import_hook(packages, f"{__name__}.check")


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that checks its arguments where some are declared with a shape.

    jaxtyping's import hook gives it each function of the package, and the constructor of each
    dataclass. What JAX builds itself when it maps over a tree holds anything at its leaves
    (shardings, axes, a batch's slice): there a constructor is not checked.
    """
    if not any(_has_shape(hint) for hint in function.__annotations__.values()):
        return function
    checked = beartype.beartype(function, conf=_CONF)

    @functools.wraps(function)
    def check_arguments(*args: Any, **kwargs: Any) -> Any:
        if function.__name__ == "__init__" and _called_by_jax():
            return function(*args, **kwargs)
        try:
            return checked(*args, **kwargs)
        except beartype.roar.BeartypeCallHintViolation:
            # Functions of JAX take arrays of NumPy too.
            as_jax = {name: _to_jax(value) for name, value in kwargs.items()}
            return checked(*map(_to_jax, args), **as_jax)

    return check_arguments


def _to_jax(value: Any) -> Any:
    if type(value) in (tuple, list):
        return type(value)(map(_to_jax, value))
    is_numpy = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufV"
    return jnp.asarray(value) if is_numpy else value


def _has_shape(hint: Any) -> bool:
    """Returns whether a type, or a part of it, is an array of declared shape."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(_has_shape(part) for part in typing.get_args(hint))


def _called_by_jax() -> bool:
    """Returns whether the first caller that is no checker is a library that rebuilds trees."""
    frame = sys._getframe(1)
    while frame is not None:
        package = frame.f_globals.get("__name__", "<string>").split(".")[0]
        if frame.f_globals.get("__name__") != __name__ and package not in _CHECKERS:
            return package in _REBUILDERS
        frame = frame.f_back
    return False
