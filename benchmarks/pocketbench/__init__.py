"""PocketBench: does a way of personalising the Pocket SD3 render the concept, and leave all else alone?

    python -m benchmarks.pocketbench --quick

Its figures are the pocket's own; they carry the names of well-known metrics with "pocket" before them, because they do
for the pocket what those do for photographs, and nothing else is alike.
"""
