"""Numbers that states give to people, told from other numbers by their check digits.

A check digit lets one number in ten through, or one in ninety-seven. A number written as only such numbers are (dots
and a dash at their places, a date of birth inside) needs no more than that; a plain run of digits must also have its
name within reach, or be in a text of its country's language.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date

REACH = 40  # characters before a number in which its name is looked for


@dataclass(frozen=True)
class NationalId:
    name: str
    pattern: re.Pattern[str]
    """Of the number as it is written, without what stands around it."""
    check: Callable[[str], bool]
    """Of its letters and digits, in capitals."""
    context: re.Pattern[str] | None = None
    """A name that must stand before it; None where the form is enough."""
    languages: tuple[str, ...] = ()
    """Texts in these need no name."""


def find_national_ids(text: str, language: str) -> Iterator[tuple[int, int]]:
    """Where the numbers of people stand: (start, end)."""
    if not ANY.search(text):
        return
    for kind in NATIONAL_IDS:
        for match in kind.pattern.finditer(text):
            if not kind.check(re.sub(r"[\W_]", "", match[0]).upper()):
                continue
            start = match.start()
            named = kind.context is None or language in kind.languages
            if named or (kind.context and kind.context.search(text, max(0, start - REACH), start)):
                yield match.span()


# -- check digits ------------------------------------------------------------------------------------------------------


def luhn(number: str) -> bool:
    """ISO/IEC 7812-1: every second digit from the right is doubled, the digits of all sum to a multiple of ten."""
    total = 0
    for place, digit in enumerate(reversed(number)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def verhoeff(number: str) -> bool:
    """The check of the dihedral group of ten (Verhoeff 1969)."""
    state = 0
    for place, digit in enumerate(reversed(number)):
        state = _MULTIPLY[state][_PERMUTE[place % 8][int(digit)]]
    return state == 0


def weighted(number: str, weights: tuple[int, ...], modulus: int) -> int:
    return sum(int(digit) * weight for digit, weight in zip(number, weights)) % modulus


def is_date(year: str, month: str, day: str) -> bool:
    try:
        date(int(year), int(month), int(day))
    except ValueError:
        return False
    return True


_MULTIPLY = [[(a + b) % 5 + 5 * (b > 4) if a < 5 else (a - b) % 5 + 5 * (b < 5) for b in range(10)] for a in range(10)]
_PERMUTE = [list(range(10))]
for _ in range(7):
    _PERMUTE.append([_PERMUTE[-1][digit] for digit in (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)])


def _us_ssn(number: str) -> bool:
    """No check digit: areas, groups and serials that are never given out, and two printed in advertisements."""
    area, group, serial = number[:3], number[3:5], number[5:]
    given = area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"
    return given and number not in ("078051120", "219099999", "123456789")


def _german_tax_id(number: str) -> bool:
    """ISO 7064 modulo 11,10; of the first ten digits one comes twice or three times."""
    product = 10
    for digit in number[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return number[0] != "0" and 8 <= len(set(number[:10])) <= 9 and (11 - product) % 10 == int(number[10])


def _french_nir(number: str) -> bool:
    digits = number.replace("2A", "19", 1).replace("2B", "18", 1)
    return digits.isdecimal() and 97 - int(digits[:13]) % 97 == int(digits[13:])


def _spanish_dni(number: str) -> bool:
    digits = number[:-1].translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23] == number[-1]


def _italian_fiscal_code(code: str) -> bool:
    """Even places count their value, odd ones a value from the ministry's table (decree of 23 December 1976)."""
    odd = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
    values = [int(sign) if sign.isdecimal() else ord(sign) - ord("A") for sign in code[:15]]
    total = sum(value if place % 2 else odd[value] for place, value in enumerate(values))
    return total % 26 == ord(code[15]) - ord("A")


def _brazilian(number: str, weights: tuple[int, ...]) -> bool:
    """CPF and CNPJ: two digits, each 11 minus a weighted sum, the second over the first as well."""
    first = (-weighted(number, weights[1:], 11)) % 11 % 10
    second = (-weighted(number, weights, 11)) % 11 % 10
    return number[-2:] == f"{first}{second}" and len(set(number)) > 1


