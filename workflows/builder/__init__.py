"""The shared workflows as code, a file for each kind of job. Standard library only."""
