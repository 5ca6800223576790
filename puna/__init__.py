"""puna raises a Llama: from raw web pages to a chat model that uses tools, by the Llama 3.1 recipe."""

__version__ = "0.1.0"
