"""The pack's nodes. To add one: a V3 node class in a file here, its `NODES` joined below.

The search box looks through the first 30 letters of names and nowhere else. So the names that people may not know end in
words that they may type, in parentheses; js/titles.js leaves these out on the canvas.
"""

from . import apply, compare, concept_set, export, files, grid, guider, load, pocket, settings, train

NODES = [
    *pocket.NODES,
    *load.NODES,
    *concept_set.NODES,
    *settings.NODES,
    *train.NODES,
    *files.NODES,
    *export.NODES,
    *apply.NODES,
    *guider.NODES,
    *compare.NODES,
    *grid.NODES,
]
