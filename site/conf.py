"""Sphinx's settings for the site. `make site` runs Sphinx over what site/staging.py has written."""

import os
import sys
import tomllib
from pathlib import Path

SITE = Path(__file__).parent
sys.path[:0] = [str(SITE), str(SITE.parent)]

project = "QLoRA by doing it"
author = "the authors of the course"
copyright = "the authors of the course. Texts: CC BY 4.0. Code: Apache-2.0"
PYPROJECT = tomllib.loads((SITE.parent / "pyproject.toml").read_text(encoding="utf-8"))
release = PYPROJECT["project"]["version"]
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx_parts"]
exclude_patterns = ["_build"]
nb_execution_mode = "off"  # the notebooks are stored with their outputs
nb_ipywidgets_js = {}  # by default these come from elsewhere, and no stored output needs them
nb_merge_streams = True
nb_code_prompt_show = nb_code_prompt_hide = "The set-up cell"  # the one cell that is folded
myst_enable_extensions = ["dollarmath", "attrs_inline"]
myst_heading_anchors = 4  # as on GitHub: glossary.md#base-model
html_math_renderer = "mathml"  # formulas are MathML, made at build: nothing is loaded, and a screen reader reads them
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
default_role = "code"
# Links into the course's own release are checked by each build, against the files that are here.
linkcheck_ignore = [rf".*{PYPROJECT['tool']['course']['repository']}.*"]
linkcheck_anchors = False  # many sites make their anchors with scripts
linkcheck_timeout = 20
linkcheck_retries = 2
linkcheck_workers = 4

html_theme = "furo"
smartquotes = False  # the cures hold code, which has to be pasted as it stands
html_title = "QLoRA by doing it"
templates_path = ["templates"]
html_static_path = ["static"]
html_css_files = ["course.css"]
html_js_files = ["course.js"]
html_show_sourcelink = html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # a page that was opened as a file may not fetch others
html_use_opensearch = ""
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#005a8e", "color-brand-content": "#005a8e", "color-brand-visited": "#6b3a86"},
    "dark_css_variables": {"color-brand-primary": "#7cc4f5", "color-brand-content": "#7cc4f5", "color-brand-visited": "#d0a8e8"},
    "navigation_with_keys": False,
}  # fmt: skip
if os.environ.get("COURSE_SITE_GENERATED"):  # the calculator's numbers and the failures' patterns
    html_static_path.append(os.environ["COURSE_SITE_GENERATED"])
