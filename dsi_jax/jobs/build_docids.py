"""Builds the docid table of a run and reports on its health."""

from __future__ import annotations

import logging

from dsi_jax.docids.health import plots, report
from dsi_jax.prepare import docid_table as docid_table_lib
from dsi_jax.prepare.assets import prepare
from dsi_jax.prepare.data_config import DataConfig, check_data_config
from dsi_jax.storage.model_dir import ModelDir, model_directory
from dsi_jax.utils import checks

logger = logging.getLogger(__name__)


def build_docids(
    model_dir: str, data: DataConfig, *, config_text: str = "", dry_run: bool = False
) -> None:
    """The `docids` command: prepares a run's files, reports on the health of its docid table.

    Raises:
      ValueError, OSError: as `prepare`.
    """
    del config_text  # `train` keeps the configuration; this command has no run of its own
    checks.check_type("MODEL_DIR", model_dir, str)
    check_data_config(data)
    assets = prepare(data, model_dir, write=not dry_run)
    oracle = docid_table_lib.oracle_recall(assets, data.docids, data.seed, write=not dry_run)
    logger.info("%s\n\n%s", "\n".join(assets.lines()), report.report(assets.table, oracle))
    if dry_run:
        return
    logger.info("docid table: %s", assets.table_path)
    if plots.available():
        path = ModelDir(model_directory(model_dir)).docids_plot
        plots.plot_report(assets.table, path, oracle)
        logger.info("plot: %s", path)
    else:
        logger.info("no plot: matplotlib is not installed (pip install 'dsi-jax[plots]')")
