"""UNITE: exemplar-based image translation by unbalanced feature transport, the reference consumer of uotlib."""
