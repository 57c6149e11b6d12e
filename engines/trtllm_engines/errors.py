"""The one exception a user can cause here: its text is a single sentence saying what was wrong, where, and what to do."""


class EngineError(ValueError):
    """A model, weight file, build request or engine folder that cannot be used as asked."""
