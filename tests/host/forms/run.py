"""Runs every check of forms in one host process. The last line is JSON: check -> what it saw; see test_forms.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

import common  # noqa: E402
import of_files  # noqa: E402, F401
import of_quantised  # noqa: E402, F401
import of_vaes  # noqa: E402, F401
import torch  # noqa: E402

torch.set_num_threads(1)
with torch.inference_mode():  # as the host runs every node
    print(json.dumps({name: seen() for name, seen in common.CHECKS.items()}))
