"""The one error class that is shown to users as a message, without a traceback."""


class PunaError(ValueError):
    """Something the user can mend; the message names the key or file, the value and the mend."""
