"""The two web tools that Llama 3.1 knows by name: Brave search and Wolfram Alpha, each with the user's own key."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from puna.errors import PunaError
from puna.tools.functions import Tool

BRAVE_URL = "https://api.search.brave.com/res/v1/web/search"
WOLFRAM_URL = "https://api.wolframalpha.com/v2/query"
TIMEOUT, TRIES, PAUSE, LONGEST_PAUSE = 20.0, 3, 0.5, 10.0
"""Seconds of a request; tries; seconds before the second try, doubled for the third; what a server may ask for."""


def brave_search(key: str, results: int = 5, url: str = BRAVE_URL, pause: float = PAUSE) -> Tool:
    """The built-in tool brave_search (api-dashboard.search.brave.com, "Web Search API")."""

    def search(query: str) -> str:
        headers = {"X-Subscription-Token": key, "Accept": "application/json"}
        reply = get_json("Brave search", url, {"q": query, "count": results}, headers, pause)
        found = (reply.get("web") or {}).get("results") or []
        lines = [f"{_plain(one.get('title'))}\n{one.get('url', '')}\n{_snippet(one)}" for one in found[:results]]
        return "\n\n".join(lines) or f"no results for {query!r}"

    return _tool("brave_search", "Search the web.", search)


def wolfram_alpha(key: str, url: str = WOLFRAM_URL, pause: float = PAUSE) -> Tool:
    """The built-in tool wolfram_alpha (products.wolframalpha.com, "Full Results API")."""

    def ask(query: str) -> str:
        parameters = {"input": query, "appid": key, "output": "JSON", "format": "plaintext"}
        reply = get_json("Wolfram Alpha", url, parameters, {}, pause).get("queryresult") or {}
        if isinstance(problem := reply.get("error"), dict):
            raise PunaError(f"Wolfram Alpha: {problem.get('msg', 'error')}; check WOLFRAM_APP_ID or --wolfram-key")
        pods = [f"{pod.get('title', '')}: {text}" for pod in reply.get("pods") or [] if (text := _pod(pod))]
        if not pods:
            guesses = reply.get("didyoumeans") or []
            guesses = [one.get("val", "") for one in (guesses if isinstance(guesses, list) else [guesses])]
            hint = f"; it asks: did you mean {' or '.join(guesses)}?" if guesses else "; put it differently"
            raise ValueError(f"Wolfram Alpha does not understand {query!r}{hint}")
        return "\n".join(pods)

    return _tool("wolfram_alpha", "Ask Wolfram Alpha for facts and calculations.", ask)


def find_key(given: str | Path | None, variable: str, option: str) -> str:
    """A key as given, out of the file given, or out of the environment; PunaError where there is none."""
    if given is not None and Path(given).is_file():
        given = Path(given).read_text(encoding="utf-8")
    key = str(given or os.environ.get(variable, "")).strip()
    if not key or any(letter.isspace() or letter in "/\\" for letter in key):
        missing = "no key" if not key else "neither a key nor a file"
        raise PunaError(f"{option}: {missing}; set {variable}, or give {option} the key or a file that holds it")
    return key


def get_json(name: str, url: str, parameters: dict[str, Any], headers: dict[str, str], pause: float) -> dict[str, Any]:
    """A GET whose answer is a JSON object; tried again when the server is busy or cannot be reached.

    Raises:
        PunaError: with the service's name and what it says; a key is never part of it.
    """
    problem = ""
    for number in range(TRIES):
        wait = pause * 2**number
        try:
            reply = httpx.get(url, params=parameters, headers=headers, timeout=TIMEOUT)
        except httpx.TimeoutException:
            problem = f"no answer within {TIMEOUT:.0f} s"
        except httpx.TransportError as error:
            problem = f"cannot be reached ({type(error).__name__})"
        else:
            if reply.status_code == 200:
                return _object(name, reply)
            problem = _said(reply)
            if reply.status_code != 429 and reply.status_code < 500:
                break
            wait = max(wait, min(_asked(reply), LONGEST_PAUSE))
        if number + 1 < TRIES:
            time.sleep(wait)
    raise PunaError(f"{name}: {problem}")


def _object(name: str, reply: httpx.Response) -> dict[str, Any]:
    try:
        data = reply.json()
    except ValueError:
        data = None
    if not isinstance(data, dict):
        raise PunaError(f"{name}: the answer is no JSON object but {reply.text[:80]!r}")
    return data


def _said(reply: httpx.Response) -> str:
    """The status, and what Brave (error.detail) or Wolfram Alpha (text) says about it."""
    try:
        detail = reply.json()["error"]["detail"]
    except (ValueError, KeyError, TypeError):
        detail = reply.text.strip()[:200]
    hints = {401: "check the key", 403: "check the key", 422: "check the key and the query", 429: "too many requests"}
    hint = hints.get(reply.status_code)
    return f"HTTP {reply.status_code}" + (f", {hint}" if hint else "") + (f": {detail}" if detail else "")


def _asked(reply: httpx.Response) -> float:
    """Seconds that the server asks to wait: Retry-After, or the first of Brave's X-RateLimit-Reset."""
    text = reply.headers.get("Retry-After") or reply.headers.get("X-RateLimit-Reset", "").partition(",")[0]
    try:
        return float(text)
    except ValueError:
        return 0.0


def _snippet(result: dict[str, Any]) -> str:
    age = result.get("age")
    return _plain(result.get("description")) + (f" ({age})" if age else "")


def _plain(text: str | None) -> str:
    """Brave marks the words found with <strong>."""
    return (text or "").replace("<strong>", "").replace("</strong>", "")


def _pod(pod: dict[str, Any]) -> str:
    texts = (part.get("plaintext") or "" for part in pod.get("subpods") or [])
    return "; ".join(text.replace("\n", ", ") for text in texts if text)


def _tool(name: str, description: str, function: Callable[[str], str]) -> Tool:
    parameters = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
    schema = {"name": name, "description": description, "parameters": parameters}
    return Tool(function, {"type": "function", "function": schema}, builtin=True)
