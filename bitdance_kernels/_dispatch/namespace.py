"""The namespace of the ops: ``torch.ops.bitdance.<op>``.

Another copy of the package in a process must have another one; integrations/kernels_hub puts a
module in place of this.
"""

NAMESPACE = "bitdance"
