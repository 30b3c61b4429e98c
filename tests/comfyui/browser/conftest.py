"""ComfyUI's own page, in the Chromium of this machine, on the server of the tests around."""

import warnings

import pytest

from demo import browser


@pytest.fixture(scope="module")
def opened(server):
    """One page for a module; skips, saying so, where there is no Chromium."""
    reason = browser.missing()
    if reason:
        told = f"{reason}: ComfyUI's page was NOT tested"
        warnings.warn(told, stacklevel=1)
        pytest.skip(told)
    with browser.Page(server) as page:
        yield page


@pytest.fixture
def page(opened):
    """The page, which must have had nothing to complain of in this pack when a test is over."""
    opened.complaints.clear()
    yield opened
    assert opened.of_ours() == []
    opened.close_dialogs()
