"""The page at `/` in a real Chromium, before a server that does as it is told."""

from __future__ import annotations

import base64
import json
import re
import threading
from hashlib import sha256

import pytest

from iblip.serving.cli.gateway import command
from iblip.serving.gateway.callers import Caller, Callers
from iblip.serving.gateway.parameters import PARAMETERS, Nothing
from tests.browser import SHIFT
from tests.serving.client.scripted import REFUSED, Server, say
from tests.serving.gateway.page import (
    ASKED,
    READY,
    ask,
    focused,
    home,
    prompt_of,
    put_photo,
    set_option,
    with_logprobs,
)
from tests.serving.gateway.running import gateway

KEY = "0123456789abcdef"


class Slowly:
    """Says the next piece whenever it is told to, and then the end."""

    def __init__(self, *pieces):
        self._pieces, self._steps = pieces, threading.Semaphore(0)
        self.gone = threading.Event()

    def step(self):
        self._steps.release()

    def leave(self):
        self.gone.set()
        self.step()

    def __call__(self, context):
        if not context.add_callback(self.leave):
            self.leave()
        for one in say(*self._pieces)(context):
            self._steps.acquire(timeout=60)
            yield one


class TestResponse:
    """What is sent, without a browser."""

    def test_the_policy_allows_the_script_and_style_of_the_file_and_nothing_else(self, running):
        status, headers, html = running.send("GET", "/", accept="text/html,*/*;q=0.8")
        assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
        policy = headers["content-security-policy"]
        directives = dict(one.strip().partition(" ")[::2] for one in policy.split(";"))
        for tag, directive in (("script", "script-src"), ("style", "style-src")):
            (content,) = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>".encode(), html, re.DOTALL)
            digest = base64.b64encode(sha256(content).digest()).decode()
            assert directives[directive] == f"'sha256-{digest}'"
        assert "unsafe" not in policy
        assert directives["default-src"] == "'none'"
        assert directives["connect-src"] == "'self'"
        assert directives["frame-ancestors"] == "'none'"
        assert not re.search(rb"\b(?:src|href|action)=\"(?!data:)", html)
        assert not re.search(rb"\son\w+=|style=", html.partition(b"<script>")[0])

    def test_a_browser_that_has_it_is_sent_nothing(self, running):
        etag = running.send("GET", "/", accept="text/html")[1]["etag"]
        status, headers, body = running.send("GET", "/", accept="text/html", if_none_match=etag)
        assert (status, body, headers["vary"]) == (304, b"", "accept")

    def test_programs_get_the_paths(self, running):
        assert "/v1/models" in json.loads(running.send("GET", "/", accept="*/*")[2])["paths"]

    def test_it_can_be_switched_off(self, server, monkeypatch):
        with gateway(server.url, page=False) as without:
            status, headers, _ = without.send("GET", "/", accept="text/html")
            assert (status, headers["content-type"]) == (200, "application/json")
        assert self.page_of("x")
        assert not self.page_of("x", "--no-page")
        monkeypatch.setenv("IBLIP_GATEWAY_PAGE", "0")
        assert not self.page_of("x")

    @staticmethod
    def page_of(*arguments):
        """The option, as the command line and the environment give it."""
        context = command.make_context("x", [*arguments], auto_envvar_prefix="IBLIP_GATEWAY")
        return context.params["page"]


