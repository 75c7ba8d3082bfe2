"""Reports as a page and as Markdown, from what the commands print as JSON.

A document is the parsed JSON of ``ck parity``, ``ck compare``, ``ck diagnose``, ``ck mutate`` or of a test session
(``pytest --ck-report``). :func:`to_html` puts any number of them on one page that needs nothing else: no network, no
script, no font. What none of them measured has its place on the page and says so.
"""

import json
import pathlib

from .content import DocumentError, content
from .markdown import to_markdown

__all__ = ["DocumentError", "content", "read", "to_html", "to_markdown"]


def read(path):
    """Return the document in a JSON file.

    Raises
    ------
    DocumentError
        No such file, no JSON, or not what a command of this package prints; the text names it.
    """
    path = pathlib.Path(path)
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise DocumentError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        raise DocumentError(f"{path}: no JSON: {error}") from None
    if not isinstance(document, dict) or "schema" not in document or "tool" not in document:
        raise DocumentError(f"{path}: not a report of this package: 'schema' and 'tool' are not there")
    return document


def to_html(documents):
    """Return one page with everything in it, as text.

    Parameters
    ----------
    documents : list of dict

    Raises
    ------
    DocumentError
        jinja2 is not installed, or a document has a schema that this version does not know.
    """
    try:
        import jinja2
    except ImportError:
        raise DocumentError("a page needs jinja2: pip install 'ckernels[parity]'") from None
    from . import charts

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.globals.update(
        strip=charts.strip, bars=charts.bars, curve=charts.curve, shade=charts.shade, short=charts.short
    )
    return environment.get_template("page.html").render(content(documents))
