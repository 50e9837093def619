"""What the rules of `claims.py` know of languages: scripts, function words, months, patterns. Knows no token.

Deliberately small: these rules say where something checkable may stand, not what it is.
"""

from __future__ import annotations

import regex

# Of several languages in one text the first script found counts; Kana before Han, because Japanese has both.
SCRIPTS: tuple[tuple[str, str], ...] = (
    ("ja", r"[\p{Hiragana}\p{Katakana}]"),
    ("zh", r"\p{Han}"),
    ("ko", r"\p{Hangul}"),
    ("ru", r"\p{Cyrillic}"),
    ("ar", r"\p{Arabic}"),
    ("hi", r"\p{Devanagari}"),
    ("bn", r"\p{Bengali}"),
    ("ta", r"\p{Tamil}"),
    ("te", r"\p{Telugu}"),
    ("th", r"\p{Thai}"),
    ("he", r"\p{Hebrew}"),
    ("el", r"\p{Greek}"),
    ("hy", r"\p{Armenian}"),
    ("ka", r"\p{Georgian}"),
)

# Words that begin sentences without naming anything, by language; they also tell the languages in Latin script apart.
FUNCTION_WORDS: dict[str, frozenset[str]] = {
    language: frozenset(words.split())
    for language, words in {
        "en": "a an and are as at both but by for from he her here his how however i if in is it its my no not of on "
        "one or our she since so some sure that the their there these they this those to today was we were what when "
        "where which while who why with yes you your also although another because during each first finally "
        "according additionally after all before can certainly could did do does hello hi many most overall please "
        "should then therefore thus two would",
        "de": "als am an auch auf aus bei das dass dem den der des die dies diese dieser ein eine einem einen einer er "
        "es für hat ich ihr im in ist ja mit nach nein nicht oder sie sind so und uns unter viele von war was wenn wer "
        "wie wir wo zu zum zur",
        "fr": "à au aussi aux avec bien car ce ces cette dans de des du elle elles en est et il ils je la le les leur "
        "mais non nous on ou où oui par pas pour que quel quelle qui sa se ses son sont sur un une vous",
        "es": "al como con cuando de del dónde el ella ellos en entre es esta este esto está fue ha hay la las lo los "
        "más no nosotros o para pero por que qué quién se ser si sí sin su sus también tiene un una unos y yo",
        "it": "al alla anche che chi ci come con da dal dei del della delle di dove e ed è gli ha i il in io la le lo "
        "ma nel nella no non o per più perché quando questa questo se si sono su sul un una uno",
        "pt": "a ao aos as com como da das de do dos e é ela ele eles em entre essa esse esta este eu foi há mais mas "
        "na não no nos o onde os ou para pela pelo por porque quando que quem se seu sim sua também tem um uma",
        "nl": "aan als bij dat de deze die dit door een en er het hij hoe ik in is ja maar met naar nee niet of om ook "
        "op te tot uit van voor waar wat we wie zij zijn ze",
    }.items()
}

_MONTHS = (
    r"(?:Jan(?:uary|uar|vier)?|Feb(?:ruary|ruar)?|Mar(?:ch)?|März|Apr(?:il)?|May|Mai|Jun[ei]?|Jul[iy]?|Aug(?:ust)?|"
    r"Sept?(?:ember)?|O[ck]t(?:ober)?|Nov(?:ember)?|De[cz](?:ember)?|février|mars|avril|juin|juillet|août|septembre|"
    r"octobre|novembre|décembre|enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|octubre|noviembre|"
    r"diciembre)\b\.?"
)
_ORDINAL = r"(?:st|nd|rd|th|\.)?"
DATE = (
    rf"\b\d{{1,2}}{_ORDINAL}\s(?:of\s|de\s)?{_MONTHS}(?:,?\s(?:de\s)?\d{{4}}\b)?"
    rf"|\b{_MONTHS}\s(?:\d{{1,2}}(?:st|nd|rd|th)?\b(?:,?\s\d{{4}}\b)?|\d{{4}}\b)"
    r"|\b\d{4}-\d{2}-\d{2}\b|\b\d{1,2}[./]\d{1,2}[./]\d{2,4}\b|\d{4}年(?:\d{1,2}月(?:\d{1,2}日)?)?"
)
NUMBER = r"(?:[$€£¥₹]\s?)?(?<![\p{Lu}\p{Ll}\p{N}])\d+(?:[.,'’\u00a0\u202f]\d+)*(?:\s?(?:%|°[CF]?|[€₽]))?"
# What stands between marks on one line, the marks left out; what is longer, or ends as a sentence does, is speech.
QUOTED = (
    r"(?:(?<=[“„\"])[^“”„\"\n]{1,80}?(?<![.?!,…\s])(?=[”“\"])"
    r"|(?<=«)[^«»\n]{1,80}?(?<![.?!,…])(?=»)|(?<=「)[^「」\n]{1,80}?(?<![。？！])(?=」))"
)
_INITIALS = r"(?:\p{Lu}\.)+(?:\p{Lu}(?![\p{L}\p{M}]))?"
_TITLE = r"(?:Dr|Mr|Mrs|Ms|Prof|St|Sr|Jr|Mt|Hr|Fr)\."
_NAME = r"(?:\p{Ll}{1,2})?\p{Lu}[\p{L}\p{M}\p{N}]*(?:['’\-‑&/.](?=[\p{L}\p{N}])[\p{L}\p{M}\p{N}]+)*"
_WORD = rf"(?:{_TITLE}|{_INITIALS}|{_NAME})"
_LINK = (
    r"(?:\s(?:of|the|de|la|le|du|des|del|della|di|da|do|dos|van|von|der|den|zu|y|of\sthe|bin|ibn|al)"
    r"(?=\s\p{Lu}))*"
)
_STARTED = r"(?<![\p{L}\p{M}\p{N}])"
NAMES = rf"{_STARTED}{_WORD}(?:{_LINK}[ \u00a0]{_WORD}|[ \u00a0]\d+(?![\p{{N}}.,]))*"

ENTITIES = regex.compile(
    rf"(?P<quoted>{QUOTED})|(?P<date>{DATE})|(?P<name>{NAMES})|(?P<number>{NUMBER})", regex.VERSION1
)
WORDS = regex.compile(r"[\p{L}\p{M}]+")
GRAPHEMES = regex.compile(r"\X")


def guess_language(text: str) -> str:
    """Two letters by the script, and in Latin script by the function words; English where nothing else shows."""
    for language, script in SCRIPTS:
        if regex.search(script, text):
            return language
    words = WORDS.findall(text.lower())
    counts = {language: sum(word in known for word in words) for language, known in FUNCTION_WORDS.items()}
    return max(counts, key=lambda language: counts[language])  # the first, English, wins where counts are equal


def is_function_word(word: str) -> bool:
    """Whether it is one in any of the languages known here."""
    return any(word.lower() in words for words in FUNCTION_WORDS.values())
