"""Splits captions into the tokens that the COCO caption evaluation counts.

That evaluation runs Stanford's PTBTokenizer (CoreNLP 3.4.1, `-preserveLines -lowerCase`) and drops punctuation. This module
reproduces it from its observed behaviour, and the tests compare it with recorded output. The invariant: at each position the
longest match of any rule is the token; of two equally long matches the earlier rule wins. A rule may look further than its
token; the characters it looked at count for its length.

Only the tokens that remain after punctuation is dropped are reproduced. Brackets are tokens (`-lrb-`), because that evaluation
drops them in upper case only, and compares after lowering. Tokens may hold a no-break space (`1 1/2`, telephone numbers).

Differences: letters outside the European alphabets and symbols outside `_KEPT`; most named entities; an underscore beside a
hyphen. Also, a caption is tokenised alone, with a line end after it, but that program sees all captions in sequence: there an
initial that ends a caption ("exhibit A.") loses its period if the next caption starts with a word such as "The", and a "no."
keeps its period if the next caption starts with a digit.
"""

import re

# That evaluation's list, without entries that cannot occur in lower case.
DROPPED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_LETTER = (
    r"(?:[^\W\d_\xb2\xb3\xb9\xbc-\xbe\u2070\u2074-\u2089\u2150-\u218f\u2460-\u24ff\U00010000-\U0010ffff]"
    r"|[\u02c2-\u036f\u0483-\u0487\xad])"
)
_ALNUM = rf"(?:{_LETTER}|\d)"
_END = rf"(?!{_ALNUM})"
_APOSTROPHE = "['\u2019\x92]"
_MARK = "['\u2019\x92\u2018\x91\u201b`]"  # what may stand for an apostrophe inside a name
_DASH = r"[-\u2010\u2011\u058a]"
_WORD = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"
_NAME = rf"[dDoOlL]{_MARK}{_LETTER}{_ALNUM}+"  # O'Brien, d'or
_COMPOUND = rf"(?:{_NAME}|{_ALNUM}+)(?:(?:{_DASH}|_)(?:{_NAME}|{_ALNUM}+))*"
_BLANK = r"[ \xa0]"
_HYPHENATED = r"[A-Za-z0-9\xad][A-Za-z0-9.,\xad]*(?:-(?:(?:[A-Za-z]\.){2,}|[A-Za-z0-9\xad]+))+"  # U.S.-led, 1,000-foot
_CAPITALS = r"[A-Z]+(?:[+&][A-Z]+)+"  # AT&T


def _any_case(words: str) -> str:
    return rf"(?i:{'|'.join(sorted(words.split(), key=len, reverse=True))})"


# Abbreviations keep their period. After some, a following letter makes one word of both (Dr.Who), after others never.
_JOINED = _any_case("""
    adj adm adv alex asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs elec ens ft gen gov govs hon
    insp invt jos lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc ph pres prof profs pvt rep reps rev sen
    sens sfc sgt spc st ste supt treas vs wm
""")
_APART = _any_case("""
    al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla fri ga inc
    ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc ppte ppty pte ptes
    pty ptys rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo
""")
_CAPITALISED = "(?:{})".format(  # words of their own in lower case
    "|".join(f"{word.title()}|{word.upper()}" for word in "ark az del ill la mass miss ore pa tex wash".split())
)
_BEFORE_NUMBER = _any_case("art ca fig figs no nos op pp prop")

# Before one of these with a capital, a letter and a period end a sentence and are not an initial.
_STARTS = """
    a about according additionally after an as at but earlier he her here however if in it last many more now once one
    other our she since so some such that the their then there these they this we what when while yet you
""".split()
_STARTING = "|".join(f"{word.title()}|{word.upper()}" for word in _STARTS)

_FILES = _any_case("""
    bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py sql tar
    txt wav x xml zip
""")
_PATH = r"/[^\s\"<>|()]+[^\s\"<>|.!?(){},-]"
_HOST = r"[^\s\"`'|!(){},-_$]"  # the range from comma to underscore excludes capitals and digits, as in that program
_ADDRESS = (
    rf"(?:(?i:www)\.(?:[^\s\"<>|.!?(){{}},/]+\.)+[A-Za-z]{{2,4}}|(?:{_HOST}+\.)+(?i:com|net|org|edu))(?:{_PATH})?"
)
_TAG_NAME = r"[A-Za-z][A-Za-z0-9_:.@-]*"
_TAG = rf"(?:<[!?]?{_TAG_NAME}(?: +{_TAG_NAME}(?:=(?:\"[^\"\n]*\"|'[^'\n]*'))?)* *[/?]?>|</{_TAG_NAME}>|<!--(?:[^\n]*?--)?>)"

