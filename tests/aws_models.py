"""What botocore makes of the descriptions of AWS services for each session and client, though it is always the same.

The descriptions are megabytes of JSON, and folders of a thousand; each session gives two hundred events new names, and
looks at the arguments of as many handlers; each client makes objects of the rules that give an address. Here all
sessions of a process, and of its forks, share what the first one has made.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from botocore import endpoint_provider, hooks
from botocore.loaders import Loader

if TYPE_CHECKING:
    from collections.abc import Callable

_READ: dict[tuple[str, ...], dict[Any, Any]] = {}
_NAMES: dict[str, str] = {}
_RULES: dict[tuple[int, int], tuple[Any, Any]] = {}  # with what they were made of, so that no other gets its number


def share() -> None:
    """Share them from now on."""
    _share_descriptions(Loader.__init__)
    _share_names(hooks.EventAliaser.__init__)
    _share_rules(endpoint_provider.RuleSet)
    looked_at = hooks.accepts_kwargs

    def accepts_kwargs(handler: Callable[..., object]) -> object:
        code = getattr(handler, "__code__", None)
        return looked_at(handler) if code is None else code.co_flags & inspect.CO_VARKEYWORDS

    hooks.accepts_kwargs = accepts_kwargs


def _share_descriptions(begin: Callable[..., None]) -> None:
    def begun(self: Loader, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        self._cache = _READ.setdefault(tuple(self.search_paths), {})

    Loader.__init__ = begun


def _share_names(begin: Callable[..., None]) -> None:
    def begun(self: hooks.EventAliaser, *arguments: Any, **options: Any) -> None:
        begin(self, *arguments, **options)
        if self._event_aliases == hooks.EVENT_ALIASES:
            self._alias_name_cache = _NAMES

    hooks.EventAliaser.__init__ = begun


def _share_rules(make: Callable[..., Any]) -> None:
    def made(*, rules: Any, partitions: Any, **more: Any) -> Any:
        key = (id(rules), id(partitions))
        if key not in _RULES:
            _RULES[key] = (make(rules=rules, partitions=partitions, **more), (rules, partitions))
        return _RULES[key][0]

    endpoint_provider.RuleSet = made
