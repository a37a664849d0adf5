"""Networks on one device behind one face: TensorRT, PyTorch, TorchScript or ONNX Runtime.

Knows nothing of vision or ROS: tensors in, tensors out, CUDA graphs in between.
"""
