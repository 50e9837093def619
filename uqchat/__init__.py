"""uqchat: a chat that shows which tokens of a language model's answer are likely to be wrong."""

__version__ = "0.1.0"
