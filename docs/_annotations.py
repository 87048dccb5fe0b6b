"""A griffe extension for the API pages: annotations and defaults as a reader needs them.

Where the source says `memory: Memory = None` and `calls: Calls = CALLS_EXPECTED`, the page says
`memory: int | float | str | None = None` and `calls: float = 100`. `mkdocs.yml` loads this file.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import griffe


class WrittenOut(griffe.Extension):
    """Replaces the names of type aliases and of constants by what they stand for."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Change every function and attribute of a package that was just loaded."""
        for member in _members(pkg):
            if isinstance(member, griffe.Attribute):
                member.annotation = _written_out(member.annotation, loader)
            if isinstance(member, griffe.Function):
                member.returns = _written_out(member.returns, loader)
                for parameter in member.parameters:
                    parameter.annotation = _written_out(parameter.annotation, loader)
                    parameter.default = _constant(parameter.default, loader)


def _members(parent: griffe.Object) -> Iterator[griffe.Object]:
    for member in parent.members.values():
        if isinstance(member, griffe.Object):  # no alias: what is imported is changed where it is defined
            yield member
            yield from _members(member)


def _written_out(annotation: Any, loader: griffe.GriffeLoader) -> Any:
    """An annotation without the names of aliases."""
    if isinstance(annotation, griffe.ExprName):
        attribute = _attribute(annotation, loader)
        if attribute is None or not isinstance(attribute.value, griffe.Expr):
            return annotation
        literal = isinstance(attribute.value, griffe.ExprSubscript) and str(attribute.value.left) == "Literal"
        alias = str(attribute.annotation) == "TypeAlias" or literal
        return _written_out(attribute.value, loader) if alias else annotation
    if isinstance(annotation, list | tuple):
        return [_written_out(part, loader) for part in annotation]
    if not isinstance(annotation, griffe.Expr):
        return annotation
    parts = {field.name: getattr(annotation, field.name) for field in dataclasses.fields(annotation)}
    return dataclasses.replace(annotation, **{name: _written_out(part, loader) for name, part in parts.items()})


def _constant(default: Any, loader: griffe.GriffeLoader) -> Any:
    """The value of a default that is the name of a constant."""
    attribute = _attribute(default, loader) if isinstance(default, griffe.ExprName) else None
    return attribute.value if attribute is not None and isinstance(attribute.value, str) else default


def _attribute(name: griffe.ExprName, loader: griffe.GriffeLoader) -> griffe.Attribute | None:
    try:
        found = loader.modules_collection[name.canonical_path]
    except KeyError:
        return None
    return found if isinstance(found, griffe.Attribute) else None
