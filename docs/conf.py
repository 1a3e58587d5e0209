"""Settings of the documentation; ``make docs`` builds it into build/docs."""

import pkgutil

from docutils.nodes import SkipNode
from docutils.utils.math import latex2mathml

import dlu_mmdet

project = 'dlu_mmdet'
exclude_patterns = ['results/summary.md']  # a part of results/details.md
author = 'The contributors of dlu_mmdet'
version = release = dlu_mmdet.__version__
extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.napoleon',
    'sphinx_copybutton',
]

html_theme = 'furo'
html_title = f'dlu_mmdet {version}'
html_static_path = ['_static']
html_css_files = ['custom.css']
html_copy_source = False
html_show_copyright = False
html_math_renderer = 'mathml'

myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
# notebooks are shown with the output that they hold; a test executes them
nb_execution_mode = 'off'

autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
# names of other packages cannot be checked without a network
nitpick_ignore_regex = [('py:.*', r'(?!dlu_mmdet\.).*')]


def _math(writer, node, block):
    """MathML, which browsers draw without a script from elsewhere."""
    writer.body.append(latex2mathml.tex2mathml(node.astext(), as_block=block))
    raise SkipNode


def _undocumented(app, env, node, contnode):
    """A name without an entry here; one that does not exist stays a warning."""
    if node.get('refdomain') != 'py':
        return None
    try:
        pkgutil.resolve_name(node['reftarget'])
    except (AttributeError, ImportError, ValueError):
        return None
    return contnode


def setup(app):
    app.connect('missing-reference', _undocumented)
    app.add_html_math_renderer(
        'mathml',
        (lambda writer, node: _math(writer, node, False), None),
        (lambda writer, node: _math(writer, node, True), None),
    )
