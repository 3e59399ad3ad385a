"""A declarative engine: YAML stage plans in, judged Triton kernels and SQL rows out."""

__version__ = "0.1.0"
