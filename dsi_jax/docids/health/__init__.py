"""The health of a docid table: report, oracle recall, plots."""
