"""The only backward: potentials, products with the plan and the value, as functions of every input."""
