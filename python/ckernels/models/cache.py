"""What a whole model keeps of the tokens it has seen: one key-value cache per layer."""

import ckernels as ck

__all__ = ["ModelCache"]

BLOCK = 16  # tokens


class ModelCache:
    """The key-value caches of all layers, which always hold the same tokens.

    Made by :meth:`Model.new_cache`; handed to the model with every call that continues the text.

    Parameters
    ----------
    config : Config
        Of the model.
    capacity : int
        Tokens that each item can hold.
    batch : int
        Items, each with a length of its own.
    quant : None, "int8", "int4", "int8_sym", "fp8_e4m3" or "fp8_e5m2"
        How keys and values are stored, as for :class:`ckernels.KVCache`; in groups of 32 channels, or of 16
        where the head size is no multiple of 32.
    paged : bool or int
        In blocks of 16 tokens, from a pool of so many for each layer; True: as many as all items can fill.  Forks then
        share the pool, and its blocks until one of them writes.
    dtype : str or numpy.dtype
        Of the model.

    Attributes
    ----------
    layers : list of KVCache, or of PagedBatch
        One per layer, first to last.
    capacity : int
        As given.

    Examples
    --------
    >>> cache = ck.models.Model(ck.models.configs.tiny).new_cache(capacity=8)
    >>> cache.lengths
    array([0])
    """

    def __init__(self, config, capacity, batch=1, quant=None, paged=False, dtype="float32"):
        heads, size, layers = config.num_key_value_heads, config.head_dim, range(config.num_hidden_layers)
        self.capacity = capacity
        group = 16 if size % 32 else 32
        if paged is False:
            self.layers = [
                ck.KVCache(heads, size, capacity, batch=batch, dtype=dtype, quant=quant, group=group) for _ in layers
            ]
            return
        blocks = -(-capacity // BLOCK) * batch if paged is True else paged
        pools = [ck.PagedKVCache(heads, size, blocks, BLOCK, dtype=dtype, quant=quant, group=group) for _ in layers]
        self.layers = [pool.batch([pool.new() for _ in range(batch)]) for pool in pools]

    @property
    def lengths(self):
        """Tokens that each item holds, int64 [B]; a copy."""
        return self.layers[0].lengths

    @property
    def batch(self):
        """Number of items."""
        return self.layers[0].batch

    def truncate(self, length):
        """Forget everything behind the first ``length`` tokens.

        Parameters
        ----------
        length : int or int array [B]
            At most what is held.
        """
        for layer in self.layers:
            layer.truncate(length)

    def reset(self):
        """Forget everything."""
        for layer in self.layers:
            layer.reset()

    def fork(self):
        """Return an independent copy.

        Returns
        -------
        ModelCache
        """
        other = object.__new__(ModelCache)
        other.capacity = self.capacity
        other.layers = [layer.fork() for layer in self.layers]
        return other

    def __repr__(self):
        """Say how full it is."""
        return f"ModelCache({len(self.layers)} layers, capacity={self.capacity}, lengths={self.lengths.tolist()})"
