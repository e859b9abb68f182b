"""SAM's two-way transformer with fewer sums: what it computes, in another order.

Five times the transformer lets tokens, of which there are few, look at the image's cells, of which there are thousands,
or the other way round. As it is written down, the cells are projected to queries, keys or values and then meet the
tokens. But a product may be taken in any order: here the tokens are multiplied with the projection's weights first,
head by head, and meet the cells as they are. For t tokens and 8 heads a cell is then multiplied with 8 t columns
instead of with 128: 56 for a box, whose two tokens stand beside five of the model's own.

A key's bias adds the same to all scores of a query, which softmax takes out again, so it is left out. Nothing else is:
answers differ by rounding alone. The more tokens a prompt has, the less is saved: `benchmarks/roads.py` tells from how
many points on the usual order is the quicker one (some twenty).
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from transformers.models.sam.modeling_sam import SamAttention, SamTwoWayAttentionBlock, SamTwoWayTransformer


def attended(
    transformer: SamTwoWayTransformer,
    tokens: Float[Tensor, "object token channel"],
    cells: Float[Tensor, "any_object cell channel"],
    positions: Float[Tensor, "1 cell channel"],
) -> tuple[Float[Tensor, "object token channel"], Float[Tensor, "object cell channel"]]:
    """What the transformer makes of tokens and cells; `cells` may be the same for all objects (`any_object` is 1)."""
    queries = tokens
    for block in transformer.layers:
        assert isinstance(block, SamTwoWayAttentionBlock)
        # The first block attends without adding the tokens to themselves, and forgets what they were.
        if block.skip_first_layer_pe:
            queries = block.self_attn(query=queries[:, None], key=queries[:, None], value=queries[:, None])[0][:, 0]
        else:
            asked = (queries + tokens)[:, None]
            queries = queries + block.self_attn(query=asked, key=asked, value=queries[:, None])[0][:, 0]
        queries = block.layer_norm1(queries)
        placed = cells + positions
        queries = block.layer_norm2(
            queries + _tokens_to_cells(block.cross_attn_token_to_image, queries + tokens, placed, cells)
        )
        queries = block.layer_norm3(queries + block.mlp(queries))
        cells = block.layer_norm4(
            cells + _cells_to_tokens(block.cross_attn_image_to_token, placed, queries + tokens, queries)
        )
    last = transformer.final_attn_token_to_image
    queries = queries + _tokens_to_cells(last, queries + tokens, cells + positions, cells)
    return transformer.layer_norm_final_attn(queries), cells


def _tokens_to_cells(
    attention: SamAttention,
    queries: Float[Tensor, "object token channel"],
    keys: Float[Tensor, "any_object cell channel"],
    values: Float[Tensor, "any_object cell channel"],
) -> Float[Tensor, "object token channel"]:
    heads = attention.num_attention_heads
    asked = _apart(attention.q_proj(queries) * attention.scaling, heads)
    asked = asked @ attention.k_proj.weight.unflatten(0, (heads, -1))  # object, head, token, channel
    shares = (asked.flatten(1, 2) @ keys.transpose(1, 2)).softmax(dim=-1)
    seen = (shares @ values).unflatten(1, (heads, -1))
    weight = attention.v_proj.weight.unflatten(0, (heads, -1))
    found = seen @ weight.transpose(1, 2)  # object, head, token, head channel
    return attention.out_proj(found.transpose(1, 2).flatten(2) + attention.v_proj.bias)


def _cells_to_tokens(
    attention: SamAttention,
    queries: Float[Tensor, "any_object cell channel"],
    keys: Float[Tensor, "object token channel"],
    values: Float[Tensor, "object token channel"],
) -> Float[Tensor, "object cell channel"]:
    heads = attention.num_attention_heads
    offered = _apart(attention.k_proj(keys) * attention.scaling, heads)  # object, head, token, head channel
    weight = attention.q_proj.weight.unflatten(0, (heads, -1))
    bias = attention.q_proj.bias.unflatten(0, (heads, -1))
    asked = (offered @ weight).flatten(1, 2).transpose(1, 2)  # object, channel, head and token
    level = (offered @ bias[:, :, None]).flatten(1)[:, None]  # object, 1, head and token
    shares = (queries @ asked + level).unflatten(2, (heads, -1)).softmax(dim=-1).flatten(2)
    given = _apart(attention.v_proj(values), heads)
    back = attention.out_proj.weight.unflatten(1, (heads, -1)).permute(1, 2, 0)  # head, head channel, channel
    return shares @ (given @ back).flatten(1, 2) + attention.out_proj.bias


def _apart(x: Float[Tensor, "object token channel"], heads: int) -> Float[Tensor, "object head token head_channel"]:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


__all__ = ["attended"]
