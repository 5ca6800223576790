"""Personal data in texts: found, and replaced by what it was (section 3.1.1 removes pages and domains full of it).

    write to jane.roe@uni-bonn.de or call +49 228 73 1234   ->   write to <EMAIL> or call <PHONE>

What a person has, and nobody else, is looked for by its form and its check digits; names and street addresses, which
have neither, stay. Precision comes first, for a corpus is full of numbers that are nothing of the kind. Left alone on
purpose are the addresses and numbers that documentation uses in place of real ones (example.com, 192.0.2.1,
555-0123, the card 4242...), private and reserved IP addresses, networks (10.0.0.0/8), public name servers (8.8.8.8) and
four-part versions (1.2.3.4).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from ipaddress import ip_address
from string import ascii_letters, digits

from puna.corpus.filters import Text
from puna.corpus.national_ids import find_national_ids, luhn
from puna.recipe import Corpus, PersonalData

Spans = Iterator[tuple[int, int]]

PLACEHOLDERS: dict[PersonalData, str] = {
    "email": "<EMAIL>",
    "ip": "<IP>",
    "iban": "<IBAN>",
    "card": "<CARD>",
    "national-id": "<NATIONAL_ID>",
    "phone": "<PHONE>",
}

# Where to look: most texts have few such places, so that the careful patterns see little of them.
SIGN_AT = re.compile(r"@|\[at\]|\(at\)")
SIX_DIGITS = re.compile(r"[0-9](?:[ ().\-/\u00a0]{0,2}[0-9]){5,}")
COLONS = re.compile(r":[0-9a-fA-F]{0,4}:")
LETTERED = re.compile(r"[0-9]{2}(?<=[A-Za-z][0-9]{2})")
# British, Spanish, Mexican and Italian codes begin with letters.
LETTERS_FIRST = re.compile(
    r"[A-Za-z]{2}[0-9]{2}(?: ?[0-9]{2}){2} ?[A-Da-d](?![A-Za-z0-9])|[XYZ][0-9]{7}|[A-Z]{4}[0-9]{6}"
    r"|[A-Za-z]{6}[0-9L-V]{2}[A-Za-z][0-9L-V]{2}[A-Za-z]"
)
DATE = re.compile(
    r"(?:[0-9]{1,2}[./-][0-9]{1,2}[./-](?:19|20)?[0-9]{2}|(?:19|20)[0-9]{2}[./-][0-9]{1,2}[./-][0-9]{1,2})(?![.\-/]?[0-9])"
)
DATE_OR_DECIMAL = re.compile(rf"(?:{DATE.pattern})|[0-9]+\.[0-9]+")
BEFORE, AFTER = 80, 60  # characters around a place, for the words that say what it is
WORDY = frozenset(f"{ascii_letters}{digits}_@.+-%")
LONGEST = 1000  # of what looks like one word


def replace_pii(
    text: str, language: str, kinds: Iterable[PersonalData] = tuple(PLACEHOLDERS)
) -> tuple[str, Counter[str]]:
    """The text with placeholders, and how many there are of each kind."""
    found = find_pii(text, language, kinds)
    if not found:
        return text, Counter()
    pieces, end = [], 0
    for kind, start, stop in found:
        pieces += text[end:start], PLACEHOLDERS[kind]
        end = stop
    return "".join(pieces) + text[end:], Counter(kind for kind, _, _ in found)


def find_pii(
    text: str, language: str, kinds: Iterable[PersonalData] = tuple(PLACEHOLDERS)
) -> list[tuple[PersonalData, int, int]]:
    """(kind, start, end) in order. Where two kinds overlap, the one that stands first in PLACEHOLDERS is taken."""
    found = []
    for possible, start, end in _places(text):
        piece = text[start:end]
        for kind in possible & set(kinds):
            found += [(kind, start + first, start + last) for first, last in FINDERS[kind](piece, language)]
    ranks = {kind: rank for rank, kind in enumerate(PLACEHOLDERS)}
    taken: list[tuple[PersonalData, int, int]] = []
    for kind, start, end in sorted(set(found), key=lambda item: (ranks[item[0]], item[1], -item[2])):
        if all(end <= first or last <= start for _, first, last in taken):
            taken.append((kind, start, end))
    return sorted(taken, key=lambda item: item[1])


def too_much_pii(found: Counter[str], text: Text, knobs: Corpus) -> str | None:
    """`too-much-pii` for directories and leaks, of whose words too many were replaced."""
    limit = knobs.rules_for(text.language).max_pii_fraction * len(text.words)
    return "too-much-pii" if found.total() > max(2, limit) else None


def _places(text: str) -> Iterator[tuple[set[PersonalData], int, int]]:
    """Pieces of a text, and what may be in them."""
    if "@" in text or "at]" in text or "at)" in text:
        yield from _pieces({"email"}, text, SIGN_AT.finditer(text))
    if ":" in text:
        yield from _pieces({"ip"}, text, COLONS.finditer(text))
    numbers: set[PersonalData] = {"ip", "card", "national-id", "phone"}
    yield from _pieces(numbers, text, (run for run in SIX_DIGITS.finditer(text) if _is_number(text, run)))
    yield from _pieces({"iban", "national-id"}, text, (m for m in LETTERED.finditer(text) if _is_code(text, m.start())))


def _pieces(
    kinds: set[PersonalData], text: str, places: Iterable[re.Match[str]]
) -> Iterator[tuple[set[PersonalData], int, int]]:
    """(kinds, start, end) around each place, joined where they overlap."""
    start, end = 0, -1
    for place in places:
        first, last = max(0, place.start() - BEFORE), place.end() + AFTER
        if first > end >= 0:
            yield kinds, *_whole_words(text, start, end)
        start, end = (start if 0 <= first <= end else first), last
    if end >= 0:
        yield kinds, *_whole_words(text, start, end)


def _is_number(text: str, run: re.Match[str]) -> bool:
    """Not the end of a name such as id1168466, a date or a decimal fraction."""
    before = text[run.start() - 1] if run.start() else " "
    named = before.isascii() and (before.isalnum() or before == "_")
    return not named and not DATE_OR_DECIMAL.fullmatch(run[0])


def _is_code(text: str, digits: int) -> bool:
    """Whether a code of letters and digits begins with the letters before these digits."""
    start = digits
    while start and digits - start < 7 and text[start - 1].isascii() and text[start - 1].isalpha():
        start -= 1
    country = digits - start == 2 and text[start:digits].upper() in IBAN_LENGTHS
    return country or LETTERS_FIRST.match(text, start) is not None


def _whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    """Move the ends out of words and numbers, which would look like others when cut."""
    while start and text[start - 1] in WORDY and end - start < LONGEST:
        start -= 1
    while end < len(text) and text[end] in WORDY and end - start < LONGEST:
        end += 1
    return start, min(end, len(text))


# -- email -------------------------------------------------------------------------------------------------------------

# Letters and digits, but of scripts without spaces, whose words stand right beside an address.
_SIGN = r"[^\W_\u0e00-\u0eff\u3040-\u9fff\uac00-\ud7af]"
EMAIL = re.compile(
    rf"(?<![.+%/:=~_-])(?<!{_SIGN})(?:{_SIGN}|[_+%'-])+(?:\.(?:{_SIGN}|[_+%'-])+)*(?:@| ?(?:\[at\]|\(at\)) ?)"
    rf"(?:{_SIGN}(?:(?:{_SIGN}|[_-])*{_SIGN})?(?:\.| ?(?:\[dot\]|\(dot\)) ?))+((?:(?![0-9]){_SIGN}){{2,24}})"
    rf"(?![_@(]|{_SIGN}|[-:]\w)"
)
# Two letters are a country; of the others those that people have addresses in, for names in code have any ending.
NOT_COUNTRIES = frozenset(("js", "ts"))
_DOMAINS = """
    academy aero agency app art asia berlin biz blog business cafe care cat center church click cloud club coach com
    community company consulting coop design dev digital earth edu education email energy engineering events expert
    family farm finance fund fyi global gmbh gov group guide health help host house info ink institute int
    international jobs law legal life link live london ltd marketing media mil mobi museum name net network news ngo
    nyc one online ong org page photo photography press pro productions ren rocks run sale school science services shop
    site social software solutions space store studio support systems team tech technology tel today tokyo top tours
    travel university uno ventures website wien wiki work works world xyz yoga zone"""
DOMAINS = frozenset(_DOMAINS.split())
DOCUMENTATION = re.compile(
    r"(?:^|\W)(?:exam?ple|exemplo|exemple|ejemplo|esempio|beispiel|foo|bar|(?:your|my|some)?-?(?:domain|company|site))\.\w+$",
    re.IGNORECASE,
)


def find_emails(text: str, language: str) -> Spans:
    """Addresses, also those that hide their @ in brackets; not those of documentation, nor names with an @ in them."""
    for match in EMAIL.finditer(text):
        ending = match[1].lower()
        country = (len(ending) == 2 and ending not in NOT_COUNTRIES) or not ending.isascii()
        if (country or ending in DOMAINS) and not DOCUMENTATION.search(match[0]):
            yield match.span()


# -- IP addresses ------------------------------------------------------------------------------------------------------

IPV4 = re.compile(r"(?<![\w.-])(?<!\w/)(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![\w]|\.[0-9]|-\w|/[0-9])", re.ASCII)
IPV6 = re.compile(r"(?<![\w:.])[0-9a-fA-F:]{6,39}+(?![\w:]|\.[0-9])", re.ASCII)
VERSION = re.compile(
    r"(?:\bv(?:er(?:s[ií]on)?)?|versione|release|firmware|build|driver|revision|update|patch)[ .:]*$", re.IGNORECASE
)
NAME_SERVERS = frozenset(("1.1.1.1", "1.0.0.1", "8.8.8.8", "8.8.4.4", "9.9.9.9", "208.67.222.222", "208.67.220.220"))


def find_ips(text: str, language: str) -> Spans:
    """Addresses of single machines in the public network."""
    for match in IPV4.finditer(text):
        version = VERSION.search(text, max(0, match.start() - 16), match.start())
        if _is_public(match[0]) and match[0] not in NAME_SERVERS and not version:
            a, b, c, d = map(int, match[0].split("."))
            # 1.2.3.4 and 28.0.0.137 are versions or sections; a network ends in 0
            if max(a, b, c, d) >= 100 and (b or c) and d:
                yield match.span()
    for match in IPV6.finditer(text):
        # what is shortened may also be a name such as add::cafe, unless it begins as those that are given out
        whole = match[0].count(":") == 7 and "::" not in match[0]
        shortened = match[0].count(":") > 1 and match[0][0] in "23" and not match[0].endswith("::")  # no network
        if (whole or shortened) and _is_public(match[0]):
            yield match.span()


def _is_public(written: str) -> bool:
    try:
        address = ip_address(written)
    except ValueError:
        return False
    return address.is_global and not address.is_multicast


# -- bank accounts and cards -------------------------------------------------------------------------------------------

IBAN_START = re.compile(r"(?<![A-Za-z0-9])([A-Za-z]{2})[0-9]{2}(?=[ -]?[A-Za-z0-9]{4})")
IBAN_COUNTRIES = {
    15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK", 21: "CH CR HR LI LV",
    22: "BG BH DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV",
    29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
}  # fmt: skip
"""By length (SWIFT's IBAN registry)."""
IBAN_LENGTHS = {code: length for length, codes in IBAN_COUNTRIES.items() for code in codes.split()}
CARD = re.compile(
    r"(?<![\w.,/=+-])(?:[0-9]{12,19}|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{1,4}(?:\1[0-9]{1,3})?"
    r"|[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5})(?![\w/=]|[.,-][0-9])",
    re.ASCII,
)
# Issuers by their first digits, with the lengths of their numbers (ISO/IEC 7812).
ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|(?:6011|64[4-9]\d|65\d{2})\d{12}|35(?:2[89]|[3-8]\d)\d{12}|(?:2131|1800)\d{11}|3(?:0[0-59]|[68]\d)\d{11}|62\d{14}"
)
CARD_WORDS = re.compile(
    r"card|\bcc\b|credit|debit|visa|maestro|amex|carte|tarjeta|cartão|carta|karte|कार्ड|บัตร", re.IGNORECASE
)
# Numbers that payment companies print for tests.
TEST_CARDS = frozenset(
    ("4111111111111111", "4242424242424242", "4012888888881881", "4000056655665556", "5555555555554444",
     "5105105105105100", "2223003122003222", "378282246310005", "371449635398431", "6011111111111117",
     "6011000990139424", "30569309025904", "3530111333300000", "3566002020360505", "4444333322221111")
)  # fmt: skip


