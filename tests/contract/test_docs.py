"""Pages that people read: short lines, links and paths that lead somewhere, and one word for each idea."""

import re

import pytest

from support import ROOT
from support.sources import sources

PAGES = [*sorted(path.relative_to(ROOT) for path in ROOT.glob("*.md")), *sources(".md", under=("docs", "examples"))]
MAX_COLUMNS = 100
MAX_ARCHITECTURE_LINES = 130  # three screens
FOLDERS = ("kernels/", "pyx/", "kvit/", "tests/", "docs/", "benchmarks/", "examples/")

# Words that had no standard meaning, or several, and what is said instead.
REPLACED = {
    r"strands?": "partitions",
    r"WorkLine": "TileScheduler",
    r"`Share`": "CtaRange",
    r"`Piece`": "WorkTile",
    r"WorkCursor": "WorkIterator",
    r"PieceMerge": "Combine",
    r"tensor cop(?:y|ies)": "TMA",
    r"Sm90(?:Line)?Copies|Sm80Copies": "tma, tma_packed, cp_async",
    r"copies = (?:async|tensor|lines)": "copies = cp_async, tma, tma_packed",
    r"by lines": "packed TMA",
    r"TakeTurn|has_turn": "GridDependencySync, is_synced",
    r"(?:before|after|until) (?:its|the|their) turn": "before the grid dependency sync",
    r"any_time": "pre_dependency",
    r"`Turns?`|turns of (?:a|the|its) (?:position|token)": "rotary angles",
    r"guess(?:es|ed)?": "speculative",
    r"Held": "ObjectRef, PinnedArgs",
    r"lends?|lent|borrow(?:s|ed)?": "export_array, import_array",
    r"let_go": "decref",
    r"octets?": "vec8",
    r"Entry|Entries|registry\.Entry": "KernelInfo",
    r"tuning(?!-<card>)": "selection, TileShape, cards",
    r"\w+Tuning": "TileShape",
    r"tokens=(?!\d)": "query_indptr=",
    r"(?:append|attention)\([^)\n]*\blengths=": "new_tokens=",
    r"Flatten|flatten\(|gather_into": "Gather, gather",
    r"[Gg]ather(?:\(view\))?\(view, table, (?!\*|out=|query_indptr=|layout=)\w+": "out=(k, v)",
    r"(?:is_done|is_capturing)\(\)": "is_done, is_capturing",
    r"has_lines|HasLines": "is_packed, IsPacked",
    r"op\.entry": "op.kernel",
    r"kvit\.(?:views|turbomind|vllm)": "kvit.layouts",
    r"kvit\.(?:registry|tuning)": "kvit.selection",
    r"kvit\.(?:transfer|maintenance|conversion|merging|rope)": "kvit.ops",
    r"kvit\.sequence": "kvit.cache.sequence",
    r"c_handle|cuda_handle": "handle",
}
# CHANGELOG.md names what there was.
SPEAKS_OF_OLD_NAMES = {"CHANGELOG.md"}


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def without_code(text):
    """The text with its fenced blocks emptied: same number of lines."""
    return re.sub(r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"), text, flags=re.MULTILINE | re.DOTALL)


def anchors_of(page):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*)$", without_code(text_of(page)), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()) for heading in headings)
    return {word.replace(" ", "-") for word in words}


def links_of(page):
    return re.findall(r"\]\(([^)\s]+)\)", without_code(text_of(page)))


def paths_of(text):
    """Paths of the tree, in backticks, drawings and blocks of code alike."""
    words = re.findall(rf"(?<![\w/.])(?:{'|'.join(FOLDERS)})[\w./-]*", text)
    return {word.rstrip(".") for word in words}


def old_words_in(text):
    # Whole words: where one ends in punctuation, whatever follows.
    found = ((re.finditer(rf"(?<!\w)(?:{word})(?:(?<!\w)|(?!\w))", text), said) for word, said in REPLACED.items())
    return [f"{match[0]}: say {said}" for matches, said in found for match in matches]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_lines_fit_a_screen(page):
    # A row of a table cannot be broken; a line of code can, and so can a drawing.
    lines = enumerate(text_of(page).splitlines(), 1)
    assert [f"{page}:{number}" for number, line in lines if len(line) > MAX_COLUMNS and not line.startswith("|")] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    for link in links_of(page):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} links to {link}, which does not exist"
        if anchor:
            assert anchor in anchors_of(target), f"{page} links to {link}, which has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_paths_exist(page):
    missing = [path for path in paths_of(text_of(page)) if not (ROOT / path).exists()]
    assert sorted(missing) == [], f"{page} names files or folders that the tree does not have"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in SPEAKS_OF_OLD_NAMES], ids=str)
def test_pages_speak_of_things_by_their_one_name(page):
    assert old_words_in(text_of(page)) == []


def test_the_words_are_found_where_they_stand():
    # Checks of a word that matches nothing, or everything, would pass or fail whatever the pages say.
    assert old_words_in("there are four strands") == ["strands: say partitions"]
    assert old_words_in("op(q, view, table, tokens=indptr)") == ["tokens=: say query_indptr="]
    assert old_words_in("cache.append([a, b], k, v, lengths=[1, 2])") == [
        "append([a, b], k, v, lengths=: say new_tokens="
    ]
    assert old_words_in("Gather(view)(view, table, k, v)") == ["Gather(view)(view, table, k: say out=(k, v)"]
    assert old_words_in("while not event.is_done(): wait()") == ["is_done(): say is_done, is_capturing"]
    assert old_words_in("kvit.views, kvit.transfer") == ["kvit.views: say kvit.layouts", "kvit.transfer: say kvit.ops"]
    assert old_words_in("tokens=64, split_tokens=512, max_new_tokens=4, new_tokens=[1, 2]") == []
    assert old_words_in("cache.append([a], k, v); PageTable(pages, lengths=n); kvit.transformers, kvit.Rope") == []
    assert old_words_in("Gather(view)(view, table, out=(k, v), layout='HND'); cache.gather(seqs, out=(k, v))") == []
    assert old_words_in("what a warp held, by the lines") == []


def test_paths_and_links_are_found_where_they_stand():
    assert paths_of("`kvit/cache/`, see kernels/abi/params.h.") == {"kvit/cache/", "kernels/abi/params.h"}
    assert "two-backends" in anchors_of("docs/build.md")
    assert "scheduling.md" in links_of("docs/architecture.md")


def test_the_architecture_fits_three_screens():
    assert len(text_of("docs/architecture.md").splitlines()) <= MAX_ARCHITECTURE_LINES


def test_the_readme_and_the_architecture_draw_the_same_flow():
    flow = re.compile(r"^    kvit\.attention\(q.*?(?=^\S)", re.MULTILINE | re.DOTALL)
    drawn = [found[0] for page in ("README.md", "docs/architecture.md") for found in flow.finditer(text_of(page))]
    assert len(drawn) == 2 and drawn[0] == drawn[1]


def test_every_page_of_docs_is_reached_from_the_readme():
    reached, ahead = set(), {ROOT / "README.md"}
    while ahead:
        page = ahead.pop()
        reached.add(page)
        links = (link.partition("#")[0] for link in links_of(page) if "://" not in link)
        found = {(page.parent / link).resolve() for link in links if link.endswith(".md")}
        ahead |= found - reached
    docs = {ROOT / page for page in PAGES if page.parts[0] == "docs"}
    assert docs and docs <= reached
