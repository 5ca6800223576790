"""The characters of a page, its encoding found as browsers find it."""

import re

from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5

BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8", b"\xfe\xff": "utf-16-be", b"\xff\xfe": "utf-16-le"}
XML_ENCODING = re.compile(rb"""<\?xml[^>]*\sencoding\s*=\s*["']([\w.:-]+)""")


def decode(html: bytes, charset: str | None = None) -> str:
    """The characters of a page, its encoding found as browsers do: byte order mark, HTTP header, meta tag, guess."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if html.startswith(mark):
            return html[len(mark) :].decode(encoding, "replace")
    declared = XML_ENCODING.match(html)
    name = charset or (declared[1].decode("ascii") if declared else None)
    encoding = map_encoding_to_html5(name, fallback_utf8=False) if name else None
    if encoding is None and b"charset" not in html[:1024].lower():
        try:
            return html.decode("utf-8")  # what is UTF-8 by chance is rare: better than to guess
        except UnicodeDecodeError:
            pass
    return bytes_to_str(html, encoding or detect_encoding(html, from_html_meta=True) or "utf-8")
