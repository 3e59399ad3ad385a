"""The judge: tracer, executor and verdict, each in a process of its own."""
