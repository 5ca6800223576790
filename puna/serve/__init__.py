"""A server that speaks OpenAI's API over the engine: `puna serve RUN_OR_MODEL ...`.

guard.py stands before everything (key, origin, size, request id, log); requests.py says what may be asked, and
chat.py, completions.py, responses.py and the others answer; worker.py runs one engine in a thread of its own.
"""
