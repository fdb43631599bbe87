"""Build the slide decks: build/slides/NN_name.html and, where there is Chromium, .pdf.

Marp (npm) turns Markdown into slides; it is installed into build/marp at the version below.
Chromium also looks at every slide: nothing may be larger than its slide.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.notebooks import rules
from tools.slides import deck

MARP = "@marp-team/marp-cli@4.5.1"
TOOL = rules.ROOT / "build" / "marp"
TARGET = rules.ROOT / "build" / "slides"
THEME = deck.SOURCES / "theme.css"
FITS = """[...document.querySelectorAll('section')].map(s => [
  s.scrollHeight - s.clientHeight, s.scrollWidth - s.clientWidth,
  ...[...s.querySelectorAll('table, pre, img, p, li')].map(e =>
    e.getBoundingClientRect().bottom - s.getBoundingClientRect().bottom + 20)])"""


def install() -> Path:
    """Marp's command, fetched once."""
    command = TOOL / "node_modules" / ".bin" / "marp"
    stamp = TOOL / "version"
    if not command.exists() or not stamp.exists() or stamp.read_text() != MARP:
        if not shutil.which("npm"):
            sys.exit(
                "slides are made with Marp, which needs Node.js and npm (Debian: apt install npm)"
            )
        TOOL.mkdir(parents=True, exist_ok=True)
        options = ["--no-save", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(["npm", "install", "--prefix", TOOL, *options, MARP], check=True)
        stamp.write_text(MARP)
    return command


def marp(command: Path, folder: Path, *options: str) -> None:
    """Turn all decks of a folder into build/slides, or where the options say."""
    env = os.environ | {"CHROME_NO_SANDBOX": "1"}
    if chromium := shutil.which("chromium"):
        env["CHROME_PATH"] = chromium
    given = ["--input-dir", folder, "--theme-set", THEME, "--html", "--no-stdin", *options]
    subprocess.run([command, *given], env=env, check=True, capture_output=True, text=True)


def too_large(folder: Path) -> list[str]:
    """Slides of a folder of plain HTML decks that hold more than fits on them."""
    from playwright.sync_api import sync_playwright

    problems = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.on("request", lambda asked: _local(asked.url, problems))
        for path in sorted(folder.glob("*.html")):
            page.goto(path.as_uri(), wait_until="load")
            for number, over in enumerate(page.evaluate(FITS), 1):
                if max(over) > 1:
                    problems.append(f"{path.stem}, slide {number}: {max(over):.0f} px too large")
        browser.close()
    return problems


def _local(url: str, problems: list[str]) -> None:
    if not url.startswith(("file:", "data:", "blob:")):
        problems.append(f"asks another host: {url[:120]}")


def main() -> int:
    command = install()
    chromium = shutil.which("chromium")
    shutil.rmtree(TARGET, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        folder, bare = Path(name) / "decks", Path(name) / "bare"
        folder.mkdir()
        for path, lesson in deck.decks():
            try:
                text = deck.build(path, lesson)
            except deck.SlideError as error:
                sys.exit(str(error))
            (folder / f"{lesson.stem}.md").write_text(text, encoding="utf-8")
        marp(command, folder, "--output", str(TARGET))
        problems = []
        if chromium:
            marp(command, folder, "--output", str(TARGET), "--pdf", "--allow-local-files")
            marp(command, folder, "--output", str(bare), "--template", "bare")
            problems = too_large(bare)
        else:
            print("no PDF and no look at the slides: there is no Chromium (apt install chromium)")
    print("\n".join([*problems, f"{len(deck.decks())} decks in {rules.show(TARGET)}"]))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
