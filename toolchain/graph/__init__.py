"""The surgery: ONNX graphs with smaller recurrent tensors."""
