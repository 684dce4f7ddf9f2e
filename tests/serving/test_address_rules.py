"""Which URLs of clips are read, and which addresses never are."""

import ipaddress

import pytest

from stepaudio_jax.errors import AudioError
from stepaudio_jax.serving.address_rules import check_url, is_public, resolve

DOMAINS = ("media.example.org",)
PRIVATE = (
    *("127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "255.255.255.255"),
    *("240.0.0.1", "192.0.0.1", "203.0.113.9", "198.51.100.7"),
    *("::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "::ffff:10.0.0.1", "::127.0.0.1"),
    *(
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::1",
    ),
    *("::ffff:0:127.0.0.1", "2001:0:0:0:0:0:80ff:fffe", "2001:10::1", "100::1"),
)
PUBLIC = ("8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_never_public(address):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are(address):
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "url",
    [
        *(
            "http://media.example.org/a.wav",
            "ftp://media.example.org/a",
            "gs://media.example.org/a",
        ),
        *(
            "https://example.org/a.wav",
            "https://media.example.org.evil.net/",
            "https://a.media.example.orgx/",
        ),
        *("https://evil.net/media.example.org", "https://evil.net?media.example.org"),
        *("https://evil.net#media.example.org", "https://media.example.org@evil.net/a"),
        *("https://user:pass@media.example.org/a", "https://media.example.org:8443/a"),
        *("https://media.example.org:22/a", "https://media.example.org:x/a"),
        *("https://evil.net\\@media.example.org/", "https://media.example.org\\.evil.net/"),
        *(
            "https://media.example.org /a",
            "https://media.example.org/\n",
            "https://médiа.example.org/",
        ),
        *("https://127.0.0.1/", "https://2130706433/", "https://0x7f.1/", "https://0177.0.0.1/"),
        *("https://[::1]/", "https://[::ffff:127.0.0.1]/", "https://[::1", "https://localhost/"),
        *("https:///a", "https://", "https:media.example.org/a", "//media.example.org/a"),
        "https://media.example.org/" + "a" * 5000,
    ],
)
def test_other_urls_are_refused(url):
    with pytest.raises(AudioError) as caught:
        check_url(url, DOMAINS)
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "host", "target"),
    [
        ("https://media.example.org/a.wav?x=1#y", "media.example.org", "/a.wav?x=1"),
        ("HTTPS://Media.Example.ORG.:443", "media.example.org", "/"),
        ("https://eu.media.example.org/a", "eu.media.example.org", "/a"),
    ],
)
def test_urls_of_allowed_hosts_are_read(url, host, target):
    assert check_url(url, DOMAINS) == (host, target)


@pytest.mark.parametrize(
    "host", ["localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "::1"]
)
def test_hosts_that_lead_to_this_machine_are_refused(host):
    """The system's resolver takes all of these for an address."""
    with pytest.raises(AudioError, match=r"not of the public internet|not known"):
        resolve(host, "clip")
