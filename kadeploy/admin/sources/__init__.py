"""Where nodes can be read from: one kind of file per module, each with a function `read` that answers `Found`."""
