"""How the page looks, and what a screen reader finds on it."""

from __future__ import annotations

import re

import pytest

from tests.serving.client.scripted import REFUSED
from tests.serving.gateway.page import READY, ask, home, put_photo, with_logprobs

CONTRASTS = """\
(() => {
  const parsed = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const linear = v => v <= 10.3 ? v / 3294 : ((v / 255 + 0.055) / 1.055) ** 2.4;
    const [x, y, z] = [r, g, b].map(linear);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const paper = element => {
    for (; element; element = element.parentElement) {
      const colour = parsed(getComputedStyle(element).backgroundColor);
      if (colour.length === 3) return colour;
      if (colour[3] !== 0) throw new Error(`${element.tagName} is translucent`);
    }
    throw new Error("no background");
  };
  const found = [];
  const add = (element, colour, words) => {
    const [a, b] = [light(parsed(colour)), light(paper(element))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), words.trim().slice(0, 40)]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    const isSeen = element.checkVisibility() && !element.closest(".unseen, script");
    if (isSeen && node.data.trim()) add(element, getComputedStyle(element).color, node.data);
  }
  for (const field of document.querySelectorAll("input, textarea, select")) {
    if (!field.checkVisibility() || field.matches(".unseen, [type=checkbox]")) continue;
    add(field, getComputedStyle(field).color, field.id);
    const placeholder = getComputedStyle(field, "::placeholder").color;
    if (field.placeholder) add(field, placeholder, field.placeholder);
  }
  return found;
})()
"""


def show_everything(page, server, photo):
    """An answer with tokens, one with candidates, an error, and every part opened."""
    put_photo(page, photo)
    page.evaluate("document.querySelector('#probabilities').click()")
    server.script += [with_logprobs("A", " cat", " " + "sits" * 60), REFUSED]
    ask(page, "What is " + "w" * 120)
    ask(page)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.evaluate("complain('Something is wrong.')")
    page.wait("document.querySelector('#code').textContent")


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast(browser, running, server, photo, dark):
    with browser.page(home(running), dark=dark) as page:
        page.wait(READY)
        show_everything(page, server, photo)
        page.evaluate("document.querySelector('#cancel').hidden = false")
        found = page.evaluate(CONTRASTS)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert len(found) > 100
    assert min(found)[0] >= 4.5, sorted(found)[:5]
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) is dark


@pytest.mark.parametrize("width", [360, 800, 1280])
def test_nothing_is_wider_than_the_screen(browser, running, server, photo, width):
    with browser.page(home(running), width=width, height=740, touch=width == 360) as page:
        page.wait(READY)
        show_everything(page, server, photo)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate("innerWidth") == width
        beyond = page.evaluate(
            "[...document.querySelectorAll('body *')].filter(one => one.checkVisibility() &&"
            " !one.closest('pre, .unseen') && one.getBoundingClientRect().right > innerWidth + 0.5)"
            ".map(one => one.outerHTML.slice(0, 80))"
        )
        assert beyond == []
        is_photograph = page.evaluate("document.querySelector('.photograph').checkVisibility()")
        assert is_photograph is (width == 360)


def test_every_control_has_a_name_for_screen_readers(browser, running, server, photo):
    with browser.page(home(running), touch=True) as page:
        page.wait(READY)
        show_everything(page, server, photo)
        nodes = page.names()
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
        titles = page.evaluate("[document.title, document.documentElement.lang]")
    controls = ("button", "textbox", "combobox", "checkbox", "spinbutton", "link", "searchbox")
    named = (*controls, "DisclosureTriangle", "table", "region", "form", "columnheader")
    roles = {role for role, _ in nodes}
    assert {"button", "textbox", "combobox", "checkbox", "spinbutton", "table", "heading"} <= roles
    assert {"main", "status", "alert", "form", "region"} <= roles
    assert [node for node in nodes if node[0] in named and not node[1].strip()] == []
    names = [name for role, name in nodes if role in controls]
    assert len(names) > 35
    for name in ("Choose an image", "Take a photo", "Question", "Model", "Ask"):
        assert any(one.startswith(name) for one in names)
    assert ("image", f"Your image, {photo.name}") in nodes
    assert len(ids) == len(set(ids))
    assert titles == ["Ask about an image", "en"]
