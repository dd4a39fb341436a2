"""How Sphinx builds these pages: ``make docs``; warnings are errors."""

import tesseral

project = "Tesseral"
author = copyright = "The Tesseral developers"
version = release = tesseral.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
]
templates_path = ["_templates"]
exclude_patterns = ["_build", "README.md"]

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say more: shapes, dtypes, units
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

myst_enable_extensions = ["dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300

html_theme = "pydata_sphinx_theme"
html_title = "Tesseral"
html_show_sourcelink = False
# pages without others below them have nothing to show there
html_sidebars = {page: [] for page in ("start", "r_users", "benchmarks", "hardware")}
html_theme_options = {"secondary_sidebar_items": ["page-toc"], "navigation_with_keys": False}