def test_asking_by_keyboard_alone(page, server, photo):
    server.script.append(say("A", " cat"))
    page.call("Page.setInterceptFileChooserDialog", enabled=True)
    page.press("Tab")
    assert focused(page) == "file"
    page.press("Space")
    chooser = page.event("Page.fileChooserOpened")
    page.call("DOM.setFileInputFiles", files=[str(photo)], backendNodeId=chooser["backendNodeId"])
    page.wait("!document.querySelector('#shown').hidden")
    page.press("Tab")
    assert focused(page) == "question"
    page.evaluate("document.activeElement.select()")
    page.write("What is it?")
    page.press("Enter", SHIFT)
    page.write("Say.")
    page.press("Enter")
    page.wait(f"{ASKED} && document.querySelector('.facts')")
    assert page.evaluate("document.querySelector('.answer').textContent") == "A cat"
    assert prompt_of(server.requests[0]) == "What is it?\nSay."
    assert focused(page) == "question"  # and the next question replaces this one
    page.write("Where?")
    page.press("Enter")
    page.wait(f"{ASKED} && document.querySelectorAll('.facts').length === 2")
    assert [prompt_of(one) for one in server.requests[1:]] == ["Where?"]
    assert page.evaluate("document.querySelector('.answer').textContent") == "yes"


def test_focus_goes_through_the_form_in_order_and_is_seen(page):
    seen = []
    for _ in range(8):
        page.press("Tab")
        seen.append(
            page.evaluate(
                "(() => { const at = document.activeElement, mark = at.id === 'file' ?"
                " document.querySelector('label[for=file]') : at;"
                " return [at.id || at.parentElement.id, getComputedStyle(mark).outlineStyle]; })()"
            )
        )
    order = [name for name, _ in seen]
    assert order[:6] == ["file", "question", "model", "go", "options", "call"]
    assert {style for _, style in seen[:6]} == {"solid"}


def test_an_answer_appears_in_pieces(page, server, photo):
    slowly = Slowly("A", " cat", " sits")
    server.script.append(slowly)
    put_photo(page, photo)
    page.evaluate("document.querySelector('#go').click()")
    page.wait("document.querySelector('.answer')")
    answer = "document.querySelector('.answer')"
    for text in ("A", "A cat", "A cat sits"):
        slowly.step()
        page.wait(f"{answer}.textContent === {text!r}")
        assert page.evaluate(f"[{answer}.ariaLive, {answer}.ariaBusy]") == ["polite", "true"]
    slowly.step()
    page.wait(ASKED)
    assert page.evaluate(f"{answer}.ariaBusy") == "false"
    assert "x has answered, in" in page.evaluate("document.querySelector('#status').textContent")


@pytest.mark.parametrize("way", ["Escape", "button"])
def test_a_question_can_be_cancelled(page, server, photo, way):
    slowly = Slowly("A", " cat")
    server.script.append(slowly)
    put_photo(page, photo)
    page.evaluate("document.querySelector('#go').click()")
    slowly.step()
    page.wait("document.querySelector('.answer')?.textContent === 'A'")
    if way == "Escape":
        page.press("Escape")
    else:
        page.evaluate("document.querySelector('#cancel').click()")
    page.wait(ASKED)
    assert slowly.gone.wait(30)
    assert "Cancelled." in page.text
    ask(page, "Again?")
    assert page.evaluate("document.querySelector('.answer').textContent") == "yes"


def test_errors_are_in_words(page, server, running, photo):
    ask(page)
    assert "Choose an image first." in page.text
    put_photo(page, photo)
    for act, words in (
        (REFUSED, "8 requests wait; try again later. Try again in 1 s."),
        (say("A", " cat", error="EngineError: it broke"), "It broke."),
    ):
        server.script.append(act)
        ask(page)
        assert words in page.evaluate("document.querySelector('article [role=alert]').textContent")
    assert page.evaluate("document.querySelector('.answer').textContent") == "A cat"


def test_an_error_of_an_option_leads_to_its_field(page, server, photo):
    put_photo(page, photo)
    set_option(page, "num_beams", "65")
    ask(page)
    assert "64" in page.evaluate("document.querySelector('#fault').textContent")
    assert focused(page) == "option-num_beams"
    assert server.requests == []
    set_option(page, "num_beams", "")
    set_option(page, "logit_bias", "13")
    ask(page)
    assert page.evaluate("document.querySelector('#option-logit_bias').ariaInvalid") == "true"
    assert focused(page) == "option-logit_bias"
    assert "logit_bias is 13" in page.text


