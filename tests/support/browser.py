"""A page as headless Chromium shows it: its console, what sticks out of it, a picture."""

import html
import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT_S = 120

_WRAPPER = """<!doctype html><meta charset="utf-8"><style>* { margin: 0; border: 0 }</style>
<pre id="facts" hidden></pre><iframe id="page" width="WIDTH" height="900"></iframe><script>
const frame = document.getElementById("page");
frame.addEventListener("load", () => {
  const inner = frame.contentDocument, root = inner.documentElement;
  const out = [...inner.body.querySelectorAll("*")].filter((e) =>
    !e.closest(".scroll") && !e.closest("svg") && e.getBoundingClientRect().right > WIDTH + 1);
  const facts = {width: root.scrollWidth, height: root.scrollHeight,
    background: frame.contentWindow.getComputedStyle(inner.body).backgroundColor,
    out: out.map((e) => e.tagName + "." + e.className)};
  document.getElementById("facts").textContent = JSON.stringify(facts);
  frame.style.height = root.scrollHeight + "px";
});
frame.srcdoc = TEXT;
</script>"""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a browser made of a page: sizes in pixels, what is too wide, what it complained of."""

    width: int
    height: int
    background: str
    out: list[str]
    console: list[str]


def browser() -> str | None:
    """Return the browser's program, ``None`` if there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def show(page: Path, width: int, *, dark: bool = False, picture: Path | None = None) -> Shown:
    """Open a page in a frame of ``width`` pixels; a headless window takes no less than 500."""
    # "</" would end the script that holds the page
    text = json.dumps(page.read_text(encoding="utf-8")).replace("</", "<\\/")
    with tempfile.TemporaryDirectory() as folder:
        wrapper = Path(folder) / "wrapper.html"
        made = _WRAPPER.replace("WIDTH", str(width)).replace("TEXT", text)
        wrapper.write_text(made, encoding="utf-8")
        dumped, console = _run(wrapper, folder, "--dump-dom", dark=dark)
        facts = json.loads(html.unescape(re.search(r'<pre id="facts"[^>]*>(.*?)</pre>', dumped)[1]))
        if picture is not None:
            size = f"--window-size={max(width, 500)},{facts['height']}"
            _run(wrapper, folder, f"--screenshot={picture}", size, dark=dark)
    return Shown(**facts, console=console)


def _run(page: Path, folder: str, *options: str, dark: bool) -> tuple[str, list[str]]:
    run = subprocess.run(
        [
            browser(),
            "--headless=new",
            "--no-sandbox",  # which root may not have
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
            "--enable-logging=stderr",
            "--virtual-time-budget=5000",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]
