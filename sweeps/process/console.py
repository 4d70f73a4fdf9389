"""Rich's console for texts that come from outside: what is shown can neither steer the terminal nor be markup."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from analysis.text.visible import visible


class SafeConsole(Console):
    """A console that shows control characters as signs, takes no markup, and colours nothing by itself.

    Args:
        settings: of ``rich.console.Console``.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"highlight": False, "markup": False, "emoji": False, **settings})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As Rich does; what it writes itself to move the cursor is marked as control, and stays."""
        for segment in super().render(renderable, options):
            plain = segment.control or segment.text == "\n" or segment.text.isprintable()
            yield segment if plain else Segment(visible(segment.text), segment.style)
