"""The one exception for mistakes that a person can mend: bad data, options, files or checkpoints."""


class DqdetError(Exception):
    """Says in one line what is wrong, where (file and entry), and what to do.

    The command line prints the message without a traceback (unless ``--debug``) and exits with status 1.
    """


class Interrupted(DqdetError):
    """A training that was asked to stop has stopped; says how to go on."""
