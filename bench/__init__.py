"""Latency of recurrent ONNX models in ONNX Runtime, measured so that the number can be trusted.

Data flow: `plan` (what) -> `measure` (fresh processes running `runner`) -> `statistics` -> `report`.
"""
