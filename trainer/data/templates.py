"""Jinja templates that make a row's columns into text; in Jinja's sandbox, as a config file must not run code."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from analysis.errors import ConfigError, DataError

if TYPE_CHECKING:
    from jinja2 import Template

# What code in a template raises, beside Jinja's own errors: such as a macro that calls itself.
RENDER_ERRORS = (
    TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError, MemoryError,
)  # fmt: skip
WHOLE = "row"  # in a template: all columns, for names that are no identifiers: {{ row["column name"] }}


class RowTemplate:
    """A compiled template.

    Args:
        key: its config path, for messages.
        source: Jinja; an empty cell renders as nothing.

    Attributes:
        columns: those it names; ``row`` stands for all of them.

    Raises:
        ConfigError: for a template that Jinja cannot read.
    """

    def __init__(self, key: str, source: str):
        from jinja2 import TemplateSyntaxError, meta

        self.key = key
        environment = _environment()
        try:
            self.columns = sorted(meta.find_undeclared_variables(environment.parse(source)))
            self._template: Template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"{key}, line {error.lineno}: not a Jinja template ({error.message}). A column stands in it as"
                " {{ column }}; see https://jinja.palletsprojects.com/templates."
            ) from None
        except RecursionError:
            raise ConfigError(f"{key}: not a Jinja template (nested too deep).") from None
        if not self.columns:
            raise ConfigError(f"{key}={source!r}: no column in it. A column stands in it as {{{{ column }}}}.")

    def render(self, cells: Mapping[str, Any]) -> str:
        """The text for one row.

        Args:
            cells: column → value.

        Raises:
            DataError: without a place, where the row does not fit the template.
        """
        from jinja2 import TemplateError

        try:
            return self._template.render({WHOLE: dict(cells), **cells})
        except (TemplateError, *RENDER_ERRORS) as error:
            raise DataError(f"{self.key} cannot be filled in ({type(error).__name__}: {error})") from None


def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(
        undefined=StrictUndefined,
        finalize=lambda value: "" if value is None else value,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
