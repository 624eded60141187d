"""PureCC: pure concept customisation for Stable Diffusion 3-type flow models (arXiv 2603.07561)."""

__version__ = "0.1.0"
