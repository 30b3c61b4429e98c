import json

import pytest
from trust import page


def test_writing_a_part_leaves_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "FIGURES", tmp_path / "trust.json")
    monkeypatch.setattr(page, "PAGE", tmp_path / "TRUST.md")
    page.put(page.Part("soak", "Soak", "make soak", "About.", [("runs", "3")]))
    page.put(page.Part("fuzz", "Fuzz", "make fuzz", "About.", [("files", "1")]))
    page.put(page.Part("fuzz", "Fuzz", "make fuzz", "About.", [("files", "2")]))
    text = (tmp_path / "TRUST.md").read_text()
    assert text.index("| files | 2 |") < text.index("| runs | 3 |") and "| files | 1 |" not in text
    assert list(json.loads((tmp_path / "trust.json").read_text())) == ["fuzz", "soak"]
    with pytest.raises(ValueError, match="fuzzy"):
        page.put(page.Part("fuzzy", "", "", "", []))


def test_the_page_agrees_with_its_figures():
    if page.FIGURES.is_file():
        figures = json.loads(page.FIGURES.read_text())
        assert page.PAGE.read_text() == page.page({n: page.Part(n, **p) for n, p in figures.items()})
