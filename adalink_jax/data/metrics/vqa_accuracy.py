"""VQA accuracy: how many of ten people gave an answer, counted and normalised as in the VQA challenge.

The challenge's normalisation has peculiarities that affect scores, and all are reproduced: it is skipped if all ten answers
are equal; a comma between digits joins everything that other punctuation separates; only the first 32 periods are removed.
"""

import re
from collections.abc import Sequence

from adalink_jax.data.metrics import metric_arguments
from adalink_jax.errors import UserError

ANNOTATORS = 10
_ENOUGH = 3  # annotators that must agree with an answer for a full score

_NUMBERS = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}  # fmt: skip
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS = 32
_DIGITS_COMMA = re.compile(r"\d,\d")

# Also recognised if one of the apostrophes is missing.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()
_COMPLETED = {
    whole[:i] + whole[i + 1 :]: whole for whole in _CONTRACTIONS for i, mark in enumerate(whole) if mark == "'"
} | {"somebody'd": "somebodyd"}  # fmt: skip


def vqa_accuracy(targets: Sequence[Sequence[str]], predictions: Sequence[str]) -> dict[str, float]:
    """The mean score in [0, 1] of the questions (Antol et al. 2015, "VQA").

    A question's score is the mean of `min(matches / 3, 1)` over the ten ways to leave one annotator out, where `matches` counts
    the other nine who gave the predicted answer.

    Args:
      targets: for each question the answers of ten annotators, unchanged.
      predictions: strings.

    Raises:
      UserError: if there are no targets, not one prediction for each, or a target without exactly ten answers.
    """
    several = metric_arguments.references("vqa_accuracy", targets, predictions)
    for i, answers in enumerate(several):
        if len(answers) != ANNOTATORS:
            raise UserError(
                f"vqa_accuracy needs the answers of {ANNOTATORS} annotators; target {i} has {len(answers)}."
            )
    return {"vqa_accuracy": sum(map(question_accuracy, several, predictions)) / len(several)}


def question_accuracy(answers: Sequence[str], prediction: str) -> float:
    """The score in [0, 1] of a prediction for one question with ten answers."""
    answers, prediction = [_on_one_line(answer) for answer in answers], _on_one_line(prediction)
    if len(set(answers)) > 1:
        answers, prediction = [normalize(answer) for answer in answers], normalize(prediction)
    matches = [answer == prediction for answer in answers]
    return sum(min((sum(matches) - left_out) / _ENOUGH, 1.0) for left_out in matches) / len(matches)


def normalize(text: str) -> str:
    """Lowers an answer, removes punctuation and articles, writes numbers up to ten as digits and completes contractions."""
    plain = text
    glued = _DIGITS_COMMA.search(text) is not None
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        plain = plain.replace(mark, "" if glued or beside_blank else " ")
    words = _PERIOD.sub("", plain, count=_PERIODS).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_COMPLETED.get(word, word) for word in words if word not in _ARTICLES)


def _on_one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
