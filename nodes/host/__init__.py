"""The host's side: the only folder that touches `comfy.*`, `folder_paths` and `server`."""
