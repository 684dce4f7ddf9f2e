"""The clients of the services that keep buckets, gcsfs and s3fs, and what their errors mean.

They are imported when the first path of their scheme is used, since they are extras.
"""

import abc
import contextlib
import datetime
import errno
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from stepaudio_jax.errors import StorageError
from stepaudio_jax.storage.uris import is_bucket_path, split


class Client(abc.ABC):
    """Talks to a service; raises what its package raises, which `storage_errors` translates.

    Attributes:
        fs: its file system of fsspec.
        errors: what the package raises.
        advice: what to do where access is refused.
        login: what gives credentials.
    """

    advice: ClassVar[str]
    login: ClassVar[str]

    def __init__(self, fs: Any, errors: tuple[type[Exception], ...]):
        self.fs = fs
        self.errors: tuple[type[Exception], ...] = (OSError, *errors)

    @abc.abstractmethod
    def has_bucket(self, bucket: str) -> bool:
        """Returns whether a bucket exists."""

    @abc.abstractmethod
    def object_info(self, bucket: str, key: str) -> dict[str, Any]:
        """Returns what fsspec tells of an object, without looking for a folder of that name."""

    @abc.abstractmethod
    def write_if(self, bucket: str, key: str, content: bytes, version: str | None) -> str | None:
        """Writes an object if its version is this one, or if there is none (None).

        Returns:
            The new version; None where the object has another.
        """

    @abc.abstractmethod
    def read_version(self, bucket: str, key: str, version: str, start: int, stop: int) -> bytes:
        """Reads bytes of a version of an object, where the service keeps it apart from others."""

    @abc.abstractmethod
    def set_attribute(self, path: str, name: str, value: str) -> None:
        """Sets an attribute of an object."""

    @abc.abstractmethod
    def attributes(self, path: str) -> Mapping[str, str]:
        """Returns the attributes of an object."""


class GcsClient(Client):
    """Talks to Google Cloud Storage, with gcsfs."""

    advice = (
        "give this machine's service account (or the account of `gcloud auth application-default"
        " login`) the role Storage Object User on the bucket"
    )
    login = "`gcloud auth application-default login`, or a service account of the machine"

    def __init__(self) -> None:
        # Without this the client asks Google for the kind of each bucket over gRPC first. It is for
        # zonal buckets, which the user may turn on.
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        # Orbax would go through tensorflow where that is installed, which the tests do not show.
        os.environ.setdefault("EPATH_USE_TF", "false")
        import aiohttp
        import fsspec.config
        import gcsfs
        import google.auth.exceptions
        import requests
        from gcsfs.retry import HttpError

        errors = (
            HttpError,
            aiohttp.ClientError,
            requests.RequestException,
            google.auth.exceptions.GoogleAuthError,
            ValueError,
        )
        # For Orbax too, which makes its own: it would keep listings for good, although other
        # processes and this module change what is in a folder.
        fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
        fs = gcsfs.GCSFileSystem(use_listings_cache=False, skip_instance_cache=True)
        super().__init__(fs, errors)

    def has_bucket(self, bucket: str) -> bool:
        try:
            self.fs.call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
        except FileNotFoundError:
            return False
        return True

    def object_info(self, bucket: str, key: str) -> dict[str, Any]:
        # The own `info` of gcsfs lists the folder of that name too, which costs ten times more.
        found = self.fs.call("GET", "b/{}/o/{}", bucket, key, json_out=True)
        modified = datetime.datetime.fromisoformat(found["updated"].replace("Z", "+00:00"))
        return {**found, "name": f"{bucket}/{key}", "type": "file", "mtime": modified}

    def write_if(self, bucket: str, key: str, content: bytes, version: str | None) -> str | None:
        place = f"{self.fs.base}".replace("/storage/v1/", "/upload/storage/v1/")
        try:
            written = self.fs.call(
                "POST",
                f"{place}b/{{}}/o",
                bucket,
                uploadType="media",
                name=key,
                ifGenerationMatch=version or "0",
                data=content,
                json_out=True,
            )
        except FileExistsError:  # the answer 412
            return None
        return str(written["generation"])

    def read_version(self, bucket: str, key: str, version: str, start: int, stop: int) -> bytes:
        return self.fs.cat_file(f"{bucket}/{key}", start=start, end=stop, generation=version)

    def set_attribute(self, path: str, name: str, value: str) -> None:
        self.fs.setxattrs(path, **{name: value})

    def attributes(self, path: str) -> dict[str, str]:
        return self.fs.info(path).get("metadata", {})


