"""The frame of a page that is complete in itself: no script, nothing fetched."""

from collections.abc import Iterable, Sequence
from html import escape

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#111;background:#fff}
figure{margin:1rem calc(50% - 48vw);overflow-x:auto;border:1px solid #cbd5e1;border-radius:6px}
figure svg{display:block;margin:auto;max-width:100%;height:auto}
table{border-collapse:collapse;width:100%;margin:.5rem 0}
td,th{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0;border-bottom:1px solid #e2e8f0}
code,pre{font:13px ui-monospace,monospace}pre{background:#f8fafc;padding:.75rem;overflow-x:auto;border-radius:6px}
h3 code{font-size:1em}
article{border-top:2px solid #cbd5e1;margin-top:1.5rem}h3 small{font-weight:normal;color:#475569}
.swatch{border:1px solid #64748b;border-radius:4px;padding:.1rem .5rem;margin-right:.5rem}
.violation{color:#b91c1c}.improvement{color:#92400e}.information{color:#475569}
"""


def framed(title: str, body: Iterable[str], style: str = "") -> str:
    """A page about `body`, which is HTML already; `style` is CSS after that of all pages."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Of cells that are HTML already."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>{body}</table>"
