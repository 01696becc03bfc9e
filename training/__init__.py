"""What one run needs besides the trainer. Imports run from the end of this list to its beginning.

progress            where a run stands, and what an epoch came to
run_folder          a run's folder: its lock, settings, metrics and records
evaluation          one pass over validation or test images
optim               optimizers, the average of the weights, schedules
step                the loss of a batch: eager or compiled
captured_step       a whole training step as one CUDA graph
distributed         several processes that train as one (torchrun)
checkpoint          the file format, and files that are written whole or not at all
fixed_policies      where to look if nothing is learned about it
fuse_matmuls        makes the matrix products of a compiled step fewer
cli                 flags, and errors of one line
"""
