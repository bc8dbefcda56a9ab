"""Latency of recurrent ONNX models in ONNX Runtime, measured so that the number can be trusted.

`plan` (what) -> `measure` (fresh processes running `runner`) -> `statistics` -> `report` (rows) -> `table`, `markdown`,
`page`. Beside it: `costs` (by the graph) and `roofline` (of this machine) say how near the limit a row is;
`latency_measurement` -> `latency_table` measure kernels and predict whole models. `compare` leads: what a plan's device
cannot have measured here goes to `devices`.
"""
