"""The words for the labels of GLUE and SuperGLUE in T5's text-to-text form, in the order of the labels' numbers."""

_ENTAILMENT = ("entailment", "not_entailment")
_THREE_WAY = ("entailment", "neutral", "contradiction")

GLUE = {
    "cola": ("unacceptable", "acceptable"),
    "sst2": ("negative", "positive"),
    "mrpc": ("not_equivalent", "equivalent"),
    "qqp": ("not_duplicate", "duplicate"),
    "mnli": _THREE_WAY,
    "mnli_matched": _THREE_WAY,
    "mnli_mismatched": _THREE_WAY,
    "qnli": _ENTAILMENT,
    "rte": _ENTAILMENT,
    "wnli": ("not_entailment", "entailment"),
    "ax": _THREE_WAY,
}  # STS-B has numbers, AX has no public targets

SUPERGLUE = {
    "boolq": ("False", "True"),
    "cb": ("entailment", "contradiction", "neutral"),
    "copa": ("choice1", "choice2"),
    "multirc": ("False", "True"),
    "rte": _ENTAILMENT,
    "wic": ("False", "True"),
}  # ReCoRD has answers
