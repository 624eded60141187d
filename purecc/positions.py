"""The transformer's table of positions, cut to what the pictures need: SD3.5 Medium's is 384 x 384, 0.45 GB in bfloat16."""

from torch import Tensor, nn


def side_for(full: int, needed: int) -> int:
    """The side of the smallest table that reads as the full one does: the centre is taken, so both are odd or both even."""
    return min(full, needed + (full - needed) % 2)


def centre(table: Tensor, side: int) -> Tensor:
    """[1, full * full, width] -> [1, side * side, width], the middle of the table."""
    full = round(table.shape[1] ** 0.5)
    first = (full - side) // 2
    square = table.view(1, full, full, -1)[:, first : first + side, first : first + side]
    return square.reshape(1, side * side, -1)


def set_table(patch_embed: nn.Module, table: Tensor) -> None:
    """Gives diffusers' PatchEmbed another table; pictures that it is too small for are refused by its forward."""
    patch_embed.register_buffer("pos_embed", table, persistent=True)
    patch_embed.pos_embed_max_size = round(table.shape[1] ** 0.5)
