"""The benchmarks, one file each, by the names that the command line calls them."""

import importlib
from collections.abc import Sequence

from stepaudio_jax.errors import ConfigError
from stepaudio_jax.evaluation.task import Task
from stepaudio_jax.storage.messages import did_you_mean

# {name: (module below this package, class)}; a module is imported when its task is used.
_TASKS = {
    "mmau_mini": ("mmau", "MmauMini"),
    "mmau": ("mmau", "Mmau"),
    "mmsu": ("mmsu", "Mmsu"),
    "big_bench_audio": ("big_bench_audio", "BigBenchAudio"),
    "spoken_mqa": ("spoken_mqa", "SpokenMqa"),
    "audio_mc": ("audio_mc", "AudioMultiChallenge"),
    "step_caption": ("step_caption", "StepCaption"),
    "step_du": ("step_du", "StepDialogueUnderstanding"),
    "step_spqa": ("step_spqa", "StepParalinguistic"),
    "mmar": ("mmar", "Mmar"),
    "mmar_rubrics": ("mmar_rubrics", "MmarRubrics"),
    "recognition": ("recognition", "Recognition"),
}
TASK_NAMES: Sequence[str] = tuple(_TASKS)


def make_task(name: str) -> Task:
    """Returns the task of a name.

    Raises:
        ConfigError: there is none of this name; names the nearest one.
    """
    if name not in _TASKS:
        raise ConfigError(
            f"there is no task {name!r}{did_you_mean(name, TASK_NAMES)};"
            f" tasks are {', '.join(TASK_NAMES)}, or a Python file that defines one"
        )
    module, class_name = _TASKS[name]
    loaded = importlib.import_module(f"stepaudio_jax.evaluation.tasks.{module}")
    task: Task = getattr(loaded, class_name)()
    return task