def _brazilian_cpf(number: str) -> bool:
    return _brazilian(number, tuple(range(11, 1, -1)))


def _brazilian_cnpj(number: str) -> bool:
    return _brazilian(number, (6, 5, 4, 3, 2, 9, 8, 7, 6, 5, 4, 3, 2))


def _british_nhs(number: str) -> bool:
    return (-weighted(number[:9], tuple(range(10, 1, -1)), 11)) % 11 == int(number[9]) and len(set(number)) > 1


def _british_nino(number: str) -> bool:
    return number[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def _polish_pesel(number: str) -> bool:
    month = int(number[2:4]) % 20
    born = 1 <= month <= 12 and 1 <= int(number[4:6]) <= 31
    return born and weighted(number, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1), 10) == 0


def _dutch_bsn(number: str) -> bool:
    return weighted(number, (9, 8, 7, 6, 5, 4, 3, 2, -1), 11) == 0 and len(set(number)) > 1


def _chinese_id(number: str) -> bool:
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    born = is_date(number[6:10], number[10:12], number[12:14])
    return born and "10X98765432"[weighted(number, weights, 11)] == number[17]


def _thai_id(number: str) -> bool:
    return (11 - weighted(number[:12], tuple(range(13, 1, -1)), 11)) % 10 == int(number[12])


def _swedish_number(number: str) -> bool:
    return is_date(f"20{number[-10:-8]}", number[-8:-6], number[-6:-4]) and luhn(number[-10:])


def _finnish_code(code: str) -> bool:
    day, month, year, number = code[:2], code[2:4], code[4:6], code[:6] + code[-4:-1]
    born = is_date(f"19{year}", month, day) or is_date(f"20{year}", month, day)
    return born and "0123456789ABCDEFHJKLMNPRSTUVWXY"[int(number) % 31] == code[-1]


def _belgian_number(number: str) -> bool:
    """From the year 2000 on a 2 stands before it when the check is made."""
    return int(number[9:]) in (97 - int(number[:9]) % 97, 97 - int("2" + number[:9]) % 97)


def _swiss_number(number: str) -> bool:
    return weighted(number, (1, 3) * 6 + (1,), 10) == 0


def _australian_tfn(number: str) -> bool:
    return weighted(number, (1, 4, 3, 7, 5, 8, 6, 9, 10), 11) == 0


def _portuguese_nif(number: str) -> bool:
    return (-weighted(number[:8], tuple(range(9, 1, -1)), 11)) % 11 % 10 == int(number[8])


def _mexican_curp(code: str) -> bool:
    values = ["0123456789ABCDEFGHIJKLMNÑOPQRSTUVWXYZ".index(sign) for sign in code[:17]]
    return -sum(value * (18 - place) for place, value in enumerate(values)) % 10 == int(code[17])


# -- the numbers -------------------------------------------------------------------------------------------------------


def _pattern(written: str) -> re.Pattern[str]:
    """Not inside a longer word, number or address."""
    return re.compile(rf"(?<![\w.,/=+-])(?:{written})(?![\w/=]|[.,-]\w)", re.ASCII)


def _names(names: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{names})(?!\w)", re.IGNORECASE)


