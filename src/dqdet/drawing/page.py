"""A page of tables, figures and pictures in one HTML file that needs nothing else: no other file, no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from matplotlib.figure import Figure
from PIL import Image

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2.2em; border-bottom: 1px solid #ddd; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; }
th, td { padding: .2em .9em; text-align: right; border-bottom: 1px solid #eee; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } th { background: #f6f6f6; }
figure { margin: 1.5em 0; } figcaption { color: #555; } img { max-width: 100%; height: auto; }
"""


class Page:
    """Collects what a page shows, from top to bottom. All texts are shown as they are, whatever they hold."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.parts = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        self.parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        self.parts.append(f"<p>{escape(text)}</p>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        head = "".join(f"<th>{escape(column)}</th>" for column in columns)
        body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
        self.parts.append(f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>")

    def figure(self, figure: Figure, caption: str) -> None:
        content = io.BytesIO()
        figure.savefig(content, format="png")
        self._image("png", content.getvalue(), caption)

    def picture(self, picture: Image.Image, caption: str) -> None:
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=85)
        self._image("jpeg", content.getvalue(), caption)

    def _image(self, kind: str, content: bytes, caption: str) -> None:
        source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
        text = escape(caption)
        self.parts.append(f'<figure><img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>')

    def html(self) -> str:
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            # Nothing is fetched, whatever the names of classes and files hold.
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
            "style-src 'unsafe-inline'\">"
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head>\n<body>\n"
            + "\n".join(self.parts)
            + "\n</body></html>\n"
        )
