import ast
import pathlib
import pickle
import subprocess
import sys

import pytest

import launch.errors
from stepaudio_jax import errors

ROOT = pathlib.Path(errors.__file__).parents[1]


def test_error_classes_are_defined_in_one_module():
    """Outside errors.py, only the examples define errors, for what only they do."""
    elsewhere = [
        f"{path.relative_to(ROOT)}: {node.name}"
        for package in ("stepaudio_jax", "launch", "tools")
        for path in (ROOT / package).rglob("*.py")
        if path != pathlib.Path(errors.__file__)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and node.name.endswith(("Error", "Exception"))
    ]
    assert elsewhere == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError("a"), 2),
        (errors.LockHeldError("a"), 2),
        (errors.AudioError("a.wav", "is empty"), 2),
        (FileNotFoundError("a"), 2),
        (errors.DivergedError("a"), 3),
        (errors.JudgeError("a"), 3),
        (errors.InterruptedRunError("a"), 75),
        (errors.InterruptedRunError("a", by_keyboard=True), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes_of_programs(error, code, capsys):
    with pytest.raises(SystemExit) as exit_info, launch.errors.exit_on_error():
        raise error
    assert exit_info.value.code == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (0 if isinstance(error, KeyboardInterrupt) else 1)


def test_other_errors_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), launch.errors.exit_on_error():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "error",
    [
        errors.AudioError("a.wav", "is empty"),
        errors.DataError("a:1: bad", kind="bad_audio"),
        errors.InterruptedRunError("stopped", by_keyboard=True),
        errors.StorageError("gs://b: refused"),
        errors.WorkerError("a process ended"),
    ],
)
def test_errors_survive_pickling(error):
    """Data workers send their errors to the main process."""
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_importing_errors_is_fast():
    """Mistakes in the command line are reported before any heavy module is imported."""
    script = "import sys, launch.errors; print(sorted({'jax', 'numpy'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