def test_a_gateway_that_is_gone(browser, server, photo):
    with gateway(server.url) as running, browser.page(home(running)) as page:
        page.wait(READY)
        put_photo(page, photo)
        page.call("Network.emulateNetworkConditions", offline=True, latency=0,
                  downloadThroughput=-1, uploadThroughput=-1)  # fmt: skip
        ask(page)
        assert "The gateway cannot be reached." in page.text


def test_a_key_is_asked_for_and_not_stored(browser, server, photo):
    callers = Callers({sha256(KEY.encode()).digest(): Caller(name="web")})
    with gateway(server.url, callers=callers) as running, browser.page(home(running)) as page:
        page.wait(READY)
        put_photo(page, photo)
        ask(page)
        assert "Write your key first." in page.text
        assert focused(page) == "key"
        page.write("another")
        page.press("Enter")
        refused = "document.querySelector('#fault').textContent.includes('needs a key')"
        page.wait(f"{refused} && {ASKED}")
        page.evaluate("document.querySelector('#key').select()")
        page.write(KEY)
        ask(page)
        assert page.evaluate("document.querySelector('.answer').textContent") == "yes"
        assert running.entry()["caller"] == "web"
        page.evaluate("document.querySelector('#call').open = true")
        page.wait("document.querySelector('#code').textContent.includes('Bearer $KEY')")
        assert KEY not in page.text
        assert KEY not in page.evaluate("JSON.stringify({...localStorage, ...sessionStorage})")


def test_two_models_are_compared(browser, server, photo):
    with (
        Server() as second,
        gateway(server.url, name="first", others={"second": second.url}) as both,
    ):
        slowly = Slowly("one")
        server.script.append(slowly)
        second.script.append(say("two"))
        with browser.page(home(both)) as page:
            page.wait(READY)
            put_photo(page, photo)
            page.wait("document.querySelector('#other [value=second]')")
            page.evaluate("document.querySelector('#other').value = 'second'")
            page.evaluate("document.querySelector('#go').click()")
            page.wait("document.querySelectorAll('.facts').length === 1")  # waits for none
            slowly.step()
            slowly.step()
            page.wait(ASKED)
            sides = page.evaluate(
                "[...document.querySelectorAll('.side')].map(side => [side.ariaLabel,"
                " side.querySelector('.answer').textContent, side.getBoundingClientRect().top])"
            )
        assert [side[:2] for side in sides] == [["first", "one"], ["second", "two"]]
        assert sides[0][2] == sides[1][2]  # side by side
        assert prompt_of(server.requests[0]) == prompt_of(second.requests[0])


def test_one_model_is_compared_with_none(page):
    assert page.evaluate("document.querySelector('#comparison').hidden")


def test_every_option_of_the_gateway_has_a_field_and_reaches_the_server(page, server, photo):
    left_out = {"model", "messages", "stream", "stream_options", "logprobs", "top_logprobs"}
    left_out |= {"response_format", "timeout", "max_completion_tokens", "max_new_tokens"}
    unused = {name for name, one in PARAMETERS.items() if "has no effect" in one.help}
    refused = {name for name, one in PARAMETERS.items() if isinstance(one.kind, Nothing)}
    fields = page.evaluate(
        "[...document.querySelectorAll('[id^=option-]')].map(one => one.id.slice(7))"
    )
    assert set(fields) == PARAMETERS.keys() - left_out - unused - refused
    put_photo(page, photo)
    for name, value in {
        "max_tokens": "7",
        "temperature": "0.5",
        "seed": "3",
        "stop": "one\ntwo",
        "echo": "true",
        "logit_bias": '{"13": -5}',
    }.items():
        set_option(page, name, value)
    page.evaluate("document.querySelector('#probabilities').click()")
    ask(page)
    (request,) = server.requests
    given = request.parameters
    assert given["max_new_tokens"].int64_param == 7
    assert given["temperature"].double_param == 0.5
    assert given["seed"].int64_param == 3
    assert json.loads(given["stop"].string_param) == ["one", "two"]
    assert given["echo"].bool_param
    assert json.loads(given["logit_bias"].string_param) == {"13": -5}
    assert given["logprobs"].int64_param == 5
    page.go(page.evaluate("location.href") + "?again")
    page.wait(READY)
    assert page.evaluate("document.querySelector('#option-stop').value") == "one\ntwo"
    page.evaluate("document.querySelector('#reset').click()")
    assert page.evaluate("document.querySelector('#option-stop').value") == ""


