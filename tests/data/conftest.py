from tests.data.url_fixtures import web  # noqa: F401  used by name
from tests.storage.bucket_fixtures import bucket, gcs, s3  # noqa: F401  used by name
