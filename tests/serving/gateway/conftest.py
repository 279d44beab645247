"""A gateway before a server that says what a test wrote, and the page that it shows."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from tests.browser import running_browser
from tests.serving.client.scripted import Server
from tests.serving.gateway.page import READY, home
from tests.serving.gateway.running import gateway

browser = pytest.fixture(scope="module")(running_browser)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A file of an awkward name."""
    path = tmp_path_factory.mktemp("photo") / 'it\'s a "photo".png'
    Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3)).save(path)
    return path


@pytest.fixture
def server():
    with Server() as server:
        yield server


@pytest.fixture
def running(server):
    with gateway(server.url) as running:
        yield running


@pytest.fixture
def page(browser, running):
    with browser.page(home(running)) as page:
        page.wait(READY)
        yield page