def test_only_options_are_stored_and_nothing_leaves_the_origin(page, running, server, photo):
    put_photo(page, photo)
    ask(page, "a secret question")
    stored = json.loads(page.evaluate("JSON.stringify({...localStorage})"))
    assert stored.keys() <= {"iblip options"}
    assert not any("secret" in value or "photo" in value for value in stored.values())
    assert page.evaluate("sessionStorage.length + document.cookie.length") == 0
    assert page.evaluate("indexedDB.databases().then(all => all.length)") == 0
    asked = [event["request"]["url"] for event in page.events("Network.requestWillBeSent")]
    sent = [url for url in asked if not url.startswith("data:")]
    assert all(url.startswith(home(running)) for url in sent)
    assert len(sent) >= 4
    assert page.events("Log.entryAdded") == []  # such as what the policy refuses
    assert page.events("Runtime.exceptionThrown") == []
    refused = page.evaluate(
        "new Promise(done => { document.addEventListener('securitypolicyviolation',"
        " event => done(event.effectiveDirective)); fetch('https://example.org').catch(() => 0); })"
    )
    assert refused == "connect-src"


def test_timings_and_token_probabilities(page, server, photo):
    server.script.append(with_logprobs("A", " cat", seed=17))
    put_photo(page, photo)
    page.evaluate("document.querySelector('#probabilities').click()")
    ask(page)
    for words in ("2 tokens", "4 tokens/s", "seed 17", "cut off"):
        assert words in page.text
    phases = page.evaluate("document.querySelector('.phases').innerText.split(/\\s*\\n\\s*/)")
    assert phases == ["image", "40 ms", "queue", "2.0 ms", "prompt", "20 ms", "answer", "500 ms"]
    rows = page.evaluate(
        "[...document.querySelectorAll('.tokens tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    )
    assert [row[:2] for row in rows] == [["#0", "100 %"], ["#1", "90.5 %"]]
    assert rows[0][2].split() == ["#90", "5.0", "%"]


def test_an_image_may_be_dropped_or_pasted(page, server, photo):
    drag = {"items": [], "files": [str(photo)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        page.call("Input.dispatchDragEvent", type=kind, x=600, y=400, data=drag)
    page.wait("!document.querySelector('#shown').hidden")
    assert photo.name in page.text
    page.evaluate(
        "(() => { const clipboardData = new DataTransfer();"
        " clipboardData.items.add(new File(['x'], 'pasted.png', {type: 'image/png'}));"
        " document.dispatchEvent(new ClipboardEvent('paste', {clipboardData})); })()"
    )
    page.wait("document.querySelector('#filename').textContent.startsWith('pasted.png')")
    ask(page)
    assert "not an image" in page.text.lower()
    assert server.requests == []


def test_earlier_questions_go_along_only_if_asked_to(page, server, photo):
    put_photo(page, photo)
    ask(page, "One?")
    page.evaluate("document.querySelector('#conversation').click()")
    ask(page, "Two?")
    alert = page.evaluate("document.querySelector('article [role=alert]').textContent")
    assert "one question at a time" in alert  # the model behind it is BLIP-2
    assert [prompt_of(one) for one in server.requests] == ["One?"]
