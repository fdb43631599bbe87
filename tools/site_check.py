"""Look at every page of the built site in headless Chromium: `make site-test`.

Each page is opened once and looked at with 1280 and 390 pixels, light and dark: no console error,
no request to another host, no broken link or anchor, no horizontal scroll, alternative text on
every picture. The search finds words, a folded solution opens. Screenshots go to build/site-shots.
"""

import functools
import http.server
import shutil
import sys
import threading
from pathlib import Path
from urllib.parse import urldefrag, urljoin

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "build" / "site"
SHOTS = ROOT / "build" / "site-shots"
WIDTHS = (1280, 390)
PATIENCE = 180_000  # ms; a busy machine is no fault of a page
SEARCHES = ("anisotropy", "QLoRA")


def serve() -> tuple[http.server.ThreadingHTTPServer, str]:
    """Serve the site on a free local port."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(SITE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/"


def pages() -> list[str]:
    """Addresses of all pages, relative to the site."""
    names = (path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
    return sorted(name for name in names if not name.startswith("_"))


WEIGHT = """(() => {
  const loaded = [...performance.getEntriesByType('navigation'),
    ...performance.getEntriesByType('resource')];
  const paint = performance.getEntriesByName('first-contentful-paint')[0];
  return [loaded.reduce((sum, one) => sum + one.decodedBodySize, 0), paint ? paint.startTime : 0];
})()"""


class Page:
    """One page in the browser, with what went wrong."""

    def __init__(self, browser, base: str, name: str):
        self.name = name
        self.problems: list[str] = []
        self.page = browser.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("request", lambda request: self._request(request.url, base))

    def _console(self, message) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text[:200]}")

    def _request(self, url: str, base: str) -> None:
        if not url.startswith((base, "data:", "blob:")):
            self.problems.append(f"asks another host: {url[:120]}")

    def look(self, width: int, scheme: str) -> None:
        """Check layout and pictures at a width in a colour scheme, and take a screenshot."""
        self.page.emulate_media(color_scheme=scheme)
        self.page.set_viewport_size({"width": width, "height": 900})
        follows = "scheme => document.documentElement.dataset.theme === scheme"
        self.page.wait_for_function(follows, arg=scheme)
        self.page.wait_for_timeout(300)
        wide = self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        if wide > 1:
            self.problems.append(f"{width} px, {scheme}: scrolls sideways by {wide} px")
        bare = self.page.evaluate(
            "[...document.querySelectorAll('.bd-article img')].filter(i => !i.alt).length"
        )
        if bare:
            self.problems.append(f"{bare} pictures without alternative text")
        shot = f"{self.name.replace('/', '_')}-{width}-{scheme}.png"
        self.page.screenshot(path=SHOTS / shot)

    def links(self) -> list[str]:
        """All link targets within the site."""
        return self.page.evaluate("[...document.querySelectorAll('a[href]')].map(a => a.href)")


def check_links(found: dict[str, list[str]], base: str, anchors: dict[str, set[str]]) -> list[str]:
    """Links of the site that lead nowhere."""
    problems = []
    for name, links in found.items():
        for link in sorted(set(links)):
            url, anchor = urldefrag(urljoin(base + name, link))
            if not url.startswith(base):
                continue
            target = url[len(base) :].partition("?")[0] or "index.html"
            if not (SITE / target).is_file():
                problems.append(f"{name}: link to {target}, which is not there")
            elif anchor and target in anchors and anchor not in anchors[target]:
                problems.append(f"{name}: no anchor {anchor!r} in {target}")
    return problems


def check(playwright) -> tuple[list[str], str]:
    """All problems of all pages; what the heaviest lesson weighs and when it shows something."""
    from playwright.sync_api import TimeoutError

    server, base = serve()
    browser = playwright.chromium.launch(
        executable_path=shutil.which("chromium"), args=["--no-sandbox"]
    )
    problems: list[str] = []
    found: dict[str, list[str]] = {}
    anchors: dict[str, set[str]] = {}
    weights: dict[str, tuple[float, float]] = {}
    SHOTS.mkdir(parents=True, exist_ok=True)
    for name in pages():
        shown = Page(browser, base, name)
        try:
            shown.page.goto(base + name, wait_until="load")
            for width in WIDTHS:
                for scheme in ("light", "dark"):
                    shown.look(width, scheme)
            found[name] = shown.links()
            ids = shown.page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
            anchors[name] = set(ids)
            weights[name] = shown.page.evaluate(WEIGHT)
        except TimeoutError as error:  # the other pages are looked at all the same
            shown.problems.append(error.message.splitlines()[0])
        problems += [f"{name}: {problem}" for problem in dict.fromkeys(shown.problems)]
        shown.page.close()
    problems += check_links(found, base, anchors)
    try:
        problems += _search_and_fold(browser, base)
    except TimeoutError as error:
        problems.append(f"search and folded cells: {error.message.splitlines()[0]}")
    browser.close()
    server.shutdown()
    lessons = {name: of for name, of in weights.items() if name.startswith("notebooks/")}
    if not lessons:
        return problems, "no lesson was loaded"
    name, (size, paint) = max(lessons.items(), key=lambda item: item[1][0])
    heaviest = (
        f"the heaviest lesson: {name}, {size / 1e6:.1f} MB with all that it loads, first paint "
        f"after {paint:.0f} ms (from this machine, uncompressed)"
    )
    return problems, heaviest


def _search_and_fold(browser, base: str) -> list[str]:
    problems = []
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    for word in SEARCHES:
        page.goto(f"{base}search.html?q={word}")
        try:
            page.wait_for_selector("#search-results li", timeout=PATIENCE)
        except Exception:
            problems.append(f"the search finds nothing for {word!r}")
    page.goto(f"{base}notebooks/00_quickstart.html")
    folded = page.locator("details.hide").last
    if folded.count() == 0:
        problems.append("no folded solution in 00")
    else:
        folded.locator("summary").click()
        if not folded.evaluate("element => element.open"):
            problems.append("a folded solution does not open")
    page.close()
    return problems


def main() -> int:
    if not shutil.which("chromium"):
        print("skipped: there is no Chromium here (Debian: apt install chromium)")
        return 0
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        problems, heaviest = check(playwright)
    for problem in problems:
        print(problem)
    print(f"{len(pages())} pages, {len(problems)} problems; {heaviest}")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
