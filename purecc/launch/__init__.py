"""The launcher behind `run.py`: sets up a real ComfyUI in `.local/`, then runs the demo, the page or the tests.

Standard library only: it runs before anything is installed.
"""
