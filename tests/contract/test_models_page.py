"""docs/models.md says how each model was checked: every test that it names is there, and it names every one."""

import ast
import re

import pytest

from support import ROOT

FAMILIES = ROOT / "tests" / "support" / "model_families.py"
MODELS = ROOT / "tests" / "support" / "language_models.py"


def keys_of(path, name):
    """The keys of a dictionary that a file keeps under this name: read, not run, for it needs PyTorch."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and [target.id for target in node.targets] == [name]:
            return {ast.literal_eval(key) for key in node.value.keys}
    raise AssertionError(f"{path.name} has no {name}")


def rows():
    """(model, classes, what checks it) of every row."""
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").split("## The tests")[0]
    found = [re.split(r"\s*\|\s*", line.strip("| ")) for line in text.splitlines() if line.startswith("|")]
    assert found[0] == ["model", "class", "asks for", "checked by"]
    return [(model, set(re.findall("`(.*?)`", classes)), checked) for model, classes, _, checked in found[2:]]


def named(checked, word):
    """The keys behind a word in what checks a row."""
    found = re.findall(rf"\[?{word}\]?(?:\(#the-tests\))?: ((?:`\w+`(?:, )?)+)", checked)
    return {key for keys in found for key in re.findall("`(.*?)`", keys)}


@pytest.mark.parametrize(
    "word, path, name",
    [("models", MODELS, "FAMILIES"), ("families", FAMILIES, "FAMILIES")],
)
def test_the_page_names_the_tests_that_there_are(word, path, name):
    on_page = set().union(*(named(checked, word) for _, _, checked in rows()))
    assert on_page == keys_of(path, name)


@pytest.mark.parametrize("model, classes, checked", rows(), ids=lambda x: x if isinstance(x, str) else None)
def test_every_class_of_a_row_is_checked(model, classes, checked):
    by = set().union(*(named(checked, word) for word in ("models", "families")))
    assert by == classes
    assert bool(classes) == (checked != "no class")


def test_the_tests_go_through_all_of_them():
    text = (ROOT / "tests" / "kvit" / "transformers" / "test_families.py").read_text(encoding="utf-8")
    assert '@pytest.mark.parametrize("name", FAMILIES)' in text
    assert "pytest.skip" not in text.replace('pytest.skip("needs a GPU that PyTorch can use', "")