class S3Client(Client):
    """Talks to Amazon S3, or a service with its interface, with s3fs."""

    advice = (
        "give this machine's role, or the user of AWS_ACCESS_KEY_ID, s3:GetObject, s3:PutObject,"
        " s3:DeleteObject and s3:ListBucket on the bucket"
    )
    login = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role of the machine"

    def __init__(self) -> None:
        import aiohttp
        import botocore.exceptions
        import s3fs

        errors = (
            botocore.exceptions.BotoCoreError,
            botocore.exceptions.ClientError,
            aiohttp.ClientError,
            ValueError,
        )
        fs = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        super().__init__(fs, errors)

    def has_bucket(self, bucket: str) -> bool:
        try:
            self.fs.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
        except FileNotFoundError:
            return False
        return True

    def object_info(self, bucket: str, key: str) -> dict[str, Any]:
        return self.fs.info(f"{bucket}/{key}")

    def write_if(self, bucket: str, key: str, content: bytes, version: str | None) -> str | None:
        condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
        try:
            written = self.fs.call_s3(
                "put_object", Bucket=bucket, Key=key, Body=content, **condition
            )
        except self.errors as error:
            text = f"{error} {error.__cause__}"
            if re.search(r"PreconditionFailed|ConditionalRequestConflict|\b412\b|\b409\b", text):
                return None
            raise
        return str(written["ETag"])

    def read_version(self, bucket: str, key: str, version: str, start: int, stop: int) -> bytes:
        return self.fs.cat_file(f"{bucket}/{key}", start=start, end=stop)

    def set_attribute(self, path: str, name: str, value: str) -> None:
        self.fs.setxattr(path, **{name: value})

    def attributes(self, path: str) -> dict[str, str]:
        return self.fs.metadata(path)


_clients: dict[tuple[str, int], Client] = {}
_clients_mutex = threading.Lock()
_known_buckets: set[tuple[str, str]] = set()


def client_of(scheme: str) -> Client:
    """Returns this process's client; those of fsspec do not survive a fork."""
    key = (scheme, os.getpid())
    with _clients_mutex:
        if key not in _clients:
            # They log tracebacks of the errors that they also raise.
            logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
            logging.getLogger("s3fs").setLevel(logging.CRITICAL)
            # It warns where there is no metadata server, before other credentials are looked for.
            logging.getLogger("google.auth").setLevel(logging.ERROR)
            try:
                _clients[key] = GcsClient() if scheme == "gs" else S3Client()
            except ModuleNotFoundError as error:
                extra = {"gs": "gcs", "s3": "s3"}[scheme]
                raise StorageError(
                    f"{scheme}:// paths need the package {error.name}: install the extra, "
                    f"pip install 'stepaudio-jax[{extra}]'"
                ) from None
        return _clients[key]


@contextlib.contextmanager
def storage_errors(path: str) -> Iterator[None]:
    """Raises this module's errors for those of the clients."""
    scheme, bucket, _ = split(path)
    client = client_of(scheme)
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        if error.filename == path:
            raise
        check_bucket(path)
        raise not_found(path) from None
    except (IsADirectoryError, FileExistsError):
        raise
    except client.errors as error:
        raise StorageError(f"{path}: {_explain(error, scheme, bucket)}") from None


def _explain(error: Exception, scheme: str, bucket: str) -> str:
    """Returns what an error of a client means, and what to do."""
    said = " ".join(str(error).split())[:300]
    code = getattr(error, "code", None)
    kind = type(error).__name__
    if code == 401 or "Credentials" in kind or "RefreshError" in kind or "Credentials" in said:
        return f"no credentials for {scheme}://{bucket} ({said}): {client_of(scheme).login}"
    if isinstance(error, PermissionError) or said.startswith("Forbidden") or code == 403:
        reason = re.sub(r"^Forbidden: \S+ ?", "", said) or kind
        return f"access is refused (403: {reason}); {client_of(scheme).advice}"
    return f"the bucket's server failed ({kind}: {said}); start the same command again"


def check_bucket(path: str) -> None:
    """Checks that the bucket of a path exists, once for each bucket.

    Raises:
        StorageError: it does not.
    """
    scheme, bucket, _ = split(path)
    if (scheme, bucket) in _known_buckets:
        return
    client = client_of(scheme)
    try:
        exists = client.has_bucket(bucket)
    except client.errors as error:
        raise StorageError(f"{path}: {_explain(error, scheme, bucket)}") from None
    if not exists:
        raise StorageError(
            f"{path}: there is no bucket {scheme}://{bucket}; correct its name, or create it"
        )
    _known_buckets.add((scheme, bucket))


def not_found(path: str) -> FileNotFoundError:
    """Returns the error of a missing object."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def client_errors(path: str | os.PathLike[str]) -> tuple[type[Exception], ...]:
    """Returns what libraries that use the clients themselves may raise for a path; () if local."""
    return client_of(split(path)[0]).errors if is_bucket_path(path) else ()


def forget_clients() -> None:
    """Makes new clients when they are used next, for other credentials or another server."""
    with _clients_mutex:
        _clients.clear()
        _known_buckets.clear()
