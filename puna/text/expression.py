"""Python expressions that models and programs write."""

import ast
import warnings


def parse_expression(text: str) -> ast.expr:
    """The syntax tree; SyntaxError or ValueError where there is none. Python's warnings of what is merely odd, such as
    a number and a word without a space between, or an unknown escape in a string, are kept from the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return ast.parse(text, mode="eval").body
