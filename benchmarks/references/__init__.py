"""What elman is compared with: the same models on onnxruntime alone."""
