"""An ONNX graph run in PyTorch, so that gradients reach its weights: an interpreter, and a table of operators.

No converter package does this for recurrent networks: onnx2torch has no LSTM, GRU or RNN, onnx2pytorch fails on GRU.
"""
