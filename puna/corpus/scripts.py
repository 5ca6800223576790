"""How languages are written: their scripts, their commonest words, and where one word ends and the next begins."""

import re

Ranges = tuple[tuple[int, int], ...]

LATIN: Ranges = ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0x24F), (0x1E00, 0x1EFF))
NOT_LATIN: Ranges = ((0x370, 0x1DFF), (0x1F00, 0x1FFF), (0x2C00, 0xD7FF), (0xF900, 0xFFEE), (0x20000, 0x3FFFF))
HAN: Ranges = ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
KANA: Ranges = ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))
HANGUL: Ranges = ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7A3))
ARABIC: Ranges = ((0x600, 0x6FF), (0x750, 0x77F), (0xFB50, 0xFEFC))
CYRILLIC: Ranges = ((0x400, 0x52F),)
DEVANAGARI: Ranges = ((0x900, 0x97F),)
THAI: Ranges = ((0xE00, 0xE7F),)

SCRIPTS: dict[str, Ranges] = {
    **dict.fromkeys(("ar", "fa", "ur", "ps", "ckb"), ARABIC),
    **dict.fromkeys(("be", "bg", "kk", "ky", "mk", "mn", "ru", "tg", "uk"), CYRILLIC),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), DEVANAGARI),
    **dict.fromkeys(("zh", "yue", "wuu"), HAN),
    "am": ((0x1200, 0x139F),),
    "bn": ((0x980, 0x9FF),),
    "el": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "gu": ((0xA80, 0xAFF),),
    "he": ((0x590, 0x5FF),),
    "hy": ((0x530, 0x58F),),
    "ja": HAN + KANA,
    "ka": ((0x10A0, 0x10FF),),
    "km": ((0x1780, 0x17FF),),
    "kn": ((0xC80, 0xCFF),),
    "ko": HANGUL + HAN,
    "lo": ((0xE80, 0xEFF),),
    "ml": ((0xD00, 0xD7F),),
    "my": ((0x1000, 0x109F),),
    "pa": ((0xA00, 0xA7F),),
    "si": ((0xD80, 0xDFF),),
    "ta": ((0xB80, 0xBFF),),
    "te": ((0xC00, 0xC7F),),
    "th": THAI,
}
"""Languages that are not written in Latin letters."""

# The commonest words. Documentation in any language quotes English, so the English ones count everywhere.
STOP_WORDS = {
    "en": "the of and to a in is that for it as with on be this by or are not from an can if you at which will have",
    "ar": "في من على إلى أن التي الذي عن مع هذا هذه ما لا كان هو هي أو كل قد ذلك بين بعد كما لم و",
    "cs": "a v se na je že s z do o i to k ve pro za by ale si po jako od jsou které který tak",
    "da": "og i at det er en til på som for med de den der ikke et har fra han var af om men kan",
    "de": "der die das und zu in den ist von mit nicht sie ein eine für auf im dem des es wird werden sich als auch",
    "el": "και το να του η της με που την από για είναι στο ο τα των οι τον σε δεν θα στην μια",
    "es": "el la los las de que y en un una para se con no es por del al lo como su más o este",
    "fa": "و در به از که این را با است برای آن یک خود تا بر هم نیز می شود کرد شد های",
    "fi": "ja on ei se että oli hän joka ovat mutta kun myös niin kuin tai jos sen ole mukaan voi sekä",
    "fr": "le la les des de et un une pour que est dans du en par sur au qui ne pas ce il vous sont avec ou",
    "he": "של את על לא הוא זה עם כי או גם היא אל כל אם יש היה אך אני אבל בין",
    "hi": "के का की में है और से को पर यह कि एक हैं ने लिए या कर इस भी तो आप करें हो करने किसी",
    "hu": "a az és hogy nem is egy ez meg de volt már csak vagy azt mint ki még el ha van kell",
    "id": "yang dan di untuk dengan ini dari dalam pada itu tidak adalah akan ke juga dapat oleh atau sebagai ada",
    "it": "il la le di e che un una per in è con non del si da i gli della nel o sono come",
    "ja": "の に は を た が で て と し れ さ ある いる も する から な こと として い や など です ます",
    "nl": "de het een en van in is dat op te voor met zijn niet aan er om ook als bij door of die naar",
    "no": "og i det er en på til som for med av de at den har ikke et om fra var kan men",
    "pl": "w i na z się do nie że to jest o jak po za od przez dla ale są oraz lub tym jego co",
    "pt": "o a os as de e que um uma para se com não é por do da em no na ou como dos",
    "ro": "de și în a la cu pe care din nu o un că să pentru este mai sau prin ca au fost se",
    "ru": "и в на не что с по как а это к из для от но у за его о то же так или все при",
    "sv": "och i att det som en på är av för med till den har de inte om ett men var från så kan",
    "th": "ที่ และ ใน ของ การ เป็น ไม่ ได้ มี ให้ ว่า จะ แต่ กับ จาก ก็ มา ไป นี้ ความ แล้ว คน เรา อยู่ หรือ ครับ ค่ะ คะ",
    "tr": "ve bir bu da de için ile olarak çok daha ne gibi olan en kadar sonra ama ya var değil o",
    "uk": "і в на не що з та до як у за це від для але по є або його про які так при",
    "vi": "và của là có cho trong được với các một không người những này đã để khi như từ thì ở vào",
    "zh": "的 了 是 不 在 有 我 他 这 個 个 和 也 就 人 们 为 為 與 与 以 及 中 上 之 會 会 可",
}
STOP_WORD_SETS = {code: frozenset(f"{words} {STOP_WORDS['en']}".split()) for code, words in STOP_WORDS.items()}

# -- languages without spaces ------------------------------------------------------------------------------------------

SPACELESS = frozenset(("bo", "ja", "km", "lo", "my", "th", "wuu", "yue", "zh"))
"""Here a character counts as a word: the letter together with the vowel and tone signs around it."""

_IDEOGRAPHS = "\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTERS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Burmese, Khmer
_SIGNS = (
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u0f71-\u0f84\u0f90-\u0fbc"
    "\u102b-\u103e\u17b4-\u17d3"
)
_CHARACTER = re.compile(f"[{_IDEOGRAPHS}]|[{_LETTERS}][{_SIGNS}]*|[^\\s{_IDEOGRAPHS}{_LETTERS}]+")
_STOP_CHARACTERS = {
    code: re.compile("|".join(sorted(STOP_WORDS[code].split(), key=len, reverse=True)))
    for code in SPACELESS & STOP_WORDS.keys()
}


def split_words(text: str, language: str) -> list[str]:
    """The words between spaces, or the characters of a language that has none. No word is empty or holds a space."""
    return _CHARACTER.findall(text) if language in SPACELESS else text.split()


def count_stop_words(text: str, words: dict[str, int], language: str) -> int | None:
    """How many words (of `words`, with their counts) are among the commonest; None for a language not listed.

    Without spaces the commonest words are found inside the text, and each character of theirs counts.
    """
    if pattern := _STOP_CHARACTERS.get(language):
        return sum(len(split_words(word, language)) for word in pattern.findall(text))
    if stop_words := STOP_WORD_SETS.get(language):
        return sum(count for word, count in words.items() if word.strip(".,;:()").lower() in stop_words)
    return None