# Rules that begin with a letter or a digit. The group `token` is the token if the rule looks further.
_WORD_RULES = (
    rf"(?P<token>(?i:can|gon|wan|got|lem|gim))(?:(?<=[nN])(?i:not|na)|(?<=[tT])(?i:ta)|(?<=[mM])(?i:me)){_END}",
    rf"(?P<token>{_LETTER}{_ALNUM}*?)[nN]{_MARK}[tT]",
    rf"(?P<token>{_WORD}){_APOSTROPHE}(?i:s|m|d|re|ve|ll)(?!{_LETTER})",
    _WORD,
    rf"(?:{_JOINED}|{_APART}|{_CAPITALISED})\.",
    rf"(?P<token>(?:{_APART}|{_CAPITALISED})\.)[^\n]{{2}}",
    rf"(?P<token>{_BEFORE_NUMBER}\.){_BLANK}?\d",
    rf"(?P<token>(?:{_COMPOUND}|{_HYPHENATED}|{_WORD}|{_CAPITALS})\.)[,;:]",
    r"(?:[A-Za-z]\.){2,}",
    rf"[A-Za-z]\.(?!\s+(?:{_STARTING}|{_TAG})(?:\s|$))",
    r"[Pp][Hh]\.[Dd]\.",
    rf"\d{_ALNUM}*",
    r"\d+(?:[.,:]\d+)*",
    _COMPOUND,
    _HYPHENATED,
    r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}",
    rf"[A-HJ-XZn]{_MARK}{_LETTER}{{2}}{_ALNUM}*|[A-Za-z]+[aeiouyAEIOUY]{_MARK}[aeiouA-Z]{_LETTER}*",
    rf"(?i:o{_APOSTROPHE}clock|c'mon|c'est|e'er|ev'ry|cap'n|nat'l|li'l|d'ye|ol'|cont'd\.)",
    rf"[dDjJlL]{_APOSTROPHE}|[yY]{_APOSTROPHE}(?={_LETTER})",
    rf"[nN]{_MARK}[tT]",
    rf"{_CAPITALS}|[cC]\+\+|[cCfF]#|[A-Z]+\$|(?i:anti|pro)-",
    rf"{_ALNUM}+(?:\.{_ALNUM}+)*\.{_FILES}(?=[\s,.!?]|$)",
    r"(?i:https?)://[^\s\"<>|()]+[^\s\"<>|.!?(){},-]",
    _ADDRESS,
    r"[A-Za-z0-9][^\s\"<>|(){}]*@[^\s\"<>|(){}.]+(?:\.[^\s\"<>|(){}.]+)*",
    r"(?:\d{1,4}[- \xa0])?\d{1,4}[/\u2044]\d{1,4}",
    r"(?:\d{2,4}[- \xa0])?\d{2,4}[- \xa0]\d{3,4}[- \xa0]?\d{3,5}",
)

# Rules that begin with another character.
_MARK_RULES = (
    rf"'(?i:s|m|d|re|ve|ll)(?!{_LETTER})|[\u2019\x92](?i:s|m|d|re|ve|ll)",
    rf"[\u2019']n[\u2019']|{_APOSTROPHE}(?i:em|till?|cause)|'[nN](?=\s|$)|[\u2019\x92][nN]",
    rf"{_APOSTROPHE}[1-9]0s|{_APOSTROPHE}\d\d(?=\s|$)",
    r"(?P<token>'[tT])(?i:is|was)",
    _ADDRESS,
    r"[-+]?\d+(?:[.,:]\d+)*|[-+]?[.,:]\d+(?:[.,:]\d+)*",
    r"(?:\(\d{2,3}\)[ \xa0]?|\+{1,2}(?:\d{2,4}[- \xa0])?\d{2,4}[- \xa0])\d{3,4}[- \xa0]?\d{3,5}",
    _TAG,
    r"<[A-Za-z0-9][^\s\"<>|(){},]*@[^\s\"<>|(){},]+>",
    r"@[A-Za-z_]\w*",
    rf"#{_LETTER}+",
    r"[<>]?[:;=][-o*']?[()DPpdO\\{@|\[\]](?![A-Za-z0-9])",
    r"\([\^x=~<>'-][_.][\^x=~<>'-]\)|[\^=~<>'-]_[\^x=~<>'-]",
    r"-(?:LRB|RRB|LCB|RCB|LSB|RSB)-",
    r"&(?i:lt|gt|mdash|ndash);|&#\d+;",
    r"''|``|[`\u201c\u201d\u2018\u2019\xab\xbb\u2039\u203a\u201e\u201a\u201b\x91-\x94]{1,2}",
    r"\.{3,}|\u2026|\. \.(?: \.)+",
    r"-+|[\u2010-\u2015\x96\x97]+",
    r"[?!]+|_+|\*+|#+|@+|<<|>>",
)

