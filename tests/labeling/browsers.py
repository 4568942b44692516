"""A headless Chromium of the system, driven by Playwright. Nothing is downloaded."""

import contextlib
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@contextlib.contextmanager
def browser():
    """Starts the browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield found
        finally:
            found.close()


@contextlib.contextmanager
def open_page(browser, url, viewport=DESKTOP, **options):
    """Opens a page in a session of its own, and fails if its console reports an error or a script of a text runs."""
    context = browser.new_context(viewport=viewport, **options)
    page, problems = context.new_page(), []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.set_default_timeout(10_000)
    page.goto(url)
    yield page
    context.close()
    assert not problems, problems
