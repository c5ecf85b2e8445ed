"""The package's version, which setup.py and the files of runs and adapters take from here."""

__version__ = "0.1.0"
