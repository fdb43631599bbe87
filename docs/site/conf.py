"""Sphinx settings of the course site; `make site` copies the sources to build/site-src first."""

from prompteol_utils import __version__

project = "Sentence embeddings from large language models"
author = "The maintainers"
copyright = "2026, the maintainers; Apache-2.0"
release = version = __version__
language = "en"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx-mathjax-offline",  # served from the site itself
]
root_doc = "index"
exclude_patterns = ["_build"]
nb_execution_mode = "off"  # the stored outputs are shown
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
suppress_warnings = ["myst.xref_missing", "mystnb.unknown_mime_type"]

html_theme = "sphinx_book_theme"
html_title = "PromptEOL course"
html_favicon = "_static/icon.svg"
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["course.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "show_toc_level": 2,
    "navbar_persistent": [],  # one search field, in the sidebar
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navigation_with_keys": False,
}

autodoc_member_order = "bysource"
autodoc_typehints = "none"
add_module_names = False  # names are imported from prompteol_utils, wherever they are defined
autodoc_preserve_defaults = True  # as in the source: no path of the machine that builds
napoleon_google_docstring = True
