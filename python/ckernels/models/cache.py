"""What a whole model keeps of the tokens it has seen: one key-value cache per layer."""

import ckernels as ck

__all__ = ["ModelCache"]


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

    Attributes
    ----------
    layers : list of KVCache
        One per layer, first to last.

    Examples
    --------
    >>> cache = ck.models.Model(ck.models.configs.tiny).new_cache(capacity=8)
    >>> cache.lengths
    array([0])
    """

    def __init__(self, config, capacity, batch=1):
        heads, size = config.num_key_value_heads, config.head_dim
        self.layers = [ck.KVCache(heads, size, capacity, batch=batch) for _ in range(config.num_hidden_layers)]

    @property
    def lengths(self):
        """Tokens that each item holds, int64 [B]; a copy."""
        return self.layers[0].lengths

    @property
    def capacity(self):
        """Tokens that each item can hold."""
        return self.layers[0].capacity

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
        other.layers = [layer.fork() for layer in self.layers]
        return other

    def __repr__(self):
        """Say how full it is."""
        return f"ModelCache({len(self.layers)} layers, capacity={self.capacity}, lengths={self.lengths.tolist()})"
