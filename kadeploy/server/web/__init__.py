"""The page of the service: what people see and do in a browser, below ``/ui``."""
