"""Where the page has its controls: in the frontend that comes with the tested host, in the oldest or in the newest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


def run_button(page: Page) -> Locator:
    held = page.get_by_test_id("queue-button")
    return held.get_by_role("button", name="Run").or_(page.locator("button[data-testid=queue-button]")).first


def texts(page: Page) -> list[str]:
    """What stands in the pack's nodes."""
    return page.evaluate("() => [...document.querySelectorAll('.purecc-text')].map(box => box.textContent)")


def search_input(page: Page) -> Locator:
    """The box that a double click on the empty canvas opens."""
    own = page.locator(".comfy-vue-node-search-container .p-autocomplete input")
    return own.or_(page.get_by_placeholder("Add a node...")).first


def search_result(page: Page, text: str) -> Locator:
    own = page.locator(".p-autocomplete-option", has_text=text)
    return own.or_(page.get_by_test_id("result-item").filter(has_text=text)).first


def number(page: Page, widget: str) -> Locator:
    """The box of a number in the newer node design."""
    own = page.get_by_role("spinbutton", name=widget)
    row = page.get_by_test_id("node-widget").filter(has_text=widget).locator("input[role=spinbutton]")
    return own.or_(page.locator(f"[data-widget-name={widget}] input[role=spinbutton]")).or_(row).first


def cancel(page: Page) -> None:
    """By its button; newer pages that were loaded while the server worked have it in their list of jobs alone."""
    button = page.get_by_role("button", name="Cancel current run")
    if button.is_enabled():
        button.click()
    else:
        page.evaluate("() => app.api.interrupt()")
