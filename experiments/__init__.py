"""The front doors: command line, model zoo, data, reports, benchmarks."""
