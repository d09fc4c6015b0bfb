"""Pipeline: a complete selection job, from files to files."""

from typing import TYPE_CHECKING

from mrt_plugin.lazy import lazy_names

if TYPE_CHECKING:
    from mrt_plugin.pipeline.files import select_file
    from mrt_plugin.pipeline.job import PoolFile, SelectJob

__all__ = ["PoolFile", "SelectJob", "select_file"]

__getattr__ = lazy_names(__name__, {"PoolFile": ".job", "SelectJob": ".job", "select_file": ".files"})
