"""A ComfyUI that lacks some internals: the pack is there, and the nodes that need them say so (test_routes.py reads the last line)."""

import json
import sys

import comfy.utils
import purecc_pack
import torch
from purecc_pack.nodes import apply, pocket, train
from purecc_pack.purecc.settings import TrainSettings


def said(call, *arguments) -> str:
    try:
        call(*arguments)
    except RuntimeError as error:
        return str(error)
    return ""


def prepare(model) -> None:
    with train.training.prepared(model, SET, TrainSettings()):
        pass


class SET:
    concept_set = None


with torch.inference_mode():
    model, clip, _ = pocket.PocketModel.execute().args
    del comfy.utils.mmdit_to_diffusers
    sys.modules["comfy.patcher_extension"] = None  # importing it fails
    print(
        json.dumps(
            {
                "nodes": len(purecc_pack.NODES),
                "function": said(prepare, model),
                "module": said(apply.ApplyConcept.execute, model, clip, None, 1.0, 1.0, "off"),
            }
        )
    )
