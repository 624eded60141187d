"""The pack's nodes. To add one: a V3 node class in a file here, its `NODES` joined below."""

from . import apply, compare, concept_set, files, grid, pocket, train

NODES = [*pocket.NODES, *concept_set.NODES, *train.NODES, *files.NODES, *apply.NODES, *compare.NODES, *grid.NODES]
