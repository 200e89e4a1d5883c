"""Chromium for tests: somebody who sits at it, and what the pages do there that they should not.

Debian's own browser is driven by Playwright. It reaches this machine alone; what a page asks for elsewhere is noted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, Dialog, Page, Response, sync_playwright

from tests.hostile import HIT

PROGRAM = "/usr/bin/chromium"
_OPTIONS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
_PATIENCE = 20_000
"""Milliseconds that a page may take, on a busy machine."""
Scheme = Literal["light", "dark"]

_LISTEN = """
addEventListener("securitypolicyviolation",
  event => window.noted(`policy: ${event.effectiveDirective} ${event.blockedURI} ${event.sample}`));
"""
_FOREIGN = """
(root) => {
  const names = new Set(["SCRIPT", "STYLE", "IFRAME", "OBJECT", "EMBED", "BASE", "APPLET", "FRAME", "PLAINTEXT",
    "MARQUEE", "NOSCRIPT", "TEMPLATE", "MATH", "IMAGE", "AUDIO", "VIDEO", "SET", "ANIMATE", "FOREIGNOBJECT"]);
  const addresses = ["href", "src", "action", "formaction", "data", "xlink:href", "poster", "background", "srcset",
    "hx-get", "hx-post", "hx-put", "hx-patch", "hx-delete"];
  const found = [];
  for (const element of root.querySelectorAll("*")) {
    const name = element.tagName.toUpperCase();
    const ours = name === "SCRIPT" && (element.getAttribute("src") || "").startsWith("/ui/static/")
      && element.textContent === "";
    if (names.has(name) && !ours) found.push(`<${name}>`);
    if (name === "META" && element.hasAttribute("http-equiv")) found.push("<META http-equiv>");
    if (name.includes("-") || /[^A-Z0-9]/.test(name)) found.push(`<${name}>`);
    for (const {name: key, value} of element.attributes) {
      const bare = key.toLowerCase().replace(/^data-hx-/, "hx-");
      if (/^on|^hx-on|^ws-|^sse-|^hx-ext|^hx-vals|^hx-vars|^hx-headers|^hx-boost|^style$|^srcdoc$/.test(bare)
          || !/^[a-z][a-zA-Z0-9:-]*$/.test(key)) found.push(`${name}[${key}]`);
      if (bare === "hx-trigger" && value.includes("[")) found.push(`${name}[${key}=${value}]`);
      if (addresses.includes(bare) && !/^(\\/(?!\\/)|#|\\?)/.test(value)) found.push(`${name}[${key}=${value}]`);
    }
  }
  return found;
}
"""
"""What stands in a page that none of our templates writes: elements that run or load, handlers, addresses elsewhere."""


_FETCH = """
async (asked) => {
  const answers = [];
  const next = async () => {
    for (let rank; (rank = asked.findIndex((each) => each)) >= 0;) {
      const [path, form] = asked[rank];
      asked[rank] = null;
      const body = Object.keys(form).length ? new URLSearchParams(form) : undefined;
      const answer = await fetch(path, {method: body ? "POST" : "GET", body});
      const read = new DOMParser().parseFromString(await answer.text(), "text/html");
      const typed = [...read.querySelectorAll("[value]")].map((each) => each.getAttribute("value"));
      answers[rank] = [answer.status, (FOREIGN)(read), [read.body.textContent, ...typed].join("\\n"), path];
    }
  };
  await Promise.all([next(), next(), next(), next()]);
  return answers;
}
"""


@dataclass(frozen=True)
class Fetched:
    """An answer of the service that was read and not shown."""

    status: int
    foreign: Sequence[str]
    """As `Seat.foreign` tells."""
    text: str
    """What can be read of it, and what stands in the fields of its forms."""
    path: str


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=list(_OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Seat:
    """Somebody at a browser, in a profile of its own."""

    context: BrowserContext
    page: Page
    address: str
    """``https://127.0.0.1:PORT``."""
    noted: list[str] = field(default_factory=list)
    """What should not have been: calls of `HIT`, dialogs, breaches of the policy, errors of scripts, other servers."""

    def open(self, path: str, status: int = 200) -> Page:
        """Go to a page of the service."""
        answer = self.page.goto(f"{self.address}{path}", wait_until="domcontentloaded")
        assert answer is not None
        assert answer.status == status, (path, answer.status, self.page.inner_text("body"))
        return self.page

    def sign_in(self, token: str) -> None:
        """Show a token; the first page follows."""
        page = self.open("/ui/sign-in")
        page.get_by_label("Token").fill(token)
        sheet = page.locator("form", has=page.get_by_label("Token"))
        sheet.get_by_role("button", name="Sign in").click()
        page.wait_for_url(lambda url: "/sign-in" not in url, wait_until="domcontentloaded")

    def fetch(self, path: str, **form: str) -> Fetched:
        """What the service answers; with fields of a form, the form is sent."""
        return self.fetch_all([(path, form)])[0]

    def fetch_all(self, asked: Sequence[tuple[str, Mapping[str, str]]]) -> list[Fetched]:
        """The answers to several paths, each with the fields of a form or none; no script of an answer runs."""
        found = self.page.evaluate(_FETCH.replace("FOREIGN", _FOREIGN), [[path, dict(form)] for path, form in asked])
        return [Fetched(*each) for each in found]

    def foreign(self) -> list[str]:
        """What stands in the page that none of our templates writes."""
        found: list[str] = self.page.evaluate(f"({_FOREIGN})(document)")
        return found

    def violations(self) -> list[str]:
        """What axe-core finds: which rule, and where in the page."""
        found = Axe().run(self.page).response["violations"]
        nodes = [(each["id"], node) for each in found for node in each["nodes"]]
        return [f"{rule}: {node['html'][:160]} {node.get('failureSummary', '')}" for rule, node in nodes]

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return width

    def settled(self) -> list[str]:
        """What was noted, once everything that pages have begun has come to its end."""
        self.page.wait_for_timeout(50)
        return self.noted


@contextmanager
def seat(
    browser: Browser,
    address: str,
    *,
    scheme: Scheme = "light",
    width: int = 1200,
    scripts: bool = True,
    bypass_csp: bool = False,
) -> Iterator[Seat]:
    """A fresh profile at the service of *address*, in a window of *width* pixels.

    With *bypass_csp* the browser does what pages forbid it: then escaping alone keeps a hostile text from running.
    """
    context = browser.new_context(
        ignore_https_errors=True,
        color_scheme=scheme,
        viewport={"width": width, "height": 900},
        java_script_enabled=scripts,
        bypass_csp=bypass_csp,
        base_url=address,
        reduced_motion="reduce",
    )
    context.set_default_timeout(_PATIENCE)
    found = Seat(context, context.new_page(), address)

    def note(what: str) -> None:
        found.noted.append(what)

    context.expose_function(HIT, lambda *_: note(f"{HIT} on {found.page.url}"))
    context.expose_function("noted", note)
    context.add_init_script(_LISTEN)
    context.on("request", lambda request: _is_home(request.url, address) or note(f"elsewhere: {request.url}"))
    context.on("weberror", lambda error: note(f"error: {error.error}"))
    context.on("response", lambda response: _failing(response) and note(f"failed: {response.status} {response.url}"))
    found.page.on("dialog", lambda dialog: _dismissed(dialog, note))
    try:
        yield found
    finally:
        context.close()


def _is_home(url: str, address: str) -> bool:
    home, there = urlsplit(address), urlsplit(url)
    return there.scheme in {"data", "blob", "about"} or there.netloc == home.netloc


def _failing(response: Response) -> bool:
    """Whether the service failed, or has not what one of its pages wants."""
    is_part = response.request.resource_type not in {"document", "fetch"}
    return response.status >= 500 or (response.status == 404 and is_part)


def _dismissed(dialog: Dialog, note: Any) -> None:
    note(f"dialog: {dialog.message}")
    dialog.dismiss()
