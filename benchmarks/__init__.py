"""Measured, not tested: python -m benchmarks.NAME, each in turn with what it compares, on your machine.

throughput          training steps: this project, the plain way, and the floor
floor               what a step cannot be faster than: arithmetic, memory, launches
scaling             a step's cost as glimpses and images grow
time_to_accuracy    seconds from the command to a validation error, imports and compilation included
catch               frames of the game a second, and the plain way
page_speed          an answer of the page, in a browser
onnx_speed          a prediction in onnxruntime and in eager PyTorch
startup             how long a command takes to its help, and to its first batch
"""
