"""The errors every layer raises for what a user can mend."""

__all__ = ["CompileError", "OutOfDeviceMemoryError"]


class CompileError(ValueError):
    """A program this compiler cannot take: names the op, the user's line and what to do.

    Args:
      message: what is wrong, with expected and got.
      op: the op as the user would know it, e.g. ``stablehlo.custom_call``.
      location: ``file:line`` in the user's source, or "" where there is none.
      fix: what to do about it.
    """

    def __init__(self, message: str, *, op: str = "", location: str = "", fix: str = "") -> None:
        self.message, self.op, self.location, self.fix = message, op, location, fix
        parts = [f"{op}: {message}" if op else message]
        if location:
            parts.append(f"  at {location}")
        if fix:
            parts.append(f"  fix: {fix}")
        super().__init__("\n".join(parts))

    def at(self, location: str) -> "CompileError":
        """The same at a line of the user's, for who raised it knew none."""
        return type(self)(self.message, op=self.op, location=location, fix=self.fix)


class OutOfDeviceMemoryError(CompileError):
    """The program needs more HBM than a core has; the message holds the table of what fills it."""
