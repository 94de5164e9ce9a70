"""Operations on raw buffers, each made once for a shape of cache and called with any cache of that shape."""
