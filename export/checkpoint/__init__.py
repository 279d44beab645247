"""A checkpoint on disk, whatever form it has. No weight is read here."""