def find_ibans(text: str, language: str) -> Spans:
    """Account numbers of the length of their country, in groups of four or in one piece, whose remainder is right."""
    for match in IBAN_START.finditer(text):
        length = IBAN_LENGTHS.get(match[1].upper())
        if length is None:
            continue
        fours, left = length // 4 - 1, length % 4
        rest = re.compile(
            rf"(?:[ -]?[A-Za-z0-9]{{4}}){{{fours}}}(?:[ -]?[A-Za-z0-9]{{{left}}}){{{min(1, left)}}}(?![A-Za-z0-9])"
        ).match(text, match.end())
        if rest:
            number = re.sub("[ -]", "", text[match.start() : rest.end()]).upper()
            if int("".join(str(int(sign, 36)) for sign in number[4:] + number[:4])) % 97 == 1:
                yield match.start(), rest.end()


def find_cards(text: str, language: str) -> Spans:
    """Numbers with the right check digit, of an issuer's first digits and length or beside a word for cards."""
    for match in CARD.finditer(text):
        number = re.sub("[ -]", "", match[0])
        if not luhn(number) or number in TEST_CARDS or len(set(number)) < 3:
            continue
        start, end = match.span()
        row = (
            text[max(0, start - 2) : start].strip().isdecimal() or text[end : end + 2].strip().isdecimal()
        )  # of a table
        named = CARD_WORDS.search(text, max(0, start - 60), end + 30)
        if named or (ISSUERS.fullmatch(number) and not row):
            yield start, end


