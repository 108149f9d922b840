"""Settings, errors, logging, records and packaged files: what every other room needs, and nothing heavy."""
