"""How Sphinx builds these pages: `make docs`. No network is needed to build or to read them."""

import mobileone_q

project = "mobileone-q"
author = copyright = "the mobileone-q project"
version = release = mobileone_q.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}

html_theme = "furo"
html_title = f"mobileone-q {release}"
# Links to files of the code are by their place in the checkout; tests/test_docs.py checks all links.
suppress_warnings = ["myst.xref_missing"]

linkcheck_timeout = 20
linkcheck_anchors = False
