"""ComfyUI's own page, in this machine's Chromium, on the server of the other tests."""

import warnings

import pytest

from demo import browser


@pytest.fixture(scope="module")
def opened(server):
    """One page per module; without a Chromium the tests are skipped, with the reason."""
    reason = browser.missing()
    if reason:
        warning = f"{reason}: ComfyUI's page was NOT tested"
        warnings.warn(warning, stacklevel=1)
        pytest.skip(warning)
    with browser.Page(server) as page:
        yield page


@pytest.fixture
def page(opened):
    """The page, which must not have logged any error of this pack by the end of a test."""
    opened.complaints.clear()
    yield opened
    assert opened.of_ours() == []
    opened.close_dialogs()
