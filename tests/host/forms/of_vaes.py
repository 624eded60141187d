"""VAEs that overflow in float16, and damaged ones."""

from __future__ import annotations

import comfy.sd
import torch
from comfy.ldm.models.autoencoder import AutoencodingEngine
from common import apart, check
from purecc_pack.nodes.host import pocket, session


@check
def half_vae() -> dict:
    """SD3's VAE as the host builds it from a file, in float16, whose first layers overflow there and not in float32."""
    config = {"z_channels": 16, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2}
    config |= {
        "double_z": True,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    torch.manual_seed(0)
    made = AutoencodingEngine(
        regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
        encoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Encoder", "params": config},
        decoder_config={"target": "comfy.ldm.modules.diffusionmodules.model.Decoder", "params": config},
    )
    values = {
        name: 0.02 * torch.randn(v.shape) if v.ndim > 1 else torch.ones_like(v) for name, v in made.state_dict().items()
    }
    for end in ("encoder", "decoder"):
        values[f"{end}.conv_in.weight"].mul_(5e5).clamp_(-6e4, 6e4)  # the weights themselves fit
    vaes = {dtype: comfy.sd.VAE(sd=dict(values), dtype=dtype) for dtype in (torch.float16, torch.float32)}
    half, whole = vaes[torch.float16], vaes[torch.float32]
    picture = torch.rand(1, 32, 32, 3)
    with session.outside_inference():  # as the nodes call it
        latents = session.encode_pictures(whole, picture)
        of_half = session.encode_pictures(half, picture)
        pictures = [session.decode_latents(vae, latents) for vae in (half, whole)]
    return {
        # and the stock nodes after it: a VAE that came back to float16 outside the host's mode would fail here
        "stock": bool(torch.isfinite(half.encode(picture)).all()),
        "stock picture": bool(torch.isfinite(half.decode(latents)).all()),
        "latents": apart(of_half, latents),
        "pictures": apart(*pictures),
        "dtype": [str(half.vae_dtype), str(next(half.first_stage_model.parameters()).dtype)],
    }


@check
def broken_vae() -> dict:
    """A VAE with a damaged file, and latents that are no numbers."""
    vae, said = pocket.load_pocket()[2], {}
    cases = {"diverged": lambda: session.decode_latents(vae, torch.full((1, 16, 8, 8), float("nan")))}
    cases["encode"] = lambda: session.encode_pictures(vae, torch.rand(1, 64, 64, 3))
    cases["decode"] = lambda: session.decode_latents(vae, torch.zeros(1, 16, 8, 8))
    for case, call in cases.items():
        try:
            call()
        except ValueError as error:
            said[case] = str(error)
        for parameter in vae.first_stage_model.parameters():
            parameter.fill_(float("nan"))
    return said
