"""Process groups of tests."""

from __future__ import annotations

import os
from typing import NoReturn

from torch import distributed


def leave() -> NoReturn:
    """End a process of a group, and all is well.

    A model in DistributedDataParallel keeps the threads of Gloo's group, and one of them that is
    still at work when Python ends aborts it.
    """
    distributed.destroy_process_group()
    os._exit(0)
