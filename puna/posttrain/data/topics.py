"""Topics by their words: coarse ones, and fine ones within them (section 4.2.3 finetunes a classifier for it).

A fine topic is the one whose words and phrases occur most in what the user asks; none of them is general/other.
"""

import re

from puna.text.message import Chat

TOPICS: dict[str, dict[str, str]] = {
    "math": {
        "arithmetic": "how many|how much|total|twice|percent|cost|each|left over|per day|per hour|calculate|average",
        "algebra": "equation|polynomial|solve for|variable|inequality|quadratic|linear|matrix|vector",
        "geometry": "triangle|circle|angle|radius|perimeter|rectangle|volume of|area of|polygon",
        "calculus": "derivative|integral|limit of|differentiate|gradient|converge",
        "statistics": "probability|standard deviation|random variable|distribution|regression|variance",
    },
    "code": {
        "programming": "function|python|java|javascript|c++|program|code|algorithm|class|script|loop|array|string",
        "web": "html|css|react|http|website|browser|frontend|json|api",
        "databases": "sql|database|mongodb|postgres|mysql|foreign key",
        "systems": "linux|bash|docker|kubernetes|server|git|compile|memory leak|thread",
    },
    "language": {
        "translation": "translate|translation|in french|in german|in spanish|in english",
        "summarising": "summarize|summarise|summary|tl;dr|main idea|title|headline",
        "rewriting": "rewrite|rephrase|paraphrase|grammar|correct the|edit the|proofread|simplify",
        "classification": "sentiment|classify|category|categorize|positive or negative|entailment|true or false",
        "reading": "passage|paragraph|article|context|according to|given the following|answer the question",
    },
    "writing": {
        "stories": "story|poem|novel|character|fiction|haiku|lyrics|plot|fairy tale",
        "letters": "email|letter|cover letter|resume|speech|blog|essay|tweet|post|advertisement",
    },
    "knowledge": {
        "science": "physics|chemistry|biology|atom|planet|cell|species|energy|scientific|molecule",
        "health": "health|medical|doctor|symptom|disease|diet|exercise|sleep|pain|medicine",
        "history": "history|war|century|king|empire|president|ancient|revolution",
        "business": "company|market|business|marketing|customer|investment|tax|finance|budget|stock",
        "daily": "recipe|cook|travel|trip|movie|music|game|friend|family|gift|garden|dog|cat|restaurant",
    },
    "safety": {"harm": "kill|steal|bomb|weapon|illegal|drug|drugs|hack|insult|racist|murder|rob|suicide"},
}


def _pattern(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, words.split('|')))})s?(?!\w)", re.I)


_PATTERNS = {f"{coarse}/{fine}": _pattern(words) for coarse, table in TOPICS.items() for fine, words in table.items()}


def topic(chat: Chat, characters: int = 4000) -> str:
    """`coarse/fine` of what the user asks, of which so many characters are looked at."""
    asked = "\n".join(message.content for message in chat.messages if message.role == "user")[:characters]
    counts = {name: len(pattern.findall(asked)) for name, pattern in _PATTERNS.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] else "general/other"
