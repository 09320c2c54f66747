"""A key/value cache with room for the tokens to come.

transformers' own copies all keys and values of all layers for each new token, into memory that the system has to hand
out anew; in a small model that takes a third of a decoding step. This one copies them once in ``BLOCK`` tokens.

Shapes: keys and values [b, heads, n, head_dim], views of a room of [b, heads, at least n, head_dim].
"""

from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

BLOCK = 64
"""Tokens by which the room grows."""


def roomy_cache(config: PreTrainedConfig) -> DynamicCache:
    """transformers' cache for this model, in which the layers that keep every token are roomy ones."""
    cache = DynamicCache(config=config)
    roomy: Any = RoomyLayer
    cache.layers = [roomy() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers' own
    """The keys and values of one layer."""

    keys: Tensor
    values: Tensor
    _rooms: tuple[Tensor | None, Tensor | None] = None, None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones [b, heads, new, head_dim] behind the others."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, key_room = _append(self.keys, key_states, self._rooms[0])
        self.values, value_room = _append(self.values, value_states, self._rooms[1])
        self._rooms = key_room, value_room
        return self.keys, self.values


def _append(held: Tensor, new: Tensor, room: Tensor | None) -> tuple[Tensor, Tensor]:
    """What is held with the new tokens behind it, and the room that both stand in."""
    length = held.shape[-2] if held.numel() else 0
    end = length + new.shape[-2]
    # Rows that were chosen or repeated meanwhile stand elsewhere.
    moved = room is None or held.data_ptr() != room.data_ptr() or held.shape[:2] != room.shape[:2]
    if room is None or moved or end > room.shape[-2]:
        room = new.new_empty(*new.shape[:-2], end + BLOCK, new.shape[-1])
        if length:
            room[..., :length, :] = held
    room[..., length:end, :] = new
    return room[..., :end, :], room
