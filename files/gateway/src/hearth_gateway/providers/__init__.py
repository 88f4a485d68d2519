"""The model vendors, one class a wire format. HTTP goes out here and nowhere else."""
