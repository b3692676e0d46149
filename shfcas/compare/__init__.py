"""Comparison of strategies at equal label budgets: `shfcas compare`, and the same for the user's own answers."""

from shfcas.compare.answers import AnswerSet
from shfcas.compare.cells import Bench, Cell, Label, RefineHead, ask, head_bench, judge, measure, run_cell
from shfcas.compare.grid import Record, cells_of, run_grid, tidy
from shfcas.compare.heads import Head, HeadFit
from shfcas.compare.statistics import Key, curves, holm, keys_of, paired_tests, signed_rank
from shfcas.compare.tables import write_parquet, write_tables

__all__ = [
    "AnswerSet",
    "Bench",
    "Cell",
    "Head",
    "HeadFit",
    "Key",
    "Label",
    "Record",
    "RefineHead",
    "ask",
    "cells_of",
    "curves",
    "head_bench",
    "holm",
    "judge",
    "keys_of",
    "measure",
    "paired_tests",
    "run_cell",
    "run_grid",
    "signed_rank",
    "tidy",
    "write_parquet",
    "write_tables",
]
