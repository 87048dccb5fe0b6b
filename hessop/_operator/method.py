"""Methods of operators. Bound methods are pytrees, like those of equinox modules, but are much cheaper to access.

Equinox creates a module each time a method is accessed, which takes longer than dispatching a product. Methods run under the
JAX settings that the operator's program was traced with.

Depends on JAX and the settings. Must never know what a method does.
"""

import functools
import types
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

from hessop._base.settings import are_set, settings

_F = TypeVar("_F", bound=Callable[..., Any])


class Bound:
    """A method bound to an operator, which is the only child of this pytree."""

    def __init__(self, function: Callable[..., Any], operator: Any):
        self.__func__, self.__self__, self.__doc__ = function, operator, function.__doc__

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        operator = self.__self__
        x64 = operator.program.x64
        if are_set(x64):
            return self.__func__(operator, *args, **kwargs)
        with settings(x64):
            return self.__func__(operator, *args, **kwargs)

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        return types.MethodType(self.__func__, self.__self__)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__qualname__", "__module__"):
            raise AttributeError(name)
        return getattr(self.__func__, name)

    def __reduce__(self) -> Any:
        return getattr, (self.__self__, self.__func__.__name__)

    def __repr__(self) -> str:
        return f"<method {self.__func__.__qualname__} of {self.__self__!r}>"


jax.tree_util.register_pytree_node(
    Bound, lambda bound: ((bound.__self__,), bound.__func__), lambda function, children: Bound(function, children[0])
)


class _Method:
    """The descriptor that binds a function to operators."""

    def __init__(self, function: Callable[..., Any]):
        functools.update_wrapper(self, function)
        self._function = function

    def __get__(self, operator: Any, kind: type | None = None) -> Any:
        return self if operator is None else Bound(self._function, operator)

    def __call__(self, operator: Any, *args: Any, **kwargs: Any) -> Any:
        return Bound(self._function, operator)(*args, **kwargs)


def method(function: _F) -> _F:
    """Decorator for the methods of operator classes."""
    return cast(_F, _Method(function))