NATIONAL_IDS = (
    NationalId("us-ssn", _pattern(r"\d{3}-\d{2}-\d{4}"), _us_ssn),
    NationalId("us-ssn", _pattern(r"\d{3} ?\d{2} ?\d{4}"), _us_ssn,
               _names(r"ssn|social security(?: (?:number|no\.?))?")),
    NationalId("ca-sin", _pattern(r"\d{3}[ -]?\d{3}[ -]?\d{3}"), luhn, _names(r"sin|social insurance(?: number)?|nas")),
    NationalId("de-tax-id", _pattern(r"\d{2} ?\d{3} ?\d{3} ?\d{3}"), _german_tax_id,
               _names(r"steuer-?id(?:nr)?\.?|idnr\.?|identifikationsnummer|tax id(?:entification)?(?: number)?|tin")),
    NationalId("fr-nir", _pattern(r"[12] ?\d{2} ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d{2}|2[AB]) ?\d{3} ?\d{3} ?\d{2}"),
               _french_nir),
    NationalId("es-dni", _pattern(r"(?:\d{8}|[XYZ]-?\d{7})-?[A-HJ-NP-TV-Z]"), _spanish_dni,
               _names(r"d\.?n\.?i\.?|n\.?i\.?f\.?|n\.?i\.?e\.?|documento(?: nacional)?(?: de identidad)?"), ("es",)),
    NationalId("it-fiscal-code",
               _pattern(r"(?i:[A-Z]{6}[\dL-NP-V]{2}[A-EHLMPR-T][\dL-NP-V]{2}[A-Z][\dL-NP-V]{3}[A-Z])"),
               _italian_fiscal_code),
    NationalId("br-cpf", _pattern(r"\d{3}\.\d{3}\.\d{3}-\d{2}"), _brazilian_cpf),
    NationalId("br-cpf", _pattern(r"\d{11}"), _brazilian_cpf, _names("cpf")),
    NationalId("br-cnpj", _pattern(r"\d{2}\.\d{3}\.\d{3}/\d{4}-\d{2}"), _brazilian_cnpj),
    NationalId("in-aadhaar", _pattern(r"[2-9]\d{3}([ -]?)\d{4}\1\d{4}"), verhoeff,
               _names(r"aa?dhaa?r(?: (?:card|no\.?|number))?|uid(?:ai)?|आधार")),
    NationalId("gb-nhs", _pattern(r"\d{3}[ -]?\d{3}[ -]?\d{4}"), _british_nhs, _names(r"nhs(?: (?:number|no\.?))?")),
    NationalId("gb-nino", _pattern(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] \d{2} \d{2} \d{2} [A-D]"), _british_nino),
    NationalId("gb-nino", _pattern(r"(?i:[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D])"),
               _british_nino, _names(r"nino|national insurance(?: (?:number|no\.?))?|ni (?:number|no\.?)")),
    NationalId("pl-pesel", _pattern(r"\d{11}"), _polish_pesel, _names("pesel")),
    NationalId("nl-bsn", _pattern(r"\d{9}|\d{4}\.\d{2}\.\d{3}"), _dutch_bsn,
               _names("bsn(?:-nummer)?|burgerservicenummer|sofinummer")),
    NationalId("cn-id", _pattern(r"[1-6]\d{5}(?:19|20)\d{9}[\dXx]"), _chinese_id),
    NationalId("th-id", _pattern(r"[1-8]([ -])\d{4}\1\d{5}\1\d{2}\1\d"), _thai_id),
    NationalId("th-id", _pattern(r"[1-8]\d{12}"), _thai_id,
               re.compile("(?:บัตร|เลข)ประ(?:จำตัวประชาชน|ชาชน)|thai id", re.IGNORECASE)),
    NationalId("se-number", _pattern(r"(?:19|20)?\d{6}[-+]\d{4}"), _swedish_number,
               _names(r"personnummer|personnr\.?|pnr\.?"), ("sv",)),
    NationalId("fi-code", _pattern(r"\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]"), _finnish_code),
    NationalId("be-number", _pattern(r"\d{2}\.\d{2}\.\d{2}-\d{3}\.\d{2}"), _belgian_number),
    NationalId("ch-number", _pattern(r"756\.\d{4}\.\d{4}\.\d{2}"), _swiss_number),
    NationalId("au-tfn", _pattern(r"\d{3} ?\d{3} ?\d{3}"), _australian_tfn, _names(r"tfn|tax file number")),
    NationalId("pt-nif", _pattern(r"[1-35689]\d{2} ?\d{3} ?\d{3}"), _portuguese_nif,
               _names(r"nif|contribuinte|n[uú]mero de identificação fiscal")),
    NationalId("mx-curp", _pattern(r"[A-Z][AEIOUX][A-Z]{2}\d{6}[HMX][A-Z]{5}[0-9A-Z]\d"), _mexican_curp),
)  # fmt: skip
# What they have in common, for a first look: six digits, between them one mark and one letter at most.
ANY = re.compile(r"[0-9](?:[ .\-+/]?[A-Za-z]?[0-9]){5}")
