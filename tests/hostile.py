"""Hostile texts: what somebody might write into a field in order to run, to show or to ask for something elsewhere.

They are made of small tables: places to break out of, and what is then written there. What runs calls `HIT`, a function
that the browser of the tests has, so that a page on which one of them counts for more than text is found out.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator
from urllib.parse import quote

HIT = "hit"
"""The function that is called by what runs."""
_CALL = f"{HIT}()"
_SCRIPT = f"<script>{_CALL}</script>"

_OUT_OF = (
    *("", '"', "'", ">", '">', "'>", "-->", "]]>", "</title>", "</textarea>", "</script>", "</style>", "</svg>"),
    *("</option></select>", "</td></tr></table>", "</time>", "</pre>", "</a>", "</noscript>", "</template>"),
)
"""Where a text may stand in a page, as what ends it."""
_THEN = (_SCRIPT, f"<img src=x onerror={_CALL}>", f"<svg onload={_CALL}>")

_SCRIPTS = (
    "<SCRIPT>{}</SCRIPT>",
    "<ScRiPt >{}</sCrIpT >",
    "<script/x>{}</script>",
    "<script\t>{}</script\n>",
    "<<script>{}//<</script>",
    "<script>{}",
    "<script>{}<!--",
    "<script type=module>{}</script>",
    "<script src=data:text/javascript,{}></script>",
    '<script src="//127.0.0.1:9/{}"></script>',
    "<scr<script>ipt>{}</scr</script>ipt>",
    "<scr\0ipt>{}</scr\0ipt>",
    "<svg><script>{}</script></svg>",
    "<svg><script href=data:text/javascript,{} /></svg>",
    "<math><script>{}</script></math>",
    "<template><script>{}</script></template>",
    "<noscript><p title='</noscript><script>{}</script>'>",
)
"""Script elements, in ways that a filter may not think of."""

_EVENTS = (
    ("img src=x", "onerror"),
    ("img src=/ui/static/style.css", "onerror"),
    ("image src=x", "onerror"),
    ("svg", "onload"),
    ("body", "onload"),
    ("body", "onpageshow"),
    ("iframe", "onload"),
    ("video src=x", "onerror"),
    ("audio src=x", "onerror"),
    ("object data=x", "onerror"),
    ("embed src=x", "onload"),
    ("details open", "ontoggle"),
    ("input autofocus", "onfocus"),
    ("select autofocus", "onfocus"),
    ("textarea autofocus", "onfocus"),
    ("button autofocus", "onfocus"),
    ("a href=# autofocus", "onfocus"),
    ("b tabindex=1 autofocus", "onfocus"),
    ("style", "onload"),
    ("link rel=stylesheet href=x", "onerror"),
    ("marquee", "onstart"),
    ("svg><animate attributeName=x dur=1s", "onbegin"),
    ("svg><set attributeName=x dur=1s", "onbegin"),
)
"""Elements whose handlers are called without anybody's doing."""
_BLANKS = (" ", "/", "\t", "\n", "\f", "\r")

_QUOTES = ('"', "'", '" ', "' ", "`", "")
_ATTRIBUTES = (
    f"onfocus={_CALL} autofocus tabindex=1 x=",
    f"onmouseover={_CALL} class=x x=",
    f"style=animation-name:x onanimationstart={_CALL} x=",
    f"hx-on:load={_CALL} x=",
    f"hx-on::load={_CALL} x=",
    "hx-get=/ui/sign-out hx-trigger=load x=",
    f"data-hx-on-htmx-load={_CALL} x=",
    f"formaction=javascript:{_CALL} x=",
    f"srcdoc=<script>parent.{_CALL}</script> x=",
)
"""What follows a quote that ends the value of an attribute."""

_SCHEMES = (
    f"javascript:{_CALL}",
    f"JaVaScRiPt:{_CALL}",
    f"java\tscript:{_CALL}",
    f"java\nscript:{_CALL}",
    f"\x01javascript:{_CALL}",
    f" javascript:{_CALL}",
    f"&#106;avascript&colon;{_CALL}",
    f"javascript://%0a{_CALL}",
    f"javascript:/*--></title></style>*/{_CALL}",
    f"vbscript:{_CALL}",
    f"data:text/html,{_SCRIPT}",
    f"data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' onload='{_CALL}'/>",
    "//127.0.0.1:9/x",
    "https:127.0.0.1:9/x",
    "\\\\127.0.0.1\\x",
)
_FOLLOWED = (
    '<iframe src="{}"></iframe>',
    '<meta http-equiv=refresh content="0;url={}">',
    '<base href="{}">',
    '<form action="{}" method=post><input type=submit autofocus>',
)
"""Elements that go to an address."""

_HTMX = (
    '<div hx-get="/ui/sign-out" hx-trigger="load"></div>',
    '<div data-hx-post="/ui/sign-out" data-hx-trigger="load"></div>',
    '<div hx-delete="/v1/claims/gdx-1.site" hx-trigger="load"></div>',
    '<div hx-get="//127.0.0.1:9/" hx-trigger="load" hx-target="body"></div>',
    f"<div hx-get=/ui/ hx-trigger=\"load[{_CALL}]\" hx-vals='js:{{x: {_CALL}}}'></div>",
    f"<div hx-on::load='{_CALL}' hx-on:htmx:load='{_CALL}'></div>",
    f"<div hx-headers='js:{{x: {_CALL}}}' hx-get=/ui/ hx-trigger=load></div>",
    '<meta name="htmx-config" content=\'{"selfRequestsOnly": false}\'>',
    "<div hx-boost=true hx-ext=x ws-connect=//127.0.0.1:9/ sse-connect=//127.0.0.1:9/></div>",
    '<div id="main" hx-swap-oob="true">replaced</div>',
)
_TEMPLATES = (
    "{{ 7 * 7 }}",
    "{% for x in range(9) %}x{% endfor %}",
    "{{ ''.__class__.__mro__ }}",
    "{# gone #}",
    "{{ lookup('pipe', 'id') }}",
    "${7*7}",
    "#{7*7}",
    "<%= 7*7 %>",
    f"{{{{constructor.constructor('{_CALL}')()}}}}",
    "%(x)s %s %n {0} {x!r} {0.__class__}",
)

