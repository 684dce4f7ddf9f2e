"""What the TPU compiler is told of the machine where there is no TPU.

The compiler (libtpu) belongs to the test tools and to the planner. JAX starts it wherever it is
installed, and where nobody tells it which TPUs the machine has, it complains in five lines on
standard error that it does not know them.
"""

import glob
import os

# Any type that exists does: what is compiled for is said by the topology, and there is nothing here
# to run on.
TPU_ENVIRONMENT = {"TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_HOSTNAMES": "localhost"}


def set_tpu_environment() -> None:
    """Sets those variables that are not set, on a machine without TPUs; on one with TPUs the compiler finds out by itself."""
    if not glob.glob("/dev/accel*") and not glob.glob("/dev/vfio/[0-9]*"):
        for name, value in TPU_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
