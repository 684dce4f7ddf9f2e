"""TensorBoard's points of a stage, in a run folder that may be in a bucket."""

import concurrent.futures
import logging
import pathlib
import tempfile
import time
from collections.abc import Mapping

from stepaudio_jax.errors import StorageError
from stepaudio_jax.storage import BucketPath, Path, copy_file

TENSORBOARD = "tensorboard"  # folder of a run
_UPLOAD_EVERY_SECONDS = 60.0

logger = logging.getLogger(__name__)


class TensorBoardWriter:
    """Writes points for TensorBoard into `RUN_DIR/tensorboard/STAGE`.

    Objects in a bucket cannot be appended to. For a run folder in one the points are written to
    this machine's disk, and the file is sent once a minute and at the end; of a run that is killed
    the last minute is missing here, but not in metrics.jsonl.

    Args:
        run_dir: of the run.
        stage: its name.
        first_step: points of this step and later ones, of an earlier process, are hidden.
    """

    def __init__(self, run_dir: Path, stage: str, first_step: int):
        # Imported here: it is slow where torch is installed, which it imports.
        from tensorboardX import SummaryWriter

        folder = run_dir / TENSORBOARD / stage
        self._target = folder if isinstance(folder, BucketPath) else None
        self._local: tempfile.TemporaryDirectory[str] | None = None
        if self._target is not None:
            self._local = tempfile.TemporaryDirectory(prefix="stepaudio-tensorboard-")
        self._writer = SummaryWriter(
            self._local.name if self._local is not None else str(folder), purge_step=first_step
        )
        self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="tensorboard")
        self._upload: concurrent.futures.Future[None] | None = None
        self._uploaded_at = time.monotonic()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point of each metric."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        is_due = time.monotonic() - self._uploaded_at > _UPLOAD_EVERY_SECONDS
        if is_due and (self._upload is None or self._upload.done()):
            self._uploaded_at = time.monotonic()
            self._writer.flush()
            self._upload = self._pool.submit(self._send)

    def close(self) -> None:
        """Closes TensorBoard's file, and sends it; calling it again does nothing."""
        self._writer.close()
        self._pool.shutdown()
        self._send()
        if self._local is not None:
            self._local.cleanup()
            self._local = None

    def _send(self) -> None:
        if self._target is None or self._local is None:
            return
        for file in pathlib.Path(self._local.name).iterdir():
            try:
                copy_file(file, self._target / file.name)
            except StorageError as error:  # the run does not end for want of a chart
                logger.warning("TensorBoard's points were not sent: %s", error)
