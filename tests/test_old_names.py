"""The first dialect stays gone: its identifiers, module names and configuration keys."""

import ast
import functools
import itertools
import pathlib
import re
from collections.abc import Iterator

import pytest

from tests.end_to_end.runs import ROOT
from tests.old_names import DOTTED, IDENTIFIERS, MODULES

FOLDERS = ("benchmarks", "configs", "docs", "examples", "launch", "stepaudio_jax", "tests", "tools")
SUFFIXES = (".html", ".jinja", ".md", ".py", ".sh", ".toml", ".txt")
# The table of renamed keys, and these lists.
ALLOWED_FILES = frozenset(
    {
        "stepaudio_jax/config/renamed.py",
        "tests/config/test_renamed_keys.py",
        "tests/old_names.py",
        "tests/test_old_names.py",
    }
)
# Flags and JSON keys that stay, since others call them.
ALLOWED_NAMES = {
    "launch/evaluate.py": {"key_variable", "judge_key_variable"},
    "launch/judge.py": {"key_variable"},
}

_MODULE = re.compile(r"\bstepaudio_jax((?:[./]\w+)+)")


@functools.cache
def files() -> list[pathlib.Path]:
    found = [
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in SUFFIXES and path.is_file()
    ]
    return [*found, ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml"]


def texts_of_python(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Yields line and text of every name, dotted name, imported module and string of a module."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        line = getattr(node, "lineno", 0)
        match node:
            case ast.Attribute():
                yield line, ast.unparse(node)
            case ast.Name(id=name) | ast.arg(arg=name) | ast.alias(name=name):
                yield line, name
            case ast.keyword(arg=str(name)):
                yield line, name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield line, name
            case ast.ImportFrom(module=str(module)):
                yield line, module
                yield from ((line, f"{module}.{alias.name}") for alias in node.names)
            case ast.Constant(value=str(text)):
                yield line, text


def texts(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    if path.suffix == ".py":
        yield from texts_of_python(path)
    else:
        yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)


def old_names(text: str) -> set[str]:
    """Returns the old names in a text."""
    found = IDENTIFIERS.intersection(re.findall(r"\w+", text))
    for dotted in re.findall(r"\w+(?:\.\w+)+", text):
        names = dotted.split(".")
        pairs = {".".join(pair) for pair in itertools.pairwise(names)}
        found |= DOTTED & pairs if not dotted.startswith("stepaudio_jax.") else set()
    for module in _MODULE.findall(text):
        names = module.replace("/", ".").strip(".").split(".")
        found |= MODULES & {names[0], ".".join(names[:2])}
    return found


def test_no_old_name_is_used():
    used = []
    for path in files():
        name = path.relative_to(ROOT).as_posix()
        if name in ALLOWED_FILES:
            continue
        for line, text in texts(path):
            old = old_names(text) - ALLOWED_NAMES.get(name, set())
            used.extend(f"{name}:{line}: {found}" for found in sorted(old))
    assert not used, "\n".join(sorted(set(used)))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def lay_out(x): pass", {"lay_out"}),
        ("DataConfig(tokens_per_row=4)", {"tokens_per_row"}),
        ("config.stages[0].rollout.samples", {"rollout.samples"}),
        ("--config.stages.sft.data.rows=8", {"data.rows"}),
        ("from stepaudio_jax.rl.hearing import x", {"rl.hearing"}),
        ("stepaudio_jax/training/stage_kind.py", {"training.stage_kind"}),
        ("rows of a batch, samples and prompts", set()),
    ],
)
def test_old_names_are_found(text, names):
    assert old_names(text) == names
