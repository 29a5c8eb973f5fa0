"""The method: candidates, parameter inheriting with momentum, growth architecture selection, and its phases."""
