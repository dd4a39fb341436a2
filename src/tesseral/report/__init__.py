"""Records in, tables and pages out; knows no kernel."""
