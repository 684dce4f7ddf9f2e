from tests.storage.bucket_fixtures import (  # noqa: F401  used by name
    bucket,
    gcs,
    no_waiting,
    s3,
)
