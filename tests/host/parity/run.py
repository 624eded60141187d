"""Runs every parity check in one host process: run.py WEIGHTS_FOLDER. The last line is JSON: check -> what it saw."""

from __future__ import annotations

import dataclasses
import json
import sys
import traceback
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import common  # noqa: E402
import of_concepts  # noqa: E402, F401
import of_gates  # noqa: E402, F401
import of_guider  # noqa: E402, F401
import of_holding  # noqa: E402, F401
import of_identity  # noqa: E402, F401
import of_pocket  # noqa: E402, F401
import of_session  # noqa: E402, F401
import of_settings  # noqa: E402, F401
import of_tokens  # noqa: E402, F401
import of_triggers  # noqa: E402, F401
import of_wiring  # noqa: E402, F401
import torch  # noqa: E402

torch.set_num_threads(1)
common.FOLDER.append(Path(sys.argv[1]))
wanted = sys.argv[2:] or common.CHECKS
seen = {}
for name in wanted:
    try:
        with torch.inference_mode():  # as the host runs every node
            seen[name] = dataclasses.asdict(common.CHECKS[name]())
    except Exception:
        seen[name] = {"figures": {}, "sentences": {traceback.format_exc(): False}}
print(json.dumps(seen))
