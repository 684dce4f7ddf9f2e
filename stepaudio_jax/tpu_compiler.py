"""Settings for the TPU compiler on a machine without TPUs.

The compiler (libtpu) belongs to the test tools and to the planner. JAX starts it wherever it is
installed. Where nothing says which TPUs the machine has, it prints five lines on standard error.
"""

import glob
import os

# Any type that exists will do: a topology says what to compile for, and nothing is run here.
TPU_ENVIRONMENT = {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}


def set_tpu_environment() -> None:
    """Sets the variables that are not set, unless the machine has TPUs.

    On one that has, the compiler finds out by itself.
    """
    if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/[0-9]*"):
        for name, value in TPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
