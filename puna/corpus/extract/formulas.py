"""Formulas as TeX: MathML, and images whose alternative text or address holds TeX."""

import re
from urllib.parse import unquote_plus

from puna.corpus.extract.entities import unescape
from puna.corpus.extract.markup import names

MAX_NESTING = 100
"""Deeper formulas come out as their symbols in a row."""
ATTRIBUTE = re.compile(r' ([a-z:-]+)="([^"]*)"')
DRAWN = re.compile(r"math|tex\b|equation|formula", re.IGNORECASE)
TEX_ADDRESS = re.compile(r"(?:latex\.codecogs\.com/[^?\"]*|latex\.php|(?:mathtex|mimetex|tex)\.cgi|render/math)\?(.+)")
TEX_PARAMETER = re.compile(r"(?:^|&)(?:latex|tex|math)=([^&]*)")
DELIMITED = re.compile(r"\s*(?:\$|\\\(|\\\[|\\begin)")
OPERATORS = {
    "−": "-", "×": r"\times ", "⋅": r"\cdot ", "·": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "≤": r"\le ", "≥": r"\ge ",
    "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ", "∞": r"\infty ", "∑": r"\sum ", "∏": r"\prod ", "∫": r"\int ",
    "∂": r"\partial ", "∇": r"\nabla ", "∈": r"\in ", "∉": r"\notin ", "⊂": r"\subset ", "⊆": r"\subseteq ",
    "∪": r"\cup ", "∩": r"\cap ", "→": r"\to ", "⇒": r"\Rightarrow ", "⇔": r"\Leftrightarrow ",
    "∀": r"\forall ", "∃": r"\exists ", "∅": r"\emptyset ", "…": r"\dots ", "⋯": r"\cdots ", "√": r"\surd ",
    "∣": "|", "′": "'", "{": r"\{", "}": r"\}", "%": r"\%", "#": r"\#", "&": r"\&", "\u2061": "", "\u2062": "",
    "\u2063": "", "\u200b": "",
}  # fmt: skip
ESSENCE = re.compile(r"\s|\\(?:displaystyle|textstyle)|[${}]")
ACCENTS = {"^": "hat", "ˆ": "hat", "~": "tilde", "˜": "tilde", "¯": "bar", "‾": "overline", "_": "bar", "→": "vec"}
ACCENTS |= {"⃗": "vec", "˙": "dot", ".": "dot", "¨": "ddot", "⏞": "overbrace", "⏟": "underbrace"}
GREEK = names(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho varsigma sigma tau upsilon"
    " phi chi psi omega"
)
LETTERS = {chr(0x3B1 + i): rf"\{name} " for i, name in enumerate(GREEK)}
LETTERS |= {"Γ": r"\Gamma ", "Δ": r"\Delta ", "Θ": r"\Theta ", "Λ": r"\Lambda ", "Ξ": r"\Xi ", "Π": r"\Pi "}
LETTERS |= {"Σ": r"\Sigma ", "Φ": r"\Phi ", "Ψ": r"\Psi ", "Ω": r"\Omega ", "Υ": r"\Upsilon ", "ϵ": r"\epsilon "}
LETTERS |= {"ϕ": r"\phi ", "ℝ": r"\mathbb{R}", "ℕ": r"\mathbb{N}", "ℤ": r"\mathbb{Z}", "ℚ": r"\mathbb{Q}"}
LETTERS |= {"ℂ": r"\mathbb{C}", "ℓ": r"\ell ", "ℏ": r"\hbar "}
SYMBOLS = OPERATORS | LETTERS
FUNCTIONS = names("sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan log ln exp lim max min sup inf det gcd")
LEAVES = names("mi mn mo mtext ms")


def drawn_formula(attributes: str) -> str:
    """The TeX of a formula that is an image, "" for any other image."""
    values = dict(ATTRIBUTE.findall(attributes))
    alt = unescape(values.get("alt", "")).strip()
    if alt and ("\\" in alt or "$" in alt or DRAWN.search(values.get("class", ""))):
        if re.search(r"[A-Za-z]:\\|\$\d", alt) and not DRAWN.search(values.get("class", "")):
            return ""  # a path, a price
        return alt if DELIMITED.match(alt) else f"${alt}$"
    if found := TEX_ADDRESS.search(unescape(values.get("src", ""))):
        parameter = TEX_PARAMETER.search(found[1])
        tex = unquote_plus(parameter[1] if parameter else found[1]).strip()
        return f"${tex}$" if tex else ""
    return ""


