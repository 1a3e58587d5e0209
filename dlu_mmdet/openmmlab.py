"""Imported first by what needs MMDetection, so that its absence is one sentence."""

from .stacks import check_stack

check_stack()
