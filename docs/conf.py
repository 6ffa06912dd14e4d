"""Settings of the documentation site: `make docs`, or rosdoc2, which copies this folder first."""

import sys
from pathlib import Path

project = 'cotracker_ros'
author = 'cotracker_ros maintainers'
copyright = author
extensions = ['myst_parser', 'sphinx.ext.autodoc']
exclude_patterns = ['_build']
myst_enable_extensions = ['colon_fence']
myst_heading_anchors = 3
highlight_language = 'none'
html_theme = 'furo'  # rosdoc2 sets its own
html_title = 'cotracker_ros'
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
autodoc_preserve_defaults = True

# The checkout comes before an installed package; rosdoc2 runs from inside it as well.
for folder in (Path(__file__).resolve().parent, Path.cwd()):
    for parent in (folder, *folder.parents):
        if (parent / 'cotracker_ros' / '__init__.py').is_file():
            sys.path.insert(0, str(parent))
            break


def rewrite_links(app, docname: str, source: list[str]) -> None:
    """Let the links of the README, which lies one folder up, lead from here."""
    if docname == 'readme':
        source[0] = source[0].replace('](docs/', '](').replace('](LICENSE)', '](../LICENSE)')


def setup(app) -> None:
    """Register the above; Sphinx calls this."""
    app.connect('source-read', rewrite_links)
