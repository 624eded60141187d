"""The pack on some server, in a minute: it loads, draws with a bundled concept, and trains."""

from __future__ import annotations

from purecc.launch.demo import load_workflow
from purecc.launch.layout import PACK_NAME, PROJECT
from purecc.launch.pictures import to_prompt_of
from purecc.launch.server import Server


def pack_works(server: Server) -> None:
    nodes = {t for t, i in server.client.object_info().items() if i["python_module"] == f"custom_nodes.{PACK_NAME}"}
    assert nodes == {page.stem for page in (PROJECT / "js" / "docs").glob("*.md")}
    assert "IMPORT FAILED" not in server.log_text()
    assert load_workflow(PROJECT, "01").stem in server.client.get("/workflow_templates")[PACK_NAME]

    prompt = to_prompt_of(PROJECT, "02", server)  # the bundled concept, without any copying
    for node in prompt.values():
        node["inputs"] |= {"steps": 2} if node["class_type"] == "KSampler" else {}
    outputs = server.client.run(prompt, timeout=300)["outputs"]
    assert sum(len(output.get("images", [])) for output in outputs.values()) == 4 * 4 + 2

    prompt = to_prompt_of(PROJECT, "01", server)  # training, with all that it imports
    for node in prompt.values():
        node["inputs"] |= {key: 1 for key in ("steps", "batch_size") if key in node["inputs"]}
    server.client.run(prompt, timeout=300)
    assert (server.base / "models" / "purecc" / "pink poodle.safetensors").is_file()
