"""An assistant of assisted generation with its own K and V in kvit's pages."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any

from transformers import PreTrainedModel

from kvit.errors import KvitError
from kvit.transformers.cache import KvitCache


class AssistantCache:
    """Gives an assistant model a KvitCache: generate(assistant_model=...) has no argument for one.

        cache, drafts = KvitCache(model.config, pages=512), KvitCache(assistant.config, pages=512)
        with AssistantCache(assistant, drafts):
            model.generate(**tokens, past_key_values=cache, assistant_model=assistant)

    assistant  with attn_implementation="kvit". It may be the model itself that leaves early (assistant_early_exit=n):
               its cache is then of a config of n layers
    cache      of the assistant's config; it holds the tokens of the last generation when that ends

    Inside of the block assistant.generate is this object's: a call that names no cache, which the first one of an
    assisted generation is, begins with this one, emptied. Calls that name a cache go on with theirs.

    Raises TypeError (no KvitCache).
    """

    def __init__(self, assistant: PreTrainedModel, cache: KvitCache):
        if not isinstance(cache, KvitCache):
            raise TypeError(f"cache is a {type(cache).__name__}; give the kvit.transformers.KvitCache of the assistant")
        self._assistant, self._cache = assistant, cache
        self._plain: Callable[..., Any] | None = None
        self._replaced: Any = None  # what somebody else had put in place of the class's own

    def __enter__(self) -> AssistantCache:
        if self._plain is not None:
            raise KvitError("the block is open already; one AssistantCache serves one block at a time")
        plain = self._plain = self._assistant.generate
        self._replaced = vars(self._assistant).get("generate")
        # transformers' own word for it, old and new.
        word = "cache" if "cache" in inspect.signature(self._assistant.forward).parameters else "past_key_values"

        @wraps(plain)
        def generate(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("cache") is None and kwargs.get("past_key_values") is None:
                self._cache.reset()
                kwargs[word] = self._cache
            return plain(*args, **kwargs)

        self._assistant.generate = generate
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._replaced is None:
            del self._assistant.generate
        else:
            self._assistant.generate = self._replaced
        self._plain = self._replaced = None