def formula(names: list[str], attributes: list[str], texts: list[str]) -> str:
    """The TeX of a <math> or a <script>, given its tags, the first its own, and the text after each; or ""."""
    if names[0] == "math":
        return mathml_to_tex(names, attributes, texts)
    mark, tex = "$$" if "display" in attributes[0] else "$", texts[0].strip()
    return f"{mark}{tex}{mark}" if tex else ""


def essence(tex: str) -> str:
    """What two ways to write the same formula have in common."""
    return ESSENCE.sub("", tex)


def mathml_to_tex(names: list[str], attributes: list[str], texts: list[str]) -> str:
    """The TeX of a <math> element, given its tags, the first its own, and the text after each: what its annotation
    says, else its `alttext`, else made from its elements."""
    values = dict(ATTRIBUTE.findall(attributes[0]))
    mark = "$$" if values.get("display") == "block" else "$"
    for name, attribute, text in zip(names, attributes, texts):
        if name == "annotation" and "tex" in attribute.lower() and text.strip():
            return f"{mark}{_undisplayed(unescape(text))}{mark}"
    tex = _undisplayed(unescape(values.get("alttext", ""))) or _converted(names, attributes, texts)
    return f"{mark}{tex}{mark}" if tex else ""


def _undisplayed(tex: str) -> str:
    """Without Wikipedia's {\\displaystyle ...} around the whole."""
    tex = " ".join(tex.split())
    if found := re.fullmatch(r"\{\\(?:displaystyle|textstyle) (.*)\}", tex):
        return found[1].strip()
    return tex


def _converted(names: list[str], attributes: list[str], texts: list[str]) -> str:
    """From presentation MathML; every element becomes TeX when it closes."""
    stack: list[tuple[str, str, list[str]]] = []
    done: list[str] = []
    for name, attribute, text in zip(names, attributes, texts):
        if name[0] != "/":
            stack.append((name, attribute, [unescape(text.strip())] if name in LEAVES and text.strip() else []))
        elif stack:
            closed, attribute, parts = stack.pop()
            outer = stack[-1][2] if stack else done
            if len(stack) > MAX_NESTING:
                outer += parts
            elif closed not in ("annotation", "annotation-xml"):
                outer.append(_element(closed, attribute, parts))
    for _, _, parts in stack:
        done += parts
    return re.sub(r"\s+", " ", "".join(done)).strip()


def _element(name: str, attributes: str, parts: list[str]) -> str:
    if name in LEAVES:
        return _leaf(name, "".join(parts))
    a, b, c = ([part.strip() for part in parts] + ["", "", ""])[:3]
    match name:
        case "mfrac":
            return rf"\binom{{{a}}}{{{b}}}" if 'linethickness="0' in attributes else rf"\frac{{{a}}}{{{b}}}"
        case "msqrt":
            return rf"\sqrt{{{''.join(parts).strip()}}}"
        case "mroot":
            return rf"\sqrt[{b}]{{{a}}}"
        case "msup":
            return f"{_base(a)}^{{{b}}}" if b != "'" else f"{a}'"
        case "msub" | "munder":
            return rf"\underbrace{{{a}}}" if b == "⏟" else f"{_base(a)}_{{{b}}}"
        case "msubsup" | "munderover":
            return f"{_base(a)}_{{{b}}}^{{{c}}}"
        case "mover":
            return rf"\{ACCENTS[b]}{{{a}}}" if b in ACCENTS else f"{_base(a)}^{{{b}}}"
        case "mfenced":
            return f"({', '.join(part.strip() for part in parts)})"
        case "mtd":
            return "".join(parts).strip() + " & "
        case "mtr" | "mlabeledtr":
            return "".join(parts).removesuffix(" & ") + r" \\ "
        case "mtable":
            return r"\begin{matrix} " + "".join(parts).removesuffix(r" \\ ") + r" \end{matrix}"
        case "mspace":
            return " "
        case _:
            return "".join(parts)


def _base(tex: str) -> str:
    return (
        tex
        if len(tex) == 1 or (re.fullmatch(r"\\?[A-Za-z]+", tex) and (tex[0] == "\\" or len(tex) == 1))
        else f"{{{tex}}}"
    )


def _leaf(name: str, text: str) -> str:
    if name == "mtext":
        return rf"\text{{{text}}}" if text else ""
    if text in FUNCTIONS:
        return rf"\{text} "
    if name == "mi" and len(text) > 1 and text.isalpha() and text.isascii():
        return rf"\mathrm{{{text}}}"
    return "".join(SYMBOLS.get(letter, letter) for letter in text)
