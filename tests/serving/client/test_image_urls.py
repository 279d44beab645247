"""Images from the web: what is allowed is fetched, and nothing else, whatever a server says."""

from __future__ import annotations

import asyncio
import http.server
import io
import socket
import ssl
import threading
import time

import numpy as np
import pytest
from PIL import Image

from iblip.export.errors import InputError, OptionError
from iblip.serving.client import AsyncClient, Client, ImageURLs
from iblip.serving.client import image_urls as module
from tests.serving.client.scripted import Server

HERE = ImageURLs(schemes=("https", "http"), private=True, timeout_s=60)


def png(side=8):
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), 200, np.uint8)).save(file, "PNG")
    return file.getvalue()


class Web(http.server.BaseHTTPRequestHandler):
    """Answers by the path that it is asked for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        """Says nothing."""

    def do_GET(self):
        kind, _, rest = self.path[1:].partition("/")
        getattr(self, kind.partition("?")[0])(rest)

    def head(self, status=200, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def image(self, _):
        assert self.headers["Host"]
        data = png()
        self.head(Content_Length=len(data))
        self.wfile.write(data)

    def chunked(self, _):
        self.head(Transfer_Encoding="chunked")
        for byte in (png()[:30], png()[30:], b""):
            self.wfile.write(b"%x\r\n%b\r\n" % (len(byte), byte))

    def large(self, _):
        self.head(Content_Length=10**9)

    def endless(self, _):
        self.head(Connection="close")
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
        except OSError:
            self.close_connection = True

    def dripping(self, _):
        try:
            while True:
                self.wfile.write(b"H")
                time.sleep(0.05)
        except OSError:
            self.close_connection = True

    def cut(self, _):
        self.head(Content_Length=10**6)
        self.wfile.write(b"short")
        self.close_connection = True

    def to(self, location):
        self.head(302, Location=location, Content_Length=0)

    def around(self, _):
        self.head(302, Location="/around/", Content_Length=0)

    def gone(self, _):
        self.head(404, Content_Length=0)


@pytest.fixture(scope="module")
def web():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("path", ["image/", "chunked/", "to//image/", "image/a b?c=d&é=%20#part"])
def test_an_image_is_fetched(web, path):
    assert HERE.fetch(f"{web}/{path}") == png()
    assert HERE.fetch(f"{web}/{path}".replace("http", "HTTP", 1)) == png()


@pytest.mark.parametrize("redirect", ["file:///etc/passwd", "ftp://example.org/a", "data:,a"])
def test_a_redirect_leads_nowhere_else(web, redirect):
    with pytest.raises(InputError, match=r"is not allowed|is not an address") as caught:
        HERE.fetch(f"{web}/to/{redirect}")
    assert "redirects to" in str(caught.value)
    assert "Allowed by image_urls: https and http from any host, at most 33,554,432" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("path", "settings", "message"),
    [
        ("large/", {}, "has 1,000,000,000 bytes"),
        ("endless/", {"max_bytes": 10**6}, "has more than 1,000,000 bytes"),
        ("dripping/", {"timeout_s": 0.5}, r"took longer than 0\.5 s"),
        ("cut/", {}, r"ended after 5 of 1,000,000 bytes"),
        ("around/", {}, "redirects too often"),
        ("to//image/", {"redirects": 0}, "redirects too often"),
        ("gone/", {}, "has the HTTP status 404"),
        ("image/", {"schemes": ("https",)}, r"is not allowed\. Allowed by image_urls: https from"),
        ("image/", {"hosts": ("example.org",)}, "is not of an allowed host"),
        ("image/", {"private": False}, r"leads to 127\.0\.0\.1, 127\.0\.0\.1, which is not public"),
    ],
)
def test_what_is_not_allowed_is_refused(web, path, settings, message):
    limits = {"schemes": HERE.schemes, "private": True, "timeout_s": 60, **settings}
    started = time.monotonic()
    with pytest.raises(InputError, match=message):
        ImageURLs(**limits).fetch(f"{web}/{path}")
    assert time.monotonic() - started < 55  # the time for one byte does not begin again


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://me:secret@127.0.0.1/a", "has a user's name in it"),
        ("http://127.0.0.1:99999/a", "is not an address"),
        ("http://[::1/a", "is not an address"),
        ("http:///a", "is not allowed"),
        ("http://nosuch.invalid/a", "could not be fetched"),
    ],
)
def test_addresses_that_are_none(url, message):
    with pytest.raises(InputError, match=message):
        HERE.fetch(url)


@pytest.mark.parametrize(
    "number",
    [
        *("127.0.0.1", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1"),
        *("::1", "fe80::1%1", "fd00::1", "::ffff:127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1"),
        *("224.0.0.1", "ff02::1", "255.255.255.255", "::"),
    ],
)
def test_only_the_internet_is_public(number, monkeypatch):
    family = socket.AF_INET6 if ":" in number else socket.AF_INET
    monkeypatch.setattr(module, "_addresses", lambda host, port: [(family, (number, port))])
    with pytest.raises(InputError, match=r"leads to example\.org, .* which is not public"):
        ImageURLs().fetch("https://example.org/a.png")


@pytest.mark.parametrize("number", ["93.184.215.14", "2606:4700::1111", "64:ff9b::5db8:d70e"])
def test_the_internet_is_public(number):
    assert module._is_public(number)


def test_hosts_are_names_or_whole_domains(web):
    allowed = ImageURLs(hosts=("cdn.example.org", ".Images.example"))
    assert "https from cdn.example.org and .Images.example that is public" in str(allowed)
    for url in ("https://example.org/a", "https://cdn.example.org.evil.example/a"):
        with pytest.raises(InputError, match="is not of an allowed host"):
            allowed.fetch(url)
    assert ImageURLs(hosts=("127.0.0.1",), schemes=("http",), private=True).fetch(f"{web}/image/")


def test_a_certificate_is_checked(web, certificates, monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "local.pem", certificates / "local.key")
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://127.0.0.1:{server.server_port}"
        with pytest.raises(InputError, match=r"could not be fetched: .*certificate verify failed"):
            HERE.fetch(f"{url}/image/")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
        assert HERE.fetch(f"{url}/image/") == png()
        with pytest.raises(InputError, match="redirects to http://127"):  # never back to plain text
            HERE.fetch(f"{url}/to/{web}/image/")
        server.shutdown()


def test_a_client_fetches_where_it_is_allowed_to(web):
    url = f"{web}/image/"
    with Server() as server:
        with Client(server.url) as client, pytest.raises(InputError, match="image_urls=True"):
            client.ask(url, "Why?")
        with Client(server.url, image_urls=True) as client, pytest.raises(InputError) as caught:
            client.ask(url, "Why?")
        assert "Allowed by image_urls: https from any host that is public" in str(caught.value)
        with Client(server.url, image_urls=HERE) as client:
            assert client.ask([url, png()], "Why?").text == "yes"

        async def ask():
            async with AsyncClient(server.url, image_urls=HERE) as client:
                return (await client.ask(url, "Why?")).text

        assert asyncio.run(ask()) == "yes"
        first, second = (request.raw_input_contents[0] for request in server.requests)
        assert first == bytes([200]) * 8 * 8 * 3 * 2
        assert second == bytes([200]) * 8 * 8 * 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ImageURLs(schemes=("file",)), r"schemes is \('file',\); expected some of"),
        (lambda: ImageURLs(schemes=()), "schemes is "),
        (lambda: ImageURLs(schemes="https"), "schemes is 'https'"),
        (lambda: ImageURLs(hosts="example.org"), "hosts is 'example.org'; expected a tuple"),
        (lambda: ImageURLs(max_bytes=0), "expected max_bytes above 0"),
        (lambda: ImageURLs(timeout_s=0), "timeout_s is 0"),
        (lambda: Client("h:1", image_urls="https"), "image_urls is 'https'; expected True, False"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()
