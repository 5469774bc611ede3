"""The engine: it works through the cells of a suite, keeps what is finished, and resumes."""
