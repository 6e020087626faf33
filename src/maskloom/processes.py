"""Processes that start clean and at once."""

from __future__ import annotations

from multiprocessing import get_context
from multiprocessing.context import ForkServerContext


def clean_forks(module: str) -> ForkServerContext:
    """A context whose processes fork from a server that has imported `module` and nothing else has happened in.

    A fork of this process, which may hold CUDA, NCCL and gloo threads, could deadlock; a fresh interpreter for every
    process would import for seconds.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([module])
    return context
