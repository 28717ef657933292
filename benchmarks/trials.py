"""Ablations, on validation data only, for the cases in which MSD loses.

A trial changes one thing: hyperparameters, epochs, the student's size, or what else it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.methods import EQUAL, KD
from benchmarks.runs import Job

Trials = dict[str, dict[str, Any]]

PLAIN = {
    "rate": 0.02,
    "decay": 0.1,
    "word_dropout": 0.5,
    "dropout": 0.0,
    "mix": 0.9,
    "temperature": 4.0,
}
TINY: Trials = {  # why MSD may lose with a tiny student
    "as it is": {},
    "temperature 2": {"settings": {"temperature": 2.0}},
    "temperature 1": {"settings": {"temperature": 1.0}},
    "labels count half": {"settings": {"mix": 0.5}},
    "half the learning rate": {"settings": {"rate": 0.01}},
    "a quarter of it": {"settings": {"rate": 0.005}},
    "views stacked, not towers once": {"once": False},
    "three times the epochs": {"epochs": 48},
    "a student twice as wide": {"size": 1.0},
    "four times as wide": {"size": 2.0},
    "no picture is white, not black": {"absent": 1.0},
    "modalities alone count 0.5": {"single": 0.5},
    "modalities alone count 0.25": {"single": 0.25},
    "modalities alone count 0.1": {"single": 0.1},
    "they count less at each step": {"method": "MSD fading"},
    "by saliency": {"method": "MSD saliency", "settings": {"alpha": 1.0}},
    "conflict-free gradients": {"method": "MSD conflict-free"},
}
BLINDING = {  # with these settings, four of ten students did not use the image
    "rate": 0.04,
    "decay": 0.1,
    "word_dropout": 0.3,
    "dropout": 0.1,
    "mix": 0.9,
    "temperature": 1.0,
}
BLIND: Trials = {  # why some students use only one modality
    "as it was": {},
    "views stacked, not towers once": {"once": False},
    "half the learning rate": {"settings": {"rate": 0.01}},
    "temperature 4": {"settings": {"temperature": 4.0}},
    "labels count half": {"settings": {"mix": 0.5}},
    "word dropout 0.5": {"settings": {"word_dropout": 0.5}},
    "no picture is white, not black": {"absent": 1.0},
}
LEARNING: Trials = {  # why weights may not learn which predictions are wrong
    "equal weights": {"method": EQUAL},
    "learned, as chosen": {},
    "as much held out, nothing learned": {"settings": {"meta_rate": 0.0}},
    "10 % held out": {"settings": {"held_out": 0.1}},
    "20 % held out": {"settings": {"held_out": 0.2}},
    "weights learn at every step": {"settings": {"every": 1}},
    "meta-rate 0.001": {"settings": {"meta_rate": 0.001}},
    "look-ahead 0.01": {"settings": {"look_ahead": 0.01}},
    "look-ahead 1": {"settings": {"look_ahead": 1.0}},
}
TRIALS = {"tiny": TINY, "blind": BLIND, "learning": LEARNING}


def apply_trial(job: Job, question: str, name: str, chosen: Mapping[str, Any]) -> Job:
    """Return a job with the changes of a trial. KD has no weights and no terms to change."""
    trial, method = TRIALS[question][name], job["method"]
    job = {**job, **_base(question, chosen)}
    settings = {**job["settings"], **trial.get("settings", {})}
    if method != KD and "single" in trial:
        method, settings = "MSD population", {**settings, "single": trial["single"]}
    elif method != KD:
        method = trial.get("method", method)
    options: Job = {key: trial[key] for key in ("epochs", "size", "once") if key in trial}
    return {**job, **options, "method": method, "settings": settings}


def _base(question: str, chosen: Mapping[str, Any]) -> Job:
    """Return the entries that all trials of a question have in common."""
    if question == "tiny":
        return {"size": 0.5, "settings": PLAIN}
    if question == "blind":
        return {"settings": BLINDING}
    return {"corrupted": True, "settings": {**chosen["MSD learned"], **chosen[EQUAL]}}
