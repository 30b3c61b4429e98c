"""Report at the end of a run which tests were skipped, and why.

Where NEED_BROWSER is set (.ci/run), a skipped browser test is an error."""

import os
from collections import Counter
from pathlib import Path

import pytest

BROWSER = Path(__file__).parent / "comfyui" / "browser"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Turn a skipped browser test into a failure where NEED_BROWSER is set."""
    report = yield
    if report.skipped and os.environ.get("NEED_BROWSER") and BROWSER in item.path.parents:
        report.outcome, report.longrepr = (
            "failed",
            f"NEED_BROWSER is set, but this was skipped: {skip_reason(report)}",
        )
    return report


def skip_reason(report: pytest.TestReport) -> str:
    """Return the reason of a skip, which says what the test needs in order to run."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Print the skipped tests just above pytest's closing line."""
    yield
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(
        (Path(report.nodeid.split("::")[0]).parent.as_posix(), skip_reason(report)) for report in skipped
    )
    if not reasons:
        return
    terminalreporter.section("NOT TESTED HERE", red=True, bold=True)
    for (folder, reason), count in reasons.most_common():
        terminalreporter.write_line(f"SKIPPED: {count} test{'s' * (count > 1)} of tests/{folder}: {reason}")
