"""The page's files: what may be read, and what the browser is told to allow."""

import http.client
import re
import urllib.parse

import pytest

from stepaudio_jax.serving.page_files import PAGE_FOLDER
from tests.serving.page.scripted_api import ScriptedModel, serving


@pytest.fixture(scope="module")
def host():
    with serving(ScriptedModel(), api_keys=("k",)) as (address, _):
        yield urllib.parse.urlparse(address).netloc


def get(host, path, **headers):
    connection = http.client.HTTPConnection(host, timeout=60)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


def test_every_file_is_served_with_a_strict_policy(host):
    for path in PAGE_FOLDER.iterdir():
        response, content = get(host, f"/page/{path.name}")
        assert (response.status, content) == (200, path.read_bytes())
        policy = response.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        tag = response.headers["ETag"]
        assert get(host, f"/page/{path.name}", **{"If-None-Match": tag})[0].status == 304


@pytest.mark.parametrize(
    "path",
    [
        "/page/../settings.py",
        "/page/..%2fsettings.py",
        "/page/%2e%2e/settings.py",
        "/page/....//settings.py",
        "/page//etc/passwd",
        "/page/index.html/",
        "/page/",
    ],
)
def test_nothing_else_is_served(host, path):
    response, content = get(host, path)
    assert response.status in (307, 401, 404)
    assert b"import" not in content


def test_the_page_names_nothing_elsewhere_and_makes_no_markup_of_text():
    for path in PAGE_FOLDER.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?://(?!127)|//cdn|@import", text), path
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)
        assert not re.search(r"<script(?! type=\"module\" src=)|style=\"|\son\w+=\"", text), path
