"""VQA accuracy: how many of ten people gave this answer, as the VQA challenge counts and normalises.

The normalisation has peculiarities that decide scores, and all are kept: it is left out where the ten agree to the letter;
a comma between digits glues everything that other punctuation divides; of a long answer only the first 32 periods go.
"""

import re
from collections.abc import Sequence

from adalink_jax.data.metrics import metric_arguments
from adalink_jax.errors import UserError

ANNOTATORS = 10
_ENOUGH = 3  # people who have to agree with an answer for it to be wholly right

_NUMBERS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}  # fmt: skip
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32
_DIGITS_COMMA = re.compile(r"\d,\d")

# Each is also what people mean who leave out one of its apostrophes.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
_MEANT = {
    whole[:i] + whole[i + 1 :]: whole for whole in _CONTRACTIONS for i, mark in enumerate(whole) if mark == "'"
} | {"somebody'd": "somebodyd"}  # fmt: skip


def vqa_accuracy(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """Mean over the questions of the share in [0, 1] by which an answer is right (Antol et al. 2015, "VQA").

    Of a question it is the mean over the ten ways to leave one annotator out of `min(matches / 3, 1)`, where `matches`
    counts the nine others who gave the predicted answer.

    Args:
      targets: each the answers of ten annotators, as they were given.
      predictions: strings.

    Raises:
      UserError: if there are no targets, or not one prediction for each, or a target has not ten answers.
    """
    metric_arguments.paired("vqa_accuracy", targets, predictions)
    metric_arguments.strings("vqa_accuracy", predictions)
    several = metric_arguments.references("vqa_accuracy", targets)
    for i, answers in enumerate(several):
        if len(answers) != ANNOTATORS:
            raise UserError(
                f"vqa_accuracy needs the answers of {ANNOTATORS} annotators; target {i} has {len(answers)}."
            )
    return {"vqa_accuracy": sum(map(question_accuracy, several, predictions)) / len(several)}


def question_accuracy(answers: Sequence[str], prediction: str) -> float:
    """The share in [0, 1] by which `prediction` is right, of one question with ten `answers`."""
    answers, prediction = [_on_one_line(answer) for answer in answers], _on_one_line(prediction)
    if len(set(answers)) > 1:
        answers, prediction = [normalize(answer) for answer in answers], normalize(prediction)
    matches = [answer == prediction for answer in answers]
    return sum(min((sum(matches) - left_out) / _ENOUGH, 1.0) for left_out in matches) / len(matches)


def normalize(text: str) -> str:
    """An answer without punctuation and articles, in lower case, numbers up to ten as digits, contractions whole."""
    plain = text
    glued = _DIGITS_COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if glued or beside_blank else " ")
    words = _PERIOD.sub("", plain, count=_PERIODS).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_MEANT.get(word, word) for word in words if word not in _ARTICLES)


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
