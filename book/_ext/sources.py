"""What a page names, linked: {cite}`gustafson2017`, {technique}`posit`, {metric}`accuracy`; a wrong one is an error."""

from __future__ import annotations

import re

from docutils import nodes
from sphinx.util import logging
from sphinx.util.docutils import SphinxRole

logger = logging.getLogger(__name__)


def short(reference):
    """Authors and year as a text says them.

    Examples
    --------
    >>> from types import SimpleNamespace as Reference
    >>> short(Reference(authors="J. L. Gustafson and I. Yonemoto", year=2017))
    'Gustafson and Yonemoto 2017'
    >>> short(Reference(authors="Z. Carmichael, H. F. Langroudi, C. Khazanov", year=2019))
    'Carmichael et al. 2019'
    """
    names = [name for name in re.split(r",\s*(?:and\s+)?|\s+and\s+|;\s*", reference.authors) if name.strip()]
    families = [re.sub(r"^(\S*\.\s*)+", "", name).strip() for name in names]
    if "et al" in reference.authors or len(families) > 2:
        return f"{families[0]} et al. {reference.year}"
    return f"{' and '.join(families)} {reference.year}"


def root_of(docname):
    return "../" * docname.count("/")


class Named(SphinxRole):
    """A link to where the book explains a name."""

    def run(self):
        import taxonomy
        from taxonomy.load import nearest

        tx = taxonomy.load()
        key = self.text.strip()
        try:
            if self.name == "cite":
                if key not in tx.references:
                    raise KeyError(f"unknown reference {key!r}{nearest(key, tx.references)}")
                text, target = short(tx.references[key]), f"references.html#ref-{key}"
            elif self.name == "metric":
                key = tx.metric(key)
                text, target = tx.metrics[key].name.lower(), f"metrics.html#metric-{key.replace('_', '-')}"
            else:
                text, target = tx[key].name, f"{tx[key].address}.html"
        except KeyError as error:
            logger.warning("%s: %s", self.name, error.args[0], location=self.get_location(), type="sources")
            return [nodes.problematic(self.rawtext, self.text)], []
        return [nodes.reference("", text, refuri=root_of(self.env.docname) + target, internal=True)], []


def setup(app):
    for name in ("cite", "technique", "metric"):
        app.add_role(name, Named())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