# -- telephones --------------------------------------------------------------------------------------------------------

_AFTER = r"(?:(?: ?(?:x|ext\.?|extension) ?)[0-9]{1,6})?(?![\w]|[.,:/-][0-9])"
# Calling codes that are given out (ITU-T E.164).
COUNTRY = (
    r"(?:1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|21[12368]|2[2-6][0-9]|29[01789]|35[0-9]|37[0-9]"
    r"|38[0-25-79]|42[013]|50[0-9]|59[0-9]|6[78][0-9]|69[0-2]|80[08]|85[02356]|87[08]|88[0-368]|96[0-8]|97[0-79]|99[2-68])"
)
INTERNATIONAL = re.compile(
    rf"(?<![\w.+/=-])(?<![0-9],)(?:\+|00(?={COUNTRY}[ .-]))(?:\({COUNTRY}\)|{COUNTRY})"
    r"(?:[ .\-/\u00a0]?\(0\))?(?:[ .\-/\u00a0]{0,2}(?:\([0-9]++\)|[0-9]++)){1,7}" + _AFTER,
    re.ASCII | re.IGNORECASE,
)
AMERICAN = re.compile(
    r"(?<![\w.+/=-])(?<![0-9],)(?:1[ .-])?(?:\([0-9]{3}\) ?|[0-9]{3}-|[0-9]{3}\.(?=[0-9]{3}\.))[0-9]{3}[.-][0-9]{4}"
    + _AFTER,
    re.ASCII | re.IGNORECASE,
)
TRUNK = re.compile(
    r"(?<![\w.+/=-])(?<![0-9][, :])\(?0[1-9][0-9]{0,3}\)?(?:[ .\-/]|(?<=\)) ?)[0-9]{2,8}"
    r"(?:([ .-])[0-9]{2,4}(?:\1[0-9]{2,4}){0,3})?" + _AFTER + "(?! [0-9a-f]{2})",
    re.ASCII | re.IGNORECASE,
)
# Runs of digits are taken whole (++), so that there is one way to read a number.
LOCAL = r"(?:\([0-9]++\)|[0-9]++)(?:[ .\-/\u00a0]{0,2}(?:\([0-9]++\)|[0-9]{2,}+)){0,6}"
NAMED = re.compile(
    r"(?:(?<![^\W_])(?:tel|tele(?:f|ph)on[eo]?|tél(?:éphone)?|teléfono|phone|fax|mobiles?|mobil|móvil|cell(?:ulare)?"
    r"|celular|handy|hotline|whatsapp|sms|тел|телефон|फ़ोन|फोन|मोबाइल)(?![^\W_])|[☎📞☏]|โทร(?:ศัพท์)?|電話|电话|手机)"
    r"(?:[ .]?(?:no|nr|number|numéro|número|numero|nummer|#)\b)?[^\w\n(]{0,4}\n?[^\w\n+(]{0,4}"
    r"(?:(?:is|at|on|:|ist|est|es|è|é)[ :]{1,2})?"
    rf"(?P<number>\+?{LOCAL})" + _AFTER,
    re.IGNORECASE,
)
CALLED = re.compile(
    r"(?<!\w)(?:call|dial|ring|reach|text|phone|answer|contact|messages?)(?:s|ed|ing)?"
    rf"(?: (?:me|us|him|her|them|back))?(?: (?:at|on|to))? (?P<number>{LOCAL}){_AFTER}",
    re.IGNORECASE,
)
LABELLED = re.compile(
    rf"(?<![\w.+/=-])(?<![0-9][, ])(?P<number>{LOCAL})[ -](?:office|fax|mobile|home|work|cell|desk)\b",
    re.ASCII | re.IGNORECASE,
)
PAIRS = re.compile(r"[0-9]{2}(?:[ .-][0-9]{2})+")  # French numbers, or bytes
ZIP_CODE = re.compile(r"[0-9]{5}-[0-9]{4}")
FICTION = re.compile(r"555[ .-]?01[0-9]{2}(?![0-9])|123[ .-]?456[ .-]?7890|(?<![0-9])0?123[ .-]?456789?")


