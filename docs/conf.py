"""Settings of the documentation build: ``python3 -m sphinx -W -b html docs docs/_build``.

The build needs no network. Only on Read the Docs are the inventories of other projects fetched, for links into their pages.
"""

import os
import re
import shutil
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

HERE = Path(__file__).parent

# -- Project ------------------------------------------------------------------------------------------------------------

_meta = metadata("cfm-tools")
project = "cfm"
author = _meta["Author"]
release = version = _meta["Version"]
copyright = f"2026, {author}"

# -- Extensions ---------------------------------------------------------------------------------------------------------

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_autodoc_typehints",  # after napoleon: it adds types to the fields that napoleon makes
    "sphinx_copybutton",
    "sphinx_design",
]
if os.environ.get("READTHEDOCS"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
        "matplotlib": ("https://matplotlib.org/stable/", None),
        "numpy": ("https://numpy.org/doc/stable/", None),
        "pandas": ("https://pandas.pydata.org/docs/", None),
        "python": ("https://docs.python.org/3/", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
        "scipy": ("https://docs.scipy.org/doc/scipy/", None),
        "torch": ("https://docs.pytorch.org/docs/stable/", None),
    }

# reStructuredText first: autosummary writes its pages with the first of these suffixes.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}
exclude_patterns = ["_build", "**.ipynb_checkpoints", "Thumbs.db", ".DS_Store"]

# -- Reference from the docstrings ----------------------------------------------------------------------------------------

autosummary_generate = True
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_include_init_with_doc = False
napoleon_use_param = True
napoleon_use_rtype = True
# Docstrings carry no types: the annotations are the only place that tells them.
always_document_param_types = False
always_use_bars_union = True
typehints_defaults = "braces"

# -- Markdown -----------------------------------------------------------------------------------------------------------

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# -- Tutorials ----------------------------------------------------------------------------------------------------------

# Always run: a cache goes by the text of the notebook, so it would keep outputs that a change in src/ has made untrue.
nb_execution_mode = "force"
# It takes a file of the reader, so it is shown as it was run.
nb_execution_excludepatterns = ["cite_seq.ipynb"]
nb_execution_raise_on_error = True
nb_execution_timeout = 900
nb_execution_in_temp = True
nb_merge_streams = True

# The kernels inherit these. Bars that redraw themselves are noise on a page, and so is the advice to install widgets.
os.environ.setdefault("CFM_PROGRESS", "false")
os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")


def copy_tutorials() -> None:
    """Bring ``tutorials/*.ipynb`` into the source folder, and remove copies whose original is gone.

    Sphinx reads no file outside its source folder, and a link in git is a text file on some systems.
    """
    notebooks = {path.name: path for path in (HERE.parent / "tutorials").glob("*.ipynb")}
    for copy in (HERE / "tutorials").glob("*.ipynb"):
        if copy.name not in notebooks:
            copy.unlink()
    for name, path in notebooks.items():
        shutil.copyfile(path, HERE / "tutorials" / name)


copy_tutorials()

# -- HTML ---------------------------------------------------------------------------------------------------------------

html_theme = "sphinx_book_theme"
html_title = "cfm"
html_static_path = ["_static"]
html_theme_options = {"path_to_docs": "docs", "show_navbar_depth": 1, "show_toc_level": 2}
pygments_style = "default"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def hide_settings_signature(_app: Sphinx, what: str, name: str, *_: Any) -> tuple[str, None] | None:
    """The constructor of a pydantic class takes some thirty private arguments, and nobody has to call this one."""
    return ("", None) if what == "class" and name.endswith(".Settings") else None


def code_names(_app: Sphinx, _what: str, _name: str, _obj: Any, _options: Any, lines: list[str]) -> None:
    """Undo the bold type that napoleon puts around what a function writes, since markup cannot be nested."""
    lines[:] = [re.sub(r"\*\*(``[^`]+``(?:, ``[^`]+``)*)\*\*", r"\1", line) for line in lines]


def setup(app: Sphinx) -> None:
    # The first answer counts, and sphinx-autodoc-typehints always has one.
    app.connect("autodoc-process-signature", hide_settings_signature, priority=1)
    # After napoleon, which has the default priority of 500.
    app.connect("autodoc-process-docstring", code_names, priority=600)
