"""The code that the page shows is run, and asks the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.serving.gateway.page import prompt_of, put_photo, set_option

NASTY = 'It\'s "$HOME" `ls` \\n 100% {x} é\nNext line?'


class TestCode:
    """The code that the page shows is run, and asks the same."""

    @pytest.fixture
    def code(self, page, photo):
        def write(language):
            page.wait("document.querySelector('#model').value")  # until then the code names none
            put_photo(page, photo)
            set_option(page, "max_tokens", "7")
            set_option(page, "num_beams", "3")
            set_option(page, "banned_words", "$HOME\nit's")
            page.evaluate(f"document.querySelector('#question').value = {json.dumps(NASTY)}")
            page.evaluate("document.querySelector('#call').open = true")
            page.evaluate(f"document.querySelector('[data-code={language}]').click()")
            return page.evaluate("document.querySelector('#code').textContent")

        return write

    @staticmethod
    def run(*arguments, photo):
        variables = {**os.environ, "PYTHONPATH": os.getcwd()}  # noqa: PTH109
        return subprocess.run(
            arguments, cwd=photo.parent, env=variables, capture_output=True, text=True, check=True
        ).stdout

    def check(self, server):
        (request,) = server.requests
        assert prompt_of(request) == NASTY
        assert request.parameters["max_new_tokens"].int64_param == 7
        assert request.parameters["num_beams"].int64_param == 3
        banned = json.loads(request.parameters["banned_words"].string_param)
        assert banned == ["$HOME", "it's"]

    @pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
    def test_curl(self, code, server, photo):
        told = self.run("bash", "-c", code("curl"), photo=photo)
        assert json.loads(told)["choices"][0]["message"]["content"] == "yes"
        self.check(server)

    def test_openais_client(self, code, server, photo):
        assert self.run(sys.executable, "-c", code("python"), photo=photo) == "yes\n"
        self.check(server)

    def test_the_projects_client(self, code, server, photo):
        text = code("iblip").replace("127.0.0.1:8001", server.url)
        assert self.run(sys.executable, "-c", text, photo=photo) == "yes\n"
        self.check(server)

    def test_it_is_copied(self, page, code):
        text = code("python")
        page.allow("clipboardReadWrite", "clipboardSanitizedWrite")
        page.evaluate("document.querySelector('#copy').focus()")
        page.press("Enter")
        page.wait("document.querySelector('#status').textContent === 'Copied.'")
        assert page.evaluate("navigator.clipboard.readText()") == text
