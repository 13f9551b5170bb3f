"""The documentation: `make docs` builds it, warnings are errors."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project, author, copyright = "whence", "the whence authors", "2026, the whence authors"
release = version = version_of("whence")
extensions = ["myst_nb", "sphinx_copybutton", "sphinx_design", "sphinx-mathjax-offline", "reference"]
exclude_patterns = ["_build", "_ext", "**.ipynb_checkpoints"]
html_theme = "furo"
html_title = "whence"
html_static_path: list[str] = []
html_theme_options = {"footer_icons": []}
myst_enable_extensions = ["colon_fence", "dollarmath", "amsmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_cache_path = str(Path(__file__).parent / "_build" / ".cache")
copybutton_exclude = ".linenos, .gp, .go"
