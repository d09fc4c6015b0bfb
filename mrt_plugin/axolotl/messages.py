"""Show the plugin's INFO messages.

Axolotl prints messages below WARNING only from its own loggers. The plugin's messages report counts and decisions.
"""

import logging
import os

from axolotl.logging_config import AxolotlOrWarnErrorFilter, ColorfulFormatter


class _Console(logging.Handler):
    """Prints messages below WARNING. Axolotl already prints the others."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            print(self.format(record), flush=True)


def show_messages() -> None:
    """Print the INFO messages of `mrt_plugin`, on the main process. Call it again for modules loaded since."""
    ours = logging.getLogger("mrt_plugin")
    if not ours.handlers and int(os.environ.get("LOCAL_RANK", "0")) == 0:
        handler = _Console()
        handler.setFormatter(ColorfulFormatter("[%(asctime)s] [%(levelname)s] [%(name)s] %(message)s"))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)
    for name, logger in list(logging.Logger.manager.loggerDict.items()):
        if name.startswith("mrt_plugin") and isinstance(logger, logging.Logger):
            for item in list(logger.filters):  # Axolotl's logger class adds one to every logger
                if isinstance(item, AxolotlOrWarnErrorFilter):
                    logger.removeFilter(item)
