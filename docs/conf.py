"""The documentation site: `make docs` builds it into docs/_build/html, without network, with warnings as errors.

Pages are Markdown. The reference (API, command line, gin macros) is generated from the package by `site_pages.py` into
docs/_generated, which git ignores.
"""

import pathlib
import sys

DOCS = pathlib.Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import site_pages  # noqa: E402

from adalink_jax.version import __version__  # noqa: E402

project = "AdaLink-JAX"
author = "The AdaLink-JAX authors"
copyright = "2026, The AdaLink-JAX authors. Apache-2.0"
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "results/miniature/**", "results/miniature_again/**", "results/t5gemma2_miniature/**"]
suppress_warnings = ["mystnb.unknown_mime_type"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests/test_readme.py runs the notebooks; the site shows their stored outputs
nb_merge_streams = True

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]
toc_object_entries = False
add_module_names = False

html_theme = "sphinx_book_theme"
html_title = "AdaLink-JAX"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_persistent": [],  # the sidebar has the search
    "navbar_start": [],
    "navbar_center": [],
    "navbar_end": [],
    "show_toc_level": 2,
    "show_navbar_depth": 1,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "pygments_light_style": "tango",
    "pygments_dark_style": "monokai",
}


def setup(app):
    """Generates the reference and connects the rewriting of pages and docstrings."""
    site_pages.write_all(DOCS / "_generated")
    app.connect("source-read", site_pages.on_source_read)
    app.connect("autodoc-process-signature", site_pages.on_signature)
    app.connect("autodoc-process-docstring", site_pages.on_docstring, priority=100)  # before napoleon
    return {"parallel_read_safe": True}
