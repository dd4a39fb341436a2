"""Clusters of a tensor on one page: record, pictures, page, and the files beside it."""