def find_phones(text: str, language: str) -> Spans:
    """Numbers in the forms of other countries, of North America, with a leading 0, or beside a word that names them."""
    for pattern, fewest, most in ((INTERNATIONAL, 8, 15), (AMERICAN, 10, 17), (TRUNK, 9, 11)):
        for match in pattern.finditer(text):
            pairs = PAIRS.fullmatch(match[0]) and not (language == "fr" and len(match[0]) == 14)
            odd = pattern is TRUNK and (pairs or ZIP_CODE.fullmatch(match[0]))
            if not odd and _is_phone(match[0], fewest, most):
                yield match.span()
    for pattern, fewest in ((NAMED, 6), (CALLED, 7), (LABELLED, 7)):
        for match in pattern.finditer(text):
            if _is_phone(match["number"], fewest, 15):
                end = match.end("number") if pattern is LABELLED else match.end()
                yield match.start("number"), end


def _is_phone(written: str, fewest: int, most: int) -> bool:
    digits = sum(map(str.isdecimal, re.split("[xe]", written, maxsplit=1, flags=re.IGNORECASE)[0]))
    return fewest <= digits <= most and not DATE.match(written) and not FICTION.search(written)


FINDERS: dict[PersonalData, Callable[[str, str], Spans]] = {
    "email": find_emails,
    "ip": find_ips,
    "iban": find_ibans,
    "card": find_cards,
    "national-id": find_national_ids,
    "phone": find_phones,
}
