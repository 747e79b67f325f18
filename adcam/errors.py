"""The one error of this package that is the user's to mend."""


class AdcamError(ValueError):
    """Something that a user gave is wrong: a file, a setting, an argument of a command.

    Its message names the file or setting, the value found and what would be right. The command
    line prints it without a traceback; every other exception is a fault of the program and keeps
    its traceback.
    """