_WORD_PATTERNS = [re.compile(rule) for rule in _WORD_RULES]
_MARK_PATTERNS = [re.compile(rule) for rule in _MARK_RULES]
_BEGINS_WORD = re.compile(_ALNUM)
# A fast path for most words; no rule matches more of them.
_PLAIN = re.compile(r"(?!(?i:cannot|gonna|wanna|gotta|lemme|gimme)\b)([A-Za-z]{2,})(?:[,;:]?(?:\s+|$))")
_SPACE = re.compile(r"[\s\u200b\x00-\x1f\x7f]+")
_LINE_ENDS = re.compile("[\n\r\x0b\x0c\x85\u2028\u2029]")
_ENTITIES = {"&amp;": "&", "&apos;": "'", "&quot;": '"', "&nbsp;": " "}
_ENTITY = re.compile("|".join(_ENTITIES))

_WRITTEN = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "&lt;": "<", "&gt;": ">",
    "€": "$", "\x80": "$", "¤": "$", "₠": "$", "£": "#", "¢": "cents", "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3",
    "⅔": "2/3", "&mdash;": "--", "&ndash;": "--",
}  # fmt: skip
_QUOTES = {
    "\u201c": "``", "\u201d": "''", "\u2018": "`", "\u2019": "'", "\xab": "``", "\xbb": "''", "\u2039": "`", "\u203a": "'",
    "\u201b": "`", "\x91": "`", "\x92": "'", "\x93": "``", "\x94": "''",
    "`": "`", "\u201e": "\u201e", "\u201a": "\u201a",
}  # fmt: skip
_DASHES_OR_DOTS = re.compile(r"\.[. ]+|\u2026|[\u2010-\u2015\x96\x97-]{1,4}")
_CLITIC = re.compile(rf"{_APOSTROPHE}(?:s|m|d|re|ve|ll)|n{_MARK}t")

# Characters that are tokens by themselves. Beyond Latin, Greek and Cyrillic the list is incomplete.
_KEPT = re.compile(
    r"[#-&*+/<=>@\\^_|~\xa1-\xa9\xac\xae-\xb4\xb6-\xb9\xbf\xd7\xf7\u2016\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b"
    r"\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e\u2100-\u214f\u2153-\u215e\u2190-\u2bff\u3001\u3002\u30fb]"
)


def tokenize(text: str) -> str:
    """Returns a caption's tokens in lower case, without punctuation, joined by blanks.

    Args:
      text: one caption; line ends in it count as blanks.

    Returns:
      The line whose words COCO's evaluation counts; empty if there is only punctuation.
    """
    text = _ENTITY.sub(lambda entity: _ENTITIES[entity[0]], _LINE_ENDS.sub(" ", text))
    tokens: list[str] = []
    at = 0
    while at < len(text):
        if plain := _PLAIN.match(text, at):
            tokens.append(plain[1].lower())
            at = plain.end()
        elif space := _SPACE.match(text, at):
            at = space.end()
        else:
            token = _longest(text, at)
            tokens.append(_written(token))
            at += len(token)
    return " ".join(token for token in tokens if token and token not in DROPPED)


def _longest(text: str, at: int) -> str:
    """The token at a position without white space, by the rule that looks furthest; one character if no rule matches."""
    patterns = _WORD_PATTERNS if _BEGINS_WORD.match(text, at) else _MARK_PATTERNS
    matches = (pattern.match(text, at) for pattern in patterns)
    best = max((match for match in matches if match), key=re.Match.end, default=None)
    if best is None:
        return text[at]
    return best["token"] if "token" in best.re.groupindex else best[0]


def _written(token: str) -> str:
    """The written form of a token: in lower case, in ASCII if PTB has a name for it; empty if it is dropped."""
    token = token.lower().replace("\xad", "")
    if _CLITIC.fullmatch(token):
        return re.sub("[\u2019\x92]", "'", token)
    if len(token) <= 2 and all(character in _QUOTES for character in token):
        return "".join(_QUOTES[character] for character in token)
    if token in _WRITTEN:
        return _WRITTEN[token]
    if _DASHES_OR_DOTS.fullmatch(token) or (
        len(token) == 1 and not _KEPT.match(token) and not _BEGINS_WORD.match(token)
    ):
        return ""
    return re.sub(r"\s", "\xa0", token.replace("(", "-lrb-").replace(")", "-rrb-"))