_NESTED = (
    f'<svg></p><style><a id="</style><img src=x onerror={_CALL}>">',
    f'<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=x onerror={_CALL}&gt;">',
    f"<svg><foreignObject><body onload={_CALL}></foreignObject></svg>",
    f"<svg><use href=\"data:image/svg+xml,<svg id='x' onload='{_CALL}'/>#x\"></svg>",
    f"<svg><a xlink:href=javascript:{_CALL}><text y=9>x</text></a></svg>",
    f"<!--><img src=x onerror={_CALL}>-->",
    f"<!--[if IE]>{_SCRIPT}<![endif]-->",
    f"<?xml?>{_SCRIPT}",
    f"<![CDATA[{_SCRIPT}]]>",
    "<style>body { display: none }</style>",
    "<link rel=stylesheet href=//127.0.0.1:9/x.css>",
    "<plaintext>",
    "<!--",
    "<textarea>",
    "<table><tr><td>",
    "</main></body></html>",
    "<input name=csrf value=x>",
    "<h1>Kadeploy is down</h1>",
)

_ODD = (
    "+ADw-script+AD4-hit()+ADw-/script+AD4-",
    "\uff1cscript\uff1ehit()\uff1c/script\uff1e",
    "\u2039script\u203ahit()",
    "a\u2028b",
    "a\u2029b",
    "\ufeffa",
    "\u202etxt.exe\u202c",
    "\u2066x\u2069\u200f",
    "z\u200be\u200cr\u200do",
    "a" + "\u0301" * 40,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U000e0001\U000e0061",
    "\ufdd0\uffff",
    "p\u0430ypal",
    "\u0130\u0131\u1e9e\ufb01",
    "\u05d0\u05d1 <b>\u0627\u0644</b>",
)

_TERMINAL = (
    "\x1b[31mred\x1b[0m",
    "\x1b[2J\x1b[H",
    "\x1b[6n\x1b[c",
    "\x1b]0;title\x07",
    "\x1b]8;;http://127.0.0.1:9/\x07link\x1b]8;;\x07",
    "\x1b]52;c;aGl0\x07",
    "\x1bP$q\x1b\\",
    "\x9b31mred",
    "\x1b[?1049h",
    "KO\rOK",
    "KO\b\bOK",
    "a\x1b",
)

_OTHERS = (
    "' OR '1'='1",
    '"; DROP TABLE node; --',
    "$(touch hit)",
    "`touch hit`",
    "; touch hit #",
    "| touch hit",
    "../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "x\r\nSet-Cookie: a=b\r\n\r\n<b>",
    "\"'`<>&\\/",
    "&quot;&apos;&lt;&gt;&amp;",
    "\\u003cscript\\u003e",
    "\\x3cscript\\x3e",
    "*",
    "%",
    "_",
    "node-[1-",
    "node-[1-999999999]",
    "-h",
    "NaN",
    "99999999999999999999",
)

_LONG = ("a" * 4000, "<b>" * 800, "&" * 2000, '"' * 2000, "W " * 1500, "\u0301" * 500, "[" * 1000, "{{" * 1000)


def _encoded() -> Iterator[str]:
    for text in (_SCRIPT, f"<img src=x onerror={_CALL}>"):
        once = html.escape(text)
        yield from (once, html.escape(once), once.replace(";", ""))
        yield from ("".join(f"&#{ord(each)};" for each in text), "".join(f"&#x{ord(each):x};" for each in text))
        yield from (quote(text), quote(quote(text)), text.encode("utf-16-le").decode("latin-1"))


def _made() -> Iterator[str]:
    yield from (f"{end}{what}" for end in _OUT_OF for what in _THEN)
    yield from (each.format(_CALL) for each in _SCRIPTS)
    yield from (f"<{tag} {event}={_CALL}>" for tag, event in _EVENTS)
    yield from (f"<svg{blank}onload={_CALL}>" for blank in _BLANKS)
    yield from (f"{quoted}{attribute}{quoted[:1]}" for quoted in _QUOTES for attribute in _ATTRIBUTES)
    yield from _SCHEMES
    yield from (each.format(scheme) for each in _FOLLOWED for scheme in _SCHEMES[:3])
    yield from (*_HTMX, *_TEMPLATES, *_NESTED, *_encoded(), *_ODD)
    yield from (f"a{chr(code)}b" for code in (*range(32), 127, *range(128, 160)))
    yield from (*_TERMINAL, *_OTHERS, *_LONG)


TEXTS = tuple(dict.fromkeys(_made()))
"""All of them, each once."""


def bundles(texts: Iterable[str], longest: int, between: str = " ") -> Iterator[str]:
    """Several of *texts* at a time, *between* them, in at most *longest* characters; longer ones are left out.

    >>> list(bundles(["a", "bcd", "e", "much too long"], 5))
    ['a bcd', 'e']
    """
    held = ""
    for text in texts:
        if len(text) > longest:
            continue
        joined = f"{held}{between}{text}" if held else text
        if len(joined) > longest:
            yield held
            joined = text
        held = joined
    if held:
        yield held
